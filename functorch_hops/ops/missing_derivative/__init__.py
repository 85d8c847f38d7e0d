"""A derivative that does not exist, as a value that must not be computed."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_form, no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import missing_derivative_op
from .rules import (
    missing_derivative_abstract_eval,
    missing_derivative_batch,
    missing_derivative_dependent_outputs,
    missing_derivative_impl,
    missing_derivative_jvp,
    missing_derivative_passthrough,
    missing_derivative_prune,
    missing_derivative_vjp_backward,
    missing_derivative_vjp_forward,
)

missing_derivative_op.register(
    Rules(
        impl=missing_derivative_impl,
        abstract_eval=missing_derivative_abstract_eval,
        dependent_outputs=missing_derivative_dependent_outputs,
        batch=missing_derivative_batch,
        jvp=missing_derivative_jvp,
        vjp_forward=missing_derivative_vjp_forward,
        vjp_backward=missing_derivative_vjp_backward,
        prune=missing_derivative_prune,
        passthrough=missing_derivative_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=missing_derivative_impl,
        native_loop=no_native_loop,
        form=no_form,
    )
)
