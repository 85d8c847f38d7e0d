"""What functions, and the things that stand for one, read: closures, defaults, globals, what they wrap."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from . import origin
from .attributes import extras
from .bytecode import CodeFacts, NameRoot, code_facts
from .containers import entries, items
from .keys import ByIdentity
from .places import Path, attribute, item, local
from .references import EMPTY, content
from .walk import Walk

__all__ = ["builtin", "function", "is_library_module", "method", "partial", "wrapper"]


def function(walk: Walk, path: Path, func: Any, escapes: bool) -> None:
    code = func.__code__
    walk.record(path, ("function", ByIdentity(code)))
    followed = walk.follows(origin.of_globals(func.__globals__))
    if "__wrapped__" in func.__dict__:
        walk.item(func.__dict__, "__wrapped__", attribute(path, "__wrapped__"))
    if not followed and not origin.is_pure(origin.of_globals(func.__globals__), func.__name__):
        walk.unwatched(path)
    read = code_facts(code) if followed else None
    if func.__closure__:
        _closure(walk, path, func, read)
    if read is None:
        walk.foreign(func)
        return
    walk.codes[code] = None
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
        held = content(cell)
        place = local("closure", path, name)
        role = walk.value(place, held, read is None or root in read.escapes)
        if held is EMPTY:
            walk.guard.call(content, cell, held, role, place)
        else:
            walk.guard.cell(cell, held, role, place)
        if read is not None:
            _mention(walk, place, held, read.roots[root])


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
    if read.makes_text:
        walk.make_text()
    if read.reads_globals:
        walk.all_globals_of(func.__globals__)
    namespace = func.__globals__
    names = [name for kind, name in read.roots if kind == "global"]
    if names:
        walk.globals_of(namespace, names, frozenset(name for kind, name in read.escapes if kind == "global"))
    for (kind, name), attributes in read.roots.items():
        if kind == "global":
            _mention(walk, f"global {name}", namespace.get(name), attributes)
    _chains(walk, func, read)
    _imports(walk, func, read)


def _chains(walk: Walk, func: Any, read: CodeFacts) -> None:
    """What the code reads of installed modules."""
    cells = dict(zip(func.__code__.co_freevars, func.__closure__ or (), strict=True))
    for root, names in read.chains:
        holder = _root(func, cells, root)
        if is_library_module(walk, holder):
            walk.library(holder, names)
    for root in read.escapes:
        holder = _root(func, cells, root)
        if is_library_module(walk, holder):
            walk.library_names(holder)


def _root(func: Any, cells: dict[str, types.CellType], root: NameRoot) -> Any:
    kind, name = root
    if kind == "global":
        return func.__globals__.get(name)
    return content(cells[name]) if name in cells else None


def _imports(walk: Walk, func: Any, read: CodeFacts) -> None:
    namespace = func.__globals__
    for name, level, imported in read.imports:
        full = name
        if level:
            full = importlib.util.resolve_name("." * level + name, namespace.get("__package__") or "")
        module = sys.modules.get(full)
        if module is None:
            walk.unwatched(f"module {full}")
            walk.without(sys.modules, full)
            continue
        _loaded(walk, full, module)
        _mention(walk, f"module {full}", module, imported)
        if is_library_module(walk, module):
            for attribute_name in imported:
                walk.library(module, (attribute_name,))
    for name in read.modules:
        full = str(namespace.get(name)) if name == "__name__" else name
        module = sys.modules.get(full)
        if isinstance(module, types.ModuleType):
            _loaded(walk, full, module)
        else:
            walk.without(sys.modules, full)


def _loaded(walk: Walk, name: str, module: types.ModuleType) -> None:
    """A module as a body imports it: from ``sys.modules``."""
    walk.item(sys.modules, name, f"module {name}")
    if is_library_module(walk, module):
        walk.library_names(module)


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
    extras(walk, path, value)


def builtin(walk: Walk, path: Path, func: Any, escapes: bool) -> None:
    owner = getattr(func, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        walk.record(path, ByIdentity(func))
        if func in (getattr, hasattr, setattr, delattr, vars, dir):  # by another name
            walk.read_all()
        if func in (repr, format, ascii):
            walk.make_text()
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
