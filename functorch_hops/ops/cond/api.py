"""``cond`` and ``switch``: arguments, plain eager, capture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...calls.arguments import distinct_operands
from ...calls.leaf import one_node
from ...calls.notes import note_body
from ...calls.numbers import as_number, number_as_tensor, numbers_as_tensors
from ...calls.output import OutputSpec
from ...calls.own_memory import with_own_memory
from ...calls.recording import recorded_as_bodies_say
from ...calls.spelling import spelled
from ...calls.trace_cache import as_graph
from ...calls.validate import (
    PYTHON_NUMBERS,
    as_int,
    check_agreement,
    check_callable,
    check_tensor_leaves,
    kind_of,
    order_of,
)
from ...errors import ArgumentTypeError, ArgumentValueError, message
from ...ir.build import merge_lifted
from ...ir.meta import TensorMeta
from ...trace.capture import current_capture
from ...trace.history import Itself
from ...trace.hooks import note_untaken
from ...trace.speculate import speculate_subgraph
from ..mode import is_capturing
from .op import CondParams, cond_op

__all__ = ["cond", "switch"]


@one_node
@spelled(
    operand="pass operands by position: fh.cond(pred, true_fn, false_fn, x)",
    operands="pass operands by position, not in a tuple: fh.cond(pred, true_fn, false_fn, *operands)",
    true_fun="pass functions by position: fh.cond(pred, true_fn, false_fn, *operands)",
)
def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], /, *operands: Any) -> Any:
    """Run one of two functions, chosen by a predicate.

    ``cond : (bool, (a -> b), (a -> b), a) -> b``. Equivalent to::

        def cond(pred, true_fn, false_fn, *operands):
            return true_fn(*operands) if pred else false_fn(*operands)

    Arguments:
        pred: a Python bool or number, or a one-element tensor of any dtype; non-zero is true. A Python value is static:
            while capturing, only the branch that it takes is captured.
        true_fn, false_fn: functions of the operands, which may close over anything. Captured, both must return the
            same tree of the same shapes, dtypes and devices; leaves that are neither tensors nor numbers must be equal.
        operands: trees of tensors; Python numbers become 0-d tensors.

    Under ``vmap`` with a batched predicate both branches run (one that no lane takes does not), and the lanes select;
    a lane is never poisoned by NaN or inf of the branch that it did not take, nor is its gradient.

    Returns:
        What the function that was run returns, with Python numbers as 0-d tensors.

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
    if isinstance(pred, torch.SymBool):  # about an open size, which only a call knows
        pred = number_as_tensor(pred)
    if not isinstance(pred, Tensor):
        pred = as_number(pred)
        if not isinstance(pred, PYTHON_NUMBERS):
            expected, remedy = "a bool, a number, or a tensor of one element", "pass a comparison, such as x.sum() > 0"
            text = message(
                "cond", "not a predicate", parameter="pred", expected=expected, got=kind_of(pred), remedy=remedy
            )
            raise ArgumentTypeError(text)
        return _run("cond", true_fn if pred else false_fn, operands)
    _check_one_element("cond", "pred", pred)
    if not is_capturing() and not _torch.is_batched(pred):
        return _run("cond", true_fn if _torch.read_number(pred) else false_fn, operands)
    selector = pred.reshape(())
    selector = selector if selector.dtype == torch.bool else selector != 0
    names = ("false_fn", "true_fn")
    arguments = (selector, *numbers_as_tensors(operands))
    return _as_graph("cond", (false_fn, true_fn), arguments, names)


