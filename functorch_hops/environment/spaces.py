"""Namespaces in which names are looked up: which names, and what of them was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

from .bytecode import code_facts
from .classes import SPECIAL

__all__ = ["LibraryMethods", "Names", "Space"]


class Names:
    """Names in the order in which they came."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.all = list(names)
        self.known = set(self.all)

    def update(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.known:
                self.known.add(name)
                self.all.append(name)


@dataclasses.dataclass(eq=False, slots=True)
class Space:
    """A namespace in which some names are looked up."""

    mapping: Mapping[str, Any]
    prefix: str
    taken: set[str] = dataclasses.field(default_factory=set)
    opens: bool = False
    """All names are looked up when code reads attributes by names that it does not mention."""
    everything: bool = False
    by_size: bool = False
    """That no other name appears is seen by the number of entries, which is quicker than name by name."""
    is_class: bool = False
    """Python looks up special methods, mentioned or not."""
    is_library: bool = False
    """What is found is not followed, unless it may change."""
    methods: LibraryMethods | None = None
    absent: set[str] = dataclasses.field(default_factory=set)
    cursors: tuple[int, int] = (0, 0)
    """How many of the mentioned names, and of those in `methods`, have been looked up."""


class LibraryMethods:
    """The attributes that a library's own methods of a class read from ``self``.

    A library's code is not followed into globals, but `Conv2d.forward` has to be read to learn that
    ``stride`` matters and ``in_channels`` does not.
    """

    def __init__(self, bases: Sequence[type]) -> None:
        # What containers among the modules hold are parts of theirs.
        others = [base for base in bases if not issubclass(base, torch.nn.Module)]
        special = (name for base in others for name in base.__dict__ if name in SPECIAL)
        self.names = Names(["forward", *special])
        self.reads_all = False
        self._bases = bases
        self._cursors = (0, 0)

    def grow(self, mentioned: Sequence[str]) -> list[FunctionType]:
        """Read the methods that are mentioned by now; those that were not read before."""
        methods = []
        while self._cursors != (ends := (len(mentioned), len(self.names.all))):
            fresh = [*mentioned[self._cursors[0] :], *self.names.all[self._cursors[1] :]]
            self._cursors = ends
            for base in self._bases:
                for name in fresh:
                    method = base.__dict__.get(name)
                    if isinstance(method, property):
                        method = method.fget
                    if isinstance(method, FunctionType):
                        methods.append(method)
                        read = code_facts(method.__code__)
                        self.names.update(read.attributes)
                        self.reads_all = self.reads_all or read.reads_all
        return methods
