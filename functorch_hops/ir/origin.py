"""Where an operator of a graph comes from: the user's line, and what was made of it since.

NOTE [Origins] Whoever makes the parameters of an operator - a user's call, a rule, a pass - is at work for some
operator or for none. Parameters that are made for another operator's have its origin; those of a user's call get the
innermost frame that is the user's. So the backward loop of a gradient of a batched loop still names the line of
``fh.scan``. Equal graphs from different lines are not shared. With the line an origin keeps what ``fh.annotate`` said
around it, which therefore holds for whatever is made of the operator.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import user_place

__all__ = ["Origin", "Scope", "annotated", "called_annotated", "made_for", "origin_here", "unannotated"]


@dataclass(frozen=True)
class Scope:
    """What is said of operators: ``names`` of the annotated calls around them, from the outermost; whether loops may be
    kernels.
    """

    names: tuple[str, ...] = ()
    loop_kernels: bool = True

    def named(self, name: str) -> str:
        """A name inside of these."""
        return "/".join([*self.names, name])


@dataclass(frozen=True)
class Origin:
    """A line of the user's. ``part``: what a derivative made of the operator there: its "forward" or "backward" pass,
    its "tangent"; ``saved``: the bytes that the forward pass keeps for the backward pass, in a loop for each step;
    ``branch``: the one that it was made of, where the lanes of a vmap select different ones.
    """

    file: str
    line: int
    function: str
    part: str | None = None
    saved: int | None = None
    scope: Scope = Scope()
    branch: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def of_branch(self, index: int) -> Origin:
        return self if self.branch is not None else replace(self, branch=index)


class _State(threading.local):
    origin: Origin | None = None
    scope = Scope()


_state = _State()


def origin_here() -> Origin | None:
    """The origin of the parameters that are made now, asked by their constructor."""
    if _state.origin is not None:
        return _state.origin
    if torch.compiler.is_dynamo_compiling():  # which can't look at frames
        return None
    place = user_place(sys._getframe(2))  # beyond the constructor that asks, whose code is of no file
    return None if place is None else Origin(*place, scope=_state.scope)


@contextlib.contextmanager
def annotated(name: str, *, loop_kernels: bool) -> Iterator[None]:
    """Say this of the operators that a user's calls make meanwhile, besides what is said around it."""
    outer = _state.scope
    _state.scope = Scope((*outer.names, name), outer.loop_kernels and loop_kernels)
    try:
        yield
    finally:
        _state.scope = outer


def called_annotated(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str, loop_kernels: bool
) -> Any:
    """A call of an annotated function that Dynamo traces: calls inside find its frame, and what is said in it."""
    return func(*args, **kwargs)


@contextlib.contextmanager
def unannotated() -> Iterator[None]:
    """While a graph begins, which may serve calls elsewhere: it knows what is said inside of it."""
    outer, _state.scope = _state.scope, Scope()
    try:
        yield
    finally:
        _state.scope = outer


@contextlib.contextmanager
def made_for(origin: Origin | None, part: str | None = None) -> Iterator[None]:
    """Operators that are made meanwhile have this origin; those of a derivative of it are its ``part``."""
    outer = _state.origin
    _state.origin = replace(origin, part=part, saved=None) if origin is not None and part is not None else origin
    try:
        yield
    finally:
        _state.origin = outer
