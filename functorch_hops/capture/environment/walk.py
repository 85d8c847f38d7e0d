"""The walk through everything a function can read from outside its arguments.

It goes breadth first, so that a thing has its shortest path, and in an order that the environment alone
decides. Two kinds of places grow while it goes: the names that code mentions (more code brings more names)
and the namespaces in which mentioned names are looked up (an object's attributes, a class, a module).
`Walk.run` goes on until neither grows. What the kinds of values are made of is in `contents`.

NOTE [shared objects] An object is followed from the first path that reaches it. Further paths get an "alias"
entry that names the first, so that binding one of them anew changes the fingerprint, and so does
a pair of equal objects that becomes one.
"""

from __future__ import annotations

import builtins
import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

import torch

from functorch_hops.capture.environment import contents, origin
from functorch_hops.capture.environment.bytecode import facts
from functorch_hops.capture.environment.guard import FREE, SAME, TENSOR, GuardBuilder, Role
from functorch_hops.capture.environment.keys import Key, Makers, Same, flat

__all__ = ["Path", "Space", "Walk"]

Path: TypeAlias = str

MOST = 20_000
"""Locations that one walk visits at most; containers beyond them are taken by identity."""


@dataclasses.dataclass(eq=False, slots=True)
class Space:
    """A namespace in which some names are looked up."""

    mapping: Mapping[str, Any]
    prefix: str
    taken: dict[str, None] = dataclasses.field(default_factory=dict)
    follows: bool = True
    """Names that code mentions are looked up here; otherwise only those that are asked for."""
    opens: bool = False
    """All names are looked up when code reads attributes by names that it does not mention."""
    everything: bool = False
    by_size: bool = False
    """Names that are absent are watched by the number of entries, not each by name: see `contents.module`."""
    methods: LibraryMethods | None = None
    cursors: tuple[int, int] = (0, 0)
    absent: dict[str, None] = dataclasses.field(default_factory=dict)


class LibraryMethods:
    """The attributes that a library's own methods of a class read from ``self``.

    A library's code is not followed into globals, but `Conv2d.forward` has to be read to learn that
    ``stride`` matters and ``in_channels`` does not.
    """

    def __init__(self, bases: Sequence[type]) -> None:
        self.names: dict[str, None] = {"forward": None}
        self.reads_all = False
        self._bases = bases
        self._cursors = (0, 0)

    def grow(self, mentioned: Sequence[str]) -> None:
        while self._cursors != (ends := (len(mentioned), len(self.names))):
            fresh = [*mentioned[self._cursors[0] :], *list(self.names)[self._cursors[1] :]]
            self._cursors = ends
            for base in self._bases:
                for name in fresh:
                    method = base.__dict__.get(name)
                    if isinstance(method, property):
                        method = method.fget
                    if isinstance(method, FunctionType):
                        read = facts(method.__code__)
                        self.names.update(dict.fromkeys(read.attributes))
                        self.reads_all = self.reads_all or read.reads_all


