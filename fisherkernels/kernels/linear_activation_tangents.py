"""A stack of tangents and a Laplacian through a Linear layer and the activation behind it."""

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import check_full_precision, check_matrix, check_same_shape, check_tensor
from fisherkernels.ops._library import define

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def linear_activation_tangents(
    tangents: Tensor,
    laplacian: Tensor | None,
    weight: Tensor,
    slope: Tensor,
    curvature: Tensor,
    *,
    keep_tangents: bool = True,
) -> tuple[Tensor | None, Tensor]:
    r"""One step of the forward Laplacian through a(W x + b), with slope a' and curvature a'' at W x + b:

        p_k = W tangents_k        tangents'_k = a' p_k        laplacian' = a' W laplacian + a'' Σ_k p_k²

    float32 on CUDA of compute capability 8.0 and newer: one Triton kernel, the activation being the epilogue of the
    product, on tensor cores in three-term TF32, which has float32's accuracy, or in plain TF32 where
    ``torch.backends.cuda.matmul.allow_tf32`` is set. Anywhere else: a product, then ``fk.ops.activation_tangents``.
    Floor: 2 (K + 1) N h m FLOPs; tangents read once, tangents' written once, and p too where it is kept for backward,
    which consists of ``activation_tangents``'s and four products.

    Args:
        tangents: shape [K, N, h], any strides.
        laplacian: shape [N, h], or None for zeros.
        weight: W, shape [m, h].
        slope: shape [N, m].
        curvature: shape [N, m].
        keep_tangents: False where only the Laplacian is wanted: tangents' are not written.

    Returns:
        tangents' [K, N, m], or None without keep_tangents, and laplacian' [N, m]. Differentiable in all tensors.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.

    Source: forward Laplacian: Li et al., "A computational framework for neural network-based variational Monte Carlo
    with Forward Laplacian", 2023 (arXiv:2307.08214).
    """
    name = "linear_activation_tangents"
    check_full_precision(name, "slope", slope, "half precision does not hold sums of second derivatives")
    check_matrix(name, "slope", slope)
    check_tensor(name, "curvature", curvature, slope)
    check_same_shape(name, "curvature", curvature, "slope", slope)
    check_tensor(name, "weight", weight, slope)
    rows, outputs = slope.shape
    if weight.dim() != 2 or weight.shape[0] != outputs:
        raise ValueError(f"{name}: weight must have shape [{outputs}, any] beside slope, got {list(weight.shape)}")
    width = weight.shape[1]
    check_tensor(name, "tangents", tangents, slope)
    if tangents.dim() != 3 or tangents.shape[1:] != (rows, width):
        raise ValueError(
            f"{name}: tangents must have shape [K, {rows}, {width}] beside slope and weight, got {list(tangents.shape)}"
        )
    if laplacian is not None:
        check_tensor(name, "laplacian", laplacian, slope)
        if laplacian.shape != (rows, width):
            raise ValueError(f"{name}: laplacian must have shape [{rows}, {width}], got {list(laplacian.shape)}")
    op = torch.ops.fisherkernels.linear_activation_tangents.default
    args = (tangents, laplacian, weight, slope, curvature)
    pushed, total, _, _ = call(op, _autograd, *args, keep_tangents, needs_graph(*args))
    return pushed if keep_tangents else None, total


def has_kernel(like: Tensor) -> bool:
    """Whether there is a Triton kernel for tensors such as ``like``, if their device has tensor cores for it."""
    return _HAS_TRITON and like.is_cuda and like.dtype is torch.float32


