"""Operation x context x mode, exhaustively."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh

from .contexts import CONTEXTS, Context, LibraryTools, OracleTools
from .operations import OPERATIONS, Operation, Weights, examples, weights

PROMISED_CONTEXTS = {
    "value", "backward", "double backward", "vmap", "vmap of vmap", "grad", "jvp", "vjp", "jacfwd", "jacrev", "hessian",
    "vmap(grad)", "grad(vmap)", "grad(grad)", "jvp(grad)", "vmap(hessian)", "hessian(vmap)", "jvp(vmap)", "grad(jvp)",
    "jacfwd(jacrev)",
}  # fmt: skip
PUBLIC_OPERATIONS = {
    "cond", "switch", "while_loop", "fori_loop", "scan", "associative_scan", "map", "checkpoint", "jit",
    "custom_vjp", "custom_jvp", "custom_root", "custom_linear_solve",
}  # fmt: skip


def _plain(context: Context, f: Any, p: Weights, x: Tensor) -> Any:
    return context(LibraryTools, f, p, x)


def _captured(context: Context, f: Any, p: Weights, x: Tensor) -> Any:
    with fh.eager_capture():
        return context(LibraryTools, f, p, x)


@functools.cache
def _jitted(f: Any) -> Any:
    """One compiled program for all contexts, so that what one of them leaves behind on it meets the next."""
    return fh.jit(f, backend="eager")


def _of_jit(context: Context, f: Any, p: Weights, x: Tensor) -> Any:
    return context(LibraryTools, _jitted(f), p, x)


def _in_jit(context: Context, f: Any, p: Weights, x: Tensor) -> Any:
    return context(LibraryTools, f, p, x, compile=functools.partial(fh.jit, backend="eager"))


MODES: dict[str, Callable[[Context, Any, Weights, Tensor], Any]] = {
    "plain": _plain,
    "captured": _captured,
    "of jit": _of_jit,
    "in jit": _in_jit,
}
CELLS = [(o, c, m) for o in OPERATIONS.values() for c in CONTEXTS.values() for m in MODES]


def arguments(context: Context) -> tuple[Weights, Tensor]:
    p, x = weights(), examples()
    if "p" in context.batched:
        p = optree.tree_map(lambda t: torch.stack([t, t * 0.6 - 0.1]), p)
    return p, x if "x" in context.batched else x[1]


@functools.cache
def expected(operation: str, context: str) -> Any:
    return CONTEXTS[context](OracleTools, OPERATIONS[operation].oracle, *arguments(CONTEXTS[context]))


def assert_same(got: Any, expected: Any) -> None:
    got_leaves, got_spec = optree.tree_flatten(got)
    expected_leaves, expected_spec = optree.tree_flatten(expected)
    assert got_spec == expected_spec
    for path, a, b in zip(expected_spec.paths(), got_leaves, expected_leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize(
    ("operation", "context", "mode"),
    [pytest.param(o, c, m, id=f"{o.name}-{c.name}-{m}") for o, c, m in CELLS],
)
def test_cell(operation: Operation, context: Context, mode: str) -> None:
    if context.name in operation.refused:
        with pytest.raises(fh.FunctorchHopsError):
            MODES[mode](context, operation.program, *arguments(context))
        return
    got = MODES[mode](context, operation.program, *arguments(context))
    assert_same(got, expected(operation.name, context.name))


def test_the_grid_is_full() -> None:
    """Each public operation has a row, each promised context a column, and no cell is left out."""
    marks = [mark for mark in getattr(test_cell, "pytestmark", []) if mark.name == "parametrize"]
    ids = {param.id for mark in marks for param in mark.args[1]}
    assert ids == {f"{o}-{c}-{m}" for o in OPERATIONS for c in CONTEXTS for m in MODES}
    assert set(CONTEXTS) == PROMISED_CONTEXTS
    assert {operation.public for operation in OPERATIONS.values()} == PUBLIC_OPERATIONS
    assert {mark.name for mark in getattr(test_cell, "pytestmark", [])} == {"parametrize"}, "no cell may be skipped"


@pytest.mark.parametrize("name", [o.name for o in OPERATIONS.values() if o.decision is not None])
def test_lanes_disagree(name: str) -> None:
    """A row with a decision is no test of batched predicates unless the lanes of ``examples`` decide differently."""
    decision = OPERATIONS[name].decision
    assert decision is not None
    assert len({int(decision(weights(), x)) for x in examples()}) > 1
