"""Value, vector-Jacobian and Jacobian-vector products of a network, computed by one rule per layer."""

from .last_linear import LastLinear
from .linearization import Linearization, linearize, linearize_for_stacks
from .register import register_rule
from .relu_chain import ReluChain
from .rules.base import ElementwiseRule, Rule
from .work import Work

__all__ = [
    "ElementwiseRule",
    "LastLinear",
    "Linearization",
    "ReluChain",
    "Rule",
    "Work",
    "linearize",
    "linearize_for_stacks",
    "register_rule",
]
