"""``checkpoint``: a call whose residuals are recomputed in reverse mode.

Static parameters: the body, the ``policy``, and which operands are ``late``. Operands: the body's inputs.
"""

from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...hop import Hop, Rules
from .rules import (
    checkpoint_abstract,
    checkpoint_augment,
    checkpoint_batch,
    checkpoint_forward,
    checkpoint_jvp,
    checkpoint_native,
    checkpoint_prune,
    checkpoint_pullback,
    checkpoint_reached,
    checkpoint_run,
    checkpoint_static,
)

__all__ = ["checkpoint_op", "checkpoint_static"]

checkpoint_op = Hop(
    "checkpoint",
    Rules(
        run=checkpoint_run,
        abstract=checkpoint_abstract,
        reached=checkpoint_reached,
        batch=checkpoint_batch,
        jvp=checkpoint_jvp,
        augment=checkpoint_augment,
        pullback=checkpoint_pullback,
        prune=checkpoint_prune,
        forward=checkpoint_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=checkpoint_native,
    ),
)
