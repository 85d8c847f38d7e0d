"""``custom_rule``: a call with a derivative of its own (``torch.autograd.Function`` in a captured body).

Static parameters: ``bodies`` are the forward graph ``inputs -> outputs, residuals``, the backward graph ``residuals,
closed-over values, cotangents -> gradients of the marked inputs`` and, where the function has one, the forward-mode
graph ``residuals, closed-over values, tangents -> tangents of the differentiable outputs``. ``layout`` says which is
which. Operands: the forward graph's inputs, then what the backward and the forward-mode graph close over.
"""

from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...hop import Hop, Rules
from .reached import custom_rule_reached
from .rules import (
    custom_rule_abstract,
    custom_rule_augment,
    custom_rule_batch,
    custom_rule_forward,
    custom_rule_jvp,
    custom_rule_native,
    custom_rule_prune,
    custom_rule_pullback,
    custom_rule_run,
)

__all__ = ["custom_rule_op"]

custom_rule_op = Hop(
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
