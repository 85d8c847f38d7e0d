"""Effects at run time: in which lanes and steps they happen, and what is known of both."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...lowering.loops.happening import When
from ...trace.capture import outside_of_captures
from ..loops.steps import PlainCarry
from .op import Action, EffectParams, Loop

__all__ = [
    "BeginLoop",
    "EndStep",
    "EnterScope",
    "effects_off",
    "iteration_of",
    "perform",
    "plain_loops",
    "with_deferred_effects",
]


Happening = tuple[EffectParams, Sequence[Tensor]]


class _State(threading.local):
    is_off = False
    deferred: list[Happening] | None = None

    def __init__(self) -> None:
        self.steps: dict[Loop, int] = {}
        self.masks: dict[int, Tensor] = {}


_state = _State()


@contextlib.contextmanager
def effects_off() -> Iterator[None]:
    """Nothing happens meanwhile, on this thread: what is computed has been computed before."""
    outer, _state.is_off = _state.is_off, True
    try:
        yield
    finally:
        _state.is_off = outer


def with_deferred_effects(function: Callable[[Any], Any], value: Any) -> tuple[Any, list[Happening]]:
    """``function(value)``, and what would happen in it, for ``perform``."""
    outer, happenings = _state.deferred, list[Happening]()
    _state.deferred = happenings
    try:
        return function(value), happenings
    finally:
        _state.deferred = outer


@dataclass(frozen=True)
class BeginLoop(Action):
    """A captured loop begins with step number ``first``."""

    loop: Loop
    first: int
    happens_in_each_lane: ClassVar[bool] = False
    asks_for_lanes: ClassVar[bool] = False
    when: ClassVar[When] = When.LATEST

    @property
    def about(self) -> int:
        return self.loop.number

    def __call__(self, params: EffectParams, values: Sequence[Tensor], lane: tuple[int, ...]) -> None:
        _state.steps[self.loop] = self.first

    def __str__(self) -> str:
        return "begin loop"


@dataclass(frozen=True)
class EndStep(Action):
    """A step of a captured loop ends, or as many as the operand says."""

    loop: Loop
    happens_in_each_lane: ClassVar[bool] = False
    asks_for_lanes: ClassVar[bool] = False
    when: ClassVar[When] = When.COUNTED

    @property
    def about(self) -> int:
        return self.loop.number

    def __call__(self, params: EffectParams, values: Sequence[Tensor], lane: tuple[int, ...]) -> None:
        count = int(values[0]) if values else 1
        _state.steps[self.loop] = _state.steps.get(self.loop, 0) + count

    def __str__(self) -> str:
        return "end step"


@dataclass(frozen=True)
class EnterScope(Action):
    """The one operand says which lanes take what follows under this number."""

    scope: int
    happens_in_each_lane: ClassVar[bool] = False
    when: ClassVar[When] = When.LATEST

    @property
    def about(self) -> int:
        return -self.scope

    def __call__(self, params: EffectParams, values: Sequence[Tensor], lane: tuple[int, ...]) -> None:
        (mask,), (mapped,) = values, params.mapped
        lanes = params.lane_sizes(values)
        shape = [size if m else 1 for size, m in zip(lanes, mapped)]
        _state.masks[self.scope] = mask.detach().reshape(shape).expand(lanes).clone()

    def __str__(self) -> str:
        return f"enter scope {self.scope}"


def perform(params: EffectParams, operands: Sequence[Tensor]) -> None:
    """Let an effect happen, in the order of its lanes."""
    if _state.is_off:
        return
    if _state.deferred is not None:
        _state.deferred.append((params, operands))
        return
    action, operands = params.action, params.values(operands)
    with outside_of_captures(), torch.no_grad():
        if not action.happens_in_each_lane:
            action(params, operands, ())
            return
        masks = [_state.masks[scope] for scope in params.scopes]
        for lane in params.each_lane(operands):
            if all(mask[lane[: mask.dim()]] for mask in masks):
                values = [x.clone() for x in params.at_lane(operands, lane)]
                with _kept_state():
                    action(params, values, lane)


@contextlib.contextmanager
def _kept_state() -> Iterator[None]:
    """The user may run anything, the same loop included."""
    steps, masks = _state.steps, _state.masks
    _state.steps, _state.masks = dict(steps), dict(masks)
    try:
        yield
    finally:
        _state.steps, _state.masks = steps, masks


def iteration_of(params: EffectParams) -> tuple[int, ...]:
    """The steps, counted from 0, of the loops around an effect that happens now, from the outermost."""
    return (*_plain_steps(), *(_state.steps.get(loop, 0) for loop in params.loops))


def _plain_steps() -> list[int]:
    """Of the loops on this thread that run as Python."""
    return [loop.steps for loop in plain_loops()]


def plain_loops() -> list[PlainCarry]:
    """The loops on this thread that run as Python, from the outermost; not those around an effect whose callback this
    is in.
    """
    found: dict[int, PlainCarry] = {}
    frame, effects = sys._getframe(1), 0
    while frame is not None:
        effects += frame.f_code is perform.__code__
        if effects > 1:
            break
        if frame.f_globals.get("PlainCarry") is PlainCarry:
            carry = frame.f_locals.get("carries")
            if isinstance(carry, PlainCarry) and not carry.goes_on:
                found[id(carry)] = carry
        frame = frame.f_back  # type: ignore[assignment]
    return [*found.values()][::-1]
