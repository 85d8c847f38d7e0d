"""``associative_scan``: all prefix reductions with an associative function."""

from ...hop.rules import Rules
from ...lowering.loops.forms import no_native_loop
from ...passes.hoisting import not_a_loop
from ...passes.products import no_products
from ...passes.redrawing import not_redrawn
from .batching import associative_scan_batch
from .dependence import associative_scan_dependent_outputs
from .eager import associative_scan_abstract_eval, associative_scan_impl
from .jvp import associative_scan_jvp
from .liveness import associative_scan_prune
from .lowering import associative_scan_form, associative_scan_lower
from .op import associative_scan_op
from .passthrough import associative_scan_passthrough
from .vjp import associative_scan_vjp_backward, associative_scan_vjp_forward

associative_scan_op.register(
    Rules(
        impl=associative_scan_impl,
        abstract_eval=associative_scan_abstract_eval,
        dependent_outputs=associative_scan_dependent_outputs,
        batch=associative_scan_batch,
        jvp=associative_scan_jvp,
        vjp_forward=associative_scan_vjp_forward,
        vjp_backward=associative_scan_vjp_backward,
        prune=associative_scan_prune,
        passthrough=associative_scan_passthrough,
        hoist=not_a_loop,
        products=no_products,
        redraw=not_redrawn,
        lower=associative_scan_lower,
        native_loop=no_native_loop,
        form=associative_scan_form,
    )
)
