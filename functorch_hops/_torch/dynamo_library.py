"""What Dynamo's room has to know of the library, which lies above it, and errors that are of both."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from types import CodeType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

__all__ = ["Captured", "Compiler", "Library", "as_unsupported"]


class Captured(Protocol):
    """A call as a graph: what the operator takes first, its operands, and what makes a tree of its results."""

    @property
    def call(self) -> torch.nn.Module: ...

    @property
    def operands(self) -> Sequence[Tensor]: ...

    @property
    def result(self) -> Callable[[Sequence[Any]], Any]: ...


class Library(Protocol):
    """What this room has to know of the library, which lies above it."""

    namespace: str

    def flatten(self, tree: Any) -> tuple[list[Any], Any]: ...

    def unflatten(self, spec: Any, leaves: Iterable[Any]) -> Any: ...

    def is_node(self, kind: type) -> bool:
        """Whether objects of this type are inner nodes of trees."""
        ...

    def is_entry(self, code: CodeType) -> bool:
        """Whether code is that of a function in which all calls of the library begin."""
        ...

    def is_own(self, value: object) -> bool:
        """Whether an object is the library's, and to be handed on as it is."""
        ...

    def capture(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        compiler: Compiler,
        said: Sequence[dict[str, Any]],
    ) -> Captured:
        """``function(*args, **kwargs)`` as a graph, for the compiler of the graph around it. ``said``: what annotated
        functions around the call say, the outermost first.
        """
        ...

    annotated_code: CodeType
    """Of the function that Dynamo traces where it traces the call of an annotated function."""

    annotations: Sequence[str]
    """The names of what is said, in that function."""

    def compiling(self, compiler: Compiler) -> contextlib.AbstractContextManager[None]:
        """What a compiler of a graph with calls of the library needs around it."""
        ...

    copied: Any
    """The operator that copies an input of a graph that is written to."""

    errors: type[Exception]
    """What all errors of the library derive from."""

    def operation(self, function: Callable[..., Any], args: tuple[Any, ...]) -> str:
        """The name of the public operation that a call belongs to."""
        ...

    def refused(self, operation: str, kind: str, reason: str) -> Exception:
        """The error for a function that Dynamo can't trace."""
        ...

    def raised(self, operation: str, error: str) -> Exception:
        """The error for an exception, in words, that a function of the user's raises."""
        ...

    def unknown_object(self, operation: str, name: str) -> Exception:
        """The error for an object that Python is to get when the graph runs, and that Dynamo makes while it traces."""
        ...

    def mode_unknown(self, operation: str) -> None:
        """Warns that Dynamo does not say whether gradients are off around a call."""
        ...

    def signature(self, function: Any) -> inspect.Signature:
        """Of a function, as its callers know it."""
        ...

    def defaults(self, function: Any) -> tuple[Any, ...]:
        """Those of the parameters in the signature; Dynamo traces this."""
        ...

    def is_same_function(self, found: object, kept: object) -> bool:
        """Whether a function may stand in the place of another one."""
        ...

    def tracing(self, stack: Callable[[], Any]) -> contextlib.AbstractContextManager[None]:
        """While Dynamo traces the user's code, of which this is the stack."""
        ...

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """Outside of every capture of the library."""
        ...


class Compiler(NamedTuple):
    """A backend as ``torch.compile`` knows it, and its options."""

    name: str
    options: dict[str, Any]

    @classmethod
    def of(cls, backend: Any) -> Compiler:
        while hasattr(backend, "_torchdynamo_orig_backend"):
            backend = backend._torchdynamo_orig_backend
        name: Any = getattr(backend, "compiler_name", None) or getattr(backend, "__name__", "")
        return cls(name, dict(getattr(backend, "config", None) or {}))


def as_unsupported(error: Exception, cause: Any = None) -> Unsupported:
    """An error of the library's that Dynamo takes for a reason to break the graph, where `cause`, Dynamo's own, was."""
    made: Unsupported = _both(type(error))(str(error), cause)
    return made.with_traceback(error.__traceback__)


def _both(kind: type[Exception]) -> Callable[..., Unsupported]:
    if kind in _errors_of_both:
        return _errors_of_both[kind]

    def init(self: Unsupported, text: str, cause: Any) -> None:
        Unsupported.__init__(self, text, kind.__name__, real_stack=None if cause is None else cause.real_stack)

    made = type(kind.__name__, (kind, Unsupported), {"__module__": kind.__module__, "__init__": init})
    _errors_of_both[kind] = made
    return made


_errors_of_both: dict[type[Exception], Callable[..., Unsupported]] = {}
