"""Compiler backends, export and Dynamo, as far as they are not in rooms of their own."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.weak import WeakIdKeyDictionary

from .dispatch import suspended
from .imports import Execute, when_imported
from .parts import collections_paused
from .tracing import new_fake_mode

__all__ = [
    "assume_constant_result",
    "compilation",
    "compile_lock",
    "dynamo_silent",
    "index_bound",
    "is_exporting",
    "is_exporting_to_onnx",
    "is_refused_by_dynamo",
    "lookup_backend",
    "matrix_failure",
    "native_graph",
    "never_compiled",
    "silence_dynamo_at_its_import",
    "with_own_code",
]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Any)


def compile_lock() -> contextlib.AbstractContextManager[Any]:
    """One thread at a time generates code: torch's tracers, and what is patched meanwhile, are those of the process."""
    with collections_paused():
        from torch._dynamo.convert_frame import compile_lock

    lock: contextlib.AbstractContextManager[Any] = compile_lock
    return lock


@contextlib.contextmanager
def compilation(env: Any = None) -> Iterator[FakeTensorMode]:
    """What a compiler backend needs around it: a fake mode, a tracing context, and nothing of the caller's state.

    And torch's lock, under which Dynamo calls its backends too: what is patched during a compilation is for it alone.
    """
    from torch._guards import TracingContext, tracing

    fake_mode = new_fake_mode(env)
    with compile_lock(), suspended(keep_autocast=False), torch.no_grad(), tracing(TracingContext(fake_mode)):
        yield fake_mode


def native_graph(module: torch.nn.Module, fakes: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The graph in torch's own operators and higher-order operators."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with fakes[0].fake_mode if fakes else new_fake_mode():  # type: ignore[attr-defined]
        return make_fx(module)(*fakes)


def index_bound(error: RuntimeError) -> str | None:
    """The size that an index went beyond, if that is the error of a kernel that Inductor generated."""
    found = re.search(r"index out of bounds: (?:0|-\w+) <= \w+ < (\w+?)L*\b", str(error))
    return None if found is None else found[1]


def matrix_failure(error: RuntimeError) -> str | None:
    """What a solve or a factorization in a kernel of a loop says of a matrix that has none."""
    found = re.match(r"LinAlgError: (.*)", str(error), re.DOTALL)
    return None if found is None else found[1]


def lookup_backend(backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """A compiler backend by its ``torch.compile`` name."""
    from torch._dynamo.backends.registry import lookup_backend

    result: Callable[..., Any] = lookup_backend(backend)
    return result


def is_exporting() -> bool:
    """Whether torch.export traces around us."""
    return torch.compiler.is_exporting()


def is_exporting_to_onnx() -> bool:
    """Whether what torch.export traces becomes a program of ONNX, which has no derivative."""
    # Without the exporter torch imports what may not be installed to answer.
    return is_exporting() and "torch.onnx._internal.exporter._core" in sys.modules and torch.onnx.is_in_onnx_export()


def assume_constant_result(function: Callable[P, T]) -> Callable[P, T]:
    """``torch.compiler.assume_constant_result``, which imports Dynamo to set this mark: a second of every program."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_refused_by_dynamo(error: Exception) -> bool:
    """Whether Dynamo can't trace a function that it may not leave to Python."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.Unsupported)


_EVAL_FRAME = "torch._dynamo.eval_frame"
_silences = 0


@contextlib.contextmanager
def dynamo_silent() -> Iterator[None]:
    """Functions that ``torch.compile`` compiled, as a whole too, run as Python: what records operators sees them, and
    Dynamo does not come to know their code as something that can't be compiled. What is called meanwhile it does not
    compile either, were it at work around this, or imported only now.
    """
    global _silences
    before = getattr(sys.modules.get(_EVAL_FRAME), "_stance", None)  # None: it is not imported, or not to its end
    if before is not None:
        _silence(sys.modules[_EVAL_FRAME])
    _silences += 1
    callback = eval_frame.set_eval_frame(None)
    try:
        yield
    finally:
        eval_frame.set_eval_frame(callback)
        _silences -= 1
        dynamo: Any = sys.modules.get(_EVAL_FRAME)
        if hasattr(dynamo, "_stance"):
            dynamo._stance = before or dynamo.DynamoStance()


def silence_dynamo_at_its_import() -> None:
    """Let ``dynamo_silent`` hold for Dynamo where it is imported meanwhile."""
    if _EVAL_FRAME not in sys.modules:
        when_imported(_EVAL_FRAME, _import_dynamo)


def _import_dynamo(module: Any, execute: Execute) -> None:
    execute(module)
    if _silences:
        _silence(module)


def _silence(dynamo: Any) -> None:
    dynamo._stance = dynamo.DynamoStance("force_eager")


def never_compiled(function: F) -> F:
    """Dynamo begins to compile neither at this function nor at anything that it calls. It traces through calls of it,
    if it meets these.
    """
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return function


def with_own_code(function: F, of: Any = None) -> F:
    """What Dynamo knows of a function it keeps with its code, which functions defined by the same lines share. One that
    is made of another function shares its code with those that are made of functions like that.
    """
    code = function.__code__
    if of is None:
        function.__code__ = code.replace()
        return function
    codes = _codes.setdefault(getattr(of, "__code__", type(of)), {})
    function.__code__ = codes.setdefault(code, code.replace())
    return function


_codes: Any = WeakIdKeyDictionary()
"""By the code of the function that another one is made of, or its type, and by the lines that make it."""
