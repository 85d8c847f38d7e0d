"""What ``jit`` returns and shows: types for annotations, the cache, a call before it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor, fx

from functorch_hops.calls.arguments import Arguments, P, R
from functorch_hops.calls.static_values import described_arguments
from functorch_hops.errors import ArgumentValueError, message
from functorch_hops.ir.printing import print_subgraph
from functorch_hops.ir.subgraph import Subgraph
from functorch_hops.lowering.backends import compiled

__all__ = ["CacheInfo", "Jitted", "Lowered"]

Result_co = TypeVar("Result_co", covariant=True)
Rest = ParamSpec("Rest")
Owner = TypeVar("Owner")


class CacheInfo(NamedTuple):
    """What ``cache_info()`` of a jitted function returns, as that of :func:`functools.lru_cache` does.

    Fields:
        hits: calls that found a valid trace.
        misses: calls that captured one.
        maxsize: how many traces are kept: when there are more, the one that was not used for longest is thrown away.
        currsize: how many traces are kept.

    >>> import torch, functorch_hops as fh
    >>> double = fh.jit(lambda x: x * 2, backend="eager")
    >>> double(torch.ones(2)), double(torch.ones(2)), double(torch.ones(3))
    (tensor([2., 2.]), tensor([2., 2.]), tensor([2., 2., 2.]))
    >>> double.cache_info()
    CacheInfo(hits=1, misses=2, maxsize=128, currsize=2)
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int


@runtime_checkable
class Jitted(Protocol[P, Result_co]):
    """What :func:`jit` returns: a function of the same arguments and results, with a cache of compiled traces.

    A type for annotations and for ``isinstance``; only ``jit`` makes such functions. ``Jitted[[Tensor], Tensor]`` is
    one from a tensor to a tensor. Attributes of the function, such as the parameters of a module, are its attributes.

    Methods:
        lower(*args, **kwargs): the captured graph for these arguments, before it is compiled: a :class:`Lowered`.
        cache_info(): how often traces were found and captured: a :class:`CacheInfo`.
        clear_cache(): forget every trace.

    >>> import torch, functorch_hops as fh
    >>> double: fh.Jitted[[torch.Tensor], torch.Tensor] = fh.jit(lambda x: x * 2, backend="eager")
    >>> isinstance(double, fh.Jitted), double(torch.ones(2))
    (True, tensor([2., 2.]))
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result_co: ...

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Jitted[P, Result_co]: ...
    @overload
    def __get__(
        self: Jitted[Concatenate[Owner, Rest], R], instance: Owner, owner: type | None = None
    ) -> Jitted[Rest, R]: ...

    def __getattr__(self, name: str) -> Any: ...

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered[P, Result_co]: ...

    def cache_info(self) -> CacheInfo: ...

    def clear_cache(self) -> None: ...


class Lowered(Generic[P, Result_co]):
    """What ``jit(f).lower(*args)`` returns: one captured call, before it is compiled.

    Attributes:
        graph: the graph, a ``torch.fx.GraphModule`` with the bodies of loops and branches as sub-modules. It works on
            flat tensors: its inputs are the tensors and floats of the call, in the order of their leaves, then the
            tensors that the function closes over; its output is a tuple of what it computes. Results that are inputs,
            or views of inputs or of other results, are not in it. (:func:`make_graph` returns a graph that is called
            like the function.)

    Methods:
        as_text(): the graph as text, nested bodies included.
        compile(): compile now. The result is called like the function, with arguments of the same signature: trees,
            shapes, dtypes, devices and static values. Others are an ArgumentValueError.

    >>> import torch, functorch_hops as fh
    >>> lowered = fh.jit(lambda x: x.sin() + 1, backend="eager").lower(torch.zeros(2))
    >>> print(lowered.as_text())
    <lambda>(%arg0: float32[2]):
      %sin: float32[2] = sin(%arg0)
      %add: float32[2] = add.Tensor(%sin, 1)
      return (%add)
    >>> lowered.compile()(torch.zeros(2)), lowered.graph(torch.zeros(2))
    (tensor([1., 1.]), (tensor([1., 1.]),))
    """

    def __init__(self, jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._jitted = jitted
        self._entry, operands = jitted._find(args, kwargs)
        if self._entry.trace.is_for_one_call:  # it built a table, which the trace for later calls reads
            self._entry, operands = jitted._find(args, kwargs)
        are_recorded = torch.is_grad_enabled()
        self._active = tuple(are_recorded and isinstance(x, Tensor) and x.requires_grad for x in operands)
        self._key = self._key_of(args, kwargs)

    @property
    def graph(self) -> fx.GraphModule:
        """The graph, its bodies as sub-modules. Inputs: the tensors and floats of the call, then what it closes
        over.
        """
        return self._body.module

    @property
    def _body(self) -> Subgraph:
        return self._entry.trace.body

    def as_text(self) -> str:
        """The graph as text, nested bodies included."""
        return print_subgraph(self._body, getattr(self._jitted, "__name__", "main"))

    def _key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return Arguments(args, kwargs, self._jitted._static_floats, self._jitted._dynamic).key

    def compile(self) -> Callable[P, Result_co]:
        """Compile now; the result takes arguments of the same signature."""
        compiled(self._body, self._entry.params.backend, self._entry.params.origin)

        def call(*args: P.args, **kwargs: P.kwargs) -> Result_co:
            if self._key_of(args, kwargs) != self._key:
                text = message(
                    "jit",
                    "the compiled function was called with another signature",
                    expected=described_arguments(self._key),
                    got=described_arguments(Arguments(args, kwargs).key),
                    remedy="lower it for these arguments, or call the jitted function itself",
                )
                raise ArgumentValueError(text)
            return self._jitted(*args, **kwargs)

        return call
