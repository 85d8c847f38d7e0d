"""The walk through everything a function can read from outside its arguments.

It goes breadth first, so that a thing has its shortest path, and in an order that the environment alone
decides. Two kinds of places grow while it goes: the names that code mentions (more code brings more names)
and the namespaces in which mentioned names are looked up (an object's attributes, a class, a module).
`Walk.run` goes on until neither grows. `visitors` know what the values of each type are made of.

NOTE [shared objects] An object is followed from the first path that reaches it. Further paths get an "alias"
entry that names the first, so that binding one of them anew changes the fingerprint, and so does
a pair of equal objects that becomes one.
"""

from __future__ import annotations

import builtins
import functools
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence, MutableSet, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch

from .. import _torch
from . import origin
from .bytecode import code_facts
from .classes import SPECIAL, TEXT, factories, implicit_names, is_node, members_of_protocol
from .found import Found
from .guard import FREE, SAME, TENSOR, Role
from .keys import ByIdentity, KeyMakers, by_value, has_parts
from .libraries import attributes_read_by, is_setting, reads_any_attribute, stored_attribute
from .places import Path
from .spaces import LibraryMethods, Names, Space

__all__ = ["Walk"]

_bases = operator.attrgetter("__mro__")

_NO_NAMES: list[str] = []
_HEAP_TYPE = 1 << 9
"""The flag of classes whose attributes can be set."""


