"""Where a program can see how a tensor lies in memory, it sees what eager Python sees.

Operands are contiguous in a trace, whatever they are in a call. Operators that read the layout (``as_strided``, views
as another dtype) find the one that the trace had.
"""

from __future__ import annotations

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, same

F64 = torch.float64
STRIDED = torch.arange(12.0, dtype=F64).reshape(3, 4)[:, ::2]

READERS = {
    "as_strided": lambda x: torch.as_strided(x.contiguous(), (4,), (1,)) * 1,
    "of a result": lambda x: torch.as_strided((x * 2).contiguous(), (4,), (1,)) * 1,
    "of a part of a result": lambda x: torch.as_strided((x * 2).contiguous()[1:], (3,), (1,)) * 1,
    "of a transposed view": lambda x: torch.as_strided(x.contiguous().T, (4,), (1,)) * 1,
    "of a transposed copy": lambda x: torch.as_strided(x.T.contiguous(), (4,), (1,)) * 1,
    "complex numbers": lambda x: torch.view_as_complex(x.contiguous()),
    "another dtype": lambda x: x.contiguous().view(torch.int64),
    "a smaller dtype": lambda x: x.contiguous().view(torch.float32),
}


@every_mode
@pytest.mark.parametrize("operand", [STRIDED, STRIDED.contiguous(), torch.ones(2, 3, dtype=F64).cumsum(1).T])
@pytest.mark.parametrize("name", READERS)
def test_of_a_strided_operand(name, operand, run):
    f = READERS[name]
    same(run(lambda x: fh.cond(x.sum() > -99, f, lambda x: f(x) * 0, x), operand), f(operand))


@pytest.mark.parametrize("name", READERS)
def test_of_lanes_and_under_derivatives(name):
    f = READERS[name]
    lanes = torch.stack([STRIDED, STRIDED + 1], -1)
    same(fh.jit(fh.vmap(f, in_dims=-1), backend="eager")(lanes), torch.stack([f(x) for x in lanes.unbind(-1)]))
    if f(STRIDED).dtype in (F64, torch.complex128):
        loss = lambda x: (f(x) * f(x).conj()).real.sin().sum()
        same(fh.jit(fh.grad(loss), backend="eager")(STRIDED), torch.func.grad(loss)(STRIDED))


@every_mode
def test_of_a_carry_that_a_body_turns(run):
    def step(c):
        return (torch.as_strided(c.contiguous(), (4,), (1,)).reshape(2, 2) * 0.5).T

    x = torch.arange(8.0, dtype=F64).reshape(2, 4)[:, ::2]
    same(run(lambda x: fh.fori_loop(0, 3, lambda i, c: step(c), x), x), step(step(step(x))))
