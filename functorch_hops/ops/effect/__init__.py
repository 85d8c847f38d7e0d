"""``effect``: what a user does in a graph besides computing."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_form, no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import effect_op
from .rules import (
    effect_abstract_eval,
    effect_batch,
    effect_dependent_outputs,
    effect_impl,
    effect_jvp,
    effect_lower,
    effect_passthrough,
    effect_prune,
    effect_vjp_backward,
    effect_vjp_forward,
)

effect_op.register(
    Rules(
        impl=effect_impl,
        abstract_eval=effect_abstract_eval,
        dependent_outputs=effect_dependent_outputs,
        batch=effect_batch,
        jvp=effect_jvp,
        vjp_forward=effect_vjp_forward,
        vjp_backward=effect_vjp_backward,
        prune=effect_prune,
        passthrough=effect_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=effect_lower,
        native_loop=no_native_loop,
        form=no_form,
    )
)
