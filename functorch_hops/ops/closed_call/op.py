"""The call of a closed, compiled graph: what ``jit`` puts in the place of the user's function.

Static parameters: the body, and the ``backend`` that compiles it. Operands: the body's inputs.
"""

from __future__ import annotations

from ...hop.operator import Hop
from ...ir.subgraph import StaticParameters, Subgraph
from ...lowering.backends import Backend

__all__ = ["closed_call_op", "closed_call_static"]

closed_call_op = Hop("closed_call")


def closed_call_static(body: Subgraph, backend: Backend) -> StaticParameters:
    return body.derive(
        ("closed call", backend),
        lambda: StaticParameters("closed_call", [body], backend=backend, n_outputs=len(body.outputs)),
    )
