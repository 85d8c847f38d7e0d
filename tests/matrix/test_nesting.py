"""Every operation inside every other, and a sample of three inside one another, under transforms in every mode."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

import pytest

from reference import Reference

from .contexts import CONTEXTS, OracleTools
from .nesting import COMBINATORS, Library, nested
from .test_grid import MODES, PUBLIC_OPERATIONS, arguments, assert_same

PAIRS = list(itertools.product(COMBINATORS, repeat=2))
TRIPLES = random.Random(7).sample(list(itertools.product(COMBINATORS, repeat=3)), 24)
"""Forward over reverse, which holds value and both first derivatives, and reverse mode with lanes that disagree."""
NESTED_CONTEXTS = ("jvp(grad)", "vmap(grad)")


@functools.cache
def expected(names: tuple[str, ...], context: str) -> Any:
    return CONTEXTS[context](OracleTools, nested(Reference, names), *arguments(CONTEXTS[context]))


@functools.cache
def program(names: tuple[str, ...]) -> Any:
    return nested(Library, names)


def _cells() -> list[Any]:
    """Second derivatives of captured calls are slow: quick are those in jit, and the first ones of captured calls."""
    return [
        pytest.param(c, m, id=f"{c}-{m}", marks=pytest.mark.slow if (c, m) == ("jvp(grad)", "captured") else ())
        for c in NESTED_CONTEXTS
        for m in ("plain", "captured", "in jit")
    ]


@pytest.mark.parametrize(("context", "mode"), _cells())
@pytest.mark.parametrize("names", PAIRS, ids=" > ".join)
def test_pair(names: tuple[str, ...], context: str, mode: str) -> None:
    got = MODES[mode](CONTEXTS[context], program(names), *arguments(CONTEXTS[context]))
    assert_same(got, expected(names, context))


@pytest.mark.slow
@pytest.mark.parametrize("context", NESTED_CONTEXTS)
@pytest.mark.parametrize("names", TRIPLES, ids=" > ".join)
def test_triple(names: tuple[str, ...], context: str) -> None:
    for mode in ("plain", "in jit"):
        got = MODES[mode](CONTEXTS[context], program(names), *arguments(CONTEXTS[context]))
        assert_same(got, expected(names, context))


def test_every_operation_nests() -> None:
    """Rules by hand have tests of their own inside loops and around them."""
    assert set(COMBINATORS) == {name for name in PUBLIC_OPERATIONS if not name.startswith("custom_")}
