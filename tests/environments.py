"""How the tests of what a function reads ask: programs as text, functions that read a value, and whether a change of
it is noticed.
"""

import dataclasses
import functools
import operator
import types
from typing import Any

import torch

from functorch_hops.environment import difference, snapshot, written


class Program:
    """A module of the user's, as text: functions in it have globals of their own, which tests may change."""

    def __init__(self, text: str, name: str = "user_program") -> None:
        self.module = types.ModuleType(name)
        exec(compile(text, f"/home/user/{name}.py", "exec"), self.module.__dict__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def set(self, **values: Any) -> None:
        self.module.__dict__.update(values)


def noticed(func: Any, change: Any) -> list[str]:
    """Check that a change is noticed, and that nothing was before it; the lines that tell it."""
    before = snapshot(func)
    again = snapshot(func)
    assert before.statics == again.statics
    assert hash(before.statics) == hash(again.statics)
    assert difference(before, again) == []
    assert before.unchanged()
    assert written(before, again) == frozenset()
    change()
    after = snapshot(func)
    assert not before.unchanged()
    assert before.statics != after.statics
    assert after.unchanged()
    assert written(before, after)
    lines = difference(before, after)
    assert lines
    return lines


def unnoticed(func: Any, change: Any) -> None:
    """Check that a change does not count."""
    before = snapshot(func)
    change()
    assert before.statics == snapshot(func).statics
    assert difference(before, snapshot(func)) == []


def fetched_anew(func: Any, path: str, change: Any, tensor: torch.Tensor) -> None:
    """Check that a tensor that was bound anew is fetched from its place, without a new walk."""
    before = snapshot(func)
    guard = before.guard([path])
    assert before.tensors[path] is guard()[0]
    assert before.path_of(before.tensors[path]) == path
    change()
    assert guard()[0] is tensor
    assert before.unchanged()
    after = snapshot(func)
    assert after.statics == before.statics
    assert after.path_of(tensor) == path


def setter(owner: Any, name: str, value: Any) -> Any:
    return functools.partial(setattr, owner, name, value)


def closing_over(value: Any) -> Any:
    def func(x):
        return x, value

    return func


def rebind(func: Any, value: Any) -> None:
    (cell,) = func.__closure__
    cell.cell_contents = value


def scaled(scale: float) -> Any:
    def func(x):
        return (x * scale).sum()

    return func


def decorated(func: Any) -> Any:
    @functools.wraps(func)
    def wrapper(*args: Any) -> Any:
        return func(*args)

    return wrapper


@dataclasses.dataclass
class Data:
    rate: Any = 1
    w: Any = None


def reading(text: str, value: Any) -> Any:
    """A function that closes over `value` as ``c``."""
    space: dict[str, Any] = {
        "torch": torch,
        "operator": operator,
        "dataclasses": dataclasses,
    }
    exec(f"def make(c):\n    def func(x):\n        return {text}\n    return func", space)
    return space["make"](value)
