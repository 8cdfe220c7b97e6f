"""What double backward through torch.autograd gives for everything that a linearisation returns."""

from __future__ import annotations

import copy
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fisherkernels import linearize

SEED = 1234


def parts(value):
    return value if isinstance(value, tuple) else (value,)


def like(value, pieces):
    return tuple(pieces) if isinstance(value, tuple) else pieces[0]


def rms(tensor) -> float:
    return float(tensor.detach().double().pow(2).mean().sqrt()) if tensor.numel() else 0.0


def relative_rms(actual, expected, floor=0.0) -> float:
    """Root mean squared error over that of the expected values, or over ``floor`` if larger. NaN never passes."""
    if actual.numel() == 0:
        assert actual.shape == expected.shape
        return 0.0
    scale = max(rms(expected), floor)
    return rms(actual - expected) / scale if scale else rms(actual)


def close(actual, expected, tolerance, what, floor=0.0):
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    error = relative_rms(actual, expected, floor)
    assert error <= tolerance, f"{what}: relative RMS error {error:.2e} > {tolerance:.0e}"


def all_close(actual, expected, tolerance, what):
    """A gradient that vanishes but for rounding (a bias before BatchNorm) is held against the others' size: in float32
    tolerances of 1e-4 then mean three of their last digits.
    """
    floor = (1e-3 if expected[0].dtype is torch.float64 else 3e-3) * max(map(rms, expected))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        close(a, e, tolerance, f"gradient {i} of {what}", floor)


