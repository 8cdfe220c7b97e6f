"""BatchNorm with batch statistics and LeakyReLU: the value and a vector-Jacobian product, as in a decoder's layer."""

import torch
from torch.nn import functional as F

from fisherkernels import ops  # noqa: F401  (defines the operators)
from fisherkernels.ops._mlp_plain import SWEEP_ACTIVATIONS

from ..case import Case, Contender
from .contenders import four_ways, reference

N, C, SIZE = 128, 128, (11, 11)
SLOPE, EPS = 0.2, 1e-5
FLOAT, COUNT = 4, N * C * SIZE[0] * SIZE[1]
ACTIVATION = SWEEP_ACTIVATIONS.index("leaky_relu"), SLOPE


def _inputs(generator):
    x, cotangent, grad_value, grad_product = (torch.randn(N, C, *SIZE, generator=generator) for _ in range(4))
    weight, bias = (torch.randn(C, generator=generator) for _ in range(2))
    return x + 1, weight, bias, cotangent, grad_value / COUNT, grad_product / COUNT


def _ours(x, weight, bias, cotangent):
    kernels = torch.ops.fisherkernels
    value, mean, rstd, _ = kernels.norm_value(x, weight, bias, 0, EPS, *ACTIVATION)
    product = kernels.norm_pull(cotangent, None, x, weight, bias, mean, rstd, 0, *ACTIVATION, False)[0]
    return value, product


def _by_hand(x, weight, bias, cotangent):
    over = (0, 2, 3)
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + EPS)
    unit = (x - mean) * rstd
    given = unit * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    inner = torch.where(given > 0, cotangent, SLOPE * cotangent)
    inner = inner - inner.mean(over, keepdim=True) - unit * (unit * inner).mean(over, keepdim=True)
    return F.leaky_relu(given, SLOPE), rstd * weight.view(-1, 1, 1) * inner


def _double_backward(x, weight, bias, cotangent):
    value = F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS), SLOPE)
    return value, torch.autograd.grad(value, x, cotangent, create_graph=True)[0]


def _with_backward(forward):
    def run(x, weight, bias, cotangent, *grads):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, cotangent)]
        outputs = forward(*leaves)
        return *outputs, *torch.autograd.grad(outputs, leaves, grads)

    return run


CASES = (
    Case(
        name="batch_norm",
        title=f"and LeakyReLU, value and product, [{N}, {C}, {SIZE[0]}, {SIZE[1]}]",
        inputs=_inputs,
        reference=reference(_with_backward, _by_hand),
        contenders=(
            *four_ways(_with_backward, _ours, _by_hand),
            Contender("eager double backward", lambda device, dtype: _with_backward(_double_backward)),
        ),
        outputs=("value", "product", "grad_x", "grad_weight", "grad_bias", "grad_cotangent"),
        tolerances={torch.float64: 1e-10, torch.float32: 1e-2},  # at a kink the two now and then take different sides
        bytes_moved=FLOAT * 10 * COUNT,
        traffic="10 arrays of N·C·H·W: forward reads x and the cotangent and writes value and product; backward reads "
        "these two and the gradients of those two and writes their own.",
        devices=("cpu",),
    ),
)
