"""Numbers on the CPU in a graph of an accelerator need no C++ compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.cures import counted_by_torch
from loop_plans import normal
from modes import same


def recurrent(h: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda h, x: ((new := torch.tanh(h @ x)), new), h, xs)


def indexed(h: Tensor, xs: Tensor) -> Any:
    return fh.fori_loop(0, 3, lambda i, h: torch.tanh(h @ xs[0]) * i + xs[i], h)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "operators"),
    [(recurrent, ["lt.Scalar", "add.Tensor"]), (indexed, ["lt.Scalar", "select.int", "iota.default"])],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_loop_of_torch_s_counts_by_its_operators(f: Any, operators: list[str]) -> None:
    """The cure is for graphs of an accelerator, and put upon one of a CPU here."""
    from torch._inductor.utils import run_and_get_code

    args = normal(4, 4), normal(3, 4, 4)
    compiled = fh.jit(f, options={"loop_kernels": False, "cpp_wrapper": False, "force_disable_caches": True})
    with counted_by_torch():
        result, codes = run_and_get_code(compiled, *args)
    same(result, f(*args))
    for operator in operators:
        assert f".{operator}(" in codes[0]