def _forward(tangents, laplacian, weight, slope, curvature, keep_tangents, keep_products):
    if (
        has_kernel(slope)
        and 0 not in (*tangents.shape, *slope.shape)
        and torch.cuda.get_device_capability(slope.device) >= (8, 0)
    ):
        from fisherkernels.kernels.linear_activation_tangents_triton import push_on_tensor_cores

        return push_on_tensor_cores(tangents, laplacian, weight, slope, curvature, keep_tangents, keep_products)
    products = F.linear(tangents, weight)  # [K, N, m]
    through = None if laplacian is None else F.linear(laplacian, weight)
    op = torch.ops.fisherkernels.activation_tangents.default
    pushed, total = op(products, through, slope, curvature, keep_tangents)
    none = slope.new_empty(0)
    keeps_through = keep_products and through is not None
    return pushed, total, products if keep_products else none, through if keeps_through else none.clone()


def _forward_fake(tangents, laplacian, weight, slope, curvature, keep_tangents, keep_products):
    stack = (len(tangents), *slope.shape)
    keeps_through = keep_products and laplacian is not None
    return (
        slope.new_empty(stack if keep_tangents else (0,)),
        slope.new_empty(slope.shape),
        slope.new_empty(stack if keep_products else (0,)),
        slope.new_empty(slope.shape if keeps_through else (0,)),
    )


class _LinearActivationTangents(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tangents, laplacian, weight, slope, curvature, keep_tangents):
        op = torch.ops.fisherkernels.linear_activation_tangents.default
        results = below_autograd(op, tangents, laplacian, weight, slope, curvature, keep_tangents, True)
        ctx.save_for_backward(tangents, laplacian, weight, slope, curvature, *results[2:])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[2:])
        ctx.keep_tangents = keep_tangents
        return results

    @staticmethod
    def backward(ctx, grad_tangents, grad_laplacian, *_):
        if not ctx.keep_tangents:
            grad_tangents = None
        if grad_tangents is None and grad_laplacian is None:
            return (None,) * 6
        tangents, laplacian, weight, slope, curvature, products, through = ctx.saved_tensors
        with torch.no_grad():
            grads = _backward(
                ctx.needs_input_grad, grad_tangents, grad_laplacian, tangents, laplacian, weight, slope, curvature,
                products, None if laplacian is None else through,
            )  # fmt: skip
        sources = (grad_tangents, grad_laplacian, tangents, laplacian, weight, slope, curvature)
        wanted = [grad is not None for grad in grads]
        grads = [slope.new_empty(0) if grad is None else grad for grad in grads]
        return *single_backward("linear_activation_tangents", wanted, grads, sources), None


def _backward(needs, grad_tangents, grad_laplacian, tangents, laplacian, weight, slope, curvature, products, through):
    to_inputs = needs[0] or needs[2]
    bends = grad_laplacian is not None
    lifts = bends and laplacian is not None and (needs[1] or needs[2])
    mask = (to_inputs, lifts, needs[3], needs[4] and bends)
    op = torch.ops.fisherkernels.activation_tangents_backward.default
    to_products, to_through, to_slope, to_curvature = below_autograd(
        op, grad_tangents, grad_laplacian, products, through, slope, curvature, mask
    )
    to_tangents = to_products @ weight if needs[0] else None
    to_laplacian = to_through @ weight if lifts and needs[1] else None
    to_weight = None
    if needs[2]:
        to_weight = to_products.flatten(0, 1).t() @ tangents.flatten(0, 1)
        if lifts:
            to_weight = torch.addmm(to_weight, to_through.t(), laplacian)
    return to_tangents, to_laplacian, to_weight, to_slope if mask[2] else None, to_curvature if mask[3] else None


def _autograd(tangents, laplacian, weight, slope, curvature, keep_tangents, keep_products):
    args = (tangents, laplacian, weight, slope, curvature)
    if needs_graph(*args):
        return _LinearActivationTangents.apply(*args, keep_tangents)
    op = torch.ops.fisherkernels.linear_activation_tangents.default
    return below_autograd(op, *args, keep_tangents, keep_products)


define(
    "linear_activation_tangents",
    "(Tensor tangents, Tensor? laplacian, Tensor weight, Tensor slope, Tensor curvature, bool keep_tangents,"
    " bool keep_products) -> (Tensor new_tangents, Tensor new_laplacian, Tensor products, Tensor through)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
