"""``checkpoint``: a call whose residuals are recomputed in reverse mode.

Static parameters: the body, the ``policy``, and which operands are ``late``. Operands: the body's inputs.
"""

from ...hop import Hop, Rules
from .rules import (
    checkpoint_abstract,
    checkpoint_augment,
    checkpoint_batch,
    checkpoint_jvp,
    checkpoint_native,
    checkpoint_prune,
    checkpoint_pullback,
    checkpoint_run,
    checkpoint_static,
)

__all__ = ["checkpoint_op", "checkpoint_static"]

checkpoint_op = Hop(
    "checkpoint",
    Rules(
        run=checkpoint_run,
        abstract=checkpoint_abstract,
        batch=checkpoint_batch,
        jvp=checkpoint_jvp,
        augment=checkpoint_augment,
        pullback=checkpoint_pullback,
        prune=checkpoint_prune,
        native=checkpoint_native,
    ),
)
