"""How paths are written.

``global config.depth``, ``closure scale``, ``closure helper:scale``, ``default x``, ``self[0].weight``.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["Path", "above", "attribute", "item", "local", "quoted"]

Path: TypeAlias = str
"""Where something was found. A function itself has the empty path, a module or callable object ``self``."""

_KINDS = frozenset({"global", "closure", "default", "class", "module"})
_SEPARATORS = ".[:"
_TRANSPARENT = (".__wrapped__", ".__func__", "__wrapped__")


def attribute(path: Path, name: str) -> Path:
    return f"{path}.{name}" if path else name


def item(path: Path, key: object) -> Path:
    return f"{path}[{key!r}]"


def local(kind: str, path: Path, name: str) -> Path:
    """A closure or a default of the function at `path`."""
    function = path.partition(" ")[2] if path.partition(" ")[0] in _KINDS else path
    for part in _TRANSPARENT:
        function = function.replace(part, "")
    return f"{kind} {function}:{name}" if function else f"{kind} {name}"


def above(path: Path) -> list[Path]:
    """The paths that `path` may lie below, longest first."""
    return [path[:at] for at in range(len(path) - 1, 0, -1) if path[at] in _SEPARATORS]


def quoted(path: Path) -> str:
    kind, _, rest = path.partition(" ")
    return f"{kind} '{rest}'" if kind in _KINDS else f"'{path}'"
