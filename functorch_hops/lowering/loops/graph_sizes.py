"""Open sizes as values of a graph: what a call of a kernel takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from ... import _torch
from ...ir.meta import TensorMeta
from ...ir.nodes import size_at
from ...ir.sizes import shape_env_of
from .forms import Refused
from .sizes import OpenSize, Size, size_of

__all__ = ["GraphSizes"]


class GraphSizes:
    """Where the open sizes of a graph are found: each is that of an input."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[TensorMeta]) -> None:
        self._graph = module.graph
        self._places: dict[Any, tuple[fx.Node, int, Any]] = {}
        for node, meta in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
            for d, (value, size) in enumerate(zip(meta.shape, map(size_of, meta.shape))):
                if isinstance(size, OpenSize) and size.expression.is_Symbol:
                    self._places.setdefault(size.expression, (node, d, value))
        self._env = shape_env_of(meta.shape for meta in inputs)

    def new_mode(self) -> Any:
        """A fake mode that knows the sizes."""
        return _torch.new_fake_mode(self._env)

    def check(self, sizes: Iterable[OpenSize]) -> None:
        """Refuse a kernel that takes a size which is none of an input."""
        for size in sizes:
            if size.expression not in self._places:
                raise Refused(f"a size is open, and no input has it: {size}")

    def node_of(self, size: Size) -> Any:
        """The size as an argument of a node that is inserted next."""
        if isinstance(size, int):
            return size
        known = {symbol: self._symbol(symbol) for symbol in size.expression.free_symbols}
        return _torch.expression_node(self._graph, size.expression, known)

    def _symbol(self, symbol: Any) -> fx.Node:
        source, dim, value = self._places[symbol]
        node = self._graph.call_function(size_at, (source, dim))
        node.meta["val"] = value
        return node
