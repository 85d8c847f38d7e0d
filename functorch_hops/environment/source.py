"""Python code written for one purpose, where a loop over data that says what to do would cost too much at each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Source"]


class Source:
    """The lines of a function, and the objects that they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._objects: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def name(self, value: Any) -> str:
        """What the lines call this object, which is kept as long as the function is."""
        if value is None or value is True or value is False:
            return repr(value)
        known = self._names.get(id(value))
        if known is None:
            known = self._names[id(value)] = f"_{len(self._names)}"
            self._objects[known] = value
        return known

    def add(self, *lines: str) -> None:
        self.lines += lines

    def refuse_if(self, condition: str) -> None:
        self.lines.append(f"if {condition}: return None")

    def function(self, name: str, parameters: str, refusals: Sequence[type[Exception]] = ()) -> Callable[..., Any]:
        """The function. An error of the kind of `refusals` makes it return None."""
        lines = self.lines
        if refusals:
            caught = ", ".join(map(self.name, refusals))
            lines = ["try:", *(f" {line}" for line in lines), f"except ({caught},):", " return None"]
        text = "\n".join([f"def {name}({parameters}):", *(f" {line}" for line in lines)])
        made: dict[str, Any] = {}
        exec(compile(text, f"<functorch_hops: {name}>", "exec"), self._objects, made)
        function: Callable[..., Any] = made[name]
        return function