class Walk:
    """One walk; afterwards `paths` and `keys` are the static part, `tensors` and `guard` the live one."""

    def __init__(self, func: Callable[..., Any], ignore: frozenset[Path]) -> None:
        self.paths: list[Path] = []
        self.keys: list[Key] = []
        self.tensors: dict[Path, torch.Tensor] = {}
        self.guard = GuardBuilder()
        self.opaque: list[Path] = []
        self.truncated = False
        self.makers = Makers()
        self.own_package = origin.of_callable(func)
        self._ignore = ignore
        self._visited = 0
        self._seen: dict[int, Path] = {}
        self._queue: list[tuple[Path, Any, bool]] = []
        self._openers: dict[type, Callable[..., None]] = {}
        self._names: dict[str, None] = {}
        self._spaces: list[Space] = []
        self._nodes: dict[int, Space] = {}
        self._reads_all = False
        self._globals: dict[int, Space] = {}
        self._labels: dict[str, int] = {}
        self._classes: dict[type, tuple[Space, bool]] = {}
        self._methods: dict[type, LibraryMethods] = {}
        self._patchable: set[type] = set()

    def run(self, func: Callable[..., Any]) -> None:
        plain = isinstance(func, FunctionType)
        self.value("" if plain or contents.is_partial(func) else "self", func)
        done = 0
        while True:
            while done < len(self._queue):
                path, value, whole = self._queue[done]
                done += 1
                self._open(path, value, whole)
            for space in self._spaces:
                self._extend(space)
            if done == len(self._queue):
                break
        self._watch_absent()

    # What handlers of `contents` call.

    def note(self, path: Path, key: Key) -> None:
        self.paths.append(path)
        self.keys.append(key)

    def value(self, path: Path, value: Any, whole: bool = True) -> Role:
        """What a location holds; `whole` unless code only ever reads attributes of it."""
        ignored = path in self._ignore
        if isinstance(value, torch.Tensor):
            if not ignored:
                self._tensor(path, value)
            self.tensors.setdefault(path, value)
            return TENSOR
        if ignored:
            return FREE
        self._visited += 1
        maker = self.makers[type(value)]
        if maker is not None:
            self.note(path, maker(value))
            return SAME
        if type(value) is tuple and (key := flat("tuple", value, self.makers)) is not None:
            self.note(path, key)
            return SAME
        first = self._seen.setdefault(id(value), path)
        if first != path:
            self.note(path, ("alias", first))
            if whole and (node := self._nodes.get(id(value))) is not None:
                node.everything = True
        else:
            self._queue.append((path, value, whole))
        return SAME

    def select(
        self,
        make: Callable[..., Callable[[Any], Sequence[Any]]],
        holder: Any,
        named: Sequence[tuple[str, Any, Path]],
        *,
        whole: bool = True,
    ) -> None:
        """Chosen places of a holder, guarded and followed."""
        names, values, paths = zip(*named, strict=True)
        self.guard.getter(
            make, holder, names, values, [self.value(path, v, whole) for _, v, path in named], paths
        )

    def identical(self, holder: Any, *names: str) -> None:
        """Attributes that must stay the identical objects, and are followed some other way or not at all."""
        values = operator.attrgetter(*names)(holder)
        values = values if len(names) > 1 else (values,)
        self.guard.getter(
            operator.attrgetter, holder, names, values, (SAME,) * len(names), ("",) * len(names)
        )

    def space(self, space: Space, *, node: Any = None) -> None:
        """Names of `space.mapping` are looked up from now on. `node`: an object that is a tree of its attributes."""
        self._spaces.append(space)
        if node is not None:
            self._nodes[id(node)] = space

    def take(self, space: Space, names: Sequence[str], *, whole: frozenset[str] | None = None) -> None:
        """Look up names that the mapping has."""
        fresh = [name for name in names if name not in space.taken]
        space.taken.update(dict.fromkeys(fresh))
        for part in (True, False):
            named = [
                (name, space.mapping[name], space.prefix + name)
                for name in fresh
                if (whole is None or name in whole) is part
            ]
            if named:
                self.select(operator.itemgetter, space.mapping, named, whole=part)

    def mention(self, names: Sequence[str]) -> None:
        """Code mentions attribute names."""
        self._names.update(dict.fromkeys(names))

    def read_all(self) -> None:
        self._reads_all = True

    def globals_of(self, namespace: dict[str, Any], names: Sequence[str], whole: frozenset[str]) -> None:
        """Global names of a module, its builtins included."""
        space = self._globals.get(id(namespace))
        if space is None:
            # The first namespace is that of the function itself, whose globals need no qualification.
            module = f"{namespace.get('__name__')}." if self._globals else ""
            space = Space(namespace, self.label(f"global {module}"), follows=False)
            self._globals[id(namespace)] = space
            self._spaces.append(space)
        self.take(space, [name for name in names if name in namespace], whole=whole)
        missing = [name for name in names if name not in namespace and name not in space.absent]
        space.absent.update(dict.fromkeys(missing))
        outer = namespace.get("__builtins__", builtins)
        outer = outer.__dict__ if isinstance(outer, ModuleType) else outer
        if found := [(name, outer[name], f"{space.prefix}{name}") for name in missing if name in outer]:
            self.select(operator.itemgetter, outer, found)

    def class_of(self, cls: type, *, constructed: bool) -> None:
        """Follow the user's classes among a class and its bases."""
        for base in cls.__mro__:
            if not self.follows(origin.of_class(base)):
                self._library_class(base)
                continue
            known = self._classes.get(base)
            if known is None:
                space = Space(base.__dict__, self.label(f"class {base.__qualname__}") + ".")
                self._classes[base] = (space, constructed)
                self._spaces.append(space)
                self.identical(base, "__mro__")
                self.take(space, contents.implicit_names(base, self.follows, constructed=constructed))
            elif constructed and not known[1]:
                self._classes[base] = (known[0], True)
                self.take(known[0], contents.implicit_names(base, self.follows, constructed=True))

    def methods_of(self, cls: type) -> LibraryMethods:
        if cls not in self._methods:
            bases = [
                base
                for base in cls.__mro__
                if base not in (object, torch.nn.Module) and not self.follows(origin.of_class(base))
            ]
            self._methods[cls] = LibraryMethods(bases)
        return self._methods[cls]

    def follows(self, code: origin.Origin) -> bool:
        return origin.package(code) == self.own_package or not origin.library(code)

    def unfollowed(self, path: Path, value: Any) -> None:
        """A mutable thing of which only the identity is known."""
        self.note(path, Same(value))
        self.opaque.append(path)

    def room(self, size: int) -> bool:
        """Whether so many more locations may be visited."""
        self.truncated = self.truncated or self._visited + size > MOST
        return not self.truncated

    def label(self, text: str) -> str:
        """The text, made different from those of namesakes (two classes of one name)."""
        count = self._labels[text] = self._labels.get(text, 0) + 1
        return text if count == 1 else f"{text.rstrip('.')}#{count}{'.' * text.endswith('.')}"

    # Inside.

    def _tensor(self, path: Path, value: torch.Tensor) -> None:
        first = self._seen.setdefault(id(value), path)
        self.note(path, ("tensor", type(value)) if first == path else ("alias", first))

    def _open(self, path: Path, value: Any, whole: bool) -> None:
        if not self.room(0):
            self.unfollowed(path, value)
            return
        kind = type(value)
        opener = self._openers.get(kind)
        if opener is None:
            opener = self._openers[kind] = contents.opener(kind)
        opener(self, path, value, whole)

    def _extend(self, space: Space) -> None:
        """Look up what has been mentioned since the last time."""
        if not space.follows:
            return
        if space.methods is not None:
            space.methods.grow(list(self._names))
            space.everything = space.everything or space.methods.reads_all
        if space.everything or (space.opens and self._reads_all):
            space.everything = True
            self.take(space, list(space.mapping))
            return
        own = space.methods.names if space.methods is not None else {}
        ends = (len(self._names), len(own))
        if ends == space.cursors:
            return
        fresh = [*list(self._names)[space.cursors[0] :], *list(own)[space.cursors[1] :]]
        space.cursors = ends
        if found := [name for name in dict.fromkeys(fresh) if name in space.mapping]:
            self.take(space, found)

    def _watch_absent(self) -> None:
        names = frozenset(self._names)
        absent: dict[tuple[str, ...], frozenset[str]] = {}
        for space in self._spaces:
            if not space.follows:
                self.guard.without(space.mapping, frozenset(space.absent))
            elif space.by_size or space.everything or not space.mapping:
                self.guard.size(space.mapping)
            else:
                taken = tuple(space.taken)
                if taken not in absent:
                    absent[taken] = names.difference(taken)
                self.guard.without(space.mapping, absent[taken])

    def _library_class(self, base: type) -> None:
        """A library's class is fixed, but for the one method that users replace."""
        if base in self._patchable or not issubclass(base, torch.nn.Module) or "forward" not in base.__dict__:
            return
        self._patchable.add(base)
        path = f"class {base.__qualname__}.forward"
        self.select(operator.itemgetter, base.__dict__, [("forward", base.__dict__["forward"], path)])
