"""Who captures what, how often and why: ``log_captures`` and ``assert_max_captures``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..calls.leaf import left_to_python
from ..calls.listening import CaptureEvent, listening
from ..calls.validate import as_int
from ..errors import ArgumentTypeError, TooManyCapturesError, message
from ..transforms.jitted_function import JittedFunction

__all__ = ["assert_max_captures", "log_captures"]


@left_to_python
@contextlib.contextmanager
def log_captures(*, quiet: bool = False) -> Iterator[list[CaptureEvent]]:
    """Say what is captured and compiled, why again, and how long it takes.

    ``log_captures : () -> context manager of a list of CaptureEvent``. Equivalent to ``contextlib.nullcontext([])``
    but for the lines on stderr, one for each capture or compilation that ends inside it, on any thread, those that
    plain eager makes of control flow included.

    Arguments:
        quiet: print nothing; only collect.

    Returns:
        A context manager. Its value is a list, to which each :class:`CaptureEvent` is added as it happens.

    Raises: nothing itself.

    Cost: some microseconds for each capture.

    Source: ``jax.log_compiles``; ``TORCH_LOGS=recompiles``.

    >>> import torch, functorch_hops as fh
    >>> double = fh.jit(lambda x: x * 2, backend="eager")
    >>> with fh.log_captures(quiet=True) as events:
    ...     _ = double(torch.ones(2)), double(torch.ones(2)), double(torch.ones(3))
    >>> [event.reasons for event in events]
    [(), ('arguments changed from (float32[2]@cpu) to (float32[3]@cpu)',)]
    """
    events: list[CaptureEvent] = []

    def note(event: CaptureEvent, subject: Any) -> None:
        events.append(event)
        if not quiet:
            print(f"functorch_hops: {event}", file=sys.stderr)

    with listening(note):
        yield events


@left_to_python
def assert_max_captures(f: Callable[..., Any], n: int, /) -> contextlib.AbstractContextManager[None]:
    """Fail when a jitted function is captured more often than expected.

    ``assert_max_captures : (jitted function, int) -> context manager``. Equivalent to ``contextlib.nullcontext()``, as
    long as ``f`` is captured ``n`` times at most inside it. For tests, and for loops whose speed depends on it.

    Arguments:
        f: what :func:`jit` returned: a function, a module, or a method of an object.
        n: how many captures are allowed.

    Returns:
        A context manager.

    Raises:
        TooManyCapturesError: at the call that captured ``f`` once more; it says what had changed. It is an
            AssertionError.
        ArgumentTypeError, ArgumentValueError: ``f`` is not jitted, ``n`` is no integer or is negative.

    Cost: none for calls that find their trace.

    Source: ``chex.assert_max_traces``.

    >>> import torch, functorch_hops as fh
    >>> double = fh.jit(lambda x: x * 2, backend="eager")
    >>> with fh.assert_max_captures(double, 1):
    ...     for i in range(3):
    ...         _ = double(torch.full((2,), float(i)))
    """
    jitted = getattr(f, "_jitted", f)
    if not isinstance(jitted, JittedFunction):
        text = message(
            "assert_max_captures",
            "the function is not jitted",
            parameter="f",
            expected="what fh.jit returned",
            got=type(f).__name__,
            remedy="pass the jitted function itself, of a method that of the object: obj.method",
        )
        raise ArgumentTypeError(text)
    return _bounded(jitted, as_int("assert_max_captures", "n", n, at_least=0))


@contextlib.contextmanager
def _bounded(jitted: JittedFunction[..., Any], most: int) -> Iterator[None]:
    count = 0

    def check(event: CaptureEvent, subject: Any) -> None:
        nonlocal count
        if subject is not jitted:
            return
        count += 1
        if count > most:
            raise TooManyCapturesError(
                message(
                    "assert_max_captures",
                    f"{event.name} is captured again" if event.reasons else f"{event.name} is captured",
                    expected=f"{most} capture{'s' if most != 1 else ''} at most",
                    got=f"capture {count}" + (f", because {'; '.join(event.reasons)}" if event.reasons else ""),
                    remedy="pass dynamic=True to jit if sizes change, and as a tensor what is a number that changes",
                )
            )

    with listening(check):
        yield
