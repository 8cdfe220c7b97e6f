"""A norm and the activation behind it, value and vector-Jacobian product, as in a convolutional network's layer."""

import torch
from torch.nn import functional as F

from fisherkernels import ops  # noqa: F401  (defines the operators)
from fisherkernels.ops._mlp_plain import SWEEP_ACTIVATIONS

from ..case import Case, Contender
from .contenders import four_ways, reference

EPS, SLOPE, FLOAT = 1e-5, 0.2, 4


def _with_backward(forward):
    def run(x, weight, bias, cotangent, *grads):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, cotangent)]
        outputs = forward(*leaves)
        return *outputs, *torch.autograd.grad(outputs, leaves, grads)

    return run


def _ours(groups, activation):
    kernels, behind = torch.ops.fisherkernels, (SWEEP_ACTIVATIONS.index(activation), SLOPE)

    def run(x, weight, bias, cotangent):
        value, mean, rstd, _ = kernels.norm_value(x, weight, bias, groups, EPS, *behind)
        product = kernels.norm_pull(cotangent, None, x, weight, bias, mean, rstd, groups, *behind, False)[0]
        return value, product

    return run


def _leaky_relu(given, cotangent):
    """The value and J^T c."""
    return F.leaky_relu(given, SLOPE), torch.where(given > 0, cotangent, SLOPE * cotangent)


def _silu(given, cotangent):
    s = torch.sigmoid(given)
    return given * s, cotangent * (s + given * s * (1 - s))


def _by_hand(groups, activation):
    def run(x, weight, bias, cotangent):
        sets, over = (x.unflatten(1, (groups, -1)), (2, 3, 4)) if groups else (x, (0, 2, 3))
        variance, mean = torch.var_mean(sets, over, correction=0, keepdim=True)
        rstd = torch.rsqrt(variance + EPS)
        unit = (sets - mean) * rstd
        value, inner = activation(unit.view_as(x) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1), cotangent)
        inner = (inner * weight.view(-1, 1, 1)).view_as(unit)
        inner = inner - inner.mean(over, keepdim=True) - unit * (unit * inner).mean(over, keepdim=True)
        return value, (rstd * inner).view_as(x)

    return run


def _double_backward(norm, activation):
    def run(x, weight, bias, cotangent):
        value = activation(norm(x, weight, bias))
        return value, torch.autograd.grad(value, x, cotangent, create_graph=True)[0]

    return run


def _case(name, shape, groups, norm, title, behind, activation, by_hand, tolerance):
    count = torch.Size(shape).numel()

    def inputs(generator):
        x, cotangent, grad_value, grad_product = (torch.randn(shape, generator=generator) for _ in range(4))
        weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
        return x + 1, weight, bias, cotangent, grad_value / count, grad_product / count

    def double_backward(device, dtype):
        return _with_backward(_double_backward(norm, activation))

    ours, users = _ours(groups, behind), _by_hand(groups, by_hand)
    return Case(
        name=name,
        title=f"and {title}, value and product, {list(shape)}" + f", {groups} groups" * bool(groups),
        inputs=inputs,
        reference=reference(_with_backward, users),
        contenders=(
            *four_ways(_with_backward, ours, users),
            Contender("eager double backward", double_backward),
        ),
        outputs=("value", "product", "grad_x", "grad_weight", "grad_bias", "grad_cotangent"),
        tolerances={torch.float64: 1e-10, torch.float32: tolerance},
        bytes_moved=FLOAT * 10 * count,
        traffic="10 arrays of N·C·H·W: forward reads x and the cotangent and writes value and product; backward reads "
        "these two and the gradients of those two and writes their own.",
        devices=("cpu",),
    )


def _batch_norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)


def _group_norm(x, weight, bias):
    return F.group_norm(x, GROUPS, weight, bias, EPS)


def _leaky(x):
    return F.leaky_relu(x, SLOPE)


GROUPS = 8
KINK = 1e-2  # there float32 and float64 now and then take different sides
CASES = (
    _case("batch_norm", (128, 128, 11, 11), 0, _batch_norm, "LeakyReLU", "leaky_relu", _leaky, _leaky_relu, KINK),
    _case("group_norm", (128, 64, 16, 16), GROUPS, _group_norm, "SiLU", "silu", F.silu, _silu, 1e-5),
)
