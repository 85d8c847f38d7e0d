"""The check, made on every call, that nothing has changed; and the fetching of the tensors of the moment.

NOTE [the flat check] What a walk has found lies in a few flat sequences, so that a check is a handful of
C loops (`map`, `chain`, `compress`) whatever the shape of the environment was: getters with their holders
(chosen keys of a namespace, a cell, attributes of a function) and views (all keys or values of a container)
give the values of the moment in one list, which is compared by identity with the values that were found.
The containers themselves are objects that the same list verifies, one level up. Positions that hold
a tensor are exempt: there another tensor may stand, of the same type, as long as the pattern of which
positions share one tensor stays. No tensor is kept alive by a guard.

Identity is stricter than equality, and that is safe: who fails the check walks again, and compares fingerprints.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import chain, compress
from typing import Any

import torch

from functorch_hops.capture.environment.keys import Makers

__all__ = ["FREE", "SAME", "TENSOR", "Guard", "GuardBuilder", "Role"]

Role = int
SAME: Role = 0
"""The position must hold the identical object (or an equal scalar)."""
TENSOR: Role = 1
"""The position must hold a tensor of the same type."""
FREE: Role = 2
"""The position is not looked at."""


class GuardBuilder:
    """Collects locations during a walk."""

    def __init__(self) -> None:
        self.getters: list[Callable[[Any], Sequence[Any]]] = []
        self.holders: list[Any] = []
        self.views: list[Iterable[Any]] = []
        self.empties: list[Sized] = []
        self.sized: list[Sized] = []
        self.sizes: list[int] = []
        self.disjoint: list[Callable[[Iterable[str]], bool]] = []
        self.absent: list[Iterable[str]] = []
        self.arrays: list[tuple[Any, Any]] = []
        # Getters' positions come first in a check's list, views' after them.
        self._got = _Positions()
        self._viewed = _Positions()

    def getter(
        self,
        make: Callable[..., Callable[[Any], Sequence[Any]]],
        holder: Any,
        names: Sequence[str],
        values: Sequence[Any],
        roles: Sequence[Role],
        paths: Sequence[str],
    ) -> None:
        """Values that ``make(*names)(holder)`` gives; `make` is `itemgetter`, `attrgetter` or like them."""
        if len(names) == 1:  # a getter of one name gives no tuple
            names, values, roles, paths = (*names, *names), (*values, *values), (*roles, FREE), (*paths, "")
        self.getters.append(make(*names))
        self.holders.append(holder)
        self._got.extend(values, roles, paths)

    def view(
        self, view: Iterable[Any], values: Sequence[Any], roles: Sequence[Role], paths: Sequence[str]
    ) -> None:
        """Everything that iterating over `view` gives; its container's size has to be recorded as well."""
        self.views.append(view)
        self._viewed.extend(values, roles, paths)

    def size(self, container: Sized) -> None:
        size = len(container)
        if size == 0:
            self.empties.append(container)
        else:
            self.sized.append(container)
            self.sizes.append(size)

    def without(self, mapping: Any, names: frozenset[str]) -> None:
        """None of `names` may appear among the keys."""
        if names:
            self.disjoint.append(mapping.keys().isdisjoint)
            self.absent.append(names)

    def array(self, value: Any, content: tuple[Any, ...]) -> None:
        self.arrays.append((value, content))

    def build(self, paths: Sequence[str]) -> Guard:
        return Guard(self, self._got + self._viewed, paths)


class _Positions:
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.roles: list[Role] = []
        self.paths: list[str] = []

    def extend(self, values: Iterable[Any], roles: Iterable[Role], paths: Iterable[str]) -> None:
        self.values.extend(values)
        self.roles.extend(roles)
        self.paths.extend(paths)

    def __add__(self, other: _Positions) -> _Positions:
        both = _Positions()
        both.extend(
            chain(self.values, other.values), chain(self.roles, other.roles), chain(self.paths, other.paths)
        )
        return both


class Guard:
    """Calling it gives the tensors that stand at the given paths now, or None if anything else has changed."""

    def __init__(self, found: GuardBuilder, positions: _Positions, paths: Sequence[str]) -> None:
        self._getters = tuple(found.getters)
        self._holders = tuple(found.holders)
        self._views = tuple(found.views)
        self._empties = tuple(found.empties)
        self._sized = tuple(found.sized)
        self._sizes = list(found.sizes)
        self._disjoint = tuple(found.disjoint)
        self._absent = tuple(found.absent)
        self._arrays = tuple(found.arrays)
        roles = positions.roles
        self._all_same = all(role == SAME for role in roles)
        self._is_same = tuple(role == SAME for role in roles)
        self._is_tensor = tuple(role == TENSOR for role in roles)
        self._expected = list(compress(positions.values, self._is_same))
        tensors = list(compress(positions.values, self._is_tensor))
        self._types = [type(tensor) for tensor in tensors]
        self._ids = [id(tensor) for tensor in tensors]
        self._pattern = _pattern(self._ids)
        where: dict[str, int] = {}
        for index, path in enumerate(compress(positions.paths, self._is_tensor)):
            where.setdefault(path, index)
        self._select = _selector([where[path] for path in paths])

    def __call__(self) -> tuple[torch.Tensor, ...] | None:
        # See NOTE [the flat check].
        if any(self._empties) or [*map(len, self._sized)] != self._sizes:
            return None
        try:
            values = [
                *chain.from_iterable(map(operator.call, self._getters, self._holders)),
                *chain.from_iterable(self._views),
            ]
        except (LookupError, AttributeError, RuntimeError):  # gone, or another thread is changing it
            return None
        if not all(
            map(operator.is_, values if self._all_same else compress(values, self._is_same), self._expected)
        ) and not self._equal(values):
            return None
        if not all(map(operator.call, self._disjoint, self._absent)):
            return None
        if self._arrays and not all(array_content(value) == content for value, content in self._arrays):
            return None
        if not self._types:
            return ()
        tensors = [*compress(values, self._is_tensor)]
        if [*map(type, tensors)] != self._types:
            return None
        ids = [*map(id, tensors)]
        if ids != self._ids:
            if _pattern(ids) != self._pattern:
                return None
            self._ids = ids
        return self._select(tensors)

    def _equal(self, values: list[Any]) -> bool:
        """Whether what is not identical is an equal scalar; from then on that one is expected."""
        makers = Makers()
        expected = self._expected
        found = list(compress(values, self._is_same))
        for old, new in zip(expected, found, strict=True):
            if old is new:
                continue
            maker = makers[type(new)]
            if type(old) is not type(new) or maker is None or maker(old) != maker(new):
                return False
        self._expected = found
        return True


def array_content(array: Any) -> tuple[Any, ...]:
    """The whole content of a NumPy array, comparable."""
    return array.dtype.str, array.shape, array.tobytes()


def _pattern(ids: Iterable[int]) -> list[int]:
    """For each position the first one that holds the same object."""
    first: dict[int, int] = {}
    return [first.setdefault(identity, at) for at, identity in enumerate(ids)]


def _selector(indices: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(indices) > 1:
        return operator.itemgetter(*indices)
    if indices:
        (only,) = indices
        return lambda tensors: (tensors[only],)
    return lambda tensors: ()
