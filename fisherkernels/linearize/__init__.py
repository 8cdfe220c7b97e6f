"""Value, vector-Jacobian and Jacobian-vector products of a network, computed by one rule per layer."""

from .last_linear import LastLinear
from .linearization import Linearization, linearize
from .relu_chain import ReluChain
from .work import Work

__all__ = ["LastLinear", "Linearization", "ReluChain", "Work", "linearize"]
