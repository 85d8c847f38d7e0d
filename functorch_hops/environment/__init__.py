"""What a function reads besides its arguments: closures, globals, modules, and whatever these lead to.

>>> import torch
>>> from functorch_hops import environment
>>> def make(scale, weight):
...     return lambda x: x * weight * scale
>>> func = make(2, torch.ones(3))
>>> before = environment.snapshot(func)
>>> sorted(before.tensors)
['closure weight']
>>> guard = before.guard(["closure weight"])
>>> guard()
(tensor([1., 1., 1.]),)
>>> func.__closure__[0].cell_contents = 3
>>> print(guard())
None
>>> environment.difference(before, environment.snapshot(func))
["closure 'scale' changed from 2 to 3"]

A snapshot divides what it finds: *statics*, by which two environments trace alike or not, and *tensors*,
which are inputs and may be others at each call. It is complete for Python code that reads its environment
through names, or through names that it computes; raw memory is compared by its bytes. Not seen are: the state of
iterators and of other objects implemented in C, attributes read by library code that is handed one of the user's
objects (trees excepted), and what ``eval`` or modules imported at run time read. Where any of this may matter,
`Snapshot.unwatched` says so; `Snapshot.hidden` names what certainly has such a state. What the code called that is
no part of any snapshot - a clock, a file, ``eval`` - an `Observer` sees while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .. import _torch
from .effects import MOST_NOTES, Observer, changes, lines_of, listed
from .fingerprint import Fingerprint, changed, differences
from .guard import Guard
from .places import Path, quoted
from .visitors import LATER, visitor_of
from .walk import Walk

__all__ = [
    "MOST_NOTES",
    "listed",
    "Fingerprint",
    "Guard",
    "Observer",
    "Path",
    "Snapshot",
    "difference",
    "effects",
    "exchanged",
    "not_seen",
    "quoted",
    "snapshot",
    "written",
]


class Snapshot:
    """What a function reads, as it was at one moment. It keeps the tensors; its guards do not."""

    def __init__(self, walk: Walk) -> None:
        self.statics = Fingerprint(walk.paths, walk.keys)
        self.tensors: dict[Path, torch.Tensor] = walk.tensors
        self.truncated = walk.truncated
        """The environment is larger than a walk may be; what it did not reach is in `opaque`."""
        self.opaque: tuple[Path, ...] = tuple(walk.opaque)
        """Mutable things of which only the identity is watched."""
        self.unwatched: tuple[Path, ...] = tuple(walk.not_watched)
        """What may have effects or a state that is not seen; empty if equal snapshots mean equal calls."""
        self.buffers = tuple(walk.buffers)
        """Where modules keep buffers: path, mapping and key."""
        self.hidden = walk.hidden
        """What has a state that can't be watched, and why."""
        self.codes = tuple(walk.codes)
        """The user's code that may run."""
        self._follows = walk.follows
        self._seen = walk.seen
        self._found = walk.guard
        self._paths: dict[int, Path] = {}
        for path, tensor in self.tensors.items():
            self._paths.setdefault(id(tensor), path)
        self._guard: Guard | None = None

    def path_of(self, tensor: torch.Tensor) -> Path | None:
        """Where a tensor was found."""
        return self._paths.get(id(tensor))

    def guard(self, paths: Sequence[Path] = ()) -> Guard:
        """A check that nothing has changed, which gives the tensors that stand at `paths` then."""
        return Guard(self._found, paths)

    def holds_memory_of(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was made of an array that is watched, as ``torch.from_numpy`` does."""
        if isinstance(tensor, _torch.FakeTensor):
            return False
        address = tensor.untyped_storage().data_ptr()
        for value, content in self._found.memories:
            array = getattr(value, "__array_interface__", None)
            if array is not None and 0 <= address - array["data"][0] < len(content.saved):
                return True
        return False

    def observer(self) -> Observer:
        """To be entered while the function runs, see `effects`."""
        return Observer(self._follows, self._seen, needed=bool(self.unwatched))

    def unchanged(self) -> bool:
        """Whether all but tensors is identical; if not, the statics of a new snapshot may still be equal."""
        if self._guard is None:
            self._guard = self.guard()
        return self._guard() is not None

    def fetch(self, paths: Sequence[Path]) -> tuple[torch.Tensor, ...]:
        """The tensors that stand at these places now."""
        tensors = self.guard(paths)()
        if tensors is None:
            raise LookupError("the environment has changed since this snapshot was taken")
        return tensors


def snapshot(func: Callable[..., Any], *, ignore: frozenset[Path] = frozenset()) -> Snapshot:
    """Find everything that `func` can read besides its arguments.

    A place in `ignore` is neither watched nor followed; if a tensor stands there, it is found all the same.
    """
    walk = Walk(func, ignore, visitor_of, LATER)
    walk.run(func)
    return Snapshot(walk)


def written(before: Snapshot, after: Snapshot) -> frozenset[Path]:
    """The places that changed between two snapshots: what a function wrote, if it ran between them."""
    return changed(before.statics, after.statics)


def exchanged(before: Snapshot, after: Snapshot) -> tuple[Path, ...]:
    """The places that lead to another tensor after a call than before, or to one at only one of these times."""
    paths = {**before.tensors, **after.tensors}
    return tuple(path for path in paths if before.tensors.get(path) is not after.tensors.get(path))


def effects(before: Snapshot, after: Snapshot, seen: Observer, tensors: Iterable[Path] = ()) -> dict[str, str]:
    """What a function did that ran between two snapshots, observed, and that would be done again; with the lines.
    `tensors`: the places among those where it exchanged tensors.
    """
    return {**changes(before.statics, after.statics, after.codes, tensors), **seen.calls}


def not_seen(after: Snapshot, seen: Observer) -> dict[str, str]:
    """What a function reads that can't be watched, with the lines."""
    hidden = {f"{quoted(path)} is {what}": lines_of(after.codes, path) or "" for path, what in after.hidden.items()}
    return {**hidden, **seen.unknown(after.codes)}


def difference(old: Snapshot | Fingerprint, new: Snapshot | Fingerprint) -> list[str]:
    """What changed, a line each: ``global 'config.depth' changed from 2 to 3``."""
    return differences(*(side.statics if isinstance(side, Snapshot) else side for side in (old, new)))
