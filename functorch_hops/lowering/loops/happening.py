"""What a user does in a loop besides computing (``fh.debug``), in its kernel.

NOTE [Effects in kernels] For a compiler an effect is an operator without outputs, which names what happens by a number.
In the function of a step it is a statement: it hands its operands to Python, which performs it as it would outside of a
kernel. The statements of a step stand in the order of the body, all lanes take a step before the next one begins, and
one thread does; so the order is that of the loop in Python. What most steps do costs no Python: a check is looked at in
C++, and told if it fails somewhere; what only sets or counts (the number of the step, the lanes that take a branch) is
noted, the latest of each kind, and told before what may ask for it, and at the end of the kernel. An exception of
Python's is kept here while C++ unwinds, and raised again by its caller (``raising_again``). It is C++ that keeps it:
the handler of a signal may raise at any instruction of Python's, so no function of Python's catches all. In a kernel
that was stopped values are not computed to their end, and nothing happens.
"""

from __future__ import annotations

import enum
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect

from .headers import header
from .sizes import size_of

__all__ = ["EVENTS", "HAPPENING_STATEMENTS", "LOOK", "When", "effect", "handlers", "happen", "raising_again"]

RAISED = header("raised")
EVENTS = RAISED + header("events")
LOOK = RAISED + header("look")
"""For code that calls ``fh::look()``: in the steps of a loop that is no kernel."""


class When(enum.Enum):
    """When Python learns of an effect."""

    NOW = "happened"
    FAILED = "checked"
    """If the first operand is false somewhere."""
    LATEST = "noted"
    """Later, unless there is a newer one about the same."""
    COUNTED = "counted"
    """Later, with how many there were since the latest note about the same as an operand."""


_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define("effect(Tensor[] operands, int number, str when, int about) -> ()")


class _State(threading.local):
    raised: BaseException | None = None


_state = _State()
"""Kernels write to it."""


class _Handlers:
    """``perform(number, operands)`` of an effect, which ``ops.effect`` sets here."""

    perform: Callable[[int, Sequence[Tensor]], None]


handlers = _Handlers()


def _run(operands: Sequence[Tensor], number: int, when: str, about: int) -> None:
    handlers.perform(number, operands)


def _fake(operands: Sequence[Tensor], number: int, when: str, about: int) -> None:
    """Of an effect nothing is known but that it happens."""


_library.impl("effect", _run, "CompositeExplicitAutograd")
torch.library.register_fake("functorch_hops::effect", _fake, lib=_library)
effect = torch.ops.functorch_hops.effect.default
has_side_effect(effect)

_RAISED = "Python raised "
"""How kernels begin to say that they ended by an exception of Python's."""


def happen(events: Sequence[tuple[int, str, Sequence[bytes], Sequence[int]]]) -> None:
    """Called by kernels: perform these in order. Each has a number, the dtypes and ranks of its operands, their memory,
    and all their sizes.
    """
    for number, kinds, values, sizes in events:
        handlers.perform(number, _operands(kinds, values, sizes))


def _operands(kinds: str, values: Sequence[bytes], sizes: Sequence[int]) -> list[Tensor]:
    operands, rest = [], list(sizes)
    for kind, value in zip(kinds.split(), values, strict=True):
        dtype, _, rank = kind.partition("/")
        shape, rest = rest[: int(rank)], rest[int(rank) :]
        operands.append(torch.frombuffer(bytearray(value), dtype=getattr(torch, dtype)).reshape(shape))
    return operands


def raising_again(
    code: Callable[..., Any], translate: Callable[[RuntimeError], None] | None = None
) -> Callable[..., Any]:
    """``code``, which may call kernels. What Python raised in a kernel is raised by it. ``translate`` may raise another
    error in the place of one that is not Python's.
    """

    def call(*args: Any) -> Any:
        try:
            return code(*args)
        except RuntimeError as error:
            raised = _raised_by(error)
            if raised is None:
                if translate is not None:
                    translate(error)
                raise
        raise raised  # behind the handler: its cause and context are its own

    return call


def _raised_by(error: RuntimeError) -> BaseException | None:
    """What Python raised in a kernel, if that is why the kernel ended with this error."""
    if not str(error).startswith(_RAISED):
        return None
    raised, _state.raised = _state.raised, None
    return raised


def _statement(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], *names: str) -> str:
    _, number, when, about = node.args
    shapes = [[size_of(size) for size in x.shape] for x in tensors]
    counts = [" * ".join(map(str, ["int64_t(1)", *shape])) for shape in shapes]
    kinds = " ".join(f"{str(x.dtype).removeprefix('torch.')}/{x.dim()}" for x in tensors)
    values = ", ".join(f"{{{name}, {count} * {x.itemsize}}}" for name, count, x in zip(names, counts, tensors))
    sizes = ", ".join(f"int64_t({size})" for shape in shapes for size in shape)
    event = f"{{{about}, {number}, {json.dumps(kinds)}, {{{values}}}, {{{sizes}}}}}"
    if when == When.FAILED.value:
        return f"if (!fh::all({names[0]}, {counts[0]})) fh::happened(control, {event});"
    return f"fh::{when}(control, {event});"


HAPPENING_STATEMENTS: dict[Any, Callable[..., str]] = {effect: _statement}
