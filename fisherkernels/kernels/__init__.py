"""Kernels that fuse a network's last layer with what is summed over its output."""

from fisherkernels.kernels.last_layer_gram import last_layer_gram

__all__ = ["last_layer_gram"]
