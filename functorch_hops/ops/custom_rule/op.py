"""``custom_rule``: a call with derivatives of its own.

``custom_vjp``, ``custom_jvp``, ``custom_root``, ``custom_linear_solve`` and, in a captured body,
``torch.autograd.Function`` are this one operator; parameters.py holds its parameters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import _torch
from ...hop.operator import Hop
from .parameters import CustomRuleParams, Inlined

__all__ = ["custom_rule_op"]


class _CustomRuleHop(Hop[CustomRuleParams]):
    def __call__(self, params: CustomRuleParams, *operands: Any) -> tuple[Tensor, ...]:
        if isinstance(params, Inlined):
            with _torch.autocast_off():
                return tuple(map(Tensor.contiguous, params.function(*operands)))
        return super().__call__(params, *operands)


custom_rule_op = _CustomRuleHop("custom_rule", CustomRuleParams)
