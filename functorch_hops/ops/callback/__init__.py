"""``callback``: the results of a Python function that no graph can hold."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import callback_op
from .rules import (
    callback_abstract_eval,
    callback_batch,
    callback_dependent_outputs,
    callback_form,
    callback_impl,
    callback_jvp,
    callback_lower,
    callback_passthrough,
    callback_prune,
    callback_vjp_backward,
    callback_vjp_forward,
)

callback_op.register(
    Rules(
        impl=callback_impl,
        abstract_eval=callback_abstract_eval,
        dependent_outputs=callback_dependent_outputs,
        batch=callback_batch,
        jvp=callback_jvp,
        vjp_forward=callback_vjp_forward,
        vjp_backward=callback_vjp_backward,
        prune=callback_prune,
        passthrough=callback_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=callback_lower,
        native_loop=no_native_loop,
        form=callback_form,
    )
)
