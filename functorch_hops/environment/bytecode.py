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
import sys
from collections.abc import Iterable, Sequence
from types import CodeType

__all__ = ["CodeFacts", "Import", "NameRoot", "code_facts"]

NameRoot = tuple[str, str]
"""``("global", name)`` or ``("closure", name)``."""

Import = tuple[str, int, tuple[str, ...]]
"""An import statement in a body: module, level, imported names."""

# Reading an object through one of these reads attributes that no name in the code mentions.
_READ_ALL = frozenset({"vars", "__dict__", "asdict", "astuple", "getmembers"})
_READ_BY_STRING = frozenset({"attrgetter", "methodcaller"})
_GLOBAL_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CLOSURE_LOADS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_GLOBAL_STORES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_CLOSURE_STORES = frozenset({"STORE_DEREF", "DELETE_DEREF"})
_ATTRIBUTE_STORES = frozenset({"STORE_ATTR", "DELETE_ATTR"})
_STORES = _GLOBAL_STORES | _CLOSURE_STORES | _ATTRIBUTE_STORES
_ATTRIBUTE_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"})
# In 3.11 the arguments leave the stack at the first of two instructions.
_CALL = "PRECALL" if sys.version_info < (3, 12) else "CALL"


@dataclasses.dataclass(frozen=True, slots=True)
class CodeFacts:
    """What one code object, nested ones included, reads."""

    escapes: frozenset[NameRoot]
    """Globals and closures that are used otherwise than by attribute: passed on, called, stored."""
    roots: dict[NameRoot, tuple[str, ...]]
    """Each global and closure, with the attribute names that follow it."""
    attributes: tuple[str, ...]
    """Attribute names read from everything else: arguments, locals, results."""
    imports: tuple[Import, ...]
    reads_all: bool
    """Attributes are read by names that the code does not mention."""
    writes_unread: bool
    """Something outside is written that is not read, so that a snapshot does not look at it."""


@functools.lru_cache(maxsize=8192)
def code_facts(code: CodeType) -> CodeFacts:
    escapes: set[NameRoot] = set()
    roots: dict[NameRoot, dict[str, None]] = {}
    attributes: dict[str, None] = {}
    imports: dict[Import, None] = {}
    reads_all = False
    stores: set[NameRoot] = set()
    for part in _nested(code):
        instructions = [i for i in dis.get_instructions(part) if i.opname not in ("CACHE", "EXTENDED_ARG")]
        root: NameRoot | None = None
        for at, instruction in enumerate(instructions):
            name, argument = instruction.opname, instruction.argval
            if name in _ATTRIBUTE_LOADS:
                if root is None:
                    attributes[argument] = None
                else:
                    roots[root][argument] = None
                reads_all = reads_all or argument in _READ_ALL
                continue
            if name in _STORES:
                _add_store(stores, name, argument, code.co_freevars, part.co_name)
            root = _root(name, argument, code.co_freevars)
            if root is not None:
                roots.setdefault(root, {})
                if not (at + 1 < len(instructions) and instructions[at + 1].opname in _ATTRIBUTE_LOADS):
                    escapes.add(root)
            if name in _GLOBAL_LOADS:
                reads_all = reads_all or argument in _READ_ALL
            if name in _GLOBAL_LOADS and argument in ("getattr", "hasattr"):
                constant = _second_argument(instructions, at)
                if constant is None:
                    reads_all = True
                else:
                    attributes[constant] = None
            elif name == "MATCH_CLASS":
                # `case Point(1, y=2)` reads `y`, and what the class says is the first field.
                attributes.update(dict.fromkeys(instructions[at - 1].argval))
                reads_all = reads_all or bool(argument)
            elif name == "IMPORT_NAME":
                imports[(argument, instructions[at - 2].argval, tuple(instructions[at - 1].argval or ()))] = None
        if not _READ_BY_STRING.isdisjoint(part.co_names):
            attributes.update(dict.fromkeys(_identifiers(part.co_consts)))
        if "globals" in part.co_names:
            for constant in _identifiers(part.co_consts):
                roots.setdefault(("global", constant), {})
                escapes.add(("global", constant))
    return CodeFacts(
        escapes=frozenset(escapes),
        roots={root: tuple(names) for root, names in roots.items()},
        attributes=tuple(attributes),
        imports=tuple(imports),
        reads_all=reads_all,
        writes_unread=any(
            name not in attributes if kind == "attribute" else (kind, name) not in roots for kind, name in stores
        ),
    )


def _add_store(stores: set[NameRoot], opname: str, name: str, free: Sequence[str], function: str) -> None:
    if opname in _GLOBAL_STORES:
        stores.add(("global", name))
    elif opname in _CLOSURE_STORES:
        if name in free:
            stores.add(("closure", name))
    elif function != "__init__":  # which writes to what is new
        stores.add(("attribute", name))


def _nested(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _root(opname: str, argument: object, free: tuple[str, ...]) -> NameRoot | None:
    if opname in _GLOBAL_LOADS:
        return ("global", str(argument))
    # `__class__` is what super() needs. Its class is found through the instance as well.
    if opname in _CLOSURE_LOADS and argument in free and argument != "__class__":
        return ("closure", str(argument))
    return None


def _second_argument(instructions: Sequence[dis.Instruction], call: int) -> str | None:
    """The second argument, if it is a constant, of the call whose function instruction `call` loads.

    It is if a constant lifts the stack from one argument to two, and nothing that follows until the call
    touches it there: whatever does, brings the stack back to two.
    """
    depth, lifted = 0, None
    for instruction in instructions[call + 1 :]:
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
    return lifted.argval


def _identifiers(constants: Iterable[object]) -> Iterable[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield from (part for part in constant.split(".") if part.isidentifier())
