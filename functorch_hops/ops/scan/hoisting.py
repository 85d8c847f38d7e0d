"""What a scan computes from its constants alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.subgraph import StaticParameters
from ...passes.hoisting import Hoisted, is_any, is_total, split_invariant

__all__ = ["scan_hoist"]


def scan_hoist(static: StaticParameters, operands: Sequence[Any]) -> Hoisted | None:
    (body,) = static.bodies
    first, length = static["n_carry"] + static["n_xs"], operands[0]
    constant = tuple(i >= first for i in range(len(body.inputs)))
    takes_a_step = isinstance(length, int) and length > 0
    parts = split_invariant(body, constant, is_any if takes_a_step else is_total)
    if parts is None:
        return None
    outside, inside = parts
    return Hoisted(
        StaticParameters("scan", [inside], **static.attributes), outside, tuple(range(1 + first, len(operands)))
    )