class Walk(Found):
    """One walk; afterwards `paths` and `keys` are the static part, `tensors` and `guard` the live one."""

    def __init__(
        self,
        func: Callable[..., Any],
        ignore: frozenset[Path],
        visitor_of: Callable[[type], Callable[..., None]],
        later: Iterable[Callable[[Walk], None]],
    ) -> None:
        super().__init__()
        self.has_modules = False
        self.makers = KeyMakers()
        self.types: set[type] = set()
        """Classes of libraries that code names; the types of scalars are in `makers`."""
        self._package = origin.own_package(func)
        self._ignore = ignore
        self.seen: dict[int, Path] = {}
        self._queue: list[tuple[Path, Any, bool]] = []
        self._visitor_of = visitor_of
        self._later = later
        self._visitors: dict[type, Callable[..., None]] = {}
        self.names = Names()
        self._again = False
        self._spaces: list[Space] = []
        self._nodes: dict[int, list[Space]] = {}
        self._node_types: dict[type, bool] = {}
        self._reads_all = False
        self._makes_text = False
        self._libraries: dict[int, Space] = {}
        self._globals: dict[int, Space] = {}
        self.classes: dict[type, Space] = {}
        self._followed: dict[type, bool] = {}
        self._entered: set[tuple[type, bool]] = set()
        self._methods: dict[type, LibraryMethods] = {}
        self._patchable: set[type] = set()

    def run(self, func: Callable[..., Any]) -> None:
        self.value("" if isinstance(func, FunctionType | functools.partial) else "self", func)
        self._spaces.append(self._library(torch.Tensor.__dict__, "class Tensor"))
        done = 0
        self._again = True
        while self._again or done < len(self._queue):
            while done < len(self._queue):
                path, value, escapes = self._queue[done]
                done += 1
                self._open(path, value, escapes)
            self._again = False
            for space in self._spaces:
                self._extend(space)
            for look in self._later:
                look(self)
        self._watch_absent()

    # What the visitors call.

    def value(self, path: Path, value: Any, escapes: bool = True) -> Role:
        """What a location holds; `escapes` unless code only ever reads attributes of it."""
        ignored = path in self._ignore
        if isinstance(value, torch.Tensor):
            if not _torch.is_dense(value):  # see NOTE [Sparse matrices]
                self.record(path, ByIdentity(value))
                return SAME
            if not ignored:
                self._tensor(path, value)
            self.tensors.setdefault(path, value)
            return TENSOR
        if ignored:
            return FREE
        key = by_value(value, self.makers)
        parts = key is not None and has_parts(value)
        if key is not None and not (parts and type(value) in (tuple, frozenset)):
            self.record(path, key)
            if not parts:
                return SAME
        first = self.seen.get(id(value))
        if first is None:
            self.seen[id(value)] = path
            self._queue.append((path, value, escapes))
        elif first != path and not (parts and self.paths[-1] == path):
            self.record(path, ("alias", first))
        if escapes:
            for space in self._nodes.get(id(value), ()):
                self._again = self._again or not space.everything
                space.everything = True
        return SAME

    def item(self, mapping: Mapping[str, Any], key: str, path: Path, *, escapes: bool = True) -> None:
        """An entry of a namespace, guarded and followed."""
        value = mapping[key]
        self.guard.item(mapping, key, value, self.value(path, value, escapes), path)

    def attributes(self, holder: Any, path: Path, names: Iterable[str]) -> None:
        for name in names:
            value, place = getattr(holder, name), f"{path}.{name}"
            self.guard.call(operator.attrgetter(name), holder, value, self.value(place, value), place)

    def search(
        self,
        mapping: Mapping[str, Any],
        path: Path,
        *,
        skip: Sequence[str] = (),
        node: Any = None,
        opens: bool = True,
        **options: Any,
    ) -> None:
        """Names that code mentions are looked up in `mapping`. `node`: the object that is a tree of them."""
        space = Space(mapping, f"{path}.", set(skip), opens, **options)
        self._spaces.append(space)
        if node is not None:
            self._nodes.setdefault(id(node), []).append(space)

    def is_node(self, value: Any) -> bool:
        kind = type(value)
        if kind not in self._node_types:
            self._node_types[kind] = is_node(value)
        return self._node_types[kind]

    def visit(self, space: Space, names: Sequence[str], *, escapes: frozenset[str] | None = None) -> None:
        """Look up names that the mapping has. `escapes`: those used otherwise than by attribute, or all."""
        for name in names:
            if name in space.taken:
                continue
            space.taken.add(name)
            self.item(space.mapping, name, space.prefix + name, escapes=escapes is None or name in escapes)

    def mentions(self, names: Sequence[str]) -> None:
        """Code mentions attribute names."""
        n_known = len(self.names.all)
        self.names.update(names)
        self._again = self._again or len(self.names.all) > n_known

    def read_all(self) -> None:
        self._again = self._again or not self._reads_all
        self._reads_all = True

    def make_text(self) -> None:
        """Objects are turned into text."""
        if not self._makes_text:
            self._makes_text = True
            for space in self.classes.values():
                self.visit(space, [name for name in TEXT if name in space.mapping])

    def globals_of(
        self, namespace: dict[str, Any], names: Sequence[str], escapes: frozenset[str] | None = None
    ) -> None:
        """Global names of a module, its builtins included."""
        space = self._globals.get(id(namespace))
        if space is None:
            # The first namespace is that of the function itself, whose globals need no qualification.
            module = f"{namespace.get('__name__')}." if self._globals else ""
            space = self._globals[id(namespace)] = Space(namespace, self.label(f"global {module}"))
        self.visit(space, [name for name in names if name in namespace], escapes=escapes)
        missing = [name for name in names if name not in namespace and name not in space.absent]
        space.absent.update(missing)
        outer = namespace.get("__builtins__", builtins)
        outer = outer.__dict__ if isinstance(outer, ModuleType) else outer
        for name in missing:
            if name in outer:
                self._builtin(outer, name, space.prefix + name)
            else:
                self.without(outer, name)

    def all_globals_of(self, namespace: dict[str, Any]) -> None:
        """Code reads globals by names that it does not mention."""
        self.globals_of(namespace, [name for name in namespace if not name.startswith("__")])
        self.guard.size(namespace)

    def _builtin(self, namespace: dict[str, Any], name: str, path: Path) -> None:
        """What reading attributes by ``getattr`` reads is known of code that calls it by its own name."""
        value = namespace[name]
        if any(value is reader for reader in (getattr, hasattr, setattr, delattr)):
            self.record(path, ByIdentity(value))
            self.guard.item(namespace, name, value, SAME, path)
        else:
            self.item(namespace, name, path)

    def without(self, mapping: Mapping[str, Any], name: str) -> None:
        """Code looks for a name that a namespace of the interpreter does not have."""
        self._library(mapping, "").absent.add(name)

    def library(self, module: ModuleType, names: Iterable[str]) -> None:
        """Names of an installed module that code reads, one behind the other. What is installed is not followed, but
        anyone may bind a name in it anew, in an object that it holds too, and some are settings that a module computes.
        """
        holder: Any = module
        path = f"module {module.__name__}"
        for name in names:
            if is_setting(holder, name):
                self.attributes(holder, path, (name,))
            if not isinstance(holder, ModuleType):
                value = stored_attribute(holder, name)
                if self._may_change(value):
                    self.attributes(holder, path, (name,))
                holder, path = value, f"{path}.{name}"
                continue
            if self.follows(origin.of_module(holder)):
                return
            space = self._library(holder.__dict__, path)
            self._name(space, name)
            holder, path = space.mapping.get(name), space.prefix + name

    def library_names(self, module: ModuleType) -> None:
        """All names that code mentions may be read of an installed module."""
        space = self._library(module.__dict__, f"module {module.__name__}")
        if space not in self._spaces:
            self._spaces.append(space)

    def _library(self, mapping: Mapping[str, Any], name: str) -> Space:
        space = self._libraries.get(id(mapping))
        if space is None:
            space = self._libraries[id(mapping)] = Space(mapping, f"{name}.", is_library=True)
        return space

    def _name(self, space: Space, name: str) -> None:
        """A name in a library: what may change there is followed, the library's own code is not."""
        if name in space.taken:
            return
        if name not in space.mapping:
            if "__getattr__" not in space.mapping:
                space.absent.add(name)
            return
        space.taken.add(name)
        value, path = space.mapping[name], space.prefix + name
        if self._may_change(value):
            self.item(space.mapping, name, path)
        else:
            self.record(path, ByIdentity(value))
            self.guard.item(space.mapping, name, value, SAME, path)
            if isinstance(value, FunctionType | type):
                self.foreign(value)
            owner = getattr(value, "__self__", None)
            if type(owner).__module__.startswith("numpy.random"):
                self.value(f"{path}.__self__", owner)

    def foreign(self, value: FunctionType | type) -> None:
        """See NOTE [Libraries read the user's objects]; ``os.getenv`` reads the environment of the process."""
        if isinstance(value, type):
            self.types.add(value)
        self.mentions(attributes_read_by(value))
        if isinstance(value, FunctionType):
            if reads_any_attribute(value):
                self.read_all()
            for name in value.__code__.co_names:
                if value.__globals__.get(name) is os.environ:
                    self.item(value.__globals__, name, f"module os.{name}")

    def _may_change(self, value: Any) -> bool:
        if isinstance(value, FunctionType):
            return self.follows(origin.of_globals(value.__globals__))
        if isinstance(value, type):
            return self.follows_class(value)
        if value is sys.modules or isinstance(value, ModuleType):
            return False
        kind = type(value)
        return (
            isinstance(value, torch.Tensor)
            or by_value(value, self.makers) is not None
            or issubclass(kind, (MutableMapping, MutableSequence, MutableSet, tuple))
            or self.follows_class(kind)
        )

    def class_of(self, cls: type, *, constructed: bool) -> None:
        """Follow the user's classes among a class and its bases."""
        if (cls, constructed) in self._entered:
            return
        self._entered.add((cls, constructed))
        if type(cls) is not type:
            self.class_of(type(cls), constructed=False)
        for base in cls.__mro__:
            if not self.follows_class(base):
                self._library_class(base)
                continue
            space = self.classes.get(base)
            if space is None:
                name = self.label(f"class {base.__qualname__}") + "."
                space = self.classes[base] = Space(base.__dict__, name, opens=True, is_class=True)
                self._spaces.append(space)
                self.guard.call(_bases, base, base.__mro__, SAME, space.prefix)
                self.mentions(members_of_protocol(base))
            self.visit(space, implicit_names(base, self.follows_class, constructed=constructed))
            if constructed:
                for name, factory in factories(base):
                    self.value(f"{space.prefix}{name}.default_factory", factory)
            if self._makes_text:
                self.visit(space, [name for name in TEXT if name in base.__dict__])

    def methods_of(self, cls: type) -> LibraryMethods:
        if cls not in self._methods:
            bases = [
                base for base in cls.__mro__ if base not in (object, torch.nn.Module) and not self.follows_class(base)
            ]
            self._methods[cls] = LibraryMethods(bases)
        return self._methods[cls]

    def follows(self, code: origin.Origin) -> bool:
        return origin.package(code) == self._package or not origin.library(code)

    def follows_class(self, cls: type) -> bool:
        known = self._followed.get(cls)
        if known is None:
            known = self._followed[cls] = self.follows(origin.of_class(cls))
        return known

    # Inside.

    def _tensor(self, path: Path, value: torch.Tensor) -> None:
        first = self.seen.setdefault(id(value), path)
        self.record(path, ("tensor", type(value)) if first == path else ("alias", first))
        if first == path:
            attributes = value.__dict__  # what a user hung on it, or will hang on it
            self.search(attributes, path) if attributes else self.guard.size(attributes)

    def _open(self, path: Path, value: Any, escapes: bool) -> None:
        if not self.has_budget(1):
            self.unfollowed(path, value)
            return
        kind = type(value)
        visitor = self._visitors.get(kind)
        if visitor is None:
            visitor = self._visitors[kind] = self._visitor_of(kind)
        visitor(self, path, value, escapes)

    def _extend(self, space: Space) -> None:
        """Look up what has been mentioned since the last time."""
        mentioned, own = self.names.all, _NO_NAMES
        if space.methods is not None:
            for method in space.methods.grow(mentioned):
                self._read_by_library(method)
            own = space.methods.names.all
            space.everything = space.everything or space.methods.reads_all
        if space.everything or (space.opens and self._reads_all):
            space.everything = True
            self.visit(space, list(space.mapping))
            return
        ends = (len(mentioned), len(own))
        if ends != space.cursors:
            fresh = [*mentioned[space.cursors[0] :], *own[space.cursors[1] :]]
            space.cursors = ends
            if space.is_library:
                for name in fresh:
                    self._name(space, name)
            else:
                self.visit(space, [name for name in fresh if name in space.mapping])

    def _read_by_library(self, method: FunctionType) -> None:
        """The functions that a library's method calls by way of modules: someone may have replaced them."""
        for (kind, root), names in code_facts(method.__code__).chains:
            module = method.__globals__.get(root) if kind == "global" else None
            if isinstance(module, ModuleType) and not self.follows(origin.of_module(module)):
                self.library(module, names)

    def _watch_absent(self) -> None:
        for space in (*self._globals.values(), *self._libraries.values()):
            self.guard.without(space.mapping, frozenset(space.absent))
        for space in self._spaces:
            if space.is_library:
                continue
            if space.by_size or space.everything or not space.mapping:
                self.guard.size(space.mapping)
            else:
                own = space.methods.names.known if space.methods is not None else ()
                special = SPECIAL.difference(space.mapping) if space.is_class else ()
                self.guard.without(space.mapping, frozenset(self.names.known.union(own, special) - space.taken))

    def _library_class(self, base: type) -> None:
        """A library's class is fixed, but for the one method that users replace."""
        if not origin.is_pure(origin.of_class(base)):
            self.unwatched(f"class {base.__qualname__}")
        self.types.add(base)
        if base in self._patchable or not base.__flags__ & _HEAP_TYPE:
            return
        self._patchable.add(base)
        self.foreign(base)
        name = base.__qualname__
        self._spaces.append(self._library(base.__dict__, f"class {name}"))
        forward = base.__dict__.get("forward")
        if forward is None or not issubclass(base, torch.nn.Module):
            return
        name = f"{name}.forward"
        if isinstance(forward, property) or (forward.__module__, forward.__qualname__) == (base.__module__, name):
            self.guard.item(base.__dict__, "forward", forward, SAME, name)
        else:
            self.item(base.__dict__, "forward", f"class {name}")
