"""The three ways to run a program: plain eager, captured by ``eager_capture``, and under ``jit``."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch

import functorch_hops as fh


def plain(f, *args):
    return f(*args)


def captured(f, *args):
    with fh.eager_capture():
        return f(*args)


def jitted(f, *args):
    return fh.jit(f, backend="eager")(*args)


MODES = {"plain": plain, "captured": captured, "jit": jitted}
every_mode = pytest.mark.parametrize("run", MODES.values(), ids=MODES)
while_capturing = pytest.mark.parametrize("run", [captured, jitted], ids=["captured", "jit"])


def same(got: Any, expected: Any, **tolerances: float) -> None:
    torch.testing.assert_close(got, expected, **tolerances)


def lane_by_lane(f, *args):
    """``vmap(f)(*args)`` as a Python loop: for oracles that look at their data."""
    size = optree.tree_leaves(args)[0].shape[0]
    outs = [f(*optree.tree_map(lambda x: x[i], args)) for i in range(size)]
    return optree.tree_map(lambda *rows: torch.stack(rows), *outs)
