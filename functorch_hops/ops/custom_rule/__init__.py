"""``custom_rule``: a call with derivatives of its own.

``custom_vjp``, ``custom_jvp``, ``custom_root``, ``custom_linear_solve`` and, in a captured body,
``torch.autograd.Function`` are this one operator. Static parameters: a ``Rule`` (see parameters.py). Operands: the flat
inputs, then everything that the function and its derivatives close over.
"""

from typing import Any

from torch import Tensor

from ... import _torch
from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...capture.subgraph import StaticParameters
from ...hop import Hop, Rules
from .rules import (
    Inlined,
    custom_rule_abstract,
    custom_rule_augment,
    custom_rule_batch,
    custom_rule_forward,
    custom_rule_jvp,
    custom_rule_native,
    custom_rule_prune,
    custom_rule_pullback,
    custom_rule_reached,
    custom_rule_run,
)

__all__ = ["custom_rule_op"]


class _CustomRuleHop(Hop):
    def __call__(self, static: StaticParameters, *operands: Any) -> tuple[Tensor, ...]:
        if isinstance(static, Inlined):
            with _torch.autocast_off():
                return tuple(map(Tensor.contiguous, static.bodies[0](*operands)))
        return super().__call__(static, *operands)


custom_rule_op = _CustomRuleHop(
    "custom_rule",
    Rules(
        run=custom_rule_run,
        abstract=custom_rule_abstract,
        reached=custom_rule_reached,
        batch=custom_rule_batch,
        jvp=custom_rule_jvp,
        augment=custom_rule_augment,
        pullback=custom_rule_pullback,
        prune=custom_rule_prune,
        forward=custom_rule_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=custom_rule_native,
    ),
)
