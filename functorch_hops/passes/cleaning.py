"""What every graph goes through before it becomes a Subgraph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ..ir.build import Builder
from ..ir.memory import dealias_outputs
from ..ir.nodes import meta_of
from ..ir.subgraph import Subgraph
from .dead_code import eliminate_dead_code
from .passthrough import simplify_calls
from .simplify import simplify

__all__ = ["clean", "close"]


def clean(module: fx.GraphModule) -> None:
    """What every graph goes through before it becomes a Subgraph; its bodies did before it."""
    simplify(module)
    while simplify_calls(module):
        simplify(module)
    dealias_outputs(module.graph.output_node())
    eliminate_dead_code(module)


def close(builder: Builder, outputs: Sequence[fx.Node], also: Sequence[fx.Node] = ()) -> Subgraph:
    """The graph of a builder over the values of these nodes. Nodes in ``also`` are kept without being outputs."""
    module = builder.finish(outputs, also)
    clean(module)
    return Subgraph.intern(module, builder.inputs, [meta_of(n) for n in outputs])
