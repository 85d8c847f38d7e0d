"""``torch.autograd.detect_anomaly()`` around operators: it learns the loop and the step.

A backward pass that returns NaN in that mode runs once more, as graphs whose nodes are looked at one by one: so nothing
is paid for, and nothing changes, before a NaN is there.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable

import torch

from ..errors import AnomalyError, message
from ..ir.active import state
from ..ir.first_nan import NanMade, holds_nan, stopping_at_nan
from ..ir.origin import Origin
from ..ir.subgraph import Params
from .rules import Maybe

__all__ = ["check_gradients"]


def check_gradients(params: Params, grads: Maybe, pull: Callable[[], Maybe]) -> None:
    """Raise if the backward pass of a call gave a NaN. ``pull``: that pass, once more."""
    if not torch.is_anomaly_check_nan_enabled() or state.stops_at_nan or not holds_nan([*grads]):
        return
    made = None
    try:
        with stopping_at_nan():
            pull()
    except NanMade as found:
        made = found
    steps = [] if made is None else made.steps
    where = "".join(f", in step {step} of {label}{_place(origin)}" for step, label, origin in steps)
    raise AnomalyError(
        message(
            "detect_anomaly",
            f"the backward pass of {params.public_name}{_place(params.origin)} returned nan values",
            parameter=None if made is None else f"{made.operation}{where}",
            remedy="fh.debug.find_nan(f)(*args) names the line of the operation, its operands and the lane",
        ),
        tuple(step for step, _, _ in reversed(steps)),
    )


def _place(origin: Origin | None) -> str:
    if origin is None:
        return ""
    source = linecache.getline(origin.file, origin.line).strip()
    return f" at {origin}" + (f" ({source})" if source else "")
