"""What stands for something else: weak references, context variables, virtual subclasses; what can't be looked into."""

from __future__ import annotations

import abc
import contextvars
import decimal
import operator
import pickle
import sys
import types
import weakref
from typing import Any

from . import origin
from .attributes import extras
from .guard import SAME
from .keys import ByIdentity, Key
from .places import Path
from .walk import Walk

__all__ = [
    "EMPTY",
    "cell",
    "content",
    "context_variable",
    "contexts",
    "generator",
    "getter",
    "hides_state",
    "iterator",
    "parameters",
    "proxy",
    "reference",
    "registry",
    "subclasses",
]

EMPTY = object()

try:
    from _abc import _get_dump  # type: ignore[import-not-found]
except ImportError:  # another implementation of Python
    _get_dump = None


def reference(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ("weakref", type(value)))
    _computed(walk, f"{path}()", weakref.ref.__call__, value)
    if type(value) is not weakref.ref:  # that to a method has another one to the function
        extras(walk, path, value, everything=not walk.follows_class(type(value)))


def proxy(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ("proxy",))
    _computed(walk, path, _behind, value)


def context_variable(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ByIdentity(value))
    # What it was set to, and what stands for that in another place or if it was not.
    _computed(walk, f"{path}.get(default)", _assigned, value)
    _computed(walk, f"{path}.get()", _current, value)


