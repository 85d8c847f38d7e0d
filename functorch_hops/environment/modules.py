"""`nn.Module`: its mode, its parts and hooks, and the attributes that its methods read."""

from __future__ import annotations

import collections
from typing import Any

from torch import nn

from .. import _torch
from .containers import entries
from .guard import HOOKS, PARTS, SAME
from .objects import FIELDS, instance
from .places import Path
from .walk import Walk

__all__ = ["module"]

_RECURRENT = ("_flat_weights", "_flat_weight_refs")
"""What recurrent modules of torch remember of their parameters, and look up again in each call: ``functional_call``
leaves its own there.
"""


def global_hooks(walk: Walk) -> None:
    """Hooks that run around every module; and a call that somebody has put in the place of torch's."""
    walk.mentions(["__call__"])
    for name, hooks in _torch.global_module_hooks().items():
        walk.value(f"torch.nn.modules.module.{name}", hooks)


def module(walk: Walk, path: Path, value: Any, escapes: bool) -> None:
    if hasattr(type(value), FIELDS):  # what ``jit`` made of a module
        instance(walk, path, value, escapes)
        return
    cls, attributes = type(value), value.__dict__
    if not walk.has_modules:
        walk.has_modules = True
        global_hooks(walk)
    parts = [attributes.get(name) for name in PARTS]
    if not all(type(part) in (dict, collections.OrderedDict) for part in parts):  # a ScriptModule
        walk.unfollowed(path, value)
        return
    walk.record(path, ("module", cls, *map(tuple, parts)))
    if "training" not in attributes:  # what torch.compile made of a module: hooks of its own, and that module
        for name in HOOKS:
            walk.item(attributes, name, f"{path}.{name}")
        for part in parts:
            entries(walk, part, [f"{path}.{name}" for name in part])
        return
    hooked = any(attributes[name] for name in HOOKS)
    if hooked or walk.value(f"{path}.training", value.training) != SAME:
        for name in ("training", *HOOKS):
            walk.item(attributes, name, f"{path}.{name}")
        for name, part in zip(PARTS, parts, strict=True):
            walk.guard.item(attributes, name, part, SAME, path)
    else:
        walk.guard.module(value)
    for name in attributes["_buffers"]:
        walk.buffers.append((f"{path}.{name}", attributes["_buffers"], name))
    for part in parts:
        entries(walk, part, [f"{path}[{name}]" if name.isdigit() else f"{path}.{name}" for name in part])
    followed = walk.follows_class(cls)
    walk.search(
        attributes,
        path,
        by_size=not followed,
        methods=walk.methods_of(cls),
        skip=("training", *PARTS, *HOOKS, *(_RECURRENT if isinstance(value, nn.RNNBase) else ())),
    )
    if followed or hooked:
        walk.guard.object(value)
    walk.class_of(cls, constructed=False)
