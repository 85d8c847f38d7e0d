"""What the bytecode of a function can read from outside its arguments.

The names say where to look, and so keep the rest of a program out of a fingerprint: of a configuration
object with fifty fields, a function that mentions ``config.depth`` depends on one. A name that stands
behind a global or a closure (``torch.nn.functional.relu``) is kept apart, with its root, because it says
nothing about the user's objects when that root is a library's module.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

__all__ = ["Chain", "CodeFacts", "Import", "NameRoot", "code_facts"]

NameRoot = tuple[str, str]
"""``("global", name)`` or ``("closure", name)``."""

Import = tuple[str, int, tuple[str, ...]]
"""An import statement in a body: module, level, imported names."""

Chain = tuple[NameRoot, tuple[str, ...]]
"""A global or closure with the attribute names that follow it one behind the other: ``torch.nn.functional.relu``."""

# Reading an object through one of these reads attributes that no name in the code mentions.
_READ_ALL = frozenset({"vars", "dir", "__dict__", "asdict", "astuple", "getmembers"})
_READ_ALL |= frozenset({"__getattribute__", "__getattr__", "getattr_static"})
# These give the globals of a function or a frame, taken for those of the code that asks.
_NAMESPACES = frozenset({"__globals__", "f_globals"})
# These name attributes by strings: the second argument, or all of them.
_NAMED_SECOND = frozenset({"getattr", "hasattr", "setattr", "delattr"})
_NAMED_BY_ALL = frozenset({"attrgetter", "methodcaller"})
_MAKE_TEXT = frozenset({"repr", "str", "format", "ascii", "print", "__repr__", "__str__", "__format__", "format_map"})
_FORMAT = frozenset({"format", "format_map", "vformat"})
_LOOK_UP_MODULES = frozenset({"modules", "import_module", "__import__"})
_GLOBAL_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CLOSURE_LOADS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_GLOBAL_STORES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_CLOSURE_STORES = frozenset({"STORE_DEREF", "DELETE_DEREF"})
_ATTRIBUTE_STORES = frozenset({"STORE_ATTR", "DELETE_ATTR"})
_STORES = _GLOBAL_STORES | _CLOSURE_STORES | _ATTRIBUTE_STORES
_ATTRIBUTE_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})
_KNOWN = _GLOBAL_LOADS | _CLOSURE_LOADS | _STORES | _ATTRIBUTE_LOADS
_KNOWN |= frozenset({"IMPORT_NAME", "IMPORT_FROM", "STORE_NAME", "DELETE_NAME"})
_KNOWN |= frozenset({"LOAD_CLOSURE", "MAKE_CELL", "COPY_FREE_VARS"})
_NO_OPERATION = frozenset({"CACHE", "EXTENDED_ARG"})
# In 3.11 the arguments leave the stack at the first of two instructions.
_CALL = "PRECALL" if sys.version_info < (3, 12) else "CALL"
# Up to 3.12 the place for `self` is made before a function is loaded, if not by the same instruction.
_PLACE_FOLLOWS = sys.version_info >= (3, 13)


@dataclasses.dataclass(frozen=True, slots=True)
class CodeFacts:
    """What one code object, nested ones included, reads. What it writes counts as read: where an equal value is
    written, nobody else is to change it unnoticed.
    """

    escapes: frozenset[NameRoot]
    """Globals and closures that are used otherwise than by attribute: passed on, called, stored."""
    roots: dict[NameRoot, tuple[str, ...]]
    """Each global and closure, with the attribute names that follow it."""
    chains: tuple[Chain, ...]
    attributes: tuple[str, ...]
    """Attribute names read from everything else: arguments, locals, results."""
    imports: tuple[Import, ...]
    reads_all: bool
    """Attributes are read by names that the code does not mention."""
    makes_text: bool
    """Objects are turned into text, which calls ``__repr__`` and ``__str__`` of any of them."""
    reads_globals: bool
    """Globals are read by names that the code does not mention."""
    modules: tuple[str, ...]
    """Strings that may name modules, in code that looks modules up by name; ``__name__`` is its own."""
    writes_unread: bool
    """Something outside is written that is not read by name, and may be where no snapshot looks."""


@functools.lru_cache(maxsize=8192)
def code_facts(code: CodeType) -> CodeFacts:
    parts = list(_nested(code))
    reader = _Reader(free=frozenset(code.co_freevars), cells=frozenset(name for p in parts for name in p.co_cellvars))
    for part in parts:
        reader.read(part)
    return reader.facts()


class _Reader:
    """Collects the facts of code objects. `free`: the variables that come from outside of all of them; `cells`: those
    that one hands to another, and that may have a name of these.
    """

    def __init__(self, free: frozenset[str], cells: frozenset[str]) -> None:
        self._free = free
        self._cells = cells
        self.escapes: set[NameRoot] = set()
        self.roots: dict[NameRoot, dict[str, None]] = {}
        self.chains: dict[Chain, None] = {}
        self.attributes: dict[str, None] = {}
        self.imports: dict[Import, None] = {}
        self.reads_all = False
        self.makes_text = False
        self.reads_globals = False
        self.modules: dict[str, None] = {}
        self.stores: set[NameRoot] = set()

    def facts(self) -> CodeFacts:
        unread = any(
            name not in self.attributes if kind == "attribute" else (kind, name) not in self.roots
            for kind, name in self.stores
        )
        for kind, name in self.stores:
            if kind == "attribute":
                self.attributes[name] = None
            else:
                self.roots.setdefault((kind, name), {})
        return CodeFacts(
            escapes=frozenset(self.escapes),
            roots={root: tuple(names) for root, names in self.roots.items()},
            chains=tuple(self.chains),
            attributes=tuple(self.attributes),
            imports=tuple(self.imports),
            reads_all=self.reads_all,
            makes_text=self.makes_text,
            reads_globals=self.reads_globals,
            modules=tuple(self.modules),
            writes_unread=unread,
        )

    def read(self, code: CodeType) -> None:
        instructions = [i for i in dis.get_instructions(code) if i.opname not in _NO_OPERATION]
        root: NameRoot | None = None
        chain: tuple[str, ...] = ()
        for at, instruction in enumerate(instructions):
            name, argument = instruction.opname, instruction.argval
            if name in _ATTRIBUTE_LOADS:
                if root is None:
                    self.attributes[argument] = None
                else:
                    self.roots[root][argument] = None
                    if root[0] == "closure" and root[1] in self._cells:
                        self.attributes[argument] = None
                    chain = (*chain, argument)
                    self.chains[(root, chain)] = None
                    if argument in _READ_ALL:
                        self.escapes.add(root)
                self._named(instructions, at, argument)
                continue
            if name in _STORES:
                self._store(name, argument, code)
            chain = ()
            root = _root(name, argument, self._free)
            if root is not None:
                self.roots.setdefault(root, {})
                if not (at + 1 < len(instructions) and instructions[at + 1].opname in _ATTRIBUTE_LOADS):
                    self.escapes.add(root)
            if name in _GLOBAL_LOADS:
                self._named(instructions, at, argument)
            elif name == "MATCH_CLASS":
                # `case Point(1, y=2)` reads `y`, and what the class says is the first field.
                self.attributes.update(dict.fromkeys(instructions[at - 1].argval))
                self.reads_all = self.reads_all or bool(argument)
            elif name == "IMPORT_NAME":
                self.imports[(argument, instructions[at - 2].argval, tuple(instructions[at - 1].argval or ()))] = None
            elif name.startswith(("FORMAT_", "CONVERT_")) or (name == "BINARY_OP" and "%" in instruction.argrepr):
                self.makes_text = True
            elif name not in _KNOWN and instruction.opcode in _NAMES:
                self._unknown(argument)
        if not _FORMAT.isdisjoint(code.co_names):
            self.attributes.update(dict.fromkeys(_in_formats(code.co_consts)))
        if not _LOOK_UP_MODULES.isdisjoint(code.co_names):
            self.modules.update(dict.fromkeys(("__name__", *(c for c in code.co_consts if isinstance(c, str)))))

    def _named(self, instructions: Sequence[dis.Instruction], at: int, name: str) -> None:
        """What reading by this name implies: other names, given as strings, or any."""
        self.reads_all = self.reads_all or name in _READ_ALL
        self.makes_text = self.makes_text or name in _MAKE_TEXT
        self.reads_globals = self.reads_globals or name in _NAMESPACES
        if name == "globals":
            self._globals_by_name(instructions, at)
        if name in _NAMED_SECOND:
            names = _second_argument(instructions, at)
        elif name in _NAMED_BY_ALL:
            names = _arguments(instructions, at)
        else:
            return
        self.reads_all = self.reads_all or names is None
        self.attributes.update(dict.fromkeys(_identifiers(names or ())))

    def _globals_by_name(self, instructions: Sequence[dis.Instruction], at: int) -> None:
        """``globals()["name"]``, ``globals().get("name")`` and ``"name" in globals()`` read one; everything else may
        read any.
        """
        following: Sequence[dis.Instruction]
        following = [i for i in instructions[at + 1 : at + 9] if i.opname not in ("PUSH_NULL", "PRECALL", "CALL")]
        if following and following[0].opname == "CONTAINS_OP":
            following = instructions[max(at - 1, 0) : at]
        if following and following[0].opname in _ATTRIBUTE_LOADS and following[0].argval == "get":
            following = following[1:]
        if following and following[0].opname == "LOAD_CONST" and isinstance(following[0].argval, str):
            self.roots.setdefault(("global", following[0].argval), {})
            self.escapes.add(("global", following[0].argval))
        else:
            self.reads_globals = True

    def _store(self, opname: str, name: str, code: CodeType) -> None:
        if opname in _GLOBAL_STORES:
            self.stores.add(("global", name))
        elif opname in _CLOSURE_STORES:
            if name in self._free:
                self.stores.add(("closure", name))
        elif code.co_name != "__init__":  # which writes to what is new
            self.stores.add(("attribute", name))

    def _unknown(self, name: str) -> None:
        """An instruction of a Python that this file does not know: it may read the name in any way."""
        self.attributes[name] = None
        for root in (("global", name), ("closure", name)):
            self.roots.setdefault(root, {})
            self.escapes.add(root)


_NAMES = frozenset((*dis.hasname, *dis.hasfree))


def _nested(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _root(opname: str, argument: object, free: frozenset[str]) -> NameRoot | None:
    if opname in _GLOBAL_LOADS:
        return ("global", str(argument))
    # `__class__` is what super() needs. Its class is found through the instance as well.
    if opname in _CLOSURE_LOADS and argument in free and argument != "__class__":
        return ("closure", str(argument))
    return None


def _after(instructions: Sequence[dis.Instruction], call: int) -> Sequence[dis.Instruction]:
    """What follows a function that instruction `call` loads."""
    following = instructions[call + 1 :]
    return following[1:] if _PLACE_FOLLOWS and following and following[0].opname == "PUSH_NULL" else following


def _second_argument(instructions: Sequence[dis.Instruction], call: int) -> list[str] | None:
    """The second argument, if it is a constant, of the call whose function instruction `call` loads.

    It is if a constant lifts the stack from one argument to two, and nothing that follows until the call
    touches it there: whatever does, brings the stack back to two.
    """
    depth, lifted = 0, None
    for instruction in _after(instructions, call):
        if instruction.opname == _CALL and instruction.arg == depth:
            break
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            return None
        before = depth
        depth += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        if before < 2 <= depth:
            lifted = instruction
        elif depth <= 2:
            lifted = None
    if lifted is None or lifted.opname != "LOAD_CONST" or not isinstance(lifted.argval, str):
        return None
    return [lifted.argval]


def _arguments(instructions: Sequence[dis.Instruction], call: int) -> list[str] | None:
    """The arguments, if they are constants, of the call whose function instruction `call` loads."""
    constants: list[Any] = []
    for instruction in _after(instructions, call):
        if instruction.opname != "LOAD_CONST":
            return constants if instruction.opname == _CALL else None
        constants.append(instruction.argval)
    return None


def _in_formats(constants: Iterable[object]) -> Iterable[str]:
    """The attributes that strings such as ``"{0.name}"`` read."""
    for constant in constants:
        if isinstance(constant, str) and "{" in constant:
            yield from re.findall(r"\.(\w+)", constant)


def _identifiers(constants: Iterable[object]) -> Iterable[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield from (part for part in constant.split(".") if part.isidentifier())
