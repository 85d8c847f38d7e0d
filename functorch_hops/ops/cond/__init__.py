"""``cond`` and ``switch``: one operator that runs one of several branches."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .batching import cond_batch
from .dependence import cond_dependent_outputs
from .eager import cond_abstract_eval, cond_impl
from .jvp import cond_jvp
from .liveness import cond_prune
from .lowering import cond_form, cond_lower
from .op import cond_op
from .passthrough import cond_passthrough
from .vjp import cond_vjp_backward, cond_vjp_forward

cond_op.register(
    Rules(
        impl=cond_impl,
        abstract_eval=cond_abstract_eval,
        dependent_outputs=cond_dependent_outputs,
        batch=cond_batch,
        jvp=cond_jvp,
        vjp_forward=cond_vjp_forward,
        vjp_backward=cond_vjp_backward,
        prune=cond_prune,
        passthrough=cond_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=cond_lower,
        native_loop=no_native_loop,
        form=cond_form,
    )
)
