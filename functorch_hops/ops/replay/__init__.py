"""``replay``: a graph that draws random numbers, as a function of the state of the generator."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .op import replay_op
from .rules import (
    replay_abstract_eval,
    replay_batch,
    replay_dependent_outputs,
    replay_form,
    replay_impl,
    replay_jvp,
    replay_lower,
    replay_passthrough,
    replay_prune,
    replay_vjp_backward,
    replay_vjp_forward,
)

replay_op.register(
    Rules(
        impl=replay_impl,
        abstract_eval=replay_abstract_eval,
        dependent_outputs=replay_dependent_outputs,
        batch=replay_batch,
        jvp=replay_jvp,
        vjp_forward=replay_vjp_forward,
        vjp_backward=replay_vjp_backward,
        prune=replay_prune,
        passthrough=replay_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=replay_lower,
        native_loop=no_native_loop,
        form=replay_form,
    )
)