@one_node
def switch(index: Any, branches: Sequence[Callable[..., Any]], /, *operands: Any) -> Any:
    """Run one of several functions, chosen by an index.

    ``switch : (int, [a -> b], a) -> b``. Equivalent to::

        def switch(index, branches, *operands):
            return branches[min(max(index, 0), len(branches) - 1)](*operands)

    Arguments:
        index: a Python int (static) or a one-element integer tensor; values out of range are clamped.
        branches: a non-empty sequence of functions of the operands, as in :func:`cond`.
        operands: trees of tensors; Python numbers become 0-d tensors.

    Returns:
        What the function that was run returns, with Python numbers as 0-d tensors.

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
    if not isinstance(branches, Iterable):
        text = message(
            "switch",
            "not a sequence",
            parameter="branches",
            expected="a list of functions",
            got=kind_of(branches),
            remedy=order_of("switch"),
        )
        raise ArgumentTypeError(text)
    branches = list(branches)
    if not branches:
        expected, remedy = "at least one function", "pass a list of the functions to choose from"
        raise ArgumentValueError(
            message("switch", "there is no branch", parameter="branches", expected=expected, got="none", remedy=remedy)
        )
    for i, branch in enumerate(branches):
        check_callable("switch", f"branches[{i}]", branch)
    last = len(branches) - 1
    if isinstance(index, torch.SymInt):
        index = number_as_tensor(index)
    if not isinstance(index, Tensor):
        # A bool chooses between two branches.
        number = int(index) if isinstance(index, bool) else as_int("switch", "index", index, expected=_INDEX)
        return _run("switch", branches[min(max(int(number), 0), last)], operands)
    _check_one_element("switch", "index", index)
    if index.dtype.is_floating_point or index.dtype.is_complex:
        got, remedy = kind_of(index), "convert it with .long()"
        text = message("switch", "not an int", parameter="index", expected=_INDEX, got=got, remedy=remedy)
        raise ArgumentTypeError(text)
    if not is_capturing() and not _torch.is_batched(index):
        return _run("switch", branches[min(max(int(_torch.read_number(index)), 0), last)], operands)
    selector = index.reshape(()).to(torch.int64).clamp(0, last)
    names = tuple(f"branches[{i}]" for i in range(len(branches)))
    arguments = (selector, *numbers_as_tensors(operands))
    return _as_graph("switch", branches, arguments, names)


def _run(operation: str, branch: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    given = numbers_as_tensors(operands)
    try:
        return with_own_memory([numbers_as_tensors(branch(*given))])
    except Exception as error:
        note_body(error, operation, branch, given)
        raise


_INDEX = "an int or a one-element integer tensor"


def _check_one_element(operation: str, parameter: str, value: Tensor) -> None:
    if value.numel() != 1:
        reduced = "reduce it with .any() or .all(), or " if parameter == "pred" else ""
        text = message(
            operation,
            "not a single value",
            parameter=parameter,
            expected="a tensor of one element",
            got=kind_of(value),
            remedy=f"{reduced}vmap the function over it",
        )
        raise ArgumentTypeError(text)


def _as_graph(
    operation: str, branches: Sequence[Callable[..., Any]], arguments: tuple[Any, ...], names: tuple[str, ...]
) -> Any:
    # Outside of a capture, what branches do besides is done in each call.
    observed = current_capture() is not None
    return as_graph(operation, _captured_cond, branches, arguments, operation, names, observed=observed)


def _captured_cond(
    branches: Sequence[Callable[..., Any]], arguments: tuple[Any, ...], operation: str, names: tuple[str, ...]
) -> Any:
    selector, *operands = arguments
    all_leaves, spec = check_tensor_leaves(operation, "operands", tuple(operands))
    leaves, filled = distinct_operands(all_leaves)
    inputs = [TensorMeta.of(x) for x in leaves]
    captured, specs, errors = [], [], []
    for name, branch in zip(names, branches):

        def run(*flat: Tensor, branch: Callable[..., Any] = branch) -> list[Tensor]:
            tensors, output = OutputSpec.of_body(branch(*pytree.unflatten(spec, filled(flat))))
            specs.append(output)
            return tensors

        sources = [Itself(x) for x in leaves]
        try:
            captured.append(speculate_subgraph(run, inputs, operation=operation, parameter=name, sources=sources))
        except Exception as error:  # noqa: BLE001 - the others are tried first
            note_body(error, operation, branch, tuple(operands))
            errors.append(error)
    if errors:
        # Where every branch raises the same kind of error, so does plain Python, whichever it takes.
        if captured or len(set(map(type, errors))) > 1:
            note_untaken(errors[0])
        raise errors[0]
    # The user names the true branch first.
    order = reversed(range(len(branches))) if operation == "cond" else range(len(branches))
    first, *others = [(names[i], specs[i]) for i in order]
    try:
        for other in others:
            check_agreement(operation, "the outputs of the branches", first, other, path="output")
    except Exception as error:
        note_untaken(error)
        raise
    bodies, lifted = merge_lifted(captured, len(inputs))
    with recorded_as_bodies_say(*bodies):
        outs = cond_op(CondParams(tuple(bodies)), selector, *leaves, *lifted)
    return specs[0].unflatten(outs)
