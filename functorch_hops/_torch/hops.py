"""torch's own higher-order operators, to which ours are lowered."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.torch_version import TorchVersion

from .compilers import is_exporting
from .symbols import is_known, symbols_around
from .tensors import storage_key

__all__ = [
    "SCAN_FORGETS_CARRIES",
    "attention_in_python",
    "dense",
    "gradients_on_unseen",
    "is_exported_without_gradients",
    "is_operator_of_torch",
    "native_associative_scan",
    "native_cond",
    "native_operators_kept",
    "native_scan",
    "native_while_loop",
    "native_while_loop_stacked",
    "traced",
    "underivable",
    "unshared",
]

SCAN_FORGETS_CARRIES = TorchVersion(torch.__version__) < "2.13"
"""Whether torch's scan (2.11) takes a carry for constant in all steps whose initial value has no gradient."""


def dense(t: Tensor) -> Tensor:
    """``t`` in the layout that its shape alone determines.

    ``contiguous()`` leaves any stride to a dimension of size 1, and any offset to a part of a tensor; torch's ``cond``
    then takes its branches' outputs for unlike (torch 2.13).
    """
    t, stride = t.contiguous(), 1
    for size, actual in zip(reversed(t.shape), reversed(t.stride())):
        if type(size) is int and size == 1 and not _is_number(actual, stride):
            return t.clone(memory_format=torch.contiguous_format)
        stride = stride * size
    if _is_number(t.storage_offset(), 0):
        return t
    # Inductor would take a clone for a no-op: it compares strides, not offsets. So it does a flip of a 0-d tensor.
    return t.flip(()) if t.dim() else t.reshape(1).flip(0).reshape(())


def _is_number(value: Any, number: Any) -> bool:
    return type(value) is int and type(number) is int and value == number


def unshared(tensors: Sequence[Tensor], constants: Sequence[Tensor] = ()) -> list[Tensor]:
    """The tensors, copied where they share storage with an earlier one or with a constant.

    torch's loops refuse the former, and Inductor's write the carry over the latter.
    """
    seen, result = list(constants), []
    for t in tensors:
        is_shared = any(t._is_view() or other._is_view() or storage_key(t) == storage_key(other) for other in seen)
        result.append(t.clone() if is_shared else t)
        seen.append(result[-1])
    return result


def traced(operands: Sequence[Any]) -> list[Any]:
    """Operands for a loop of torch's own in a trace of torch's own. A tensor from outside becomes a value of the trace,
    since these loops can't copy a real one there; and what torch exports has no operands that share storage.
    """
    values, seen = [], list[Tensor]()
    for x in operands:
        if isinstance(x, Tensor):
            if not isinstance(x, FakeTensor):
                x = torch.ops.aten.alias.default(x)
            elif is_exporting():
                x = unshared([x], seen)[0]
            seen.append(x)
        values.append(x)
    return values


def is_exported_without_gradients() -> bool:
    """Whether gradients are off around the whole of what torch.export traces. Where the program switches them off
    itself, torch's graph says so at the begin and at the end of it, for the same line.
    """
    if torch.is_grad_enabled() or not is_exporting():
        return False
    mode = get_proxy_mode()
    if mode is None:
        return False
    switches = mode.tracer.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled)
    return all(times % 2 == 0 for times in Counter(node.stack_trace for node in switches).values())


@contextlib.contextmanager
def gradients_on_unseen() -> Iterator[None]:
    """``enable_grad``, of which torch's graph says nothing."""
    enabled = torch.is_grad_enabled()
    _set_grad_enabled_unseen(True)
    try:
        yield
    finally:
        _set_grad_enabled_unseen(enabled)


def _set_grad_enabled_unseen(enabled: bool) -> None:
    with torch._C.DisableTorchFunction():
        torch._C._set_grad_enabled(enabled)


def underivable(x: Tensor) -> Tensor:
    """``x``, by an operator that torch (2.13) has no derivative of, and that Inductor takes for nothing."""
    import torch._prims  # which defines it

    result: Tensor = torch.ops.prims.convert_element_type.default(x, x.dtype)
    return result


@contextlib.contextmanager
def native_operators_kept() -> Iterator[None]:
    """Let no operator that holds graphs be dead code: torch (2.13) does not look into them for effects."""
    from torch._higher_order_ops.cond import cond_op
    from torch._higher_order_ops.map import map_impl
    from torch._higher_order_ops.scan import scan_op
    from torch._higher_order_ops.while_loop import while_loop_op, while_loop_stack_output_op
    from torch.fx.node import _side_effectful_functions

    operators = {cond_op, map_impl, scan_op, while_loop_op, while_loop_stack_output_op} - _side_effectful_functions
    _side_effectful_functions.update(operators)
    try:
        yield
    finally:
        _side_effectful_functions.difference_update(operators)


def is_operator_of_torch(func: Any) -> bool:
    """Whether this is an operator of torch's own that holds functions."""
    return isinstance(func, HigherOrderOperator) and type(func).__module__.startswith("torch.")


def attention_in_python() -> Any:
    """What ``flex_attention`` computes where no kernel is generated for it."""
    from torch._higher_order_ops.flex_attention import sdpa_dense

    return sdpa_dense


def native_cond(pred: Tensor, true_fn: Any, false_fn: Any, operands: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.cond import cond_op

    result: Sequence[Tensor] = cond_op(pred, true_fn, false_fn, operands)
    return result


def native_scan(step: Any, init: Sequence[Tensor], xs: Sequence[Tensor], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    if init:
        from torch._higher_order_ops.scan import scan_op

        # Inductor allocates the stacks by what symbols it finds among the operands.
        sizes = _symbols([x.shape for x in (*init, *xs, *consts)])
        n = len(init) + len(xs) + len(consts)
        call = (lambda *args: step(*args[:n])) if sizes else step
        result: Sequence[Tensor] = scan_op(call, list(init), list(xs), (*consts, *sizes))
    else:
        from torch._higher_order_ops.map import map_impl

        result = map_impl(step, list(xs), list(consts))
    return result


def _symbols(shapes: Sequence[Sequence[Any]]) -> list[Any]:
    """The symbols of which the sizes in these shapes are made, each once, as far as the trace has read them. In an
    export those that are sizes themselves are left out, and others are those of tensors: Dynamo, which finds these, may
    trace the program, and takes no number for an operand.
    """
    expressions = {size.node.expr: None for shape in shapes for size in shape if isinstance(size, torch.SymInt)}
    symbols = dict.fromkeys(symbol for e in expressions for symbol in sorted(e.free_symbols, key=str))
    known = symbols_around() or {}
    if not is_exporting():
        return [known[symbol].value for symbol in symbols if symbol in known]
    hidden = [known[symbol].value for symbol in symbols if symbol in known and symbol not in expressions]
    return [torch.zeros(n) if is_known(n >= 0) else n for n in hidden]


def native_while_loop(cond: Any, body: Any, init: tuple[Any, ...], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.while_loop import while_loop_op

    result: Sequence[Tensor] = while_loop_op(cond, body, init, consts)
    return result


def native_while_loop_stacked(cond: Any, body: Any, init: tuple[Any, ...], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.while_loop import while_loop_stack_output_op

    result: Sequence[Tensor] = while_loop_stack_output_op(cond, body, init, consts)
    return result


def native_associative_scan(combine: Any, elems: Sequence[Tensor], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.associative_scan import associative_scan_op

    result: Sequence[Tensor] = associative_scan_op(combine, list(elems), consts)
    return result
