"""What torch hides from every mode, handed to the capture that runs.

How a capture sees torch's own ways to give derivatives is known to ``interop``, which sets the handlers here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from .. import _torch
from ..errors import CaptureError, message
from .capture import current_capture
from .refusals import refused_of_tensor, seed_inside

__all__ = ["SymbolicCalls", "handlers", "is_symbolic", "note_untaken"]


class SymbolicCalls:
    """What a call of the library becomes under ``torch.fx.symbolic_trace`` (``interop/symbolic.py``)."""

    def operation(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a public operation, all of whose functions are traced."""
        raise NotImplementedError

    def effect(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a tool whose functions are run as they are."""
        raise NotImplementedError

    def transformed(
        self,
        transform: Callable[..., Any],
        func: Callable[..., Any],
        options: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """``transform(func, **options)(*args, **kwargs)``."""
        raise NotImplementedError

    def jitted(
        self,
        func: Callable[..., Any],
        jit: Callable[[Callable[..., Any], int], Callable[..., Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call of a jitted function. ``jit(f, n)``: another, which takes `n` operands before the arguments."""
        raise NotImplementedError

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a module into which FX does not look."""
        raise NotImplementedError

    def held(
        self,
        operation: str,
        function: Callable[..., Any],
        parts: Iterable[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call of a function into which FX can't look; `parts` are the functions that it holds."""
        raise NotImplementedError


class _Handlers:
    """``function(cls, args, kwargs, operator=None)``: a call of ``torch.autograd.Function``; ``operator``: the library
    operator whose derivative it is. ``operator(operator, args, kwargs)``: a call of a library operator.
    ``control_flow``: what to call in the place of operators of torch's own that hold functions, by their names.
    ``layers``: recurrent layers, by the functions of torch; they return NotImplemented where torch's own will do.
    ``on_lanes(func, args, kwargs, error)``: a call that torch's vmap refused.
    ``leaf(function, args, kwargs)``: a call of the library that Dynamo traces, after ``register_leaf()``.
    ``symbolic``: calls under ``torch.fx.symbolic_trace``.
    """

    function: Callable[..., Any]
    operator: Callable[[Any, Sequence[Any], dict[str, Any]], Any]
    control_flow: dict[str, Callable[..., Any]]
    layers: dict[Any, Callable[..., Any]]
    on_lanes: Callable[[Any, Sequence[Any], dict[str, Any], RuntimeError], Any]
    register_leaf: Callable[[], None]
    leaf: Any
    symbolic: SymbolicCalls


handlers = _Handlers()
P = ParamSpec("P")
R = TypeVar("R")


def is_symbolic() -> bool:
    """Whether ``torch.fx.symbolic_trace`` is to see a call, and no capture of this library inside of it."""
    return _torch.symbolic_tracer() is not None and current_capture() is None


def _note(error: BaseException) -> None:
    capture = current_capture()
    if capture is not None:
        capture.note_unseen(error)


def note_untaken(error: BaseException) -> None:
    """An error leaves code that eager Python may not come to, a branch or the step of a while loop: captured code that
    caught it would do without what eager Python computes. See NOTE [A refusal is not caught].
    """
    capture = current_capture()
    if capture is not None and capture.refused is None:
        capture.refused = error


def _noted(hook: Callable[P, R]) -> Callable[P, R]:
    """What a hook refuses is not caught: see NOTE [A refusal is not caught]."""

    @functools.wraps(hook)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return hook(*args, **kwargs)
        except BaseException as error:
            _note(error)
            raise

    return run


def _lift(t: Tensor) -> Tensor:
    capture = current_capture()
    return capture.lift(t) if capture is not None and isinstance(t, Tensor) else t


@_noted
def _apply_function(cls: type, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    capture = current_capture()
    if cls is _torch.CheckpointFunction and (capture is not None or _torch.top_interpreter() is not None):
        function, _, *inputs = args
        return function(*inputs)
    if capture is None:
        # torch (2.13) computes a tangent without forward mode, so that it has none itself: silently zero.
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        return handlers.function(cls, args, kwargs) if _torch.have_nested_tangents(tensors) else NotImplemented
    if cls is _torch.BackwardHookFunction:
        remedy = "register a hook on a value, in forward: value.register_hook(...)"
        raise refused_of_tensor(capture.context, "a full backward hook of a module", remedy, None)
    if not capture.is_kernel:
        return handlers.function(cls, args, kwargs)
    with _torch.below_autograd():
        return handlers.function(cls, args, kwargs, operator=capture.operation)


@_noted
def _refuse_function(cls: type) -> None:
    capture = current_capture()
    if capture is not None:
        raise CaptureError(
            message(
                capture.context.operation,
                f"{cls.__name__}.apply was bound before functorch_hops was imported, and would lose its backward here",
                parameter=capture.context.parameter,
                expected=f"{cls.__name__}.apply(...), or a name bound after the import",
                remedy="import functorch_hops first",
            )
        )


@_noted
def _refuse_seed(function: str) -> None:
    capture = current_capture()
    if capture is not None:
        raise seed_inside(capture.context, function)


_torch.install_hooks(
    _lift, _apply_function, _refuse_function, _refuse_seed, lambda: current_capture() is not None, _note
)