def cell(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    walk.record(path, ByIdentity(value))
    _computed(walk, f"{path}.cell_contents", content, value)


def content(value: types.CellType) -> Any:
    try:
        return value.cell_contents
    except ValueError:
        return EMPTY


def _computed(walk: Walk, path: Path, get: Any, holder: Any) -> None:
    value = get(holder)
    walk.guard.call(get, holder, value, walk.value(path, value), path)


def _behind(value: Any) -> Any:
    """What a weak proxy stands for, or None."""
    try:
        return value.__init__.__self__
    except ReferenceError:
        return None


def _assigned(variable: contextvars.ContextVar[Any]) -> Any:
    return variable.get(EMPTY)


def _current(variable: contextvars.ContextVar[Any]) -> Any:
    try:
        return variable.get()
    except LookupError:
        return EMPTY


def getter(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """``operator.attrgetter("a.b")`` mentions names that no code does."""
    walk.record(path, ByIdentity(value))
    _, names, *_ = value.__reduce__()
    if isinstance(value, operator.methodcaller):
        names = names[:1]
    walk.mentions([part for name in names if isinstance(name, str) for part in name.split(".")])


def registry(walk: Walk, path: Path, cls: type) -> None:
    """The virtual subclasses of an abstract class, which any code may register."""
    if _get_dump is None:
        return
    walk.guard.call(_registrations, None, abc.get_cache_token(), SAME, path)
    found: dict[type, None] = {}
    queue = [cls]
    for base in queue:
        if isinstance(base, abc.ABCMeta):
            virtual = [registered() for registered in _get_dump(base)[0]]
            found.update(dict.fromkeys(sub for sub in virtual if sub is not None))
            derived: list[type] = type.__subclasses__(base)  # type: ignore[arg-type]
            queue += [sub for sub in derived if sub not in queue]
    walk.record(f"{path}.register", ("registered", frozenset(map(ByIdentity, found))))


def _registrations(_: None) -> object:
    return abc.get_cache_token()


def parameters(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """``list[A]`` and ``A | B`` lead to the classes that they name."""
    walk.record(path, ("alias of types", type(value)))
    for at, part in enumerate(value.__args__):
        walk.value(f"{path}.__args__[{at}]", part)


def subclasses(walk: Walk) -> None:
    """What ``A.__subclasses__()`` gives, if code asks."""
    if "__subclasses__" not in walk.names.known:
        return
    for base, space in [*walk.classes.items()]:
        path = f"{space.prefix}__subclasses__()"
        if walk.is_first(path):
            known: list[type] = type.__subclasses__(base)
            walk.guard.call(_identities_of_subclasses, base, _identities_of_subclasses(base), SAME, path)
            for at, cls in enumerate(known):
                walk.value(f"{path}[{at}]", cls)
            walk.record(path, ("subclasses", len(known)))


def _identities_of_subclasses(cls: type) -> tuple[int, ...]:
    return tuple(map(id, type.__subclasses__(cls)))


def contexts(walk: Walk) -> None:
    """What arithmetic with decimal numbers reads."""
    path = "decimal.getcontext()"
    if (decimal.Decimal in walk.types or decimal.Decimal in walk.makers) and walk.is_first(path):
        context = _decimal_context(None)
        walk.guard.call(_decimal_context, None, context, walk.value(path, context), path)


def _decimal_context(_: None) -> tuple[Any, ...]:
    context = decimal.getcontext()
    traps = tuple(sorted(signal.__name__ for signal, is_on in context.traps.items() if is_on))
    return context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp, traps


def iterator(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """What it gives next is known to nobody, but that it has moved on shows."""
    walk.record(path, ("iterator", ByIdentity(value), _position(value)))
    walk.unwatched(path)
    walk.hide(path, f"a {type(value).__name__}, of which nobody knows what it gives next")


def _position(iterator: Any, depth: int = 8) -> Key:
    """Another after each step, as far as a generator or an iterator of Python's own, and those that it is made of, tell
    without running code of the user's.
    """
    step = lambda part: _position(part, depth - 1) if hasattr(type(part), "__next__") and depth else _number(part)
    if isinstance(iterator, types.GeneratorType):
        frame = iterator.gi_frame
        if frame is None:
            return None
        values = frame.f_locals
        position = (frame.f_lasti, *map(step, values.values()))
        if type(values) is dict:  # before Python 3.13 a copy, which the frame would keep
            values.clear()
        return position
    kind = type(iterator)
    if kind.__module__ not in _ITERATORS:
        return None
    if hasattr(kind, "__length_hint__") and kind is not _ITERATOR_OF_ITEMS:
        return operator.length_hint(iterator)
    try:
        _, *parts = iterator.__reduce__()
    except TypeError:
        return None
    return tuple(step(value) for part in parts for value in (part if isinstance(part, tuple) else [part]))


_ITERATORS = {"builtins", "itertools"} if sys.version_info < (3, 12) else {"builtins"}
"""Modules of iterators that can be asked. Those of itertools warn of it from Python 3.12 on."""


class _Items:
    def __getitem__(self, _: int) -> None:
        raise IndexError


_ITERATOR_OF_ITEMS = type(iter(_Items()))  # asks a length of the user's


def _number(value: Any) -> Key:
    return value if isinstance(value, int | float) else None


def generator(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    """A random generator of NumPy's: drawing from it changes its state, which shows that it was."""
    state = pickle.dumps(value)
    walk.record(path, ("generator", type(value), state))
    walk.guard.call(pickle.dumps, value, state, SAME, path)
    walk.unwatched(path)


_INNOCENT = frozenset({"re", "_thread", "threading", "datetime", "zoneinfo", "_io", "inspect"})
"""Packages whose objects hide nothing that computations read, or nothing without being called (see `effects`)."""


def hides_state(cls: type) -> bool:
    """Whether an object of this class may have a state that neither its attributes nor its bytes show."""
    package = origin.package((cls.__module__, None))
    if hasattr(cls, "__get__") or origin.is_pure((cls.__module__, None)) or package in _INNOCENT:
        return False
    is_of_processes = package == "multiprocessing"  # which share what it holds
    return is_of_processes or any(base is not object and _is_compiled(base) for base in cls.__mro__)


def _is_compiled(cls: type) -> bool:
    """Whether a class is written in C: only such have members without a Python function or slot of their own."""
    if cls.__module__ == "builtins":
        return False
    return not any(isinstance(value, types.FunctionType) for value in cls.__dict__.values()) and any(
        isinstance(value, types.MethodDescriptorType | types.WrapperDescriptorType) for value in cls.__dict__.values()
    )
