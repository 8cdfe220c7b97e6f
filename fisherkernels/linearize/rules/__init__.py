"""One small rule per layer, in its module and functional forms."""

from __future__ import annotations

from . import (
    activation,
    arithmetic,
    attention,
    batchnorm,
    channel_shuffle,
    contraction,
    conv,
    dropout,
    elementary,
    elu,
    gelu,
    glu,
    groupnorm,
    instancenorm,
    layernorm,
    layout,
    linear,
    pad,
    permute,
    piecewise,
    pixel_shuffle,
    pool,
    reduction,
    resample,
    rmsnorm,
    shape,
    smooth,
    softmax,
    stack,
    unfold,
)

_FILES = (linear, conv, batchnorm, groupnorm, instancenorm, layernorm, rmsnorm)
_FILES += (activation, elu, gelu, smooth, piecewise, glu, dropout)
_FILES += (elementary, arithmetic, reduction, softmax, contraction, attention)
_FILES += (resample, pool, pad, unfold, shape, permute, stack, pixel_shuffle, channel_shuffle, layout)

RULES = {name: rule for file in _FILES for name, rule in file.RULES.items()}
FUNCTIONS = {function: name for file in _FILES for function, name in file.FUNCTIONS.items()}
METHODS = {method: name for file in _FILES for method, name in file.METHODS.items()}
MODULES = {kind: entry for file in _FILES for kind, entry in file.MODULES.items()}
