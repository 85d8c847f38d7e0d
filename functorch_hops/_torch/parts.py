"""What a capture needs of Dynamo and Inductor, without the rest (checked against torch 2.13.0 and 2.14.1).

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
import weakref
from collections.abc import Iterator
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
_IS_KNOWN = torch.__version__.startswith(("2.13.", "2.14."))
_MARK = "__dynamo_disable"
"""Where torch keeps the function that Dynamo made of one that it is to leave alone."""

_marked: weakref.WeakSet[FunctionType] = weakref.WeakSet()
"""The functions that have this mark of ours, and call themselves."""
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
        for package in _PARTS:
            run_instead(package, _load)
    trace_structured("functorch_hops", suppress_context=True)  # who does so first names lines, which imports Inductor


def _load(module: ModuleType, execute: Execute) -> None:
    """Import parts of a package, in an import of it that fails in the end: so other threads wait for it. All that is
    to be so until the package is imported is done here, before another thread may import it.
    """
    package = module.__name__
    for name in _PARTS[package]:
        import_module(f"{package}.{name}")
    _find_parts(module)
    when_imported(package, _complete)
    if package == "torch._dynamo":
        for function in _kept_from_dynamo():
            setattr(function, _MARK, function)
            _marked.add(function)
        vars(module)["compiled_autograd"] = _NOTHING_TO_DISABLE
    else:
        _proxy_modes.append(ProxyTorchDispatchMode(None, "fake"))  # type: ignore[arg-type]
    module.__class__ = _NotImported
    vars(torch)[package.rpartition(".")[2]] = module


def _complete(module: ModuleType, execute: Execute) -> None:
    """The package is imported: it finds its parts, and Dynamo what it is to leave alone."""
    _find_parts(module)
    if module.__name__ == "torch._dynamo":
        for function in _marked:
            if vars(function).get(_MARK) is function:
                delattr(function, _MARK)
    execute(module)


def _find_parts(module: ModuleType) -> None:
    """Python makes modules attributes of the package in whose import they were loaded, be it one that failed."""
    for name, part in [*sys.modules.items()]:
        package, _, own_name = name.rpartition(".")
        if package == module.__name__:
            setattr(module, own_name, part)


class _NotImported(ModuleType):
    """A package as an attribute of torch, as long as nobody has imported it: who asks for more than its parts does. So
    does a thread that waited for the end of the import that failed: Python gives it this module, not a new one.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(import_module(self.__name__), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(import_module(self.__name__), name)

    def __dir__(self) -> list[str]:
        return dir(import_module(self.__name__))


_NOTHING_TO_DISABLE = _NotImported("torch._dynamo.compiled_autograd")
"""What torch's transforms ask for wherever they differentiate."""
vars(_NOTHING_TO_DISABLE)["_disable"] = contextlib.nullcontext


def _kept_from_dynamo() -> list[FunctionType]:
    """The functions that ``torch._disable_dynamo`` was given; those that it made of them share their code."""
    code = torch._disable_dynamo(_kept_from_dynamo).__code__
    made = [function for function in gc.get_referrers(code) if isinstance(function, FunctionType)]
    kept = [inspect.getclosurevars(function).nonlocals["fn"] for function in made]
    return [function for function in kept if isinstance(function, FunctionType)]


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
    try:
        gc.disable()
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()
        gc.enable()
