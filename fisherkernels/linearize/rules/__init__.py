"""One small rule per layer, in its module and functional forms."""

from __future__ import annotations

from . import activation, arithmetic, batchnorm, conv, groupnorm, layernorm, linear, resample, shape

_FILES = (linear, conv, batchnorm, groupnorm, layernorm, activation, resample, shape, arithmetic)

RULES = {name: rule for file in _FILES for name, rule in file.RULES.items()}
FUNCTIONS = {function: name for file in _FILES for function, name in file.FUNCTIONS.items()}
METHODS = {method: name for file in _FILES for method, name in file.METHODS.items()}
MODULES = {kind: entry for file in _FILES for kind, entry in file.MODULES.items()}
