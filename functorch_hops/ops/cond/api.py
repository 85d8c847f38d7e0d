"""``cond`` and ``switch``: arguments, plain eager, capture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...capture.output import OutputSpec, numbers_as_tensors
from ...capture.signature import merge_lifted
from ...capture.speculate import speculate_subgraph
from ...capture.subgraph import TensorMeta
from ...capture.validate import check_agreement, check_callable, check_tensor_leaves
from ...errors import ArgumentTypeError, ArgumentValueError, message
from ..mode import is_capturing

__all__ = ["cond", "switch"]


def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], /, *operands: Any) -> Any:
    """Run one of two functions, chosen by a predicate.

    ``cond : (bool, (a -> b), (a -> b), a) -> b``. Equivalent to::

        def cond(pred, true_fn, false_fn, *operands):
            return true_fn(*operands) if pred else false_fn(*operands)

    Arguments:
        pred: a Python bool or number, or a one-element tensor of any dtype; non-zero is true. A Python value is static:
            while capturing, only the branch that it takes is captured.
        true_fn, false_fn: functions of the operands, which may close over anything. Captured, both must return the
            same tree of the same shapes, dtypes and devices; leaves that are no tensors must be equal.
        operands: trees of tensors; Python numbers become 0-d tensors.

    Under ``vmap`` with a batched predicate both branches run (one that no lane takes does not), and the lanes select;
    a lane is never poisoned by NaN or inf of the branch that it did not take, nor is its gradient.

    Raises:
        ArgumentTypeError: a branch is not callable, ``pred`` has several elements.
        TreeMismatchError, MetadataMismatchError: captured branches disagree.

    Cost: plain eager, the branch and some microseconds; captured, one node and the branch taken.

    Source: ``jax.lax.cond``; ``torch.cond``; NaN-safe select as asked for in jax-ml/jax 5658.

    >>> import torch, functorch_hops as fh
    >>> fh.cond(torch.tensor(2.0) > 1, torch.neg, torch.abs, torch.ones(2))
    tensor([-1., -1.])
    """
    check_callable("cond", "true_fn", true_fn)
    check_callable("cond", "false_fn", false_fn)
    if not isinstance(pred, Tensor):
        _check_number("cond", "pred", pred, (bool, int, float, complex, torch.SymBool, torch.SymInt))
        return (true_fn if pred else false_fn)(*numbers_as_tensors(operands))
    if pred.numel() != 1:
        raise ArgumentTypeError(_several_elements("cond", "pred", pred))
    if not is_capturing() and not _torch.is_batched(pred):
        return (true_fn if _torch.read_number(pred) else false_fn)(*numbers_as_tensors(operands))
    selector = pred.reshape(())
    selector = selector if selector.dtype == torch.bool else selector != 0
    return _captured("cond", selector, [("false_fn", false_fn), ("true_fn", true_fn)], operands)


def switch(index: Any, branches: Sequence[Callable[..., Any]], /, *operands: Any) -> Any:
    """Run one of several functions, chosen by an index.

    ``switch : (int, [a -> b], a) -> b``. Equivalent to::

        def switch(index, branches, *operands):
            return branches[min(max(index, 0), len(branches) - 1)](*operands)

    Arguments:
        index: a Python int (static) or a one-element integer tensor; values out of range are clamped.
        branches: a non-empty sequence of functions of the operands, as in :func:`cond`.
        operands: trees of tensors; Python numbers become 0-d tensors.

    Raises:
        ArgumentTypeError: a branch is not callable, ``index`` is not an integer or has several elements.
        ArgumentValueError: ``branches`` is empty.
        TreeMismatchError, MetadataMismatchError: captured branches disagree.

    Cost: as :func:`cond`.

    Source: ``jax.lax.switch``.

    >>> import torch, functorch_hops as fh
    >>> fh.switch(torch.tensor(7), [torch.sin, torch.neg], torch.ones(2))
    tensor([-1., -1.])
    """
    branches = list(branches)
    if not branches:
        raise ArgumentValueError(message("switch", "there is no branch", parameter="branches", expected="at least one"))
    for i, branch in enumerate(branches):
        check_callable("switch", f"branches[{i}]", branch)
    last = len(branches) - 1
    if not isinstance(index, Tensor):
        _check_number("switch", "index", index, (bool, int, torch.SymInt))
        return branches[min(max(int(index), 0), last)](*numbers_as_tensors(operands))
    if index.numel() != 1:
        raise ArgumentTypeError(_several_elements("switch", "index", index))
    if index.dtype.is_floating_point or index.dtype.is_complex:
        raise ArgumentTypeError(
            message("switch", "not an integer", parameter="index", expected="an integer tensor", got=index.dtype)
        )
    if not is_capturing() and not _torch.is_batched(index):
        return branches[min(max(int(_torch.read_number(index)), 0), last)](*numbers_as_tensors(operands))
    selector = index.reshape(()).to(torch.int64).clamp(0, last)
    return _captured("switch", selector, [(f"branches[{i}]", b) for i, b in enumerate(branches)], operands)


def _check_number(operation: str, parameter: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ArgumentTypeError(
            message(
                operation,
                "neither a number nor a tensor",
                parameter=parameter,
                expected=f"a one-element tensor or a Python {names}",
                got=f"{type(value).__name__} {value!r}",
            )
        )


def _several_elements(operation: str, parameter: str, value: Tensor) -> str:
    return message(
        operation,
        "not a single value",
        parameter=parameter,
        expected="a tensor of one element",
        got=f"shape {tuple(value.shape)}",
        remedy="reduce it with .any() or .all(), or vmap the function over it",
    )


def _captured(
    operation: str,
    selector: Tensor,
    branches: list[tuple[str, Callable[..., Any]]],
    operands: tuple[Any, ...],
) -> Any:
    from . import cond_op
    from .eager import cond_static

    leaves, spec = check_tensor_leaves(operation, "operands", numbers_as_tensors(operands))
    inputs = [TensorMeta.of(x) for x in leaves]
    captured, specs = [], []
    for name, branch in branches:

        def run(*flat: Tensor, branch: Callable[..., Any] = branch) -> list[Tensor]:
            tensors, output = OutputSpec.flatten(branch(*pytree.unflatten(spec, flat)))
            specs.append(output)
            return tensors

        captured.append(speculate_subgraph(run, inputs, operation=operation, parameter=name))
    # The user names the true branch first.
    order = reversed(range(len(branches))) if operation == "cond" else range(len(branches))
    first, *others = [(branches[i][0], specs[i]) for i in order]
    for other in others:
        check_agreement(operation, "the outputs of the branches", first, other, path="output")
    bodies, lifted = merge_lifted(captured, len(inputs))
    outs = cond_op(cond_static(bodies), selector, *leaves, *lifted)
    return specs[0].unflatten(outs)
