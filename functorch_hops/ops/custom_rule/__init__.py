"""``custom_rule``: a call with derivatives of its own."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_form, no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import custom_rule_op
from .rules import (
    custom_rule_abstract_eval,
    custom_rule_batch,
    custom_rule_dependent_outputs,
    custom_rule_impl,
    custom_rule_jvp,
    custom_rule_lower,
    custom_rule_passthrough,
    custom_rule_prune,
    custom_rule_vjp_backward,
    custom_rule_vjp_forward,
)

custom_rule_op.register(
    Rules(
        impl=custom_rule_impl,
        abstract_eval=custom_rule_abstract_eval,
        dependent_outputs=custom_rule_dependent_outputs,
        batch=custom_rule_batch,
        jvp=custom_rule_jvp,
        vjp_forward=custom_rule_vjp_forward,
        vjp_backward=custom_rule_vjp_backward,
        prune=custom_rule_prune,
        passthrough=custom_rule_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=custom_rule_lower,
        native_loop=no_native_loop,
        form=no_form,
    )
)