def gradients(scalar, net, x):
    """With respect to every parameter and x, zeros where nothing depends on it."""
    leaves = [*net.parameters(), x]
    if not scalar.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(scalar, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def batched_gradients(lin, wanted):
    outputs = lin.vjp(lin.value.sin()), lin.value
    many = [torch.stack([output.detach().cos(), output.detach()]) for output in outputs]
    return torch.autograd.grad(outputs, wanted, many, is_grads_batched=True)


def gradients_with_tangents(lin, wanted):
    product = lin.vjp(lin.value.sin())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(product.detach().cos(), product.detach())
        found = torch.autograd.grad(product, wanted, dual)
        return [torch.autograd.forward_ad.unpack_dual(grad).tangent for grad in found]


def gradients_without_nan(lin, wanted):
    """No memory that nobody wrote, which is NaN under test, passes for a gradient."""
    with torch.autograd.detect_anomaly():
        return torch.autograd.grad(lin.vjp(lin.value.sin()).square().sum(), wanted)


OTHER_WAYS = (batched_gradients, gradients_with_tangents, gradients_without_nan)


def primitive_batch_norm(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """F.batch_norm in primitive operations: torch's own has a wrong derivative of its forward-mode derivative."""
    if training:
        dims = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(x, dims, correction=0)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + eps)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def primitive_layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """F.layer_norm in primitive operations, for the same reason."""
    var, mean = torch.var_mean(x, list(range(-len(normalized_shape), 0)), correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(var + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def primitive_instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    """F.instance_norm in primitive operations, for the same reason."""
    var, mean = torch.var_mean(x, list(range(2, x.dim())), correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(var + eps)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def primitive_glu(x, dim=-1):
    """F.glu in primitive operations, for want of that derivative."""
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def primitive_hardsigmoid(x, inplace=False):
    """F.hardsigmoid in primitive operations: the backward of torch's own has no derivative."""
    return F.relu6(x + 3) / 6


PRIMITIVE = {
    "batch_norm": primitive_batch_norm,
    "layer_norm": primitive_layer_norm,
    "instance_norm": primitive_instance_norm,
    "glu": primitive_glu,
    "hardsigmoid": primitive_hardsigmoid,
}


def by_autograd(net: nn.Module, x, cotangents, tangent):
    """(value, J^T c of the batch sum by double backward, J t by forward mode)."""
    start = {name: buffer.clone() for name, buffer in net.named_buffers()}
    torch.manual_seed(SEED)
    primitive = mock.patch.object(F, "hardsigmoid", primitive_hardsigmoid)
    with primitive, sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no higher derivatives
        value = net(x)
    vjp = torch.autograd.grad(parts(value), x, cotangents, create_graph=True, allow_unused=True)[0]

    def call(x):
        buffers = {name: buffer.clone() for name, buffer in start.items()}
        return torch.func.functional_call(net, buffers, (x,))

    torch.manual_seed(SEED)
    with mock.patch.multiple(F, **PRIMITIVE), sdpa_kernel(SDPBackend.MATH):
        _, jvp = torch.func.jvp(call, (x,), (tangent,))
    return value, torch.zeros_like(x) if vjp is None else vjp, parts(jvp)


def scalar_of(tensors):
    """A scalar with a different weight for every entry, so that no gradient hides behind a symmetry."""
    total = 0.0
    for tensor in tensors:
        weights = torch.linspace(0.5, 1.5, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
        total = total + (weights * tensor * tensor).sum() + (weights * tensor).sum()
    return total


def check(net: nn.Module, shape, *, dtype=torch.float64, tolerance=1e-12, fallback=False, x=None):
    """value, vjp, jvp, stacks of both, and the gradients of each with respect to the parameters and x."""
    net = net.to(dtype)
    twin = copy.deepcopy(net)
    x = torch.randn(shape, dtype=dtype) if x is None else x.detach()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(SEED)
    lin = linearize(net, mine)
    assert any("fallback" in rule for rule in lin.rules.values()) == fallback, lin.rules
    cotangents = [torch.randn_like(v) for v in parts(lin.value)]
    tangent = torch.randn_like(x)
    value, vjp, jvp = by_autograd(twin, theirs, cotangents, tangent)
    my_vjp = lin.vjp(like(lin.value, cotangents))
    my_jvp = lin.jvp(tangent)
    for what, actual, expected in (
        ("value", parts(lin.value), parts(value)),
        ("vjp", [my_vjp], [vjp]),
        ("jvp", parts(my_jvp), jvp),
    ):
        for a, e in zip(actual, expected, strict=True):
            close(a, e, tolerance, what)
        ours = gradients(scalar_of(actual), net, mine)
        all_close(ours, gradients(scalar_of(expected), twin, theirs), 10 * tolerance, what)
    for name, buffer in twin.named_buffers():
        assert torch.allclose(dict(net.named_buffers())[name], buffer), f"buffer {name}"
    check_stacks(lin, net, mine, tolerance)
    return lin


def check_stacks(lin, net, x, tolerance, count=3):
    """A stack equals the loop of singles, gradients included; an empty stack is empty."""
    stacks = [torch.randn(count, *v.shape, dtype=v.dtype) for v in parts(lin.value)]
    tangents = torch.randn(count, *x.shape, dtype=x.dtype)
    together = lin.vjp(like(lin.value, stacks))
    singly = torch.stack([lin.vjp(like(lin.value, [s[k] for s in stacks])) for k in range(count)])
    close(together, singly, tolerance, "vjp of a stack")
    pushed = parts(lin.jvp(tangents))
    loop = [parts(lin.jvp(t)) for t in tangents]
    for i, stack in enumerate(pushed):
        close(stack, torch.stack([member[i] for member in loop]), tolerance, "jvp of a stack")
    looped = [torch.stack([member[i] for member in loop]) for i in range(len(pushed))]
    for what, stack, members in (("vjp", [together], [singly]), ("jvp", pushed, looped)):
        singles = gradients(scalar_of(members), net, x)
        all_close(gradients(scalar_of(stack), net, x), singles, 10 * tolerance, f"a stacked {what}")
    assert lin.vjp(like(lin.value, [s[:0] for s in stacks])).shape == (0, *x.shape)
    assert [p.shape for p in parts(lin.jvp(tangents[:0]))] == [(0, *v.shape) for v in parts(lin.value)]
