"""``checkpoint``: a call whose residuals are recomputed in reverse mode.

Static parameters: the body, the ``policy``, and which operands are ``late``. Operands: the body's inputs.
"""

from __future__ import annotations

from ...derive.saving import Policy
from ...hop.operator import Hop
from ...ir.meta import Mask
from ...ir.subgraph import StaticParameters, Subgraph

__all__ = ["checkpoint_op", "checkpoint_static"]

checkpoint_op = Hop("checkpoint")


def checkpoint_static(body: Subgraph, policy: Policy, late: Mask = ()) -> StaticParameters:
    """``late`` marks operands; the empty mask marks none."""
    return StaticParameters("checkpoint", [body], policy=policy, late=late, n_outputs=len(body.outputs))
