"""``scan``: one operator for every loop whose trip count is known when it starts (``fori_loop`` and ``map`` included).

Static parameters: the body ``(carry..., x..., consts...) -> (carry..., y...)``, ``n_carry``, ``n_xs``, ``reverse``.
Operands: the length, the initial carry, the xs with time at dimension 0, and the constants. Outputs: the final carry,
the stacked ys.
"""

from ...hop import Hop, Rules
from .batching import scan_batch
from .eager import scan_abstract, scan_run
from .fission import scan_fission
from .forwarding import scan_forward
from .hoisting import scan_hoist
from .jvp import scan_jvp
from .liveness import scan_prune
from .lowering import scan_native
from .reached import scan_reached
from .vjp import scan_augment, scan_pullback

__all__ = ["scan_op"]

scan_op = Hop(
    "scan",
    Rules(
        run=scan_run,
        abstract=scan_abstract,
        reached=scan_reached,
        batch=scan_batch,
        jvp=scan_jvp,
        augment=scan_augment,
        pullback=scan_pullback,
        prune=scan_prune,
        forward=scan_forward,
        hoist=scan_hoist,
        fission=scan_fission,
        native=scan_native,
    ),
)
