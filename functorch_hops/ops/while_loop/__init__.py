"""``while_loop``: a loop whose trip count only a run knows."""

from ...hop.rules import Rules
from ...passes.products import no_products
from .batching import while_loop_batch
from .dependence import while_loop_dependent_outputs
from .eager import while_loop_abstract_eval, while_loop_impl
from .hoisting import while_loop_hoist
from .jvp import while_loop_jvp
from .liveness import while_loop_prune
from .lowering import while_loop_form, while_loop_lower, while_loop_native_loop
from .op import while_loop_op
from .passthrough import while_loop_passthrough
from .replaying import redrawing
from .vjp import while_loop_vjp_backward, while_loop_vjp_forward

while_loop_op.register(
    Rules(
        impl=while_loop_impl,
        abstract_eval=while_loop_abstract_eval,
        dependent_outputs=while_loop_dependent_outputs,
        batch=while_loop_batch,
        jvp=while_loop_jvp,
        vjp_forward=while_loop_vjp_forward,
        vjp_backward=while_loop_vjp_backward,
        prune=while_loop_prune,
        passthrough=while_loop_passthrough,
        hoist=while_loop_hoist,
        products=no_products,
        redraw=redrawing,
        lower=while_loop_lower,
        native_loop=while_loop_native_loop,
        form=while_loop_form,
    )
)
