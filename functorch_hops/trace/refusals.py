"""What a captured function may not do, and what to do instead; first of all, ask a traced tensor for its value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..errors import (
    CaptureError,
    DataDependentError,
    ErrorContext,
    InputMutationError,
    LeakedTensorError,
    message,
    warn,
)
from ..ir.meta import TensorMeta

__all__ = [
    "READS",
    "backward_inside",
    "check_collective",
    "check_mode_inside",
    "check_overlap",
    "check_tensor_class",
    "generator_inside",
    "in_our_words",
    "is_refusal",
    "operator_of_torch",
    "refused_of_tensor",
    "seed_inside",
    "subclass_inside",
    "unbatchable",
    "unknown_shape",
    "unknown_to_export",
    "unreadable",
    "warn_of_saved_tensor_hooks",
    "write_to_array",
    "write_to_closed_over",
    "write_to_input",
    "write_to_named",
    "write_to_view",
    "written_by_lanes",
]

_BRANCH = "use fh.cond or torch.where to branch on it, fh.while_loop to loop on it"
_COUNT = (
    "use fh.fori_loop to loop up to it, fh.cond to branch on it, tensor[i] or tensor[i] = value to index by it, "
    "torch.arange(n) < i to mask what is beyond it"
)
_COMPUTE = "compute with the tensor itself, by functions of torch; use fh.cond to branch on it"
_SIZE = (
    "sizes and bounds are Python ints: mask what is beyond a traced one, for example by torch.arange(n) < bound; n "
    "rows from a traced one on are x.narrow(dim, start, n)"
)
_REMEDIES = {
    ".item()": _COMPUTE,
    _torch.READ_AS_SIZE: _SIZE,
    _torch.READ_BY_KERNEL: "sizes, bounds and sections, as those of tensor_split, are Python ints",
    "num_batches_tracked": "give BatchNorm a momentum: the average over all batches, momentum=None, counts in Python",
    "the operator linalg_lstsq": "use torch.linalg.pinv(a) @ b, or torch.linalg.solve(a.mT @ a, a.mT @ b)",
    "the operator _ctc_loss": "give the lengths as tuples of ints",
}
READS: dict[Any, tuple[str, str]] = {
    Tensor.__bool__: ("bool(), as `if`, `while`, `and`, `or`, `not` and `in` call it", _BRANCH),
    Tensor.is_nonzero: (".is_nonzero()", _BRANCH),
    Tensor.__contains__: ("`in`", "use (tensor == value).any(), and fh.cond to branch on it"),
    Tensor.__index__: ("use as an int, as range() and the index of a list do it", _COUNT),
    Tensor.__int__: ("int()", _COUNT),
    Tensor.__float__: ("float()", _COMPUTE),
    Tensor.__complex__: ("complex()", _COMPUTE),
    Tensor.item: (".item()", _COMPUTE),
    Tensor.tolist: (".tolist()", _COMPUTE),
    Tensor.numpy: (".numpy()", _COMPUTE),
    Tensor.__array__: ("conversion to NumPy", _COMPUTE),
    Tensor.__dlpack__: ("conversion by DLPack", "a tensor needs none: use it as it is"),
    Tensor.data_ptr: (".data_ptr()", _COMPUTE),
    Tensor.__format__: ("a format such as `:.3f`", "print it without a format: that shows dtype and shape"),
    torch.tensor: ("torch.tensor() of tensors", "use torch.stack"),
    torch.as_tensor: ("torch.as_tensor() of tensors", "use torch.stack"),
    torch.asarray: ("torch.asarray() of tensors", "use torch.stack"),
}


@contextlib.contextmanager
def in_our_words(context: ErrorContext) -> Iterator[None]:
    """torch's own refusals in our words: to read the value of a tensor that is traced or that a vmap maps over, and to
    write one to a tensor that it does not map over.
    """
    try:
        yield
    except DataDependentError:
        raise
    except Exception as error:
        what = _torch.refused_read(error)
        if what is not None:
            ours = unreadable(context, what, _REMEDIES.get(what, _BRANCH), error)
            for note in getattr(error, "__notes__", ()):
                ours.add_note(note)
            raise ours from error
        if _torch.is_refused_by_dynamo(error):
            raise compiled_inside(context, error) from error
        if _torch.asks_for_sizes(error):
            raise known_sizes_alone(context, error) from error
        if _torch.refused_write(error):
            raise written_by_lanes(context, error) from error
        if _torch.refused_class(error):
            raise subclass_inside(context, None, error) from error
        raise


def is_refusal(error: BaseException) -> bool:
    """Whether a captured function may not do what works in eager Python."""
    if isinstance(error, (CaptureError, InputMutationError, LeakedTensorError)):
        return True
    is_of_lanes = type(error) is RuntimeError  # which torch raises in eager Python, too
    return not is_of_lanes and _torch.refused_read(error) is not None


def unreadable(
    context: ErrorContext, what: str, remedy: str, cause: Exception | None = None, buffer: str | None = None
) -> DataDependentError:
    """``buffer``: of which a value is asked for."""
    if buffer is not None:
        what = f"{what}, of the buffer {buffer}"
        remedy = _REMEDIES.get(buffer.rpartition(".")[2], remedy)
    return DataDependentError(
        message(
            context.operation,
            "Python asks for the value of a tensor that has none yet: it is traced, or mapped over by vmap",
            parameter=context.parameter,
            expected="operations on tensors",
            got=what,
            remedy=remedy,
            cause=cause,
        )
    )


def written_by_lanes(context: ErrorContext, cause: Exception) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "what differs between the examples is written to a tensor that is one for all of them",
            parameter=context.parameter,
            expected="a write to a value that is computed from what is mapped over",
            remedy="write to a clone of a row; map over fh.jit(function), whose graph has no writes; or write to "
            "value + 0 * x of a mapped x",
            cause=cause,
        )
    )


def known_sizes_alone(context: ErrorContext, cause: Exception) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "an operator of torch's can't run with open sizes, on the examples of a vmap or in its gradient",
            parameter=context.parameter,
            remedy="map over the jitted function, fh.vmap(fh.jit(function, dynamic=True)), or leave out dynamic",
            cause=cause,
        )
    )


def unbatchable(context: ErrorContext, function: str, cause: Exception) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "torch has no way to make a call for all examples at once",
            parameter=context.parameter,
            got=function,
            remedy="choose by a mask with torch.where, with one value for all that it chooses; or call it outside of "
            "the vmap, in a Python loop over the examples",
            cause=cause,
        )
    )


def write_to_input(context: ErrorContext, got: str) -> InputMutationError:
    return InputMutationError(
        message(
            context.operation,
            f"{context.parameter} writes to an input",
            parameter=context.parameter,
            expected="a function without side effects",
            got=got,
            remedy="return the new value, or work on a clone()",
        )
    )


def write_to_closed_over(context: ErrorContext, got: str) -> InputMutationError:
    return InputMutationError(
        message(
            context.operation,
            f"{context.parameter} writes to a tensor that it closes over",
            parameter=context.parameter,
            expected="a function without side effects",
            got=got,
            remedy="pass the tensor as an argument and return its new value (torch.func.functional_call does this for "
            "the buffers of a module)",
        )
    )


def write_to_named(context: ErrorContext, function: str) -> InputMutationError:
    remedy = "name the new value, or work on a clone()"
    return _write(context, "a value that checkpoint_name named", function, remedy)


def write_to_view(context: ErrorContext, function: str) -> InputMutationError:
    what = (
        "a value, or to a view() or reshape() of it, whose layout follows that of inputs which are not contiguous, or "
        "of the lanes of a vmap, and may be another in the compiled graph"
    )
    remedy = "call .contiguous() before view() or reshape(), or write to a clone() of either"
    return _write(context, what, function, remedy)


def write_to_array(context: ErrorContext, function: str) -> InputMutationError:
    what = "a tensor that shares its memory with an array, to which no graph writes"
    remedy = "write to a copy, torch.tensor(array), and assign to the array after the call"
    return _write(context, what, function, remedy)


def _write(context: ErrorContext, what: str, function: str, remedy: str) -> InputMutationError:
    problem = f"{context.parameter} writes to {what}"
    return InputMutationError(
        message(context.operation, problem, parameter=context.parameter, got=function, remedy=remedy)
    )


def backward_inside(context: ErrorContext, what: str) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            f"{what} can't run inside a captured function, whose values have no gradient history",
            parameter=context.parameter,
            remedy="take derivatives there with fh.grad, fh.value_and_grad or fh.vjp",
        )
    )


def check_mode_inside(capture: Any, operation: str) -> None:
    """Bodies are captured without the dispatch modes around them, which so don't see their operators."""
    mode = None if capture is None else _torch.mode_of_user()
    if mode is None or mode.supports_higher_order_operators:
        return
    raise CaptureError(
        message(
            operation,
            "a TorchDispatchMode of a captured function does not see the operators of control flow in it",
            got=type(mode).__name__,
            remedy="enter it in the bodies",
        )
    )


