"""Code that takes the arguments of one call apart, and refuses those of any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch, pytree
from ..environment.source import Source
from .static_values import static_key

__all__ = ["Reader"]

_BY_EQUALITY = frozenset({int, str, bytes})


class Reader:
    """Lines that put the tensors among the arguments of a call into variables, or refuse the call.

    They accept what the key of :class:`Arguments` would: the same trees, the same static values. The metadata of the
    tensors is for the caller to compare.
    """

    def __init__(self, source: Source, static_floats: bool) -> None:
        self._source, self._static_floats = source, static_floats
        self._count = 0
        self.tensors: list[tuple[str, Tensor]] = []
        self.operands: list[str] = []
        """What stands for the operands of the trace; a float becomes a tensor when all else is known to be right."""
        self.is_complete = True
        """Whether there was no argument for which there is no such line."""

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any], static: Mapping[int | str, Any]) -> None:
        """``static``: the arguments that are static as a whole, by place or name."""
        source = self._source
        source.refuse_if(f"len(args) != {len(args)}")
        source.refuse_if(f"[*kwargs] != {list(kwargs)!r}" if kwargs else "kwargs")
        names = self._taken_apart("args", len(args))
        by_name = dict(zip(kwargs, self._taken_apart("kwargs.values()", len(kwargs))))
        for i, (name, value) in enumerate(zip(names, args)):
            self._static(name, value) if i in static else self._tree(name, value)
        for key in sorted(kwargs):
            self._static(by_name[key], kwargs[key]) if key in static else self._tree(by_name[key], kwargs[key])

    def _taken_apart(self, text: str, count: int) -> list[str]:
        names = [f"x{self._count + i}" for i in range(count)]
        self._count += count
        if names:
            self._source.add(f"{', '.join(names)}, = {text}")
        return names

    def _tree(self, name: str, value: Any) -> None:
        source, kind = self._source, type(value)
        if value is None:
            source.refuse_if(f"{name} is not None")
        elif kind in (tuple, list):
            source.refuse_if(f"type({name}) is not {kind.__name__} or len({name}) != {len(value)}")
            for part, child in zip(self._taken_apart(name, len(value)), value):
                self._tree(part, child)
        elif kind is dict:
            keys, types = source.name([*value]), source.name([*map(type, value)])
            source.refuse_if(f"type({name}) is not dict or [*{name}] != {keys} or [*map(type, {name})] != {types}")
            parts = dict(zip(value, self._taken_apart(f"{name}.values()", len(value))))
            for key in pytree.flatten(value)[1].entries():  # a tree's order is not that of the dict
                self._tree(parts[key], value[key])
        else:
            leaves, spec = pytree.flatten(value)
            if spec.is_leaf():
                self._leaf(name, value)
                return
            source.add(f"leaves, spec = {source.name(pytree.flatten)}({name})")
            source.refuse_if(f"spec != {source.name(spec)}")
            in_mappings = source.name(pytree.mapping_keys(value))
            source.refuse_if(f"{source.name(pytree.mapping_keys)}({name}) != {in_mappings}")
            for part, leaf in zip(self._taken_apart("leaves", len(leaves)), leaves):
                self._leaf(part, leaf)

    def _leaf(self, name: str, value: Any) -> None:
        kind = type(value)
        if isinstance(value, Tensor):
            self.is_complete = self.is_complete and kind in _torch.PLAIN_TYPES
            self.tensors.append((name, value))
            self.operands.append(name)
        elif kind.__module__ == "numpy" or isinstance(value, (torch.SymInt, torch.SymFloat)):
            self.is_complete = False
        elif kind is float and not self._static_floats:
            self._source.refuse_if(f"type({name}) is not float")
            scalar, dtype = self._source.name(torch.scalar_tensor), self._source.name(torch.float64)
            self.operands.append(f"{scalar}({name}, dtype={dtype}, device='cpu')")
        else:
            self._static(name, value)

    def _static(self, name: str, value: Any) -> None:
        source, kind = self._source, type(value)
        if kind is bool:
            source.refuse_if(f"{name} is not {value!r}")
        elif kind in _BY_EQUALITY:
            source.refuse_if(f"type({name}) is not {kind.__name__} or {name} != {source.name(value)}")
        else:
            key = f"{source.name(static_key)}({name}) != {source.name(static_key(value))}"
            source.refuse_if(f"{name} is not {source.name(value)} and {key}")
