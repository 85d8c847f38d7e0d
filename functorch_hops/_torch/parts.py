"""What a capture needs of Dynamo and Inductor, without the rest (checked against torch 2.13.0).

NOTE [Captures import no compiler] torch's modes import Dynamo, and Inductor with it, at their first operator: a second
of CPU, for some settings, and to have Dynamo leave the modes alone. A process that finds its kernels on disk needs no
more of them. So the first capture loads the few modules that it needs by themselves: ``sys.modules`` has
``torch._dynamo.config``, but not ``torch._dynamo``, which whoever wants it imports as ever, and which finds them there.
Until then there is nothing to be left alone by: the functions that torch would keep from Dynamo are called as they are.

Where that is not known to be enough, in other versions of torch, the packages are imported, as torch does it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch._logging import trace_structured
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer

from .imports import Execute, run_instead, when_imported

__all__ = ["collections_paused", "load_parts", "new_proxy_mode"]

_PARTS = {"torch._dynamo": ("config", "exc", "utils"), "torch._inductor": ("config", "compiler_bisector")}
_BEFORE = "torch._refs", "torch._decomp", "torch._higher_order_ops.triton_kernel_wrap"
"""What the modes import at their first operator, or expect to be there."""
_IS_KNOWN = torch.__version__.startswith("2.13.")
_MARK = "__dynamo_disable"
"""Where torch keeps the function that Dynamo made of one that it is to leave alone."""

_proxy_modes: list[ProxyTorchDispatchMode] = []
"""One that nobody used."""


@functools.cache
def load_parts() -> None:
    """Load what the modes of a capture need, and leave it at that."""
    with collections_paused():
        if not _IS_KNOWN or not _PARTS.keys().isdisjoint(sys.modules):
            import_module("torch._inductor.config")
            return
        for name in _BEFORE:
            import_module(name)
        if torch.distributed.is_available():
            import_module("torch.distributed.tensor")
        for package, names in _PARTS.items():
            _load(package, names)
    for function in _kept_from_dynamo():
        setattr(function, _MARK, function)
    trace_structured("functorch_hops", suppress_context=True)  # who does so first names lines, which imports Inductor


def _load(package: str, names: tuple[str, ...]) -> None:
    """Import parts of a package, in an import of it that fails in the end: so other threads wait for it, and then find
    that there is no such package yet.
    """

    def load(module: ModuleType, execute: Execute) -> None:
        for name in names:
            import_module(f"{package}.{name}")
        if package == "torch._inductor":
            _proxy_modes.append(ProxyTorchDispatchMode(None, "fake"))  # type: ignore[arg-type]
        parts = {name: part for name, part in vars(module).items() if isinstance(part, ModuleType)}
        when_imported(package, functools.partial(_complete, parts))
        vars(torch)[package.rpartition(".")[2]] = _NotImported(
            package, {**parts, **_NOTHING_TO_DISABLE.get(package, {})}
        )

    run_instead(package, load)


def _complete(parts: dict[str, ModuleType], module: ModuleType, execute: Execute) -> None:
    """The package is imported: it finds its parts, and Dynamo what it is to leave alone."""
    vars(module).update(parts)
    if module.__name__ == "torch._dynamo":
        for function in _kept_from_dynamo():
            if vars(function).get(_MARK) is function:
                delattr(function, _MARK)
    execute(module)


class _NotImported(ModuleType):
    """A package as an attribute of torch, as long as nobody has imported it: who asks for more than its parts does."""

    def __init__(self, name: str, parts: Mapping[str, Any]) -> None:
        super().__init__(name)
        vars(self).update(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(vars(self)["__name__"]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(import_module(vars(self)["__name__"]), name, value)


_NOTHING_TO_DISABLE = {
    "torch._dynamo": {
        "compiled_autograd": _NotImported("torch._dynamo.compiled_autograd", {"_disable": contextlib.nullcontext})
    }
}
"""What torch's transforms ask for wherever they differentiate."""


def _kept_from_dynamo() -> list[Any]:
    """The functions that ``torch._disable_dynamo`` was given; those that it made of them share their code."""
    code = torch._disable_dynamo(_kept_from_dynamo).__code__
    made = [function for function in gc.get_referrers(code) if isinstance(function, FunctionType)]
    return [inspect.getclosurevars(function).nonlocals["fn"] for function in made]


def new_proxy_mode(tracer: PythonKeyTracer) -> ProxyTorchDispatchMode:
    """torch's mode that records operators on fake tensors."""
    if not _proxy_modes or "torch._inductor" in sys.modules:
        return ProxyTorchDispatchMode(tracer, "fake")
    mode = copy.deepcopy(_proxy_modes[0])  # its constructor imports Inductor for this setting
    mode.tracer = tracer
    mode.emulate_precision_casts = sys.modules["torch._inductor.config"].emulate_precision_casts
    return mode


@contextlib.contextmanager
def collections_paused() -> Iterator[None]:
    """Imports make many objects that stay: looking for garbage among them, again and again, takes a third of the time.
    What was made meanwhile counts as old, and is looked at when all is.
    """
    if not gc.isenabled():
        yield
        return
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()
        gc.enable()
