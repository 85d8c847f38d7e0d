"""``custom_rule``: a call with derivatives of its own.

``custom_vjp``, ``custom_jvp``, ``custom_root``, ``custom_linear_solve`` and, in a captured body,
``torch.autograd.Function`` are this one operator. Static parameters: a ``Rule`` (see parameters.py). Operands: the flat
inputs, then everything that the function and its derivatives close over.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import _torch
from ...hop.operator import Hop
from ...ir.subgraph import StaticParameters
from .parameters import Inlined

__all__ = ["custom_rule_op"]


class _CustomRuleHop(Hop):
    def __call__(self, static: StaticParameters, *operands: Any) -> tuple[Tensor, ...]:
        if isinstance(static, Inlined):
            with _torch.autocast_off():
                return tuple(map(Tensor.contiguous, static.bodies[0](*operands)))
        return super().__call__(static, *operands)


custom_rule_op = _CustomRuleHop("custom_rule")
