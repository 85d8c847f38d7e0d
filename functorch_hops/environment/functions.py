"""What functions, and the things that stand for one, read: closures, defaults, globals, what they wrap."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from . import origin
from .bytecode import CodeFacts, code_facts
from .containers import entries, items
from .keys import ByIdentity
from .places import Path, attribute, item, local
from .walk import Walk

__all__ = ["builtin", "function", "is_library_module", "method", "partial", "wrapper"]

_EMPTY = object()


def function(walk: Walk, path: Path, func: Any, escapes: bool) -> None:
    code = func.__code__
    walk.record(path, ("function", ByIdentity(code)))
    followed = walk.follows(origin.of_globals(func.__globals__))
    inner = func.__dict__.get("__wrapped__")
    if inner is not None:
        walk.value(attribute(path, "__wrapped__"), inner)
    if not followed and not origin.is_pure(origin.of_globals(func.__globals__), func.__name__):
        walk.unwatched(path)
    read = code_facts(code) if followed else None
    if func.__closure__:
        _closure(walk, path, func, read)
    if read is None:
        return
    if read.writes_unread:
        walk.unwatched(path)
    walk.guard.function(func)
    _defaults(walk, path, func)
    _names(walk, func, read)
    walk.search(func.__dict__, path or "function")


def _closure(walk: Walk, path: Path, func: Any, read: CodeFacts | None) -> None:
    """Cells; of the user's functions only those that the code reads."""
    for name, cell in zip(func.__code__.co_freevars, func.__closure__, strict=True):
        root = ("closure", name)
        if read is not None and root not in read.roots:
            continue
        content = _content(cell)
        place = local("closure", path, name)
        role = walk.value(place, content, read is None or root in read.escapes)
        if content is _EMPTY:
            walk.guard.call(_content, cell, content, role, place)
        else:
            walk.guard.cell(cell, content, role, place)
        if read is not None:
            _mention(walk, place, content, read.roots[root])


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _defaults(walk: Walk, path: Path, func: Any) -> None:
    if func.__defaults__:
        arguments = func.__code__.co_varnames[: func.__code__.co_argcount]
        names = arguments[len(arguments) - len(func.__defaults__) :]
        items(walk, func.__defaults__, [local("default", path, name) for name in names], mutable=False)
    if func.__kwdefaults__:
        names = tuple(func.__kwdefaults__)
        entries(walk, func.__kwdefaults__, [local("default", path, name) for name in names])


def _names(walk: Walk, func: Any, read: CodeFacts) -> None:
    """Globals and imports that the code reads, and the attributes it mentions."""
    walk.mentions(read.attributes)
    if read.reads_all:
        walk.read_all()
    namespace = func.__globals__
    names = [name for kind, name in read.roots if kind == "global"]
    if names:
        walk.globals_of(namespace, names, frozenset(name for kind, name in read.escapes if kind == "global"))
    for (kind, name), attributes in read.roots.items():
        if kind == "global":
            _mention(walk, f"global {name}", namespace.get(name), attributes)
    for name, level, imported in read.imports:
        full = name
        if level:
            full = importlib.util.resolve_name("." * level + name, namespace.get("__package__") or "")
        module = sys.modules.get(full)
        if module is None:
            walk.unwatched(f"module {full}")
        else:
            walk.value(f"module {full}", module)
            _mention(walk, f"module {full}", module, imported)


def _mention(walk: Walk, path: Path, holder: Any, attributes: Sequence[str]) -> None:
    """The code reads these attributes of what is at `path`."""
    if not is_library_module(walk, holder):
        walk.mentions(attributes)
    elif not origin.are_pure_names(attributes):
        walk.unwatched(path)


def is_library_module(walk: Walk, value: Any) -> bool:
    return isinstance(value, types.ModuleType) and not walk.follows(origin.of_module(value))


def method(walk: Walk, path: Path, bound: Any, escapes: bool) -> None:
    walk.record(attribute(path, "__call__"), ("method",))
    walk.value(path if path == "self" else attribute(path, "__self__"), bound.__self__)
    walk.value(attribute(path, "__func__"), bound.__func__)


def partial(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ("partial", type(value)))
    walk.value(attribute(path, "func"), value.func)
    args, keywords = attribute(path, "args"), attribute(path, "keywords")
    items(walk, value.args, [item(args, at) for at in range(len(value.args))], mutable=False)
    entries(walk, value.keywords, [item(keywords, key) for key in value.keywords])


def builtin(walk: Walk, path: Path, func: Any, escapes: bool) -> None:
    owner = getattr(func, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        walk.record(path, ByIdentity(func))
        if not origin.is_pure((func.__module__ or "", None), func.__name__):
            walk.unwatched(path)
        return
    walk.record(path, ("method", func.__name__))
    walk.value(attribute(path, "__self__"), owner)


def wrapper(inner: str) -> Callable[[Walk, Path, Any, bool], None]:
    """For descriptors: they are the function in them."""

    def visit_wrapped(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
        walk.record(path, ("descriptor", type(value)))
        walk.value(attribute(path, "__wrapped__"), getattr(value, inner))

    return visit_wrapped
