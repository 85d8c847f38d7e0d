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


@pytest.mark.parametrize("mode", ["plain", "captured", "in jit"])
@pytest.mark.parametrize("context", NESTED_CONTEXTS)
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
    assert set(COMBINATORS) == PUBLIC_OPERATIONS
