"""Buffers in a carry, written in place as a loop runs.

NOTE [Reused carries] Graphs are functional: ``buffer[i] = row`` in a body is an ``index_put`` that copies the buffer.
Between two iterations nobody but the loop holds the carry, so the run may write into it - where the body reads the
buffer for the last time there, and hands the result on in the same place. The initial carry belongs to the caller, and
is copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..._torch import HigherOrderOperator
from ...ir.build import copy_graph
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph

__all__ = ["Reusing", "reusing"]


class Reusing(NamedTuple):
    """A body that writes into the marked carries, which it must own."""

    run: Callable[..., Sequence[Tensor]]
    owned: Mask


def reusing(body: Subgraph, n_carry: int) -> Reusing:
    return body.derive(("reusing", n_carry), lambda: _reusing(body, n_carry))


def _reusing(body: Subgraph, n_carry: int) -> Reusing:
    placeholders = [n for n in body.module.graph.nodes if n.op == "placeholder"]
    pairs = list(zip(placeholders[:n_carry], body.output_nodes()))
    order = {node: i for i, node in enumerate(body.module.graph.nodes)}
    owned = tuple(_is_last_read(buffer, out, order) for buffer, out in pairs)
    if not any(owned):
        return Reusing(body, owned)
    new: dict[fx.Node, fx.Node] = {}
    graph = copy_graph(body, new)
    for (_, out), is_owned in zip(pairs, owned):
        if is_owned:
            new[out].target = torch.ops.aten.index_put_.default
    return Reusing(fx.GraphModule(body.module, graph), owned)


def _is_last_read(buffer: fx.Node, out: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether ``out`` writes to ``buffer``, returned in one place, and everything else has read it by then."""
    if out.target is not torch.ops.aten.index_put.default or out.args[0] is not buffer:
        return False
    others = [user for user in buffer.users if user is not out]
    is_returned_only = all(user.op == "output" for user in out.users)
    return is_returned_only and all(order[user] < order[out] and not _may_alias(user) for user in others)


def _may_alias(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument. Operators of ours never do."""
    if isinstance(node.target, HigherOrderOperator):
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(returned.alias_info is not None for returned in schema.returns)
