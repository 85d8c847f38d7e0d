"""A callback as an operator of torch's own, for compilers: it names the function by a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..handles import params_at

__all__ = ["callback"]

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define("callback(Tensor[] operands, int number) -> Tensor[]")


def _run(operands: Sequence[Tensor], number: int) -> list[Tensor]:
    params: Any = params_at(number)
    return list(params.operator.run_eagerly(params, *operands))


def _fake(operands: Sequence[Tensor], number: int) -> list[Tensor]:
    params: Any = params_at(number)
    return list(params.operator.rules.abstract_eval(params, operands))


_library.impl("callback", _run, "CompositeExplicitAutograd")
torch.library.register_fake("functorch_hops::callback", _fake, lib=_library)
callback = torch.ops.functorch_hops.callback.default
