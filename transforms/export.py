"""``export``: a captured function as torch's ExportedProgram, loops as torch's own higher-order operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from functorch_hops.capture.call import Arguments, TracedCall, trace_call
from functorch_hops.capture.validate import check_callable
from functorch_hops.errors import ArgumentTypeError, message

__all__ = ["export"]


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
        dynamic_shapes: as for ``torch.export.export``; comes later.

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
            got=type(args).__name__,
        )
        raise ArgumentTypeError(text)
    if dynamic_shapes is not None:
        raise NotImplementedError("export: dynamic_shapes= comes in a later version; shapes are those of the example")
    kwargs = kwargs or {}
    # Captured with gradients on: what no_grad marks in a graph would be nodes, which torch's export loses its way in
    # where they stand in a loop that holds a branch.
    with torch.enable_grad():
        call = trace_call(func, Arguments(args, kwargs, static_floats=True), "export")
    with torch.no_grad():
        module = _Exported(call, func)
        return torch.export.export(module, args, kwargs, strict=False)


class _Exported(torch.nn.Module):
    """A captured call as a module that owns what the call closes over."""

    def __init__(self, call: TracedCall, func: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.output = (
            [call.body],
            call.output,
        )  # in a list: its attributes are no part of the program
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
        operands = Arguments(args, kwargs, static_floats=True).operands
        (body,) = self.body
        return self.output.unflatten(body(*operands, *map(self._owned, self.names)))


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