def warn_of_saved_tensor_hooks(context: ErrorContext) -> None:
    """What autograd saves of a graph are residuals of all of it, when the hooks are gone."""
    problem = "hooks on saved tensors (saved_tensors_hooks, save_on_cpu) that are entered in a captured function"
    remedy = "enter them around the call of the captured function; to save memory, use fh.checkpoint"
    warn(message(context.operation, f"{problem} are not called", remedy=remedy), once=True)


def legacy_vmap_inside(context: ErrorContext) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "torch.autograd can't batch derivatives of control flow inside a captured function",
            parameter=context.parameter,
            got="is_grads_batched=True, or vectorize=True in torch.autograd.functional",
            remedy="take derivatives there with fh.jacrev, fh.jacfwd or fh.hessian",
        )
    )


def subclass_inside(context: ErrorContext, target: TensorMeta | None, cause: Exception | None = None) -> CaptureError:
    """No mode sees ``as_subclass()``: it is noticed where torch refuses it, or when the capture ends."""
    remedy = "make it of the result, outside of the captured function; for torch.func.linearize call fh.linearize"
    return refused_of_tensor(context, "as_subclass()", remedy, target, cause)


def refused_of_tensor(
    context: ErrorContext, what: str, remedy: str, target: TensorMeta | None, cause: Exception | None = None
) -> CaptureError:
    """What a captured function may not ask of a tensor or do to it."""
    return CaptureError(
        message(
            context.operation,
            f"{what} can't be part of a captured function",
            parameter=context.parameter,
            got=None if target is None else str(target),
            remedy=remedy,
            cause=cause,
        )
    )


