"""Value, vector-Jacobian and Jacobian-vector products of a network, computed by one rule per layer."""

from .linearization import Linearization, linearize

__all__ = ["Linearization", "linearize"]
