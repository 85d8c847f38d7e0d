"""Fingerprints of environments: equality, differences in words, and what a function wrote itself."""

from __future__ import annotations

from collections.abc import Iterable

from .keys import Key, describe_key
from .places import Path, above, quoted

__all__ = ["Fingerprint", "changed", "differences"]


class Fingerprint:
    """The static part of an environment: paths with keys. Hashable; equal for equal environments."""

    __slots__ = ("_hash", "keys", "paths")

    def __init__(self, paths: Iterable[Path], keys: Iterable[Key]) -> None:
        self.paths = tuple(paths)
        self.keys = tuple(keys)
        self._hash: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.paths == other.paths and self.keys == other.keys

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.paths, self.keys))
        return self._hash

    def __len__(self) -> int:
        return len(self.paths)

    def entries(self) -> dict[Path, Key]:
        return dict(zip(self.paths, self.keys, strict=True))

    def without(self, ignore: frozenset[Path]) -> Fingerprint:
        """As it would have been found with these paths ignored."""
        kept = [
            (path, key)
            for path, key in zip(self.paths, self.keys, strict=True)
            if path not in ignore and ignore.isdisjoint(above(path))
        ]
        return Fingerprint((path for path, _ in kept), (key for _, key in kept))


def changed(before: Fingerprint, after: Fingerprint) -> frozenset[Path]:
    """The places that differ, each without those below it.

    A class or a module that is reached only afterwards was not changed, it was loaded.
    """
    old, new = before.entries(), after.entries()
    loaded = {path for path in new.keys() - old.keys() if path.startswith("module ")}
    places = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    return frozenset(
        path for path in places if places.isdisjoint(upper := above(path)) and loaded.isdisjoint((path, *upper))
    )


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """One line for each place that differs."""
    before, after = old.entries(), new.entries()
    changes, comings, vague = {}, {}, {}
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was == now:
            continue
        if was is None:
            comings[path] = f"{quoted(path)} is new: {describe_key(now)}"
        elif now is None:
            comings[path] = f"{quoted(path)} is gone: {describe_key(was)}"
        elif (left := describe_key(was)) != (right := describe_key(now)):
            changes[path] = f"{quoted(path)} changed from {left} to {right}"
        else:
            vague[path] = f"{quoted(path)} is now another {right}"
    # What came or went within a thing that changed, came or went itself says nothing more; but of things that
    # look the same in words it says all.
    told = changes.keys() | comings.keys()
    inner = {path for path in comings if not told.isdisjoint(above(path))}
    outer = {upper for path in told for upper in above(path)}
    return [
        *changes.values(),
        *(text for path, text in vague.items() if path not in outer),
        *(text for path, text in comings.items() if path not in inner),
    ]
