"""The public calls of the library, as Dynamo sees them.

NOTE [Leaf calls] A call of a function that is marked here is one node of Dynamo's graph, whatever it does inside: under
Dynamo it goes to a handler (``interop/dynamo.py``), and nothing of the library is traced. Where Dynamo gives up, the
call runs as Python, and outside of Dynamo's reach: it would compile our internals piece by piece, and the user's
functions while a capture of ours runs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from .. import _torch
from ..errors import CaptureError, message
from ..trace.hooks import handlers, is_symbolic
from .arguments import P, R
from .leaving import prepare
from .recording import in_mode_of_program

__all__ = ["itself", "left_to_python", "one_effect", "one_node", "stands_for_another", "traced_through"]


def one_node(function: Callable[P, R]) -> Callable[P, R]:
    """A call of `function` is one node of Dynamo's graph: see NOTE [Leaf calls]. Under ``torch.fx`` it is one too."""
    return _leaf(function, is_effect=False)


def one_effect(function: Callable[P, R]) -> Callable[P, R]:
    """As :func:`one_node`, for what happens when the graph runs, and sees nothing of Python's state then: Dynamo
    changes that when the graph has run. For ``torch.fx`` such a call is a node if a proxy is an argument.
    """
    return _leaf(function, is_effect=True)


def _leaf(function: Callable[P, R], *, is_effect: bool) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            handlers.register_leaf()
            result: R = handlers.leaf(function, args, kwargs)  # here and not in a function: this frame may be skipped
            return result
        if is_symbolic() and (not is_effect or _torch.is_proxied((args, kwargs))):
            leave = handlers.symbolic.effect if is_effect else handlers.symbolic.operation
            node: R = leave(function, args, kwargs)
            return node
        try:
            with in_mode_of_program():
                return function(*args, **kwargs)
        except Exception as error:
            prepare(error, function)
            raise

    _torch.never_compiled(function)
    return _torch.with_own_code(call)


def itself(value: Any) -> Any:
    """The object that Python is to get when the graph runs, where Dynamo has something that stands for it."""
    find = getattr(type(value), "__fh_itself__", None)
    return value if find is None else find(value)


def stands_for_another(value: Any) -> bool:
    """Whether Dynamo has this in the place of an object that it traces."""
    return hasattr(type(value), "__fh_itself__")


def traced_through(function: Callable[P, R]) -> Callable[P, R]:
    """Dynamo traces what a call of `function` does, as it does with any function. Where it gives up, the call runs
    outside of its reach, as that of a leaf.
    """
    return _torch.never_compiled(function)


def _refused(operation: str) -> NoReturn:
    problem = f"torch.compile has no node for {operation} of functorch_hops"
    remedy = "call it outside of what is compiled; without fullgraph=True it runs as Python"
    raise CaptureError(message(operation, problem, remedy=remedy))


def left_to_python(function: Callable[P, R]) -> Callable[P, R]:
    """Under Dynamo a call of `function` is a graph break, hence refused where there may be none. For ``torch.fx`` it is
    as :func:`one_effect`.
    """
    is_of_debug = function.__module__.endswith(".debug")
    name = f"debug.{function.__name__}" if is_of_debug else function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            handlers.register_leaf()
            handlers.leaf(_refused, (name,), {})
        if is_symbolic() and _torch.is_proxied((args, kwargs)):
            node: R = handlers.symbolic.effect(function, args, kwargs)
            return node
        try:
            return function(*args, **kwargs)
        except Exception as error:
            prepare(error, function)
            raise

    _torch.never_compiled(_torch.with_own_code(call))
    return call
