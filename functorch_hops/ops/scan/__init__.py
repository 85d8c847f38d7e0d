"""``scan``: one operator for every loop whose trip count is known when it starts."""

from ...hop.rules import Rules
from ...passes.redrawing import not_redrawn
from .batching import scan_batch
from .dependence import scan_dependent_outputs
from .eager import scan_abstract_eval, scan_impl
from .hoisting import scan_hoist
from .jvp import scan_jvp
from .liveness import scan_prune
from .lowering import scan_form, scan_lower, scan_native_loop
from .op import scan_op
from .passthrough import scan_passthrough
from .products import scan_products
from .vjp import scan_vjp_backward, scan_vjp_forward

scan_op.register(
    Rules(
        impl=scan_impl,
        abstract_eval=scan_abstract_eval,
        dependent_outputs=scan_dependent_outputs,
        batch=scan_batch,
        jvp=scan_jvp,
        vjp_forward=scan_vjp_forward,
        vjp_backward=scan_vjp_backward,
        prune=scan_prune,
        passthrough=scan_passthrough,
        hoist=scan_hoist,
        products=scan_products,
        redraw=not_redrawn,
        lower=scan_lower,
        native_loop=scan_native_loop,
        form=scan_form,
    )
)
