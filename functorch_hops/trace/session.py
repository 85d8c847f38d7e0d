"""What nested captures share, and how a value that outlives its capture is refused."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor

from .. import _torch, pytree
from ..errors import CaptureError, ErrorContext, LeakedTensorError, message
from .arrays import SharedMemory

__all__ = ["Session", "is_left_over", "origins_of", "refuse_leak", "refuse_state"]


class Session:
    """What nested captures share: the fake mode, and the record of values whose capture has ended."""

    def __init__(self, context: ErrorContext, env: Any) -> None:
        self.context = context
        self.fake_mode = _torch.new_fake_mode(env)
        self.has_open_sizes = env is not None
        self.settings = _torch.settings_of_kernels()
        self.history_depth = 0
        """How deep captures are that record gradients: see NOTE [Gradients asked for inside]."""
        self.level = _torch.current_level()
        """Of functorch, around the outermost capture."""
        self.effects: dict[str, str] = {}
        """What bodies of loops changed while they were captured, and where."""
        self.ended: list[tuple[ErrorContext, Any]] = []
        self.deepest = 0
        self.shared: list[SharedMemory] = []
        """Tensors that were made of arrays."""
        self.parts: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        """Of sparse matrices: each with one of its parts. See NOTE [Sparse matrices]."""
        self.transposed: dict[int, tuple[Tensor, Tensor]] = {}
        """Transposed sparse matrices, each with the one that it was made of."""
        self.origins = origins_of[self.fake_mode] = _Origins(context)
        self.refused_elsewhere: CaptureError | None = None
        """On another thread, where it may be caught, or end the thread."""
        self._keep_to_this_thread()

    def _keep_to_this_thread(self) -> None:
        """The modes that record are those of a thread: on another one of Python's, work would be lost."""
        dispatch, own = self.fake_mode.dispatch, threading.get_ident()

        def dispatch_here(*args: Any) -> Any:
            if threading.get_ident() != own and not isinstance(threading.current_thread(), threading._DummyThread):
                self.refused_elsewhere = _refuse_thread(self.context)
                raise self.refused_elsewhere
            return dispatch(*args)

        self.fake_mode.dispatch = dispatch_here  # type: ignore[method-assign, assignment]

    def close(self) -> None:
        """Make every later use of a fake of this session an error: it stands for no value any more."""
        self.origins.have_ended = True
        self.fake_mode.dispatch = self.origins.refuse_use  # type: ignore[method-assign]
        for context, tracker in self.ended:
            self.origins.leaked.update({id(t): (weakref.ref(t), context) for t in tracker})
        self.ended.clear()


class _Origins:
    """Where the fakes of a session that has ended come from: those that are alive then have leaked."""

    def __init__(self, context: ErrorContext) -> None:
        self.context = context
        self.have_ended = False
        self.leaked: dict[int, tuple[weakref.ref[Tensor], ErrorContext]] = {}

    def refuse(self, tensors: Iterable[Any]) -> NoReturn:
        # What autograd hands on is an alias of the tensor that the user has: then any that leaked may be meant.
        given = [self.leaked[id(t)] for t in tensors if id(t) in self.leaked]
        alive = (context for t, context in (*given, *self.leaked.values()) if t() is not None)
        refuse_leak(next(alive, self.context))

    def refuse_use(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        self.refuse(pytree.flatten((args, kwargs or {}))[0])


origins_of: weakref.WeakKeyDictionary[_torch.FakeTensorMode, _Origins] = weakref.WeakKeyDictionary()
"""Of each session, as long as tensors of it are alive."""


def is_left_over(t: Tensor, session: Session | None) -> bool:
    """Whether ``t`` is a traced value of a session that has ended, or of a capture that did in the one that goes on."""
    t = _torch.base_tensor(t)
    if not isinstance(t, _torch.FakeTensor):
        return False
    origins = origins_of.get(t.fake_mode)
    if origins is None or session is None or origins is not session.origins:
        return origins is not None and origins.have_ended
    return any(t in tracker for _, tracker in session.ended)


def refuse_state(operation: str, path: str) -> NoReturn:
    raise LeakedTensorError(
        message(
            operation,
            "the function keeps a traced tensor, which has no value after the capture",
            path=path,
            expected="values that are returned, or buffers of a module, which are written back",
            remedy="return the value and pass it to the next call; or register it: "
            "module.register_buffer(name, tensor, persistent=False)",
        )
    )


def _refuse_thread(context: ErrorContext) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "a traced tensor is used on another thread, where nothing is recorded",
            parameter=context.parameter,
            remedy="compute on the thread that calls the function; fh.vmap and fh.map go over many examples at once",
        )
    )


def refuse_leak(context: ErrorContext) -> NoReturn:
    raise LeakedTensorError(
        message(
            context.operation,
            f"a tensor made while {context.parameter} was captured is used outside of that capture",
            parameter=context.parameter,
            remedy="return the value from the function instead of storing it in an outer variable",
        )
    )
