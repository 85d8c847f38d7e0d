"""``export``: a captured function as torch's ExportedProgram, loops as torch's own higher-order operators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from functorch_hops.calls.arguments import Arguments, signature_of
from functorch_hops.calls.leaf import left_to_python
from functorch_hops.calls.traced_call import TracedCall, trace_call
from functorch_hops.calls.validate import check_callable, kind_of
from functorch_hops.errors import ArgumentTypeError, ArgumentValueError, message
from functorch_hops.passes.ranges import without_ranges
from functorch_hops.transforms.graph import trace_once

__all__ = ["export"]


@left_to_python
def export(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> torch.export.ExportedProgram:
    """Export a function, transforms and control flow included.

    ``export : ((a -> b), a) -> ExportedProgram of (a -> b)``. Equivalent to ``torch.export.export`` of a module whose
    ``forward`` is ``func``; it works on transformed functions too.

    Arguments:
        func: a function or an ``nn.Module``. Parameters and buffers of a module keep their names; other tensors
            that the function closes over become buffers ``lifted_0``, ``lifted_1``, ...
        args, kwargs: example arguments. Tensors are inputs of the program, everything else is static.
        dynamic_shapes: as for ``torch.export.export`` of a module with the signature of ``func``: by position (those of
            ``kwargs`` follow) or by name of the argument, a tree like it, with a dict or a sequence of
            ``torch.export.Dim`` for each tensor.

    Returns:
        A program with native operators (``scan``, ``while_loop``, ``cond``, ...), which saves, loads and runs anywhere
        torch does.

    Raises:
        ArgumentTypeError: ``func`` is not callable, ``args`` is not a tuple.
        CaptureError, DataDependentError: ``func`` can't be captured.

    Cost: one capture and one trace by ``torch.export``.

    Source: ``torch.export.export``; ``jax.export``.

    >>> import torch, functorch_hops as fh
    >>> program = fh.export(fh.vmap(torch.sum), (torch.ones(3, 2),))
    >>> program.module()(torch.ones(3, 2))
    tensor([2., 2., 2.])
    """
    check_callable("export", "func", func)
    if not isinstance(args, tuple):
        text = message(
            "export",
            "not a tuple",
            parameter="args",
            expected="a tuple of arguments",
            got=kind_of(args),
            remedy="write (x,) for one argument",
        )
        raise ArgumentTypeError(text)
    kwargs = kwargs or {}
    # Captured with gradients on: what no_grad marks in a graph would be nodes, which torch's export loses its way in
    # where they stand in a loop that holds a branch.
    arguments = Arguments(args, kwargs, static_floats=True, numpy=False)
    run = functools.partial(func, *args, **kwargs)
    call = trace_once("export", func, run, arguments, "never by the program", grad_enabled=True)
    with torch.enable_grad():
        if dynamic_shapes is None:
            return torch.export.export(_Exported(call, func), args, kwargs, strict=False)
        shapes, module = _by_parameter(func, args, kwargs, dynamic_shapes), _ExportedDynamic(call, func, kwargs)
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def _by_parameter(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    """``dynamic_shapes`` for the signature of what is exported, from those for the signature of ``func``."""
    if isinstance(shapes, (tuple, list)):
        by_place, by_name = list(shapes[: len(args)]), dict(zip(kwargs, shapes[len(args) :]))
        too_many = max(0, len(shapes) - len(args) - len(kwargs))
    elif isinstance(shapes, dict):
        by_place, by_name = _by_name(signature_of(func), args, shapes)
        too_many = 0
    else:
        expected, got = "a dict by the names of the arguments, or a tuple", type(shapes).__name__
        problem, remedy = (
            "neither names nor positions",
            "write ({0: torch.export.Dim('n')},) for the first argument's rows",
        )
        raise ArgumentTypeError(
            message("export", problem, parameter="dynamic_shapes", expected=expected, got=got, remedy=remedy)
        )
    if len(by_place) != len(args) or too_many or not by_name.keys() <= kwargs.keys():
        expected = f"an entry for each of {len(args)} arguments, and for keywords among {sorted(kwargs)}"
        got = f"{len(by_place) + too_many} entries, and keywords {sorted(by_name)}"
        problem, remedy = "it does not fit the arguments", "write None for an argument whose sizes are fixed"
        raise ArgumentValueError(
            message("export", problem, parameter="dynamic_shapes", expected=expected, got=got, remedy=remedy)
        )
    positional = {_positional(kwargs): tuple(by_place)} if args else {}
    return {**positional, **{name: by_name.get(name) for name in kwargs}}


def _by_name(
    signature: inspect.Signature, args: tuple[Any, ...], shapes: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The entries for positional arguments, and those for keywords; ``*args`` and ``**kwargs`` have one for all."""
    by_place: list[Any] = []
    bound = signature.bind_partial(*args).arguments
    for name, value in bound.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            by_place += shapes.get(name) or [None] * len(value)
        else:
            by_place.append(shapes.get(name))
    by_name = {name: entry for name, entry in shapes.items() if name not in bound}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            by_name |= by_name.pop(name, None) or {}
    return by_place, by_name