def generator_inside(context: ErrorContext) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "an operator draws from a torch.Generator, whose state a graph can't hold",
            parameter=context.parameter,
            remedy="use the default generator (torch.manual_seed), or draw outside and pass the numbers",
        )
    )


def seed_inside(context: ErrorContext, function: str) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            f"{function}() sets the state of a random number generator, which a graph can't hold",
            parameter=context.parameter,
            remedy="seed before the call; or draw the numbers outside, and pass them",
        )
    )


def unknown_shape(context: ErrorContext) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "the shape of an output depends on values, which are known only when the graph runs",
            parameter=context.parameter,
            expected="an output of a shape that follows from the shapes of the inputs",
            remedy="use torch.where or a mask of fixed size instead of boolean indexing or nonzero()",
        )
    )


def check_overlap(context: ErrorContext, func: Any, target: Tensor) -> None:
    """torch's kernels refuse most writes to an expanded tensor, whose elements share memory. Its functionalization adds
    the differences up.
    """
    if torch.Tag.inplace_view in func.tags:
        return
    name = func.overloadpacket.__name__
    if any(type(step) is int and step == 0 and size != 1 for step, size in zip(target.stride(), target.shape)):
        meta = TensorMeta.of(target)
        raise refused_of_tensor(context, f"a write to an expanded tensor ({name})", "write to a clone() of it", meta)


def check_collective(context: ErrorContext, func: Any, args: tuple[Any, ...]) -> None:
    """torch's vmap (2.13) calls a collective once for each lane, and does not wait for them: the values are wrong."""
    if _torch.is_collective(func) and any(
        _torch.is_batched(t) for t in _torch.tree_leaves(args) if isinstance(t, Tensor)
    ):
        raise CaptureError(
            message(
                context.operation,
                f"the collective {func} can't be mapped over",
                parameter=context.parameter,
                got="a value that differs between lanes",
                remedy="communicate outside of the mapped function, for all lanes at once",
            )
        )


def operator_of_torch(context: ErrorContext, name: str) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            f"torch's own operator {name}, which holds functions, can't be part of a captured function",
            parameter=context.parameter,
            remedy="use the operation of this library: fh.cond, fh.while_loop, fh.scan, fh.map, fh.associative_scan, "
            "fh.checkpoint",
        )
    )


def compiled_inside(context: ErrorContext, cause: Exception) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "a function that torch.compile must compile as a whole is called in a captured one",
            parameter=context.parameter,
            remedy="call the function itself: fh.jit compiles all of it; of attention, F.scaled_dot_product_attention",
            cause=cause,
        )
    )


def check_tensor_class(operation: str, t: Tensor) -> None:
    with _torch.without_torch_function():
        is_quantized = t.is_quantized
    if is_quantized:
        remedy = "dequantize it, by .dequantize()"
        raise CaptureError(message(operation, "a captured function can't take a quantized tensor", remedy=remedy))
    if not _torch.has_own_operators(t):
        return
    if _torch.is_uninitialized(t):
        remedy = "call the module once outside of the captured function, which makes its parameters"
        raise CaptureError(message(operation, "a lazy module has no parameters yet", remedy=remedy))
    expected = (
        "a torch.Tensor, an nn.Parameter, or a subclass without __torch_function__ or __torch_dispatch__ of its own"
    )
    problem, got = "a tensor of a class that redefines operators", type(t).__name__
    remedy = "pass its data as a plain tensor, for example with .as_subclass(torch.Tensor)"
    if _torch.is_distributed_tensor(t):
        problem, got = "a captured function can't take a DTensor", f"one that is placed as {t.placements}"  # type: ignore[attr-defined]
        remedy = (
            "call it inside of torch.distributed.tensor.experimental.local_map, or on t.to_local(); capture modules "
            "before fully_shard, as in fully_shard(fh.jit(module)); loops in plain eager take DTensors"
        )
    raise CaptureError(message(operation, problem, expected=expected, got=got, remedy=remedy))


def unknown_to_export(operation: str) -> CaptureError:
    """torch.export records what a transform of torch's own wraps, not what it holds: a loop can't look inside."""
    return CaptureError(
        message(
            operation,
            "torch.export can't trace torch.func's own transforms around it",
            remedy="use the transform of the same name of this library, or wrap the transformed function in fh.jit",
        )
    )
