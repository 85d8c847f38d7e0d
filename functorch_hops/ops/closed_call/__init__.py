"""The call of a closed, compiled graph: what ``jit`` puts in the place of the user's function.

Static parameters: the body, and the ``backend`` that compiles it. Operands: the body's inputs.
"""

from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...hop import Hop, Rules
from .rules import (
    closed_call_abstract,
    closed_call_augment,
    closed_call_batch,
    closed_call_forward,
    closed_call_jvp,
    closed_call_native,
    closed_call_prune,
    closed_call_pullback,
    closed_call_reached,
    closed_call_run,
    closed_call_static,
)

__all__ = ["closed_call_op", "closed_call_static"]

closed_call_op = Hop(
    "closed_call",
    Rules(
        run=closed_call_run,
        abstract=closed_call_abstract,
        reached=closed_call_reached,
        batch=closed_call_batch,
        jvp=closed_call_jvp,
        augment=closed_call_augment,
        pullback=closed_call_pullback,
        prune=closed_call_prune,
        forward=closed_call_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=closed_call_native,
    ),
)
