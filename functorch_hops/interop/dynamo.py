"""Calls of the library under ``torch.compile`` and strict ``torch.export``.

NOTE [Dynamo supplies functions] A call of the library under Dynamo is captured by this library, as inside ``fh.jit``.
What the capture calls in the place of a user's function is a stub: it has Dynamo trace the function once, for tensors
like the ones that it was called with, and runs the graph that Dynamo made. The whole call becomes one node of Dynamo's
graph, a closed call of the captured graph. Its operands are the tensors among the arguments, and what Dynamo found the
functions to close over. So no rule and no check is written twice, and whoever runs the node - Dynamo on its fakes,
AOTAutograd, a backend - meets an operator of ours, with all its rules.

Dynamo's own graphs live as long as the capture: what is left of them are operators.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import _torch, pytree
from ..calls.arguments import Arguments, signature_of
from ..calls.listening import caller, timed
from ..calls.recording import in_mode_of_program, recorded_as_bodies_say
from ..calls.static_values import same_function
from ..calls.traced_call import trace_call
from ..errors import (
    ArgumentTypeError,
    CaptureError,
    DataDependentError,
    FunctorchHopsError,
    is_own,
    message,
    traced_from,
    warn,
)
from ..ir.dependence import Through, dependent_outputs
from ..ir.meta import is_differentiable
from ..ir.origin import annotated, called_annotated
from ..lowering.backends import Backend, Options
from ..lowering.barrier import copied
from ..ops.closed_call.op import ClosedCallParams, closed_call_op
from ..trace.buffers import Buffers
from ..trace.capture import current_capture, outside_of_captures
from ..trace.refusals import check_tensor_class, unknown_to_export

if TYPE_CHECKING:
    from .._torch.dynamo_library import Compiler

__all__ = ["leaf_call", "register_leaf"]


class CallModule(torch.nn.Module):
    """The parameters of a call in Dynamo's graph, where torch's strict export takes what is no module for a tensor."""

    def __init__(self, params: ClosedCallParams) -> None:
        super().__init__()
        self.params = params


class LeafCall(_torch.HigherOrderOperator):
    """The node of a call in Dynamo's graph. Before Dynamo traced it: the function of the library and its arguments.
    Where Dynamo gives up in the frame of the call, as it does under a default device, that is a call of Python's.
    """

    def __init__(self) -> None:
        super().__init__("fh_call")

    def __call__(self, call: CallModule | Callable[..., Any], *operands: Any) -> Any:
        if not isinstance(call, CallModule):
            args, kwargs = operands
            return call(*args, **kwargs)
        params = call.params
        with in_mode_of_program(), recorded_as_bodies_say(params.body):
            return self._called(params, operands)

    def _called(self, params: ClosedCallParams, operands: Sequence[Any]) -> Any:
        if current_capture() is not None:  # a user's function holds the call, and its graph runs in our capture
            with _torch.autocast_off():
                return params.body(*operands)
        with _torch.inner_sizes_forgotten(), _torch.dual_level_known():
            if _torch.only_asks_for_shapes():
                return _results(params, operands)
            return closed_call_op(params, *operands)


leaf_call = LeafCall()


def _results(params: ClosedCallParams, operands: Sequence[Any]) -> tuple[Tensor, ...]:
    """Fakes like the results, with gradients where the results have them: all that Dynamo asks for."""
    active = tuple(isinstance(x, Tensor) and x.requires_grad for x in operands)
    tracked = dependent_outputs(params.body, active, Through.GRADIENT)
    results = [meta.empty() for meta in params.body.outputs]
    if not torch.is_grad_enabled():
        return tuple(results)
    return tuple(
        x.requires_grad_().clone() if has and is_differentiable(x.dtype) else x for x, has in zip(results, tracked)
    )


@_torch.assume_constant_result
def register_leaf() -> None:
    """Called while Dynamo traces, when it is imported anyway."""
    from .._torch import dynamo

    dynamo.register(leaf_call, _Library())


class Captured(NamedTuple):
    """A call as a graph: what the operator takes first, its operands, and what makes a tree of its results."""

    call: CallModule
    operands: Sequence[Tensor]
    result: Callable[[Sequence[Any]], Any]


def _operation(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The public operation of a call. A leaf that is none itself has it, its name or a part of it as first argument."""
    if not function.__name__.startswith("_"):
        space = function.__module__.rpartition(".")[2]
        return f"debug.{function.__name__}" if space == "debug" else function.__name__
    first = args[0]
    name: str = first if isinstance(first, str) else getattr(first, "operation", None) or first.__name__
    return name


def _defaults(function: Callable[..., Any]) -> tuple[Any, ...]:
    return tuple(p.default for p in signature_of(function).parameters.values())


