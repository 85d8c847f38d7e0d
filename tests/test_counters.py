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


@pytest.mark.slow
def test_a_loop_of_torch_s_counts_by_its_operators() -> None:
    """The cure is for graphs of an accelerator, and put upon one of a CPU here."""
    from torch._inductor.utils import run_and_get_code

    args = normal(4, 4), normal(3, 4, 4)
    compiled = fh.jit(recurrent, options={"loop_kernels": False, "cpp_wrapper": False, "force_disable_caches": True})
    with counted_by_torch():
        result, codes = run_and_get_code(compiled, *args)
    same(result, recurrent(*args))
    assert "torch.ops.aten.lt.Scalar(" in codes[0]
    assert "torch.ops.aten.add.Tensor(" in codes[0]
