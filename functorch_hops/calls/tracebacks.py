"""Tracebacks without the library's own frames.

NOTE [Short tracebacks] Where an exception leaves a public call, the frames of this library and of torch between two
frames of the user's are taken out of its traceback, and out of those of the exceptions that it was raised from or
amid, or is a group of. So there is one frame between the call of a loop and its body. What is below the user's last
frame stays as far as it is torch's, and the last two, for that is where it was raised; but nothing of an error of ours,
which says what it has to say itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType

from ..errors import FunctorchHopsError, is_internal, is_own

__all__ = ["full_tracebacks", "shorten"]


class _State(threading.local):
    is_full = False


_state = _State()


@contextlib.contextmanager
def full_tracebacks() -> Iterator[None]:
    """Keep all frames in the tracebacks of exceptions.

    ``full_tracebacks : () -> context manager``. Equivalent to ``contextlib.nullcontext()``, but the tracebacks of
    exceptions that are raised inside it hold the frames of this library and of torch between those of the user too. To
    see into the library, or to report an error of it.

    Returns:
        A context manager, for the calling thread.

    Raises: nothing itself.

    Cost: none.

    Source: ``jax_traceback_filtering``.

    >>> import torch, traceback, functorch_hops as fh
    >>> def frames():
    ...     try:
    ...         fh.map(lambda x: x.no_such_name, torch.ones(2))
    ...     except AttributeError as error:
    ...         return len(traceback.extract_tb(error.__traceback__))
    >>> short = frames()
    >>> with fh.full_tracebacks():
    ...     long = frames()
    >>> short, long > short
    (3, True)
    """
    outer, _state.is_full = _state.is_full, True
    try:
        yield
    finally:
        _state.is_full = outer


def shorten(error: BaseException) -> None:
    """Take the frames out, see NOTE [Short tracebacks]; to be called where the error is caught to be raised on."""
    if not _state.is_full:
        _shorten(error, set())


def _shorten(error: BaseException | None, seen: set[int]) -> None:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _kept(error.__traceback__, is_ours=isinstance(error, FunctorchHopsError))
    _shorten(error.__cause__, seen)
    _shorten(error.__context__, seen)
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        _shorten(part, seen)


def _kept(first: TracebackType | None, is_ours: bool) -> TracebackType | None:
    """The first frame, those of the user, and what follows them."""
    if first is None:
        return None
    parts, entry = [], first.tb_next
    while entry is not None:
        parts.append(entry)
        entry = entry.tb_next
    of_user = [i for i, part in enumerate(parts) if not is_internal(part.tb_frame.f_code.co_filename)]
    last = of_user[-1] if of_user else -1
    below = [] if is_ours else parts[last + 1 :]
    raised = [part for part in below[:-2] if not is_own(part.tb_frame.f_code.co_filename)] + below[-2:]
    kept = [parts[i] for i in of_user] + raised
    following = None
    for part in reversed(kept):
        following = TracebackType(following, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return TracebackType(following, first.tb_frame, first.tb_lasti, first.tb_lineno)
