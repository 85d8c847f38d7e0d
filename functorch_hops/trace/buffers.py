"""The buffers of modules that a captured call reads, and the updates that it makes.

NOTE [Updates of buffers] A graph writes to none of its inputs. In the place of a buffer that a call may update stands a
copy: what the function does to that is work on an intermediate value, and its last value is one more output of the
graph, which the caller writes back. A buffer that is bound anew (``self.mean = ...``) is an output as well; the module
gets its own tensor back when the capture ends, so that no traced value stays in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from .. import _torch
from ..errors import InputMutationError, message

__all__ = ["Buffers", "Place", "Update", "refuse_history", "refuse_update", "refuse_write_back"]


class Place(NamedTuple):
    """Where a module keeps a buffer."""

    path: str
    mapping: dict[str, Any]
    name: str


class Update(NamedTuple):
    """A buffer's new value: written to the tensor that stands there (``operand``, among the lifted), or bound anew."""

    path: str
    operand: int | None


class Buffers:
    """The buffers of a function's modules while it is captured."""

    def __init__(self, places: Iterable[tuple[str, dict[str, Any], str]], operation: str, *, writable: bool) -> None:
        self.operation = operation
        self.writable = writable
        self._places = [Place(*place) for place in places]
        self._before = [place.mapping.get(place.name) for place in self._places]
        self._paths = {id(b): p.path for b, p in zip(self._before, self._places) if isinstance(b, Tensor)}
        self._copies: dict[int, Tensor] = {}
        self._written: set[int] = set()

    def path_of(self, t: Tensor) -> str | None:
        return self._paths.get(id(t))

    def may_update(self, t: Tensor) -> bool:
        return self.writable and id(t) in self._paths and not t.requires_grad and not _torch.is_wrapped(t)

    def is_copy(self, storage: int) -> bool:
        return any(_torch.storage_key(copy) == storage for copy in self._copies.values())

    def add_copy(self, t: Tensor, copy: Tensor) -> None:
        self._copies[id(t)] = copy

    def carries_gradients(self, path: str) -> bool:
        """Whether a buffer could be written back if nothing had been written to it with gradients."""
        held = (b for b, place in zip(self._before, self._places) if place.path == path)
        return self.writable and any(isinstance(b, Tensor) and b.requires_grad for b in held)

    def note_write(self, storage: int) -> None:
        self._written.add(storage)

    def unwritten(self) -> list[Tensor]:
        """Copies that turned out not to be needed."""
        return [copy for copy in self._copies.values() if _torch.storage_key(copy) not in self._written]

    def updates(self, capture: Any) -> tuple[list[Update], list[Tensor]]:
        """What the call that ``capture`` holds did to the buffers, and their new values."""
        updates: list[Update] = []
        values: list[Tensor] = []
        lifted = [id(t) for t in capture.lifted]
        for place, before in zip(self._places, self._before):
            now, copy = place.mapping.get(place.name), self._copies.get(id(before))
            is_written = copy is not None and _torch.storage_key(copy) in self._written
            if copy is not None and is_written and not any(copy is value for value in values):
                updates.append(Update(place.path, lifted.index(id(before))))
                values.append(copy)
            if now is not before and now is not copy and isinstance(now, Tensor):
                if not self.writable or not capture.may_return(now):
                    raise refuse_update(self.operation, place.path, "is bound anew")
                updates.append(Update(place.path, None))
                values.append(now)
        return updates, values

    def bound(self) -> list[Any]:
        """What the modules hold now."""
        return [place.mapping.get(place.name) for place in self._places]

    def begin_again(self) -> None:
        self.restore()
        self._copies.clear()
        self._written.clear()

    def restore(self) -> None:
        for place, before, now in zip(self._places, self._before, self.bound()):
            if now is not before:
                place.mapping[place.name] = before

    def check_bound(self, before: list[Any], operation: str) -> None:
        """A body may bind no buffer anew."""
        for place, old, new in zip(self._places, before, self.bound()):
            if old is not new:
                raise refuse_update(operation, place.path, "is bound anew")


def refuse_write_back(operation: str, path: str, problem: str, remedy: str) -> InputMutationError:
    return InputMutationError(message(operation, f"an updated buffer {problem}", path=path, remedy=remedy))


def refuse_history(operation: str, path: str) -> InputMutationError:
    """What one call left in a buffer has a history, which the copy in the graph of the next one would not have."""
    return refuse_write_back(operation, path, "carries gradients from an earlier call", "detach what is written to it")


def refuse_update(operation: str, path: str, what: str) -> InputMutationError:
    return InputMutationError(
        message(
            operation,
            f"a module's buffer {what}, and can't be written back from a body, under a transform or in a bare graph",
            path=path,
            expected="buffers that are carried like any other value",
            remedy="take them as an argument and return them: new = {name: b.detach().clone() for name, b in "
            "buffers.items()}; "
            "y = torch.func.functional_call(module, (parameters, new), x); return new, y",
        )
    )
