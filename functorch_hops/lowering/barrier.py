"""An optimisation barrier: a value that a compiler must not read before others are computed.

NOTE [Recomputation stays late] Under ``jit(grad(f))`` a checkpointed call and its recomputation are one graph. A
compiler that sees twice the same work on the same operands may do it once, or both at the same time (Inductor fuses
kernels that read the same memory), and the intermediate values live on as if there were no checkpoint. So the operands
of the recomputation pass a barrier which the cotangents pass as well: the work can't begin before they exist. XLA's
``optimization_barrier`` has the same task in ``jax.checkpoint``. The barrier computes and copies nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, fx

from ..ir.selection import shared_sources

__all__ = ["barriers", "behind_barrier", "copied", "optimization_barrier", "store", "store_shared_sources", "stored"]

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define("optimization_barrier(Tensor value, Tensor[] until) -> Tensor")
_library.impl(
    "optimization_barrier", lambda value, until: torch.ops.aten.alias.default(value), "CompositeExplicitAutograd"
)
optimization_barrier = torch.ops.functorch_hops.optimization_barrier.default
_library.define("stored(Tensor value) -> Tensor")
_library.impl("stored", torch.ops.aten.alias.default, "CompositeExplicitAutograd")
stored = torch.ops.functorch_hops.stored.default
"""The value, in memory: whoever reads it reads the same bits, as nobody computes it once more."""
_library.define("copied(Tensor value) -> Tensor")
_library.impl("copied", torch.ops.aten.clone.default, "CompositeExplicitAutograd")
copied = torch.ops.functorch_hops.copied.default
"""The value in memory of its own, given to a backward pass, which does not make it again of the operand: that may be
another by then.
"""


class _State(threading.local):
    is_active = False


_state = _State()


@contextlib.contextmanager
def barriers() -> Iterator[None]:
    """Lower for a compiler that knows the barrier; elsewhere the order of the graph is the order of the work."""
    outer, _state.is_active = _state.is_active, True
    try:
        yield
    finally:
        _state.is_active = outer


def behind_barrier(values: Sequence[Tensor], until: Sequence[Tensor]) -> list[Tensor]:
    """The same values, readable only when all of ``until`` are computed.

    Without ``until`` they still keep what a checkpoint computes forwards apart from what comes before it.
    """
    if not _state.is_active:
        return list(values)
    return [optimization_barrier(value, list(until)) for value in values]


def store_shared_sources(graph: fx.Graph) -> None:
    """See NOTE [What a maximum is taken of is computed once]."""
    store(graph, shared_sources(graph))


def store(graph: fx.Graph, values: Iterable[fx.Node]) -> None:
    """Let whoever reads these values read them from memory."""
    for value in values:
        with graph.inserting_after(value):
            node = graph.call_function(stored, (value,))
        node.meta["val"] = value.meta["val"]
        for user in [user for user in value.users if user is not node]:
            user.replace_input_with(value, node)
