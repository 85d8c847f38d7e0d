"""What torch keeps for the whole process, and the one lock over what is done to it.

NOTE [One lock] Captures, derivations and the search for a trace that was not found at once take turns among threads,
by one reentrant lock. They nest in any order - a jitted function calls another while it is captured, a rule derives a
graph from graphs - so locks of their own would wait for one another in a circle. What holds:

 1. A call that finds its trace and its derived graphs takes no lock.
 2. Nobody waits while holding the lock: a compiler runs without it (:func:`released`), for torch has a lock of its own
    around compilers, which is held where Dynamo calls us.
 3. A capture runs on one thread, its backward passes included: autograd would hand those on a GPU to another one.
 4. After ``fork``, the lock is free in the child, where the thread that held it does not exist.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from .forward_rules import differentiated_again
from .inference import outside_inference
from .levels import base_tensor, in_forward_level
from .trees import tree_map

__all__ = ["dual_level_known", "joining_dual_level", "jvp", "one_at_a_time", "released", "without_validation"]

one_at_a_time = threading.RLock()
"""The lock. No signal comes between taking it and knowing that it is taken, in a ``with`` statement of its own."""
os.register_at_fork(after_in_child=one_at_a_time._at_fork_reinit)  # type: ignore[attr-defined]


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Let other threads have the lock, however often this one has taken it."""
    count = 0
    with contextlib.suppress(RuntimeError):  # which says that this thread does not have it
        while True:
            one_at_a_time.release()
            count += 1
    try:
        yield
    finally:
        for _ in range(count):
            one_at_a_time.acquire()


class _Shared:
    """A setting of the process that the first of its users changes and the last one restores."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._users: dict[int, int] = {}

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        thread = threading.get_ident()
        with one_at_a_time:
            if not self._users:
                self._restore = self._change()
            self._users[thread] = self._users.get(thread, 0) + 1
        try:
            yield
        finally:
            with one_at_a_time:
                self._leave(thread, self._users.pop(thread) - 1)

    def _leave(self, thread: int, remaining: int) -> None:
        if remaining:
            self._users[thread] = remaining
        elif not self._users:
            self._restore()


def _without_validation() -> Callable[[], None]:
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)
    return lambda: distribution.set_default_validate_args(before)


_MANY = 2**20


def _entered_dual_level() -> Callable[[], None]:
    """Torch has one level of forward mode. Its jvp enters it where ``JVP_NESTING`` says that no jvp is at work, and
    counts without a lock: from a number so large that threads which miscount by a few change nothing.
    """
    owns_level, before = forward_ad._current_level < 0, eager_transforms.JVP_NESTING
    if owns_level:
        forward_ad.enter_dual_level()
    eager_transforms.JVP_NESTING = before + _MANY

    def leave() -> None:
        eager_transforms.JVP_NESTING = before
        if owns_level:
            forward_ad.exit_dual_level()

    return leave


_validation_off = _Shared(_without_validation)
_dual_level = _Shared(_entered_dual_level)


def without_validation() -> contextlib.AbstractContextManager[None]:
    """Values of parameters are not looked at by ``torch.distributions``, as under ``torch.compile``."""
    return _validation_off.used()


def joining_dual_level() -> contextlib.AbstractContextManager[None]:
    """Around a capture: a dual level that is there, of plain autograd or of another thread's jvp, remains until the
    end, and a jvp joins it. Nobody else enters one meanwhile.
    """
    return _dual_level.used() if forward_ad._current_level >= 0 else contextlib.nullcontext()


@contextlib.contextmanager
def dual_level_known() -> Iterator[None]:
    """A graph of Dynamo's enters the level of a jvp in C++, without a word to what torch knows of it in Python."""
    if forward_ad._current_level >= 0 or not in_forward_level():
        yield
        return
    before = eager_transforms.JVP_NESTING
    forward_ad._current_level, eager_transforms.JVP_NESTING = 0, max(1, before)
    try:
        yield
    finally:
        forward_ad._current_level, eager_transforms.JVP_NESTING = -1, before


def _in_memory_of_its_own(x: Any) -> Any:
    """An expanded tensor as a copy: torch gives it a tangent of the same layout, and writes to that."""
    with torch._C.DisableTorchFunction():  # the user does not ask for a layout
        base = base_tensor(x)
        is_expanded = any(type(s) is int and s == 0 and size > 1 for s, size in zip(base.stride(), base.shape))
    return x.clone() if is_expanded else x


def jvp(func: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> Any:
    """``torch.func.jvp``, on any number of threads at once, and right: see NOTE [Right rules for forward mode]."""
    primals = tuple(map(_in_memory_of_its_own, primals))
    with _dual_level.used(), differentiated_again():
        outputs, directions, *aux = outside_inference(torch.func.jvp)(func, primals, tangents, has_aux=has_aux)
    # float64 ones of float32 scalars are left where Python functions of torch meet a number, see number_forms.py
    directions = tree_map(lambda output, tangent: tangent.to(output.dtype), outputs, directions)
    return outputs, directions, *aux
