"""An effect as an operator of torch's own, for compilers: it names what happens by a number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from ..handles import params_at
from .running import perform

__all__ = ["effect"]

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define("effect(Tensor[] operands, int number) -> ()")


def _run(operands: Sequence[Tensor], number: int) -> None:
    perform(params_at(number), operands)  # type: ignore[arg-type]


def _fake(operands: Sequence[Tensor], number: int) -> None:
    """Of an effect nothing is known but that it happens."""


_library.impl("effect", _run, "CompositeExplicitAutograd")
torch.library.register_fake("functorch_hops::effect", _fake, lib=_library)
effect = torch.ops.functorch_hops.effect.default
has_side_effect(effect)