def _check_binding(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """In Python's call the error is Python's, which Dynamo would take for one of its own."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        try:
            function(*args, **kwargs)  # which does not begin, and may know what was meant
        except FunctorchHopsError:
            raise
        except TypeError:
            pass
        name, parameters = function.__name__, [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        expected = f"{name}{inspect.Signature(parameters)}"
        problem, remedy = "the arguments are not those of its parameters", f"help(fh.{name}) says what they are"
        got = str(error).removeprefix("got ")
        raise ArgumentTypeError(message(name, problem, expected=expected, got=got, remedy=remedy)) from None


_READS = {
    "Data-dependent branching",
    "Unsupported Tensor.item() call with capture_scalar_outputs=False",
    "CONSTRAINT_VIOLATION",  # a size that is data's
}
_REMEDY = "write it with operations on tensors; outside of torch.compile, or without fullgraph=True, it runs as Python"


_ENTRY = "call"
"""The name of the functions that ``calls/leaf.py`` and ``transforms/flat.py`` make."""


class _Library:
    """What Dynamo's room has to know of the library."""

    namespace = pytree.NAMESPACE
    flatten = staticmethod(pytree.flatten)
    unflatten = staticmethod(pytree.unflatten)
    is_node = staticmethod(pytree.is_node)
    outside = staticmethod(outside_of_captures)
    tracing = staticmethod(traced_from)
    copied = copied
    errors: type[Exception] = FunctorchHopsError
    annotated_code = called_annotated.__code__
    annotations: Sequence[str] = ("name", "loop_kernels")

    def is_entry(self, code: CodeType) -> bool:
        return code.co_name == _ENTRY and is_own(code.co_filename)

    def is_own(self, value: object) -> bool:
        """A function of ours that closes over nothing runs nothing of the user's but what it is given. Others, and
        other objects by their types, say so themselves (``__fh_own__``).
        """
        if isinstance(value, FunctionType):
            is_ours = (value.__module__ or "").partition(".")[0] == __package__.partition(".")[0]
            return is_ours and (value.__closure__ is None or hasattr(value, "__fh_own__"))
        return getattr(type(value), "__fh_own__", False)

    operation = staticmethod(_operation)
    signature = staticmethod(signature_of)
    defaults = staticmethod(_defaults)

    def refused(self, operation: str, kind: str, reason: str) -> CaptureError:
        if kind in _READS:
            problem = "Python asks for the value of a traced tensor, which has none yet"
            remedy = "use fh.cond or torch.where to branch on it, fh.while_loop to loop on it"
            return DataDependentError(message(operation, problem, expected="operations on tensors", remedy=remedy))
        problem = "torch.compile can't trace a function that it is given"
        lines = [line.strip() for line in reason.splitlines()]
        explained = (line.removeprefix("Explanation:").strip() for line in lines if line.startswith("Explanation:"))
        text = message(operation, problem, got=next(explained, "") or lines[0], remedy=_REMEDY)
        return CaptureError(text)

    def raised(self, operation: str, error: str) -> CaptureError:
        problem = "a function that it is given raises while torch.compile traces it"
        remedy = "outside of torch.compile, or without fullgraph=True, the exception itself is raised"
        return CaptureError(message(operation, problem, got=error, remedy=remedy))

    def unknown_object(self, operation: str, name: str) -> CaptureError:
        problem = f"{name} is made while torch.compile traces the code around, and is not there when it runs"
        remedy = "make it outside of what is compiled; without fullgraph=True the code around runs as Python"
        return CaptureError(message(operation, problem, expected="a function that is there before", remedy=remedy))

    def mode_unknown(self, operation: str) -> None:
        problem = f"whether the program turned gradients off around {operation} is not known: it calls set_grad_enabled"
        got = "a strict export under no_grad; the program will have gradients there"
        remedy = "export it with gradients on: torch forgets the program's own no_grad, too, where they are off"
        warn(message("export", problem, got=got, remedy=remedy))

    def is_same_function(self, found: object, kept: object) -> bool:
        return same_function(found, kept)

    def compiling(self, compiler: Compiler) -> contextlib.AbstractContextManager[None]:
        if compiler.name != "inductor":
            return contextlib.nullcontext()
        from ..lowering.inductor import compiled_around

        return compiled_around()

    def capture(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        compiler: Compiler,
        said: Sequence[dict[str, Any]],
    ) -> Captured:
        if torch.compiler.is_exporting() and _torch.top_interpreter() is not None:
            # Later, where the graph is traced, torch (2.13) would leave the transform active.
            raise unknown_to_export(self.operation(function, args))
        _check_binding(function, args, kwargs)
        leaves, spec = pytree.flatten((args, kwargs))
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                check_tensor_class(self.operation(function, args), leaf)
        numbers = {i: x for i, x in enumerate(leaves) if hasattr(x, "carrier")}
        carried = pytree.unflatten(spec, [x.carrier if i in numbers else x for i, x in enumerate(leaves)])

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if numbers:
                leaves, spec = pytree.flatten((args, kwargs))
                values = {number: number.read(leaves[i]) for i, number in numbers.items()}  # one for all its places
                read = [values[numbers[i]] if i in numbers else x for i, x in enumerate(leaves)]
                args, kwargs = pytree.unflatten(spec, read)
            with contextlib.ExitStack() as stack:
                for annotation in said:
                    stack.enter_context(annotated(**annotation))
                return function(*args, **kwargs)

        operation = self.operation(function, args)
        args, kwargs = carried
        arguments = Arguments(args, kwargs, static_floats=True, numpy=False)
        with timed("capture", operation, caller()):
            traced = trace_call(call, arguments, operation, Buffers((), operation, writable=False))
        params = ClosedCallParams.of(traced.body, Backend("eager", Options(compiler.options), around=compiler.name))
        return Captured(CallModule(params), [*arguments.operands, *traced.lifted], traced.output.unflatten)
