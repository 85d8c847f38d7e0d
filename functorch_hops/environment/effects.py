"""What a function did while it was captured that its graph does not do again, and where.

Two sources. What the function changed is the difference of two snapshots, less what the library code that it called
keeps for itself (caches): a change counts if the user's code writes to that name. What it called - a clock, a random
generator, `print`, `eval` - is seen by a profiler of Python's, which is set only if the walk found something of
unknown behaviour, because it slows the capture down.
"""

from __future__ import annotations

import dis
import pathlib
import random
import re
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, ModuleType
from typing import Any

from .. import _torch
from . import origin
from .fingerprint import Fingerprint, changed
from .keys import Key
from .places import Path, quoted

__all__ = ["MOST_NOTES", "Observer", "changes", "lines_of", "listed"]

MOST_NOTES = 6

_CONTENT = frozenset({"list", "set", "deque", "dict", "array", "memory", "generator", "iterator"})
_STORES = ("STORE_", "DELETE_")
_GENERATED = ("<string>", "<eval_with_key>")
"""Files of code that dataclasses and graphs of torch.fx write."""
_TREES = frozenset({"functorch_hops.pytree", _torch.TREES_OF_TORCH, "optree.ops", "optree.registry"})
"""Their functions take apart and rebuild the types that the user registered."""
_SEEDING = random.Random.__init__.__code__
"""Without an argument it reads what the operating system offers."""
_WITHOUT_STATE = (ModuleType, random.SystemRandom, pathlib.Path)
"""What objects of these do is done to something outside of them."""
_CALLED_BY_ALL = frozenset({"__del__", "<module>"})


class Observer:
    """While it is entered, notes calls from the user's code that a graph can't stand for, and what code ran."""

    def __init__(self, follows: Callable[[origin.Origin], bool], seen: Iterable[int], *, needed: bool) -> None:
        self.calls: dict[str, str] = {}
        """What was called, and from which line."""
        self.ran: dict[int, CodeType] = {}
        self._follows = follows
        self._seen = seen
        # Only one profiler can be active; a user's own goes first.
        self._needed = needed and sys.getprofile() is None
        self._is_user: dict[int, bool] = {}

    def __enter__(self) -> Observer:
        self._codes: list[CodeType] = []
        if self._needed:
            sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        if self._needed:
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            if self._is_user.get(id(frame.f_code)) is not False and self._is_users(frame):
                owner = getattr(called, "__self__", None)
                name = called.__name__
                module = called.__module__ or (owner if isinstance(owner, type) else type(owner)).__module__
                if origin.is_stateful(module, name):
                    self._note(owner, module, name, frame)
        elif event == "call":
            caller, code = frame.f_back, frame.f_code
            if self._is_users(frame):
                is_of_tree = caller is not None and caller.f_globals.get("__name__") in _TREES
                if not is_of_tree and "<module>" not in (code.co_name, caller and caller.f_code.co_name):
                    self.ran[id(code)] = code
            elif caller is not None and self._is_users(caller):
                module = str(frame.f_globals.get("__name__"))
                if origin.is_stateful(module, code.co_name):
                    self._note(frame.f_locals.get("self"), module, code.co_qualname, caller)
                elif code is _SEEDING and frame.f_locals.get("x") is None:
                    self._note(None, module, "Random without a seed", caller)

    def _is_users(self, frame: FrameType) -> bool:
        code = frame.f_code
        known = self._is_user.get(id(code))
        if known is None:
            known = self._is_user[id(code)] = self._follows(origin.of_globals(frame.f_globals))
            self._codes.append(code)  # so that its id is not used again
        return known

    def _note(self, owner: Any, module: str, name: str, caller: FrameType) -> None:
        if not (owner is None or isinstance(owner, type) or self._is_outside(owner)):
            return
        text = name if module == "builtins" else f"{module}.{name}"
        self.calls.setdefault(f"calls {text}", f"{caller.f_code.co_filename}:{caller.f_lineno}")

    def _is_outside(self, owner: Any) -> bool:
        """Whether an object was there before - in the environment, or as a part of its own module - or stands for what
        was.
        """
        if isinstance(owner, _WITHOUT_STATE) or id(owner) in self._seen:
            return True
        modules = (sys, sys.modules.get(type(owner).__module__))
        return any(value is owner for module in modules if module is not None for value in vars(module).values())

    def unknown(self, codes: Iterable[CodeType]) -> dict[str, str]:
        """The user's functions that ran and that no walk has reached, with their lines."""
        known = {id(part) for code in codes for part in _nested(code)}
        return {
            f"runs {code.co_qualname}": f"{code.co_filename}:{code.co_firstlineno}"
            for code in self.ran.values()
            if not (id(code) in known or code.co_name in _CALLED_BY_ALL or code.co_filename.startswith(_GENERATED))
        }


def changes(
    before: Fingerprint, after: Fingerprint, codes: Iterable[CodeType], exchanged: Iterable[Path] = ()
) -> dict[str, str]:
    """What the user's code changed between two snapshots, with the line that mentions it. Of tensors those are told
    that stand at the places `exchanged`.
    """
    old, new = before.entries(), after.entries()
    tensors = [path for path in new.keys() - old.keys() if _is_tensor(new[path])]
    found = {}
    told = frozenset(exchanged)
    for path in sorted(changed(before, after) | told):
        keys = [key for key in (old.get(path), new.get(path)) if isinstance(key, tuple)]
        is_of_tensors = any(map(_is_tensor, keys)) or any(tensor.startswith(path) for tensor in tensors)
        if is_of_tensors and path not in told:
            continue
        is_content = path.endswith(("]", ")")) or any(key[0] in _CONTENT for key in keys)
        line = _line(codes, path, stores_only=not is_content)
        if line is not None:
            found[f"changes {quoted(path.removesuffix('.__self__'))}"] = line
    return found


def _is_tensor(key: Key) -> bool:
    return isinstance(key, tuple) and key[0] == "tensor"


def lines_of(codes: Iterable[CodeType], path: Path) -> str | None:
    """The line of the user's code that mentions a place."""
    return _line(codes, path, stores_only=False)


def _line(codes: Iterable[CodeType], path: Path, *, stores_only: bool) -> str | None:
    names = [
        name for name in re.findall(r"\w+", re.sub(r"\[.*?\]|\.?\w*\(.*?\)", "", path)) if not name.startswith("__")
    ]
    if not names:
        return None
    mentions: list[str] = []
    for code in codes:
        for part in _nested(code):
            line = part.co_firstlineno
            for instruction in dis.get_instructions(part):
                line = (instruction.positions and instruction.positions.lineno) or line
                if instruction.argval != names[-1]:
                    continue
                where = f"{part.co_filename}:{line}"
                # A string may name the attribute that `setattr` sets.
                if instruction.opname.startswith(_STORES) or (
                    instruction.opname == "LOAD_CONST" and "setattr" in part.co_names
                ):
                    return where
                mentions.append(where)
    return mentions[0] if mentions and not stores_only else None


def _nested(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def listed(notes: dict[str, str]) -> str:
    """Notes with their lines; of many, the first."""
    texts = [f"{note} ({line})" if line else note for note, line in notes.items()]
    more = [f"and {len(texts) - MOST_NOTES} more"] if len(texts) > MOST_NOTES else []
    return ", ".join([*texts[:MOST_NOTES], *more])
