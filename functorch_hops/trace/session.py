"""What nested captures share, and how a value that outlives its capture is refused."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor

from .. import _torch, pytree
from ..errors import Caller, LeakedTensorError, message

__all__ = ["Session", "origins_of", "refuse_leak"]


class Session:
    """What nested captures share: the fake mode, and the record of values whose capture has ended."""

    def __init__(self, caller: Caller, env: Any) -> None:
        self.caller = caller
        self.fake_mode = _torch.new_fake_mode(env)
        self.has_open_sizes = env is not None
        self.level = _torch.current_level()
        """Of functorch, around the outermost capture."""
        self.ended: list[tuple[Caller, Any]] = []
        self.deepest = 0
        self.origins = origins_of[self.fake_mode] = _Origins(caller)

    def close(self) -> None:
        """Make every later use of a fake of this session an error: it stands for no value any more."""
        self.fake_mode.dispatch = self.origins.refuse_use  # type: ignore[method-assign]
        for caller, tracker in self.ended:
            self.origins.leaked.update({id(t): (weakref.ref(t), caller) for t in tracker})
        self.ended.clear()


class _Origins:
    """Where the fakes of a session that has ended come from: those that are alive then have leaked."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.leaked: dict[int, tuple[weakref.ref[Tensor], Caller]] = {}

    def refuse(self, tensors: Iterable[Any]) -> NoReturn:
        # What autograd hands on is an alias of the tensor that the user has: then any that leaked may be meant.
        given = [self.leaked[id(t)] for t in tensors if id(t) in self.leaked]
        alive = (caller for t, caller in (*given, *self.leaked.values()) if t() is not None)
        refuse_leak(next(alive, self.caller))

    def refuse_use(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        self.refuse(pytree.flatten((args, kwargs or {}))[0])


origins_of: weakref.WeakKeyDictionary[_torch.FakeTensorMode, _Origins] = weakref.WeakKeyDictionary()
"""Of each session, as long as tensors of it are alive."""


def refuse_leak(caller: Caller) -> NoReturn:
    raise LeakedTensorError(
        message(
            caller.operation,
            f"a tensor made while {caller.parameter} was captured is used outside of that capture",
            parameter=caller.parameter,
            remedy="return the value from the function instead of storing it in an outer variable",
        )
    )
