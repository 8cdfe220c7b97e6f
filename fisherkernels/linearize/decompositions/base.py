"""What a decomposition is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx, nn


class Decomposition(NamedTuple):
    """``forward(module, ...)`` computes what the module's own forward does, without its fast paths, in operations that
    have rules: it is traced in its place. ``accepts(module)`` says whether it covers a module.
    """

    forward: Callable[..., Any]
    accepts: Callable[[nn.Module], bool] = lambda module: True


def optional(result: fx.Proxy) -> fx.Proxy:
    """A result whose last operation is left out where nobody uses it."""
    result.node.meta["optional"] = True
    return result


def drop_unused(graph: fx.Graph) -> None:
    """Remove the operations of unused :func:`optional` results."""
    for node in reversed(graph.nodes):
        if node.meta.get("optional") and not node.users:
            graph.erase_node(node)
