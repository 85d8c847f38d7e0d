"""Whether a call of control flow runs as Python or is captured."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from .._torch import foreign_capture_active, is_recording_script, lane_by_lane
from ..errors import CaptureError, message
from ..trace.capture import current_capture

__all__ = ["disable_jit", "eager_capture", "forced", "is_capturing", "is_jit_disabled", "is_stepwise", "stepwise"]


class _Forced(threading.local):
    def __init__(self) -> None:
        self.depth = self.without_jit = self.either = self.stepwise = 0


forced = _Forced()
"""How many times ``eager_capture``, ``disable_jit`` and either of them were entered on this thread."""


def is_capturing() -> bool:
    """Whether control flow becomes graph nodes here: a capture runs, torch traces, or ``eager_capture`` asks for it."""
    if is_recording_script():
        raise CaptureError(
            message(
                "torch.jit.trace",
                "it would keep the branch and the steps that it sees, and no control flow",
                remedy="use torch.export or fh.export, fh.jit or torch.compile",
            )
        )
    return current_capture() is not None or forced.depth > 0 or foreign_capture_active()


def is_jit_disabled() -> bool:
    return forced.without_jit > 0


def is_stepwise() -> bool:
    """Whether a call that runs as Python is to run as the plain loop that it is equivalent to: no segments that are
    computed again.
    """
    return forced.stepwise > 0 and not is_capturing()


@contextlib.contextmanager
def stepwise() -> Iterator[None]:
    """Run everything as Python, one step and one lane after the other: where each value comes from is on the stack."""
    depth, forced.depth = forced.depth, 0
    forced.stepwise += 1
    try:
        with disable_jit(), lane_by_lane(is_stepwise):
            yield
    finally:
        forced.depth, forced.stepwise = depth, forced.stepwise - 1


@contextlib.contextmanager
def disable_jit() -> Iterator[None]:
    """Run jitted functions as the Python that they are, so that ``print`` and a debugger work in them.

    ``disable_jit : () -> context manager``. Equivalent, in value, to ``contextlib.nullcontext()``. Inside it
    ``jit(f)(*args)`` is ``f(*args)``: nothing is captured, compiled or kept, loops run step by step, and what happens
    once under ``jit`` (a counter, a print) happens in every call.

    Returns:
        A context manager, for the calling thread.

    Raises: nothing itself.

    Cost: that of plain eager.

    Source: ``jax.disable_jit``.

    >>> import torch, functorch_hops as fh
    >>> @fh.jit
    ... def double(x):
    ...     print("x is", x)
    ...     return x * 2
    >>> with fh.disable_jit():
    ...     double(torch.tensor(3.0))
    x is tensor(3.)
    tensor(6.)
    """
    forced.without_jit, forced.either = forced.without_jit + 1, forced.either + 1
    try:
        yield
    finally:
        forced.without_jit, forced.either = forced.without_jit - 1, forced.either - 1


@contextlib.contextmanager
def eager_capture() -> Iterator[None]:
    """Capture plain-eager control flow too, so that it is checked and differentiated as under ``jit``.

    ``eager_capture : () -> context manager``. Equivalent, in value, to ``contextlib.nullcontext()``. But both branches
    of a ``cond`` are traced, all metadata is compared, and the operators' own rules run instead of autograd on the
    Python loop. For validating a model before compiling it.

    Returns:
        A context manager, for the calling thread.

    Raises: nothing itself. Calls inside it raise what they would raise under :func:`jit`, such as CaptureError and
    MetadataMismatchError.

    Cost: the first call traces its bodies (some milliseconds each). Later calls of the same code use that trace again,
    as long as what it reads is as it was, and unless it does more than compute (it prints, counts, draws from
    ``random``).

    >>> import torch, functorch_hops as fh
    >>> with fh.eager_capture():
    ...     fh.cond(torch.tensor(True), torch.sin, torch.cos, torch.zeros(2))
    tensor([0., 0.])
    """
    forced.depth, forced.either = forced.depth + 1, forced.either + 1
    try:
        yield
    finally:
        forced.depth, forced.either = forced.depth - 1, forced.either - 1
