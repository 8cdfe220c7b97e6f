"""Gram matrices Jᵀ N⁻¹ J of a network that ends in a Linear layer, without J in memory."""

import functools
import importlib.util

import torch
from torch import Tensor

from fisherkernels.ops._autograd import call, not_differentiable
from fisherkernels.ops._checks import check_full_precision, check_tensor
from fisherkernels.ops._library import define

# Rows (tangents times samples) that go through the layer at once, and bytes of J that they may leave: on a CPU one
# core's second-level cache, on a GPU enough work for all multiprocessors.
_ROWS = {"cpu": 512, "cuda": 1 << 16}
_TILE_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}

# Rows of a Gram matrix that are computed at once, up to the diagonal: the rest is mirrored.
_BLOCK = 64


def last_layer_gram(tangents: Tensor, weight: Tensor, precision: Tensor, slope: Tensor | None = None) -> Tensor:
    r"""Jᵀ diag(precision) J of every sample n, J = diag(slope_n) W T_n [D, d], T_n = tangents[:, n]ᵀ [h, d].

    J's rows are made tile by tile and summed at once. Three ways lead there, by the shapes and the device:

    - where the precision of a sample is shared by all samples up to a factor, and no slope is given, Gram =
      T (Wᵀ N⁻¹ W) Tᵀ with an h x h matrix in the middle, if that takes fewer operations: 2 D h² + 2 N d h (h + d);
    - float32 on CUDA with d <= 128: one Triton kernel, 2 N d D (h + 128) operations on tensor cores in three-term TF32,
      which has float32's accuracy;
    - else tiles of J of bounded size, and half of every Gram matrix: 2 N d D (h + d/2) operations.

    Floor: T, W and slope are read once and the Gram matrices written once, N d h + D h + N D + N d² elements, where J
    alone would be N d D elements, written and read. Working memory is that of one tile.

    Args:
        tangents: T, the Jacobian's columns at the input of the last Linear, as a stack [d, N, h]; any strides.
        weight: W of the last Linear, shape [D, h].
        precision: N⁻¹ > 0, the inverse noise variance in inverse squared units of the output, shape [1 or N, 1 or D].
        slope: derivative of an elementwise activation behind the last Linear, at the output, shape [N, D]; or None.

    Returns:
        shape [N, d, d], symmetric.

    Raises:
        TypeError: for a dtype other than float32 and float64, or mixed dtypes.
        ValueError: for shapes that do not go together, or mixed devices.
        RuntimeError: where autograd would record the call; FisherMetric differentiates implicitly.

    Source: Zacherl et al., Entropy 2021, the metric of their Gaussian approximation, without its identity.
    """
    name = "last_layer_gram"
    check_full_precision(name, "tangents", tangents)
    if tangents.dim() != 3:
        raise ValueError(f"{name}: tangents must have three dimensions [d, N, h], got shape {list(tangents.shape)}")
    _, samples, features = tangents.shape
    check_tensor(name, "weight", weight, tangents)
    if weight.dim() != 2 or weight.shape[1] != features:
        raise ValueError(f"{name}: weight must have shape [D, {features}] beside tangents, got {list(weight.shape)}")
    outputs = weight.shape[0]
    check_tensor(name, "precision", precision, tangents)
    if precision.dim() != 2 or precision.shape[0] not in (1, samples) or precision.shape[1] not in (1, outputs):
        raise ValueError(
            f"{name}: precision must have shape [1 or {samples}, 1 or {outputs}] beside tangents and weight, "
            f"got {list(precision.shape)}"
        )
    if slope is not None:
        check_tensor(name, "slope", slope, tangents)
        if slope.shape != (samples, outputs):
            raise ValueError(
                f"{name}: slope must have shape [{samples}, {outputs}] beside tangents and weight, "
                f"got {list(slope.shape)}"
            )
    return call(torch.ops.fisherkernels.last_layer_gram.default, _autograd, tangents, weight, precision, slope)


