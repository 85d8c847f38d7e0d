"""The levels of functorch: its stack of interpreters, and the wrappers that a tensor has at each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import (
    FunctionalizeInterpreter,
    dispatch_functorch,
    retrieve_current_functorch_interpreter,
    temporarily_clear_interpreter_stack,
)
from torch._functorch.vmap import restore_vmap, unwrap_batched, wrap_batched
from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI
from torch.autograd.forward_ad import unpack_dual

__all__ = [
    "TransformType",
    "base_tensor",
    "below_functionalization",
    "below_transforms",
    "current_level",
    "dispatch_functorch",
    "have_nested_tangents",
    "in_forward_level",
    "in_gradient_level",
    "is_batched",
    "is_batched_here",
    "is_batched_wrapper",
    "is_tracked_at",
    "is_wrapped",
    "number_of_derivatives",
    "numbers_of_lanes",
    "read_number",
    "restore_vmap",
    "top_interpreter",
    "unwrap_batched",
    "unwrap_for_grad",
    "unwrap_if_dead",
    "unwrap_once",
    "without_gradient_levels",
    "wrap_batched",
    "wrap_for_grad",
]

TransformType = _functorch.TransformType
is_wrapped = _functorch.is_functorch_wrapped_tensor
is_batched_wrapper = _functorch.is_batchedtensor
unwrap_once = _functorch.get_unwrapped
unwrap_if_dead = _functorch.unwrap_if_dead
unwrap_for_grad = _functorch._unwrap_for_grad
wrap_for_grad = _functorch._wrap_for_grad
top_interpreter = _functorch.peek_interpreter_stack


def base_tensor(t: Tensor) -> Tensor:
    """The tensor below every functorch wrapper."""
    while is_wrapped(t):
        t = unwrap_once(t)
    return t


def is_batched(t: Tensor) -> bool:
    """Whether some enclosing vmap level maps over ``t``: its value then differs between lanes."""
    while is_wrapped(t):
        if is_batched_wrapper(t):
            return True
        t = unwrap_once(t)
    return False


def is_batched_here(t: torch.Tensor) -> bool:
    """Whether the innermost transform is a vmap that maps over ``t``."""
    return _functorch.is_batchedtensor(t) and _functorch.maybe_get_level(t) == _functorch.maybe_current_level()


def current_level() -> int | None:
    """The innermost level, None outside of every transform."""
    return None if top_interpreter() is None else _functorch.maybe_current_level()


def is_tracked_at(level: int | None, t: Tensor) -> bool:
    """Whether autograd at this level records what is computed from ``t``, if ``t`` requires a gradient."""
    return level is None or (is_wrapped(t) and _functorch.maybe_get_level(t) == level)


def without_gradient_levels(t: Tensor) -> Tensor:
    """``t`` as it was before transforms that differentiate wrapped it, as far as no vmap did so in between."""
    while _functorch.is_gradtrackingtensor(t):
        t = unwrap_once(t)
    return t


def in_gradient_level() -> bool:
    """Whether a level of functorch differentiates."""
    return number_of_derivatives() > 0


def in_forward_level() -> bool:
    """Whether a level of functorch differentiates in forward mode."""
    return TransformType.Jvp in _level_keys()


def have_nested_tangents(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors, taken together, have tangents in two levels of forward mode."""
    return _level_keys().count(TransformType.Jvp) > 1 and _levels_with_tangents(tensors) > 1


def _levels_with_tangents(tensors: Sequence[Tensor]) -> int:
    if top_interpreter() is None:
        return 0
    interpreter = retrieve_current_functorch_interpreter()
    level = interpreter.level()
    here = [t for t in tensors if is_tracked_at(level, t)]
    has_tangents = interpreter.key() == TransformType.Jvp and any(unpack_dual(t).tangent is not None for t in here)
    below = [unwrap_once(t) if is_tracked_at(level, t) else t for t in tensors]
    with interpreter.lower():
        return has_tangents + _levels_with_tangents(below)


def number_of_derivatives() -> int:
    """How many levels of functorch differentiate."""
    return sum(key in (TransformType.Grad, TransformType.Jvp) for key in _level_keys())


def numbers_of_lanes() -> tuple[Any, ...]:
    """How many lanes each vmap around has, from the outermost on."""
    levels = (_functorch.get_interpreter_stack() or ()) if top_interpreter() is not None else ()
    return tuple(
        _functorch.CVmapInterpreterPtr(level).batchSize() for level in levels if level.key() == TransformType.Vmap
    )


def _level_keys() -> list[Any]:
    if top_interpreter() is None:
        return []
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


@contextlib.contextmanager
def below_transforms() -> Iterator[None]:
    """Run without functorch levels: tensors made here are wrapped by none."""
    if top_interpreter() is None:
        yield
        return
    with temporarily_clear_interpreter_stack():
        yield


def below_functionalization(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``function(*args, **kwargs)``, which writes to no argument, unseen by a functionalization that is the innermost
    transform.
    """
    interpreter = top_interpreter()
    if interpreter is None or interpreter.key() != TransformType.Functionalize:
        return function(*args, **kwargs)
    context: Any = FunctorchFunctionalizeAPI(FunctionalizeInterpreter(interpreter))
    args, kwargs = context.unwrap_tensors((args, kwargs))
    with context.redispatch_to_next():
        return context.wrap_tensors(function(*args, **kwargs))


def read_number(t: Tensor) -> Any:
    """The Python number that the unbatched one-element tensor ``t`` holds, whatever wraps it."""
    if top_interpreter() is None and not is_wrapped(t):
        return t.item()
    with below_transforms():
        return base_tensor(t).item()
