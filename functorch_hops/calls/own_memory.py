"""The memory of what plain control flow returns and takes.

Captured, a result of control flow is memory of its own, and a body that writes to what it gets is refused. Plain eager
does the same: what a body only handed on is copied, so that work in place on a result means the same in every mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import _torch, pytree
from ..errors import ErrorContext
from ..ir.meta import TensorMeta
from ..trace.refusals import write_to_input

__all__ = ["InputVersions", "with_own_memory"]


def with_own_memory(made: list[Any]) -> Any:
    """The tree in the list ``made``, taken out of it, with copies of tensors that may be reached by another way: see
    NOTE [Memory that nobody else holds]. So callers keep the tree nowhere else.
    """
    if type(made[0]) is Tensor:
        return _own(made, 0)
    leaves, spec = pytree.flatten(made.pop())
    return pytree.unflatten(spec, [_own(leaves, i) for i in range(len(leaves))])


def _own(leaves: list[Any], i: int) -> Any:
    """``leaves[i]`` or its copy, taken from the list."""
    if isinstance(leaves[i], Tensor) and (
        (leaves[i].is_leaf and leaves[i].requires_grad) or _torch.is_held_elsewhere(leaves, i)
    ):
        leaves[i] = _copied(leaves[i])
    leaf, leaves[i] = leaves[i], None
    return leaf


def _copied(t: Tensor) -> Tensor:
    """A copy with the history of ``t``, whatever mode the control flow is called in."""
    if torch.is_inference_mode_enabled() and not t.is_inference():
        with torch.inference_mode(False):
            return _copied(t)
    with torch.enable_grad():
        copy = t.clone()
    with _torch.without_torch_function():  # a traced value retains none, and refuses to be asked
        retains_grad = t.requires_grad and t.retains_grad
    if retains_grad:
        copy.retain_grad()
    if type(t) is Tensor:
        copy.__dict__.update(t.__dict__)
    return copy


class InputVersions:
    """Which versions the inputs of a body had when it was first called."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        plain = [x for x in inputs if type(x) in _torch.PLAIN_TYPES and isinstance(x, Tensor)]
        self._writes = [(x, _torch.n_writes(x)) for x in plain]

    def check(self, context: ErrorContext) -> None:
        for x, before in self._writes:
            if _torch.n_writes(x) != before:
                raise write_to_input(context, f"a write to {TensorMeta.of(x)}")
