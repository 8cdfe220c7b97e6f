"""A product with an activation's tangents and Laplacian for an epilogue; see `linear_activation_tangents`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fisherkernels.kernels.last_layer_gram_triton import _add_product


@triton.jit
def _product(
    rows,  # pointers [SAMPLES, 1]
    layer,  # pointers [OUTPUTS, 1]
    row_valid,
    layer_valid,
    features,
    stride_rows,
    stride_layer,
    SAMPLES: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FEATURES: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Rows times the layer's weightᵀ, [SAMPLES, OUTPUTS]."""
    total = tl.zeros((SAMPLES, OUTPUTS), tl.float32)
    for begin in range(0, features, FEATURES):
        feature = begin + tl.arange(0, FEATURES)[None, :]
        valid = feature < features
        left = tl.load(rows + feature * stride_rows, mask=row_valid & valid, other=0.0)
        right = tl.load(layer + feature * stride_layer, mask=layer_valid & valid, other=0.0)
        if EXACT:
            total = _add_product(total, left, right)
        else:
            total = tl.dot(left, tl.trans(right), total, input_precision="tf32")
    return total


@triton.jit
def _push_kernel(
    tangents,  # [K, N, h]
    laplacian,  # [N, h]; not read without LAPLACIAN
    weight,  # [m, h]
    slope,  # [N, m]
    curvature,  # [N, m]
    new_tangents,  # [K, N, m]; not written without KEEP_TANGENTS
    new_laplacian,  # [shares, N, m]
    products,  # [K, N, m]; not written without KEEP_PRODUCTS
    through,  # [N, m], the same
    stack,
    samples,
    features,
    outputs,
    share,  # tangents of one block
    stride_tk,
    stride_tn,
    stride_th,
    stride_ln,
    stride_lh,
    stride_wm,
    stride_wh,
    LAPLACIAN: tl.constexpr,
    KEEP_TANGENTS: tl.constexpr,
    KEEP_PRODUCTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FEATURES: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One block: a tile of samples by outputs, for one share of the tangents, one after the other.

    The sum of squares over the tangents stays in registers; the Laplacian goes with the first share.
    """
    first_sample = (tl.program_id(0) * SAMPLES).to(tl.int64)
    sample = tl.arange(0, SAMPLES)[:, None]
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    sample_valid = first_sample + sample < samples
    layer_valid = output[:, None] < outputs
    valid = sample_valid & (output[None, :] < outputs)
    layer = weight + output[:, None] * stride_wm
    at = sample * outputs + output[None, :]  # [SAMPLES, OUTPUTS], behind the block's first sample
    origin = first_sample * outputs

    first = tl.program_id(2).to(tl.int64) * share  # so that k, too, has 64 bits
    squares = tl.zeros((SAMPLES, OUTPUTS), tl.float32)
    for k in range(first, tl.minimum(first + share, stack)):
        rows = tangents + k * stride_tk + first_sample * stride_tn
        product = _product(
            rows + sample * stride_tn, layer, sample_valid, layer_valid, features, stride_th, stride_wh,
            SAMPLES, OUTPUTS, FEATURES, EXACT,
        )  # fmt: skip
        squares += product * product
        if KEEP_PRODUCTS:
            tl.store(products + k * samples * outputs + origin + at, product, mask=valid)
        if KEEP_TANGENTS:  # the slope is in a cache: registers are scarcer
            steep = tl.load(slope + origin + at, mask=valid, other=0.0)
            tl.store(new_tangents + k * samples * outputs + origin + at, steep * product, mask=valid)
    total = tl.load(curvature + origin + at, mask=valid, other=0.0) * squares
    if LAPLACIAN:
        if first == 0:
            product = _product(
                laplacian + first_sample * stride_ln + sample * stride_ln, layer, sample_valid, layer_valid, features,
                stride_lh, stride_wh, SAMPLES, OUTPUTS, FEATURES, EXACT,
            )  # fmt: skip
            total += tl.load(slope + origin + at, mask=valid, other=0.0) * product
            if KEEP_PRODUCTS:
                tl.store(through + origin + at, product, mask=valid)
    tl.store(new_laplacian + tl.program_id(2).to(tl.int64) * samples * outputs + origin + at, total, mask=valid)


def push_on_tensor_cores(tangents, laplacian, weight, slope, curvature, keep_tangents, keep_products):
    """The operator's results for float32 tensors on CUDA. The same input gives the same bits: shares of the tangents
    are summed in order, not by atomic additions.
    """
    multiprocessors = torch.cuda.get_device_properties(tangents.device).multi_processor_count
    exact = not torch.backends.cuda.matmul.allow_tf32
    with torch.cuda.device_of(tangents):
        return push_in_shares(
            tangents, laplacian, weight, slope, curvature, keep_tangents, keep_products, multiprocessors, exact
        )


def push_in_shares(
    tangents: Tensor,
    laplacian: Tensor | None,
    weight: Tensor,
    slope: Tensor,
    curvature: Tensor,
    keep_tangents: bool,
    keep_products: bool,
    multiprocessors: int,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a device of that many multiprocessors: the tangents are shared between blocks until there are two
    for each. ``exact``: three-term TF32.
    """
    stack, samples, features = tangents.shape
    outputs = len(weight)
    slope, curvature = slope.contiguous(), curvature.contiguous()
    tiles = triton.cdiv(samples, 64) * triton.cdiv(outputs, 64)
    share = triton.cdiv(stack, min(stack, triton.cdiv(2 * multiprocessors, tiles)))
    shares = triton.cdiv(stack, share)

    def result(wanted: bool, *sizes: int) -> Tensor:
        return slope.new_empty(sizes if wanted else 0)

    lifts = laplacian is not None
    new_tangents = result(keep_tangents, stack, samples, outputs)
    products = result(keep_products, stack, samples, outputs)
    through = result(keep_products and lifts, samples, outputs)
    parts = result(True, shares, samples, outputs)
    grid = (triton.cdiv(samples, 64), triton.cdiv(outputs, 64), shares)
    _push_kernel[grid](
        tangents, laplacian if lifts else slope, weight, slope, curvature, new_tangents, parts, products, through,
        stack, samples, features, outputs, share,
        *tangents.stride(), *(laplacian.stride() if lifts else (0, 0)), *weight.stride(),
        LAPLACIAN=lifts, KEEP_TANGENTS=keep_tangents, KEEP_PRODUCTS=keep_products,
        SAMPLES=64, OUTPUTS=64, FEATURES=32, EXACT=exact, num_warps=4 if exact else 8, num_stages=3,
    )  # fmt: skip
    return new_tangents, parts[0] if shares == 1 else parts.sum(0), products, through