def _gram(tangents: Tensor, weight: Tensor, precision: Tensor, slope: Tensor | None) -> Tensor:
    size, samples, features = tangents.shape
    outputs = weight.shape[0]
    if 0 in (size, samples, features, outputs):
        return tangents.new_zeros(samples, size, size)
    if slope is None and 1 in precision.shape:
        through_outputs = samples * size * outputs * (features + size)
        if outputs * features**2 + samples * size * features * (features + size) < through_outputs:
            return _through_features(tangents, weight, precision)
    if tangents.is_cuda and _triton_takes(tangents):
        from fisherkernels.kernels.last_layer_gram_triton import gram_on_tensor_cores

        return gram_on_tensor_cores(tangents, weight, _scale(precision, slope))
    return _through_outputs(tangents, weight, precision, slope)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_takes(tangents: Tensor) -> bool:
    if tangents.dtype is not torch.float32 or tangents.shape[0] > 128 or not _has_triton():
        return False
    return torch.cuda.get_device_capability(tangents.device) >= (8, 0)


def _scale(precision: Tensor, slope: Tensor | None) -> Tensor:
    """What J = W T is multiplied with so that Gram = Jᵀ J, [1 or N, 1 or D]."""
    return precision.sqrt() if slope is None else precision.sqrt() * slope


def _through_features(tangents: Tensor, weight: Tensor, precision: Tensor) -> Tensor:
    size, samples, features = tangents.shape
    per_output = precision.shape[0] == 1
    inner = ((weight * precision.mT).mT if per_output else weight.mT) @ weight  # [h, h]
    gram = tangents.new_empty(samples, size, size)
    count = _samples_at_once(tangents)
    for first in range(0, samples, count):
        rows = tangents[:, first : first + count].transpose(0, 1).contiguous()  # [n, d, h]
        _add_products(gram[first : first + count], rows @ inner, rows, fresh=True)
    if not per_output:
        gram *= precision[:, :, None]
    return _mirrored(gram)


def _through_outputs(tangents: Tensor, weight: Tensor, precision: Tensor, slope: Tensor | None) -> Tensor:
    size, samples, features = tangents.shape
    outputs = weight.shape[0]
    scale = _scale(precision, slope)
    if scale.shape[0] == 1:
        weight, scale = weight * scale.mT, None
    else:
        scale = scale.expand(samples, outputs)
    gram = tangents.new_empty(samples, size, size)
    count = min(samples, _samples_at_once(tangents))
    tile = max(_BLOCK, _TILE_BYTES[_kind(tangents)] // (count * size * tangents.element_size()))
    tile = -(-outputs // -(-outputs // tile))  # equal tiles
    memory = tangents.new_empty(count * size * tile)
    for first in range(0, samples, count):
        rows = tangents[:, first : first + count].transpose(0, 1).contiguous()  # [n, d, h]
        part = gram[first : first + count]
        for start in range(0, outputs, tile):
            layer = weight[start : start + tile]  # [t, h]
            jacobian = memory[: len(rows) * size * len(layer)].view(len(rows) * size, len(layer))
            torch.mm(rows.view(-1, features), layer.mT, out=jacobian)
            jacobian = jacobian.view(len(rows), size, len(layer))  # [n, d, t]
            if scale is not None:
                jacobian *= scale[first : first + count, None, start : start + tile]
            _add_products(part, jacobian, jacobian, fresh=start == 0)
    return _mirrored(gram)


def _kind(tensor: Tensor) -> str:
    return "cuda" if tensor.is_cuda else "cpu"


def _samples_at_once(tangents: Tensor) -> int:
    return max(1, _ROWS[_kind(tangents)] // tangents.shape[0])


def _add_products(gram: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    """gram [n, d, d] += left rightᵀ [n, d, t] x [n, t, d], up to the diagonal; `fresh` overwrites."""
    for start in range(0, gram.shape[1], _BLOCK):
        stop = min(start + _BLOCK, gram.shape[1])
        block = gram[:, start:stop, :stop]
        block.baddbmm_(left[:, start:stop], right[:, :stop].mT, beta=0 if fresh else 1)


def _mirrored(gram: Tensor) -> Tensor:
    """The symmetric matrices with the lower triangles of `gram`, whose upper ones are overwritten."""
    rows, columns = torch.triu_indices(gram.shape[1], gram.shape[1], 1, device=gram.device)
    gram[:, rows, columns] = gram[:, columns, rows]
    return gram


def _gram_fake(tangents: Tensor, weight: Tensor, precision: Tensor, slope: Tensor | None) -> Tensor:
    size, samples, _ = tangents.shape
    return tangents.new_empty(samples, size, size)


_autograd = not_differentiable("last_layer_gram")

define(
    "last_layer_gram",
    "(Tensor tangents, Tensor weight, Tensor precision, Tensor? slope) -> Tensor",
    twin=_gram,
    fake=_gram_fake,
    autograd=_autograd,
)
