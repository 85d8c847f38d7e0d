"""A whole graph as one kernel.

NOTE [Whole graphs] Around its loops a graph has often little to do: it makes initial carries, sums what a loop stacked.
Where all of that is C++ for Inductor too, the graph is a function like the body of a loop, which calls its loops, and
one library is all that there is to compile and to call: AOTAutograd and Inductor are not asked for a graph around.
Where the work around the loops is worth several threads, or calls of BLAS, it is left to Inductor.
"""

from __future__ import annotations

import torch

from .body import Lowered, statements
from .forms import Refused
from .source import Program, program

__all__ = ["whole"]

_FEW = 1 << 18
"""Elements around the loops, some 30 microseconds, below which several threads are no help."""


def whole(lowered: Lowered, options: dict[str, object]) -> tuple[Program, int]:
    """The graph of ``lowered``, whose loops are kernels, and the bytes of its workspace."""
    body, work = lowered.body, lowered.work
    if not isinstance(work, int) or (work > _FEW and torch.get_num_threads() > 1):
        raise Refused("the work around its loops is worth several threads")
    function = statements(lowered, dict(options), len(body.inputs))
    if function.sizes or not isinstance(function.workspace, int):
        raise Refused("a size is open")
    given, results = ([meta.dtype for meta in metas] for metas in (body.inputs, body.outputs))
    return program(function.parts, function.name, 0, given, results), function.workspace
