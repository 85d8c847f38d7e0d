"""A function run call by call: every call of torch's that it makes, every lane of a vmap, every node of autograd.

Checked against torch 2.13.
"""

from __future__ import annotations

import cmath
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._functorch import vmap
from torch._functorch.autograd_function import custom_function_call
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from .dispatch import no_gradients
from .levels import base_tensor, below_transforms, is_wrapped, unwrap_once

__all__ = [
    "BACKWARD_PASS",
    "OF_DUALS",
    "CallMode",
    "custom_function_call",
    "is_write",
    "lane_by_lane",
    "lane_here",
    "new_nodes",
    "next_node",
    "nonfinite",
    "tangents_of",
    "uncompiled",
]

CallMode = TorchFunctionMode
next_node = torch.autograd._get_sequence_nr
"""The number of the node that autograd makes next, on this thread."""


class _State(threading.local):
    def __init__(self) -> None:
        self.is_on: Callable[[], bool] | None = None
        self.lanes: list[int] = []


_state = _State()
_lock = threading.Lock()
_in_use = 0
_all_at_once = vmap._flat_vmap


def lane_here() -> tuple[int, ...]:
    """The lane that runs now, of each vmap around, from the outermost."""
    return tuple(_state.lanes)


@contextlib.contextmanager
def lane_by_lane(is_on: Callable[[], bool]) -> Iterator[None]:
    """Let ``torch.func.vmap``, and what is made of it, run one lane after the other, on this thread, where ``is_on()``.

    Then nothing is batched: what a lane does is what it does alone.
    """
    global _in_use
    with _lock:
        _in_use += 1
        vmap._flat_vmap = _each_lane
    outer, _state.is_on = (_state.is_on, _state.lanes), is_on
    _state.lanes = []
    try:
        yield
    finally:
        _state.is_on, _state.lanes = outer
        with _lock:
            _in_use -= 1
            if not _in_use:
                vmap._flat_vmap = _all_at_once


def _each_lane(
    func: Callable[..., Any],
    batch_size: int,
    flat_in_dims: list[int | None],
    flat_args: list[Any],
    args_spec: Any,
    out_dims: Any,
    randomness: str,
    **kwargs: Any,
) -> Any:
    if batch_size == 0 or _state.is_on is None or not _state.is_on():
        return _all_at_once(func, batch_size, flat_in_dims, flat_args, args_spec, out_dims, randomness, **kwargs)
    rows, spec = [], None
    state = torch.get_rng_state() if randomness == "same" else None
    for lane in range(batch_size):
        if state is not None:
            torch.set_rng_state(state)
        leaves = [x if d is None else x.select(d, lane) for x, d in zip(flat_args, flat_in_dims)]
        _state.lanes.append(lane)
        try:
            row, spec = tree_flatten(func(*tree_unflatten(leaves, args_spec), **kwargs))
        finally:
            _state.lanes.pop()
        rows.append(row)
    assert spec is not None
    dims = vmap._broadcast_to_and_flatten(out_dims, spec)
    return tree_unflatten(
        [row[0] if d is None else torch.stack(row, d) for row, d in zip(zip(*rows), dims or ())], spec
    )


def nonfinite(x: Tensor) -> str | None:
    """What a tensor holds besides numbers: "nan", "inf", or nothing; nothing is known of one without memory."""
    base = base_tensor(x)
    is_float = base.dtype.is_floating_point or base.dtype.is_complex
    if not is_float or base.layout is not torch.strided or base.is_meta or type(base) not in _REAL:
        return None
    with torch._C.DisableTorchFunction(), below_transforms(), no_gradients():
        # A sum is finite only where all is; it may overflow.
        if cmath.isfinite(base.sum().item()) or bool(torch.isfinite(base).all()):
            return None
        return "nan" if bool(torch.isnan(base).any()) else "inf"


_REAL = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def is_write(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of this function writes to its first operand, or to ``out``."""
    name = getattr(func, "__name__", "")
    is_inplace = name.endswith("_") and not name.endswith("__")
    is_augmented = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return is_inplace or is_augmented or name == "__setitem__" or kwargs.get("out") is not None


def new_nodes(x: Tensor, first: int) -> Iterator[Any]:
    """The nodes from number ``first`` on behind ``x``, at any level; each once, and not those that accumulate."""
    todo: list[Any] = []
    while True:
        todo.append(x.grad_fn)
        if not is_wrapped(x):
            break
        x = unwrap_once(x)
    while todo:
        node = todo.pop()
        if node is None or node.name().endswith("AccumulateGrad") or node._sequence_nr() < first:
            continue
        if node.metadata.get(_SEEN) != first:
            node.metadata[_SEEN] = first
            yield node
            todo.extend(following for following, _ in node.next_functions)


_SEEN = "functorch_hops.stepwise"


def tangents_of(x: Tensor) -> Iterator[Tensor]:
    """The tangents at each level of forward mode."""
    if forward_ad._current_level < 0:
        return
    tangent = forward_ad.unpack_dual(x).tangent
    if tangent is not None:
        yield tangent
    if torch._C._functorch.maybe_current_level() is not None:
        with retrieve_current_functorch_interpreter().lower():
            is_here = is_wrapped(x) and torch._C._functorch.maybe_get_level(x) > (_level() or 0)
            yield from [*tangents_of(unwrap_once(x) if is_here else x)]


def _level() -> int | None:
    return torch._C._functorch.maybe_current_level()


BACKWARD_PASS = torch.autograd.graph._engine_run_backward.__code__
"""In a stack, what is inside of a frame of this code was called by a node of autograd."""
OF_DUALS = torch._VF._unpack_dual, torch._VF._make_dual
"""What a transform does to get at its values."""


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """What ``torch.compile`` made runs as the Python that it was made of."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
