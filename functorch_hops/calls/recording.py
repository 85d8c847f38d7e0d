"""Which calls autograd records.

NOTE [Bodies hold no_grad] What a body computes under ``no_grad`` is marked in its graph (``untracked``), and reverse
mode stops there. What it only hands on, or computes under ``enable_grad``, keeps its history in Python, whatever mode
the loop is called in. So a call under ``no_grad`` is recorded if a gradient leads through a body. What the operator
itself puts together, such as stacked outputs, has no history then. (One case is left to the data in Python, and has no
history in a graph: a carry that each step computes, where no step is taken.)

Under torch.export the modes are those of the program. ``no_grad`` around the whole export is none of it: it may be
trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _torch
from ..ir.dependence import Through, dependent_outputs
from ..ir.nodes import untracked
from ..ir.subgraph import Subgraph
from ..trace.capture import current_capture

__all__ = ["in_mode_of_program", "is_recorded_under_no_grad", "recorded_as_bodies_say", "untracked_under_no_grad"]


def in_mode_of_program() -> contextlib.AbstractContextManager[object]:
    """For a call that no capture of this library is around."""
    if current_capture() is None and _torch.is_exported_without_gradients():
        return _torch.gradients_on_unseen()
    return _UNCHANGED


_UNCHANGED = contextlib.nullcontext()


def recorded_as_bodies_say(
    *bodies: Subgraph, n_returned: int | None = None
) -> contextlib.AbstractContextManager[object]:
    """A call of an operator with these bodies, whose first ``n_returned`` outputs, all by default, are handed out as
    they are: see NOTE [Bodies hold no_grad].
    """
    is_recorded = any(is_recorded_under_no_grad(body, n_returned) for body in bodies)
    return torch.enable_grad() if is_recorded else contextlib.nullcontext()


def is_recorded_under_no_grad(body: Subgraph, n_returned: int | None = None) -> bool:
    """Whether gradients are off now, and yet lead through a body."""
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return False
    return any(dependent_outputs(body, (True,) * len(body.inputs), Through.GRADIENT)[:n_returned])


def untracked_under_no_grad(values: Sequence[Tensor]) -> list[Tensor]:
    """Values that Python would have made from others where a call stands."""
    return list(values) if torch.is_grad_enabled() else list(map(untracked, values))
