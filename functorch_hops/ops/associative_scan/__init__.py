"""``associative_scan``: all prefix reductions with an associative function.

Static parameters: the body ``(a..., b..., consts...) -> c...`` on one element, ``n_leaves``. Operands: the elements at
dimension 0, the constants.
"""

from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...hop import Hop, Rules
from .batching import associative_scan_batch
from .eager import associative_scan_abstract, associative_scan_run
from .forwarding import associative_scan_forward
from .jvp import associative_scan_jvp
from .liveness import associative_scan_prune
from .lowering import associative_scan_native
from .reached import associative_scan_reached
from .vjp import associative_scan_augment, associative_scan_pullback

__all__ = ["associative_scan_op"]

associative_scan_op = Hop(
    "associative_scan",
    Rules(
        run=associative_scan_run,
        abstract=associative_scan_abstract,
        reached=associative_scan_reached,
        batch=associative_scan_batch,
        jvp=associative_scan_jvp,
        augment=associative_scan_augment,
        pullback=associative_scan_pullback,
        prune=associative_scan_prune,
        forward=associative_scan_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=associative_scan_native,
    ),
)
