"""Kernels that fuse a product with what comes after it: the last layer with sums over its output, a layer with its
activation.
"""

from fisherkernels.kernels.last_layer_gram import last_layer_gram
from fisherkernels.kernels.linear_activation_tangents import linear_activation_tangents

__all__ = ["last_layer_gram", "linear_activation_tangents"]
