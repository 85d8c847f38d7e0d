"""``cond`` and ``switch``: one operator that runs one of several branches.

Static parameters: ``bodies`` are the branches, all of one signature. Operands: the selector - a 0-d bool (False is
branch 0) or a 0-d int64 in range - then the branches' operands.
"""

from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...hop import Hop, Rules
from .batching import cond_batch
from .eager import cond_abstract, cond_run
from .forwarding import cond_forward
from .jvp import cond_jvp
from .liveness import cond_prune
from .lowering import cond_native
from .reached import cond_reached
from .vjp import cond_augment, cond_pullback

__all__ = ["cond_op"]

cond_op = Hop(
    "cond",
    Rules(
        run=cond_run,
        abstract=cond_abstract,
        reached=cond_reached,
        batch=cond_batch,
        jvp=cond_jvp,
        augment=cond_augment,
        pullback=cond_pullback,
        prune=cond_prune,
        forward=cond_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=cond_native,
    ),
)
