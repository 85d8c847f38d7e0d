"""What a misuse is, and in which modes it shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import functorch_hops as fh

X = torch.ones(2)
YES = torch.tensor(True)


def _plain(call: Callable[[], Any]) -> Any:
    return call()


def _captured(call: Callable[[], Any]) -> Any:
    with fh.eager_capture():
        return call()


def _jit(call: Callable[[], Any]) -> Any:
    return fh.jit(call, backend="eager")()


MODES: dict[str, Callable[[Callable[[], Any]], Any]] = {"plain": _plain, "captured": _captured, "jit": _jit}


@dataclass(frozen=True)
class Misuse:
    error: type[Exception]
    call: Callable[[], Any]
    modes: tuple[str, ...]
    """Where it shows; in plain eager, a branch that is not taken and a tensor with a value hide much."""

    def __call__(self, mode: str) -> Any:
        with contextlib.redirect_stdout(None):
            return MODES[mode](self.call)


MISUSES: dict[str, Misuse] = {}


def misuse(error: type[Exception], modes: str = "plain captured jit") -> Callable[[Callable[[], Any]], None]:
    def register(call: Callable[[], Any]) -> None:
        assert call.__name__ not in MISUSES
        MISUSES[call.__name__] = Misuse(error, call, tuple(modes.split()))

    return register


def misuse_captured(error: type[Exception]) -> Callable[[Callable[[], Any]], None]:
    """A misuse that plain eager can't see, or allows."""
    return misuse(error, "captured jit")