def _positional(kwargs: Iterable[str]) -> str:
    """A name for the positional arguments of what is exported."""
    name = "args"
    while name in kwargs:
        name += "_"
    return name


class _Exported(torch.nn.Module):
    """A captured call as a module that owns what the call closes over."""

    def __init__(self, call: TracedCall, func: Callable[..., Any]) -> None:
        super().__init__()
        self.call = [call]  # in a list: its attributes are no part of the program
        names = _module_names(func)
        self.names = [self._own(t, names.get(id(t), f"lifted_{i}")) for i, t in enumerate(call.lifted)]

    def _own(self, t: Tensor, name: str) -> str:
        *path, last = name.split(".")
        owner: torch.nn.Module = self
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(t, torch.nn.Parameter):
            owner.register_parameter(last, t)
        else:
            owner.register_buffer(last, t.detach())
        return name

    def _owned(self, name: str) -> Tensor:
        *path, last = name.split(".")
        tensor: Tensor = getattr(self.get_submodule(".".join(path)), last)
        return tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arguments = Arguments(args, kwargs, static_floats=True, numpy=False)
        operands = [*arguments.operands, *map(self._owned, self.names)]
        (call,) = self.call
        return call.output.unflatten(without_ranges(call.body)(*map(_conjugated, operands)))


class _ExportedDynamic(_Exported):
    """The same with open sizes: captured again where torch.export traces, with its symbols."""

    def __init__(self, call: TracedCall, func: Callable[..., Any], keywords: Iterable[str]) -> None:
        super().__init__(call, func)
        self.func = [func]
        self.owners = {id(t): name for t, name in zip(call.lifted, self.names)}
        # torch.export (2.13) finds no shapes for what **kwargs takes.
        kinds = inspect.Parameter
        by_name = (kinds(name, kinds.KEYWORD_ONLY) for name in keywords)
        forward: Any = functools.partial(self.traced)
        forward.__signature__ = inspect.Signature([kinds(_positional(keywords), kinds.VAR_POSITIONAL), *by_name])
        self.forward = forward  # type: ignore[method-assign]

    def traced(self, *args: Any, **kwargs: Any) -> Any:
        (func,) = self.func
        arguments = Arguments(args, kwargs, static_floats=True, numpy=False)
        call = trace_call(func, arguments, "export", grad_enabled=True)
        lifted = [self._owned(self.owners[id(t)]) if id(t) in self.owners else t for t in call.lifted]
        return call.output.unflatten(without_ranges(call.body)(*map(_conjugated, (*arguments.operands, *lifted))))


def _conjugated(x: Tensor) -> Tensor:
    """Graphs look at memory, where a lazily conjugated tensor, which the program may get, is not yet conjugated."""
    return x.resolve_conj() if x.is_complex() else x


def _module_names(func: Callable[..., Any]) -> dict[int, str]:
    """Names of the parameters and buffers of the module that is exported, by identity."""
    module = getattr(func, "__wrapped__", func)
    if not isinstance(module, torch.nn.Module):
        return {}
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {id(t): name for name, t in reversed(tensors)}
