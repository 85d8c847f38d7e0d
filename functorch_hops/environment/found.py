"""What a walk has found so far."""

from __future__ import annotations

from types import CodeType
from typing import Any

import torch

from .guard import GuardBuilder
from .keys import ByIdentity, Key
from .places import Path

__all__ = ["MOST", "Found"]

MOST = 20_000
"""Locations that one walk visits at most; containers beyond them are taken by identity."""


class Found:
    """`paths` and `keys` are the static part, `tensors` and `guard` the live one."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.keys: list[Key] = []
        self.tensors: dict[Path, torch.Tensor] = {}
        self.guard = GuardBuilder()
        self.opaque: list[Path] = []
        self.not_watched: list[Path] = []
        self.hidden: dict[Path, str] = {}
        self.codes: dict[CodeType, None] = {}
        self.buffers: list[tuple[Path, dict[str, Any], str]] = []
        self.truncated = False
        self._visited = 0
        self._asked: set[Path] = set()
        self._labels: dict[str, int] = {}

    def record(self, path: Path, key: Key) -> None:
        self.paths.append(path)
        self.keys.append(key)

    def unfollowed(self, path: Path, value: Any) -> None:
        """A mutable thing of which only the identity is known."""
        self.record(path, ByIdentity(value))
        self.opaque.append(path)
        self.unwatched(path)
        self.hide(path, f"{type(value).__qualname__}, too large to be watched")

    def hide(self, path: Path, what: str) -> None:
        """Something with a state that can't be watched."""
        self.hidden.setdefault(path, what)

    def unwatched(self, path: Path) -> None:
        """Something whose behaviour can't be predicted from the snapshot: a plain-eager trace that reads it is not
        reused.
        """
        self.not_watched.append(path)

    def has_budget(self, size: int) -> bool:
        """Whether so many more locations may be visited."""
        if self._visited + size > MOST:
            self.truncated = True
            return False
        self._visited += size
        return True

    def is_first(self, path: Path) -> bool:
        """Whether this is the first time that something asks for this place."""
        first = path not in self._asked
        self._asked.add(path)
        return first

    def label(self, text: str) -> str:
        """The text, made different from those of namesakes (two classes of one name)."""
        count = self._labels[text] = self._labels.get(text, 0) + 1
        return text if count == 1 else f"{text.rstrip('.')}#{count}{'.' * text.endswith('.')}"
