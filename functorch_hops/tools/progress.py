"""``progress``: a bar for the loops that run inside a ``with``."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..calls.leaf import left_to_python
from ..calls.validate import as_int
from ..errors import ArgumentTypeError, MissingPackageError, message
from ..lowering.loops.watching import watching

__all__ = ["Progress", "progress"]


class Progress:
    """How far the loops inside a :func:`progress` are.

    Attributes:
        steps: how many steps the loops have done, those that are in no other loop.
        total: how many they have in all, as far as loops have begun and that is known then; or what was given.
        inner: steps done and length (None if unknown) of each loop inside the one that runs, from the outermost.

    >>> import torch, functorch_hops as fh
    >>> with fh.progress(show=False) as done:
    ...     _ = fh.scan(lambda c, x: (c + x, None), 0.0, torch.ones(7))
    >>> done.steps, done.total
    (7, 7)
    """

    def __init__(self, total: int | None, bar: Any) -> None:
        self.steps, self.inner = 0, tuple[tuple[int, int | None], ...]()
        self.total = total
        self._is_given, self._bar = total is not None, bar
        self._before = 0
        """Steps of loops that have ended."""
        self._loops: list[tuple[object, int, int | None]] = []
        """Those that run, from the outermost; each with its steps and its length."""

    def begin(self, loop: object, length: int | None) -> None:
        if not self._loops and not self._is_given:
            is_known = length is not None and (self.total is not None or self._before == 0)
            self.total = (self.total or 0) + (length or 0) if is_known else None
        if self._bar is not None and not self._loops and not self._before:
            self._bar.unpause()  # compiling is not part of the time of the first step
        self._loops.append((loop, 0, length))

    def at(self, loop: object, step: int) -> None:
        self._leave(loop)
        if self._loops:
            _, _, length = self._loops[-1]
            self._loops[-1] = (loop, step, length)
            self._show(())

    def end(self, loop: object) -> None:
        self._leave(loop)
        if self._loops:
            _, steps, _ = self._loops.pop()
            if not self._loops:
                self._before += steps
                self._show(())

    def kernel_at(self, levels: Sequence[tuple[int, int]], has_ended: bool) -> None:
        """A kernel is a loop of its own, known by its class."""
        if not levels:
            return
        lengths = [None if length < 0 else length for _, length in levels]
        if not any(loop is Progress for loop, _, _ in self._loops):
            self.begin(Progress, lengths[0])
        self.at(Progress, levels[0][0])
        if has_ended:
            self.end(Progress)
        else:
            self._show([(step, length) for (step, _), length in zip(levels[1:], lengths[1:])])

    def _leave(self, loop: object) -> None:
        """Loops inside of this one that are still there were left by an exception."""
        while self._loops and not (self._loops[-1][0] is loop or self._loops[-1][0] == loop):
            self._loops.pop()

    def _show(self, inner: Sequence[tuple[int, int | None]]) -> None:
        self.steps = self._before + (self._loops[0][1] if self._loops else 0)
        self.inner = (*((steps, length) for _, steps, length in self._loops[1:]), *inner)
        if self._bar is not None:
            self._bar.total = self.total
            inside = (f"{steps}/{'?' if length is None else length}" for steps, length in self.inner)
            self._bar.set_postfix_str(", ".join(inside), refresh=False)
            self._bar.update(self.steps - self._bar.n)


@left_to_python
def progress(
    total: int | None = None, desc: str | None = None, *, show: bool | None = None
) -> contextlib.AbstractContextManager[Progress]:
    """Show a bar while loops run, compiled ones included.

    ``progress : (int, str) -> context manager of Progress``. Equivalent to ``contextlib.nullcontext()`` but for the bar
    on stdout, which counts the steps of all loops inside it on this thread, backward passes included, and those inside
    of a second ``progress`` there. Neither the functions nor what was compiled of them change. Of loops in loops it
    counts the outer one; the inner ones are said behind the bar.

    Arguments:
        total: how many steps there will be. None: the sum of the loops that have begun, as far as they know.
        desc: a title.
        show: whether there is a bar. None: if stdout is a terminal, or a notebook.

    Returns:
        A context manager. Its value is a :class:`Progress`, which counts without a bar too.

    Raises:
        MissingPackageError: a bar is to be shown, and tqdm is not installed. It is an ImportError.
        ArgumentTypeError, ArgumentValueError: ``total`` is no integer, or is negative.

    Cost: a loop that runs as Python says where it is after each step, a kernel every 50 ms and at its end. Loops that
    :func:`explain` calls native or replayed, and those of another backend's, say nothing. Without use: nothing.

    Source: ``tqdm``; asked for in jax-ml/jax 2106 and 6166.

    >>> import torch, functorch_hops as fh
    >>> with fh.progress(desc="training"):
    ...     fh.scan(lambda c, x: (c + x, None), 0.0, torch.ones(3))[0]
    tensor(3.)
    """
    if hasattr(total, "__iter__") and not isinstance(total, Tensor):
        remedy = "write with fh.progress(): around the loops, which it finds itself; of a Python for, tqdm"
        text = message("progress", "not a number of steps", parameter="total", got=type(total).__name__, remedy=remedy)
        raise ArgumentTypeError(text)
    return _watched(None if total is None else as_int("progress", "total", total, at_least=0), desc, show)


@contextlib.contextmanager
def _watched(total: int | None, desc: str | None, show: bool | None) -> Iterator[Progress]:
    bar = _new_bar(total, desc) if (_is_seen() if show is None else show) else None
    state = Progress(total, bar)
    try:
        with watching(state):
            yield state
    finally:
        if bar is not None:
            bar.close()


def _is_seen() -> bool:
    shell = sys.modules.get("IPython")
    is_notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return is_notebook or (sys.stdout is not None and sys.stdout.isatty())


def _new_bar(total: int | None, desc: str | None) -> Any:
    try:
        tqdm: Any = importlib.import_module("tqdm.auto").tqdm
    except ImportError as error:
        text = message("progress", "the bar is drawn by tqdm, which is not installed", remedy="pip install tqdm")
        raise MissingPackageError(text) from error
    return tqdm(total=total, desc=desc, file=sys.stdout, unit="step")
