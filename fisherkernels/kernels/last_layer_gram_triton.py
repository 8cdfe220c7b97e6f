"""The last layer and the Gram sum in one Triton kernel; see `last_layer_gram`."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _leading(x):
    """x rounded to TF32's 10 bits of mantissa."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _add_product(total, left, right):
    """total + left rightᵀ to float32's accuracy, each factor split in two TF32 numbers.

    The product of the two smaller ones is left out. The three others go into the same accumulator, which takes fewer
    registers than Triton's own "tf32x3".
    """
    left_first = _leading(left)
    right_first = _leading(right)
    total = tl.dot(left - left_first, tl.trans(right_first), total, input_precision="tf32")
    total = tl.dot(left_first, tl.trans(right - right_first), total, input_precision="tf32")
    return tl.dot(left_first, tl.trans(right_first), total, input_precision="tf32")


@triton.jit
def _gram_kernel(
    tangents,  # [d, N, h]
    weight,  # [D, h]
    scale,  # [N, D], strides 0 where it is broadcast
    gram,  # [shares, N, d, d]
    size,
    samples,
    features,
    outputs,
    share,  # outputs of one block
    stride_td,
    stride_tn,
    stride_th,
    stride_wd,
    stride_wh,
    stride_sn,
    stride_sd,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """One block: as many whole samples as ROWS rows hold, and one share of the outputs.

    Rows are (sample, tangent) pairs without gaps. The product of all rows with all rows also holds products between
    samples; only the blocks on the diagonal are stored.
    """
    per_block = ROWS // size
    row = tl.arange(0, ROWS)
    local = row // size
    tangent = row % size
    first_sample = tl.program_id(0) * per_block
    # Rows past the last sample repeat it: they are computed and dropped.
    sample = tl.minimum(local, samples - 1 - first_sample)
    tangents += first_sample.to(tl.int64) * stride_tn
    scale += first_sample.to(tl.int64) * stride_sn
    row_pointers = tangents + tangent.to(tl.int64) * stride_td + sample.to(tl.int64) * stride_tn  # [ROWS]
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, outputs)

    total = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(first, last, OUTPUTS):
        output = start + tl.arange(0, OUTPUTS)
        output_valid = output < last
        layer_pointers = weight + output.to(tl.int64) * stride_wd  # [OUTPUTS]
        jacobian = tl.zeros((ROWS, OUTPUTS), tl.float32)
        for begin in range(0, features, FEATURES):
            feature = begin + tl.arange(0, FEATURES)
            feature_valid = feature < features
            rows = tl.load(
                row_pointers[:, None] + feature[None, :] * stride_th,
                mask=feature_valid[None, :],
                other=0.0,
            )  # [ROWS, FEATURES]
            layer = tl.load(
                layer_pointers[:, None] + feature[None, :] * stride_wh,
                mask=output_valid[:, None] & feature_valid[None, :],
                other=0.0,
            )  # [OUTPUTS, FEATURES]
            jacobian = _add_product(jacobian, rows, layer)
        column = tl.minimum(output, outputs - 1)
        jacobian *= tl.load(scale + (sample[:, None] * stride_sn + column[None, :] * stride_sd))
        total = _add_product(total, jacobian, jacobian)

    matrices = gram + (tl.program_id(1).to(tl.int64) * samples + first_sample) * size * size
    kept = (local < per_block) & (first_sample + local < samples)
    same_sample = (local[:, None] == local[None, :]) & kept[:, None]
    tl.store(matrices + (row[:, None] * size + tangent[None, :]), total, mask=same_sample)


def gram_on_tensor_cores(tangents: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(scale W T)ᵀ (scale W T) [N, d, d] of float32 tangents [d, N, h], d <= 128, weight [D, h], scale [1|N, 1|D].

    The same input gives the same bits: shares of the outputs are summed in order, not by atomic additions.
    """
    properties = torch.cuda.get_device_properties(tangents.device)
    # Where products have to come from registers (all but Hopper and data-centre Blackwell) there is room for half.
    tile = 64 if properties.major in (9, 10) else 32
    with torch.cuda.device_of(tangents):
        return gram_in_shares(tangents, weight, scale, properties.multi_processor_count, tile)


def _launch_shape(
    size: int, samples: int, features: int, outputs: int, multiprocessors: int, tile: int
) -> tuple[int, int]:
    """(rows of a block, outputs of a share, a multiple of `tile`).

    Blocks of 64 rows, two to a multiprocessor, or of 128, one to each: whichever computes less that is dropped. Where
    the samples do not give every multiprocessor its blocks, the outputs are shared between several.
    """
    rows = min((64, 128), key=lambda rows: rows * (features + rows) / (rows // size) if size <= rows else math.inf)
    blocks = triton.cdiv(samples, rows // size)
    tiles = triton.cdiv(outputs, tile)
    shares = min(tiles, max(1, multiprocessors * (128 // rows) // blocks))
    return rows, triton.cdiv(tiles, shares) * tile


def gram_in_shares(tangents: Tensor, weight: Tensor, scale: Tensor, multiprocessors: int, tile: int) -> Tensor:
    """The same for a device of that many multiprocessors, each block computing `tile` outputs at once."""
    size, samples, features = tangents.shape
    outputs = weight.shape[0]
    scale = scale.expand(samples, outputs)
    rows, share = _launch_shape(size, samples, features, outputs, multiprocessors, tile)
    shares = triton.cdiv(outputs, share)
    gram = tangents.new_empty(shares, samples, size, size)
    _gram_kernel[(triton.cdiv(samples, rows // size), shares)](
        tangents, weight, scale, gram,
        size, samples, features, outputs, share,
        *tangents.stride(), *weight.stride(), *scale.stride(),
        ROWS=rows, OUTPUTS=tile, FEATURES=32,
        num_warps=rows // 16, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return gram[0] if shares == 1 else gram.sum(0)
