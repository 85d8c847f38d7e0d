"""``annotate``: a name for what a function does, and what is said of the loops in it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, overload

import torch

from .. import _torch
from ..calls.arguments import P, R
from ..calls.spelling import spelled
from ..calls.validate import as_flag, check_callable, kind_of
from ..errors import ArgumentTypeError, message
from ..ir.origin import annotated as scope
from ..ir.origin import called_annotated
from ..ops.mode import is_capturing

__all__ = ["annotate"]


@overload
def annotate(func: Callable[P, R], /, *, name: str | None = None, loop_kernels: bool = True) -> Callable[P, R]: ...
@overload
def annotate(
    func: None = None, /, *, name: str | None = None, loop_kernels: bool = True
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@spelled()
def annotate(func: Any = None, /, *, name: str | None = None, loop_kernels: bool = True) -> Any:
    """The same function, under a name that graphs and tools show, with hints for the compiler.

    ``annotate : (a -> b) -> (a -> b)``. Equivalent to ``func``. Loops, branches, effects and custom rules that it calls
    have the name where graphs are printed (:func:`make_graph`), drawn (:func:`draw`) and explained (:func:`explain`),
    and in ``torch.profiler``, and so has whatever a transform makes of them, their backward passes included. Names of
    annotated functions that call one another are joined: ``"decoder/attention"``. Plain calls are ranges of that name
    in a profile. So are loops in kernels, where they are functions of that name, too, for ``perf`` and debuggers.
    Kernels of loops under one name, or under none, share their code where they are equal.

    Arguments:
        func: a function of any arguments.
        name: what it is called; without, its ``__qualname__``.
        loop_kernels: False leaves each loop in it to torch's own operators, where :func:`jit` would make one kernel of
            it; as ``options={"loop_kernels": False}`` does for all loops of a jitted function.

    Without ``func`` it is a decorator: ``@fh.annotate(name="decoder")``.

    Returns:
        A function of the same arguments and results as ``func``. A jitted function knows the annotations inside of it,
        not those around its call; under ``torch.compile`` there are no names.

    Raises:
        ArgumentTypeError: ``func`` is not callable, ``name`` is no string, ``loop_kernels`` no bool.

    Cost: a microsecond a call in plain eager; in compiled code some nanoseconds a loop.

    Source: ``jax.named_call``; ``torch.profiler.record_function``; torch's ``hints_wrapper``.

    >>> import torch, functorch_hops as fh
    >>> @fh.annotate(name="decay")
    ... def decayed(xs):
    ...     return fh.scan(lambda c, x: (0.5 * c + x, None), 0.0, xs)[0]
    >>> (loop,) = fh.explain(fh.jit(decayed, backend="eager"))(torch.ones(3)).loops
    >>> loop.name, loop.operator
    ('decay', 'scan')
    """
    loop_kernels = as_flag("annotate", "loop_kernels", loop_kernels)
    if not isinstance(name, str | None):
        problem, remedy = "the name is no string", "write fh.annotate(func, name='decoder')"
        raise ArgumentTypeError(
            message("annotate", problem, parameter="name", expected="a str", got=kind_of(name), remedy=remedy)
        )
    if isinstance(func, str):
        remedy = f"write fh.annotate(name={func!r})"
        text = message(
            "annotate", "not callable", parameter="func", expected="a function", got=kind_of(func), remedy=remedy
        )
        raise ArgumentTypeError(text)
    if func is None:
        return functools.partial(annotate, name=name, loop_kernels=loop_kernels)
    check_callable("annotate", "func", func)
    called: str = getattr(func, "__qualname__", type(func).__name__) if name is None else name

    def annotated(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return called_annotated(func, args, kwargs, called, loop_kernels)
        shown = contextlib.nullcontext() if is_capturing() else _torch.shown_in_profile(lambda: called)
        with shown, scope(called, loop_kernels=loop_kernels):
            return func(*args, **kwargs)

    # Dynamo finds no attributes of a partial function.
    return annotated if torch.compiler.is_dynamo_compiling() else functools.wraps(func)(annotated)
