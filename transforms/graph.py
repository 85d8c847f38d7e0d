"""``make_graph`` and ``eval_shape``: look at a function without compiling it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from torch import fx

from functorch_hops import environment
from functorch_hops.calls.arguments import Arguments, P, TensorSpec
from functorch_hops.calls.leaf import left_to_python, traced_through
from functorch_hops.calls.spelling import spelled
from functorch_hops.calls.trace_cache import effects_of_one
from functorch_hops.calls.traced_call import TracedCall, trace_call
from functorch_hops.calls.validate import check_callable
from functorch_hops.errors import ArgumentValueError, message, warn
from functorch_hops.ir.printing import print_subgraph
from functorch_hops.trace.buffers import Buffers

__all__ = ["CapturedGraph", "TensorSpec", "eval_shape", "make_graph", "trace_once"]


class CapturedGraph(fx.GraphModule):
    """What ``make_graph(f)(*args)`` returns: a ``torch.fx.GraphModule`` that prints with its nested bodies.

    It is called like the function, with arguments of the same signature: trees, shapes, dtypes, devices and static
    values. Others are an ArgumentValueError.

    Attributes:
        graph: the ``torch.fx.Graph``. Its placeholders are the tensors and floats of the arguments, in the order of
            their leaves, then the tensors that the function closes over; its output is a flat tuple. A loop or branch
            is one node, whose first argument names the sub-module with its parameters and bodies.

    Methods:
        as_text(): the graph as text, nested bodies included; ``print`` shows the same.

    >>> import torch, functorch_hops as fh
    >>> graph = fh.make_graph(lambda x: {"y": x.sin()})(torch.zeros(2))
    >>> isinstance(graph, fh.CapturedGraph), [node.op for node in graph.graph.nodes]
    (True, ['placeholder', 'call_function', 'output'])
    >>> graph(torch.zeros(2))
    {'y': tensor([0., 0.])}
    """

    call: TracedCall
    name: str
    _key: Any

    def __init__(self, call: TracedCall, arguments: Arguments, name: str) -> None:
        module = call.body.module
        self._key = arguments.key
        super().__init__(module, module.graph)
        self.call, self.name = call, name

    def recompile(self) -> Any:
        code = super().recompile()
        flat = type(self).forward

        def forward(self: CapturedGraph, *args: Any, **kwargs: Any) -> Any:
            arguments = Arguments(args, kwargs)
            if arguments.key != self._key:
                remedy = "make another graph for these arguments"
                raise ArgumentValueError(message("make_graph", "called with another signature", remedy=remedy))
            return self.call.output.unflatten(flat(self, *arguments.operands, *self.call.lifted))

        type(self).forward = traced_through(forward)
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedGraph:
        """A graph of its own, which closes over the same tensors."""
        memo[id(self.call)] = self.call
        copied: Any = super().__deepcopy__(memo)
        copied._key, copied.call, copied.name = self._key, self.call, self.name
        return cast(CapturedGraph, copied)

    def as_text(self) -> str:
        """The graph as text, nested bodies included."""
        return print_subgraph(self.call.body, self.name)

    def __str__(self) -> str:
        return self.as_text()


@spelled()
@left_to_python
def make_graph(func: Callable[P, Any]) -> Callable[P, CapturedGraph]:
    """Capture a function as a graph.

    ``make_graph : (a -> b) -> (a -> graph of (a -> b))``. Equivalent to nothing that runs: the result is a
    ``torch.fx.GraphModule`` which is called like ``func`` and prints with its nested bodies.

    Arguments:
        func: any function that can be captured. Tensors and floats of its arguments are traced, the rest is static.

    Returns:
        A function of the same arguments, which returns the graph of that call: a :class:`CapturedGraph`.

    Raises:
        ArgumentTypeError: ``func`` is not callable.
        CaptureError, DataDependentError: ``func`` can't be captured.

    Cost: one call of ``func`` on fake tensors; nothing is compiled.

    Source: ``jax.make_jaxpr``; ``torch.fx.experimental.proxy_tensor.make_fx``.

    >>> import torch, functorch_hops as fh
    >>> print(fh.make_graph(lambda x: x.sin() + 1)(torch.ones(2)))
    <lambda>(%arg0: float32[2]):
      %sin: float32[2] = sin(%arg0)
      %add: float32[2] = add.Tensor(%sin, 1)
      return (%add)
    """
    check_callable("make_graph", "func", func)

    @functools.wraps(func)
    @left_to_python
    def graph_of(*args: P.args, **kwargs: P.kwargs) -> CapturedGraph:
        arguments = Arguments(args, kwargs)
        name = getattr(func, "__name__", None) or type(func).__name__
        run = functools.partial(func, *args, **kwargs)
        call = trace_once("make_graph", func, run, arguments, "not when the graph runs")
        return CapturedGraph(call, arguments, name)

    return graph_of


def trace_once(
    operation: str,
    func: Callable[..., Any],
    run: Callable[[], Any],
    arguments: Arguments,
    otherwise: str,
    grad_enabled: bool | None = None,
) -> TracedCall:
    """Capture ``func`` for all later calls, and say what it did that these will not do; ``run()`` calls it."""
    before = environment.snapshot(func)
    with before.observer() as seen:
        call = trace_call(func, arguments, operation, grad_enabled=grad_enabled)
    effects = effects_of_one(operation, run, func, before, seen)
    if effects:
        name = getattr(func, "__name__", type(func).__name__)
        told = environment.listed(effects)
        warn(f"{operation}: {name} does what no graph does, so it is done now, and {otherwise}: {told}")
    return call


@left_to_python
def eval_shape(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The shapes, dtypes and devices of a function's output; nothing is computed.

    ``eval_shape : ((a -> b), a) -> shapes of b``. Equivalent to replacing each tensor of ``func(*args, **kwargs)`` by
    ``TensorSpec(shape, dtype, device)``.

    Arguments:
        func: any function that can be captured.
        args, kwargs: its arguments; a ``TensorSpec`` may stand for a tensor.

    Returns:
        A tree like the output of ``func``, with a ``TensorSpec`` for each tensor.

    Raises:
        ArgumentTypeError: ``func`` is not callable.
        CaptureError, DataDependentError: ``func`` can't be captured.

    Cost: one call of ``func`` on fake tensors.

    Source: ``jax.eval_shape``.

    >>> import torch, functorch_hops as fh
    >>> fh.eval_shape(lambda x: {"y": x @ x.T}, torch.ones(2, 3))
    {'y': TensorSpec(shape=(2, 2), dtype=torch.float32, device=cpu)}
    """
    check_callable("eval_shape", "func", func)
    buffers = Buffers(environment.snapshot(func).buffers, "eval_shape", writable=True)
    # Nothing is computed: results may share memory and begin a gradient history, as a module's parameters do.
    output = trace_call(func, Arguments(args, kwargs), "eval_shape", buffers, may_share=True).output
    specs: list[Any] = [TensorSpec(*meta) for meta in output.metas]
    return output.unflatten(specs)
