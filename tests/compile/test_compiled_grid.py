"""Operation x context of the matrix, each cell one graph of ``torch.compile``.

Every operation is in a third of the contexts besides ``backward``, and every context has a third of the operations.
"""

from __future__ import annotations

import functools

import pytest
import torch
from matrix.contexts import CONTEXTS, Context, LibraryTools
from matrix.operations import OPERATIONS, Operation
from matrix.test_grid import arguments, assert_same, expected
from torch._dynamo.exc import BackendCompilerFailed

import functorch_hops as fh

QUICK = {"backward"}
CELLS = [
    (o, c)
    for i, o in enumerate(OPERATIONS.values())
    for j, c in enumerate(c for c in CONTEXTS.values() if c.autograd < 2)
    if c.name in QUICK or (i + j) % 3 == 0
]


@pytest.mark.parametrize(
    ("operation", "context"),
    [pytest.param(o, c, id=f"{o.name}-{c.name}", marks=() if c.name in QUICK else pytest.mark.slow) for o, c in CELLS],
)
def test_cell(operation: Operation, context: Context) -> None:
    compiled = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    run = lambda: context(LibraryTools, operation.program, *arguments(context), compile=compiled)
    if context.name in operation.refused:
        with pytest.raises(BackendCompilerFailed) as caught:  # the rules are asked when the graph is compiled
            run()
        assert isinstance(caught.value.inner_exception, fh.FunctorchHopsError)
        return
    assert_same(run(), expected(operation.name, context.name))
