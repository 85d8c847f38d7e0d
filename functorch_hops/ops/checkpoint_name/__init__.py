"""``checkpoint_name``: a value under a name, for policies."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_form, no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import checkpoint_name_op
from .rules import (
    checkpoint_name_batch,
    checkpoint_name_dependent_outputs,
    checkpoint_name_impl,
    checkpoint_name_jvp,
    checkpoint_name_lower,
    checkpoint_name_passthrough,
    checkpoint_name_prune,
    checkpoint_name_vjp_backward,
    checkpoint_name_vjp_forward,
)

checkpoint_name_op.register(
    Rules(
        impl=checkpoint_name_impl,
        abstract_eval=checkpoint_name_impl,
        dependent_outputs=checkpoint_name_dependent_outputs,
        batch=checkpoint_name_batch,
        jvp=checkpoint_name_jvp,
        vjp_forward=checkpoint_name_vjp_forward,
        vjp_backward=checkpoint_name_vjp_backward,
        prune=checkpoint_name_prune,
        passthrough=checkpoint_name_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=checkpoint_name_lower,
        native_loop=no_native_loop,
        form=no_form,
    )
)
