"""Dimensions that ``reshape`` and the like put together.

NOTE [A view or a copy] Whether ``y.reshape(-1)`` is a view of ``y`` or a copy is for the layout of ``y`` to say, and in
a graph that is not always the layout of the call. A program can tell by a write to the one and a read of the other
afterwards. So when a capture ends, its writes are looked at; where one is followed by such a read, the layout is asked
for, and becomes an assumption of the trace or is refused (NOTE [A traced value answers as the real one]).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from .. import _torch
from .detached import memory_chains, written
from .refusals import write_to_view

__all__ = ["check_regrouped", "note_regrouped"]


def note_regrouped(capture: Any, t: Tensor, result: Any) -> None:
    """``result`` is ``t`` in another shape."""
    if isinstance(result, Tensor) and not _only_splits(t.shape, result.shape):
        pair = _torch.base_tensor(t), _torch.base_tensor(result)
        if all(map(capture.owns, pair)):
            capture.regrouped.append((t, *map(capture.node_of, pair)))


def check_regrouped(capture: Any, outputs: Sequence[Tensor]) -> None:
    """See NOTE [A view or a copy]."""
    if not capture.regrouped:
        return
    chains = memory_chains(capture.graph)
    changed = {chains[target][-1] for node in chains for target in written(node)}
    returned = [capture.node_of(t) for t in outputs if capture.owns(_torch.base_tensor(t))]
    for t, source, result in capture.regrouped:
        if not changed.isdisjoint((chains[source][-1], chains[result][-1])):
            write = _write_between(source, result, chains, returned)
            if write is not None and not capture.history.knows_layout(t):
                raise write_to_view(capture.context, write.target.overloadpacket.__name__)  # type: ignore[union-attr]


def _write_between(
    source: fx.Node, result: fx.Node, chains: dict[fx.Node, list[fx.Node]], returned: Sequence[fx.Node]
) -> fx.Node | None:
    """A write to what has the memory of one of the two, after which the other is read."""
    wrote: dict[bool, fx.Node] = {}

    def is_of_result(node: fx.Node) -> bool | None:
        chain = chains.get(node, ())
        if result in chain:
            return True
        return False if chain and chain[-1] is chains[source][-1] else None

    def hidden(reads: Sequence[fx.Node]) -> fx.Node | None:
        sides = {side for n in reads if (side := is_of_result(n)) is not None} if wrote else ()
        return next((wrote[not side] for side in sides if (not side) in wrote), None)

    for node in itertools.dropwhile(lambda n: n is not result, chains):
        if (write := hidden(node.all_input_nodes)) is not None:
            return write
        for target in written(node):
            if (side := is_of_result(target)) is not None:
                wrote.setdefault(side, node)
    return hidden(returned)


def _only_splits(old: Sequence[Any], new: Sequence[Any]) -> bool:
    """Whether each dimension becomes some of its own, which is a view whatever the layout, or there are no elements."""
    if not all(isinstance(n, int) for n in (*old, *new)):
        return False
    if 0 in old:
        return True
    rest = iter([n for n in new if n != 1])
    for size in old:
        product = 1
        while product < size:
            product *= next(rest, size + 1)
        if product != size:
            return False
    return True
