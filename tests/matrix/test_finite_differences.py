"""The derivatives of each operation against finite differences: an oracle that shares no code with any transform."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import functorch_hops as fh

from .contexts import differentiable
from .operations import OPERATIONS, Operation, examples, weights


@pytest.mark.parametrize("operation", [pytest.param(o, id=o.name) for o in OPERATIONS.values()])
def test_first_and_second_order(operation: Operation) -> None:
    """Forward mode, reverse mode and its derivative; decisions are far enough from their boundaries."""

    def f(w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        outs = differentiable(operation.program({"w": w, "b": b}, x))
        return tuple(o for o in outs if o.requires_grad)

    p = weights()
    inputs = [t.clone().requires_grad_() for t in (p["w"], p["b"], examples()[1])]
    with fh.eager_capture():
        assert torch.autograd.gradcheck(f, inputs, fast_mode=True, check_forward_ad=False)
        assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)
