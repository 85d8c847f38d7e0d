"""What a scan computes from its constants alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...passes.hoisting import Hoisted, is_any, is_total, split_invariant
from .op import ScanParams

__all__ = ["scan_hoist"]


def scan_hoist(params: ScanParams, operands: Sequence[Any]) -> Hoisted[ScanParams] | None:
    body = params.body
    first, length = params.n_carry + params.n_xs, operands[0]
    constant = tuple(i >= first for i in range(len(body.inputs)))
    takes_a_step = isinstance(length, int) and length > 0
    parts = split_invariant(body, constant, is_any if takes_a_step else is_total)
    if parts is None:
        return None
    outside, inside = parts
    return Hoisted(replace(params, body=inside), outside, tuple(range(1 + first, len(operands))))
