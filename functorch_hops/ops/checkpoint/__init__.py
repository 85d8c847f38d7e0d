"""``checkpoint``: a call whose residuals are recomputed in reverse mode."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_form, no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import checkpoint_op
from .rules import (
    checkpoint_abstract_eval,
    checkpoint_batch,
    checkpoint_dependent_outputs,
    checkpoint_impl,
    checkpoint_jvp,
    checkpoint_lower,
    checkpoint_passthrough,
    checkpoint_prune,
    checkpoint_vjp_backward,
    checkpoint_vjp_forward,
)

checkpoint_op.register(
    Rules(
        impl=checkpoint_impl,
        abstract_eval=checkpoint_abstract_eval,
        dependent_outputs=checkpoint_dependent_outputs,
        batch=checkpoint_batch,
        jvp=checkpoint_jvp,
        vjp_forward=checkpoint_vjp_forward,
        vjp_backward=checkpoint_vjp_backward,
        prune=checkpoint_prune,
        passthrough=checkpoint_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=checkpoint_lower,
        native_loop=no_native_loop,
        form=no_form,
    )
)
