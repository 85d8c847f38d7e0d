"""Passes over a captured graph and, through the rules of its operators, over their bodies."""

from __future__ import annotations

from torch import fx

from ..memory import keep_apart
from .dead_code import eliminate_dead_code
from .forwarding import forward_values
from .simplify import simplify

__all__ = ["clean"]


def clean(module: fx.GraphModule) -> None:
    """What every graph goes through before it becomes a Subgraph; its bodies did before it."""
    simplify(module)
    while forward_values(module):
        simplify(module)
    keep_apart(module.graph.output_node())
    eliminate_dead_code(module)
