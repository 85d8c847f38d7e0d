"""``while_loop``: arguments, plain eager, capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...calls.leaf import one_node
from ...calls.notes import note_body
from ...calls.numbers import as_number
from ...calls.output import OutputSpec
from ...calls.recording import recorded_as_bodies_say
from ...calls.spelling import spelled
from ...calls.trace_cache import as_graph
from ...calls.validate import PYTHON_NUMBERS, as_int, check_callable, kind_of
from ...errors import ArgumentTypeError, ErrorContext, InfiniteLoopError, message
from ...ir.build import merge_lifted
from ...ir.subgraph import Subgraph
from ...passes.passthrough import simplify_call
from ...trace.history import Carried
from ...trace.hooks import note_untaken
from ...trace.speculate import speculate_subgraph
from ..effect.marking import begin_loop, in_loop
from ..effect.running import perform, with_deferred_effects
from ..loops.steps import PlainCarry
from ..loops.weak_carry import InitialCarry, Weak, capture_step, converted, followed, kinds_of
from ..mode import is_capturing, is_stepwise
from .op import WhileLoopParams, while_loop_op
from .passthrough import while_loop_passthrough

__all__ = ["run_while", "while_loop"]

_BY_POSITION = "pass it by position: fh.while_loop(cond_fn, body_fn, init_val)"


@one_node
@spelled(
    body_fun=_BY_POSITION,
    cond_fun=_BY_POSITION,
    init_val=_BY_POSITION,
    carried_inputs="pass the carry, which may be a tuple, by position: fh.while_loop(cond_fn, body_fn, init_val)",
    maxiter="write max_steps=",
)
def while_loop(
    cond_fn: Callable[[Any], Any],
    body_fn: Callable[[Any], Any],
    init_val: Any,
    /,
    *,
    max_steps: int | None = None,
    checkpoints: int | None = None,
) -> Any:
    """Loop while a condition holds. Differentiable in forward and reverse mode, without a bound on the trip count.

    ``while_loop : ((c -> bool), (c -> c), c) -> c``. Equivalent to::

        def while_loop(cond_fn, body_fn, init_val):
            value = init_val
            while cond_fn(value):
                value = body_fn(value)
            return value

    Arguments:
        cond_fn: the condition, a function of the carry to a bool or a one-element tensor (non-zero is true).
        body_fn: one step, from the carry to a carry of the same tree, shapes, dtypes and devices.
        init_val: the initial carry, any tree of tensors and Python numbers, which take dtypes as in :func:`scan`.
        max_steps: stop after so many iterations, silently; 0 is allowed.
        checkpoints: reverse mode keeps the initial carry and at most so many others, and runs the body again for the
            rest, with the random numbers that it drew. The loop is then captured in plain eager too.

    Under ``vmap`` with a batched condition the loop runs until every lane is done; a finished lane keeps its value and
    is never poisoned by what the others still compute.

    Returns:
        The carry when the loop ends, a tree like ``init_val``.

    Raises:
        TreeMismatchError, MetadataMismatchError: the carry changes.
        ArgumentTypeError: a function is not callable, the condition has several elements, a count is no int.
        ArgumentValueError: ``max_steps < 0``, ``checkpoints < 1``; with ``checkpoints``, gradients of a body that draws
            random numbers elsewhere than on the CPU.
        InfiniteLoopError: a captured condition is constantly true and ``max_steps`` is None.

    Cost: one call of the condition and the body per iteration. Reverse mode stores, per iteration, what the body's
    derivative reads. With ``checkpoints=k`` it stores k carries for any number T of iterations, and the body runs at
    most (r + 1) T times in all, its evaluation within each step's derivative included, for the least r with
    C(k + r, r) >= T. A derivative of a derivative stores, while it is computed, something for each of these runs.

    Source: ``jax.lax.while_loop``; reverse mode as asked for in jax-ml/jax 2469 and 13062; checkpoints after Wang, Moin
    and Iaccarino 2009, "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint calculation".

    >>> import torch, functorch_hops as fh
    >>> fh.while_loop(lambda x: x < 100, lambda x: x * 3, torch.tensor(1.0))
    tensor(243.)
    """
    check_callable("while_loop", "cond_fn", cond_fn)
    check_callable("while_loop", "body_fn", body_fn)
    if max_steps is not None:
        max_steps = as_int("while_loop", "max_steps", max_steps, at_least=0)
    if checkpoints is not None:
        checkpoints = as_int("while_loop", "checkpoints", checkpoints, at_least=1)
    init = InitialCarry.of("while_loop", "init_val", init_val)
    if checkpoints is not None and max_steps is not None:
        checkpoints = max(1, min(checkpoints, max_steps))  # slots that no step could fill
    value = run_while(ErrorContext("while_loop", "body_fn"), cond_fn, body_fn, init, max_steps, checkpoints)
    return init.check_range("while_loop", "init_val", value)


def run_while(
    context: ErrorContext,
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    init: InitialCarry,
    max_steps: int | None = None,
    checkpoints: int | None = None,
) -> Any:
    """``while_loop`` of checked arguments, for the loops that are while loops: ``context`` says what the user wrote."""
    if is_capturing() or not (checkpoints is None or is_stepwise()):
        functions, static = (cond_fn, body_fn), (context, init.weak, max_steps, checkpoints)
        return as_graph("while_loop", _captured_while_loop, functions, (init.tree,), *static, observed=True)
    return _plain_while_loop(context, cond_fn, body_fn, init, max_steps)


def _plain_while_loop(
    context: ErrorContext,
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    init: InitialCarry,
    max_steps: int | None,
) -> Any:
    carries = PlainCarry(context, init)
    try:
        return _plain_steps(carries, context, cond_fn, body_fn, init, max_steps)
    except Exception as error:
        if not carries.goes_on:
            note_body(error, context.operation, body_fn, (init.tree,), step=carries.steps)
        raise


def _plain_steps(
    carries: PlainCarry,
    context: ErrorContext,
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    init: InitialCarry,
    max_steps: int | None,
) -> Any:
    value = init.tree
    is_transformed = _torch.top_interpreter() is not None
    while max_steps is None or carries.steps < max_steps:
        # A graph of the rest of the loop tests the condition once more.
        tested, effects = with_deferred_effects(cond_fn, value) if is_transformed else (cond_fn(value), ())
        pred = _checked_predicate(tested)
        if isinstance(pred, Tensor):
            if _torch.is_batched(pred):
                rest = None if max_steps is None else max_steps - carries.steps
                functions, static = (cond_fn, body_fn), (context, init.weak, rest, None, carries.steps)
                carries.go_on()
                return as_graph("while_loop", _captured_while_loop, functions, (value,), *static, observed=True)
            pred = _torch.read_number(pred)
        for effect in effects:
            perform(*effect)
        if not pred:
            break
        value = carries.follow(body_fn(value))
    made = [value]
    del value
    return carries.final(made, _without_outputs(body_fn))


def _without_outputs(body_fn: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A step of ``while_loop`` as one of ``scan``."""
    return lambda value, _: (body_fn(value), None)


def _checked_predicate(pred: Any) -> Any:
    """What ``cond_fn`` returned, if it is a one-element tensor or a Python number."""
    if isinstance(pred, Tensor):
        if pred.numel() == 1:
            return pred
        problem, remedy = "the condition is not a single value", "reduce it with .any() or .all(), or vmap the loop"
    else:
        pred = as_number(pred)
        if isinstance(pred, PYTHON_NUMBERS):
            return pred
        problem = "the condition is neither a number nor a tensor"
        remedy = "return a comparison, such as state.sum() > 0"
    expected, got = "a bool or a tensor of one element", kind_of(pred)
    text = message("while_loop", problem, parameter="cond_fn", expected=expected, got=got, remedy=remedy)
    raise ArgumentTypeError(text)


def _captured_while_loop(
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any],
    context: ErrorContext,
    weak: Weak,
    max_steps: int | None,
    checkpoints: int | None,
    first: int = 0,
) -> Any:
    """The loop as one node; a bound on the steps is a counter in its carry. ``first``: the number of its first step."""
    (cond_fn, body_fn), (tree,) = functions, operands
    try:
        return _captured_steps(cond_fn, body_fn, tree, context, weak, max_steps, checkpoints, first)
    except Exception as error:
        note_body(error, context.operation, body_fn, (tree,))
        raise


def _captured_steps(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    tree: Any,
    context: ErrorContext,
    weak: Weak,
    max_steps: int | None,
    checkpoints: int | None,
    first: int,
) -> Any:
    if max_steps is not None:
        start, follow = torch.zeros((), dtype=torch.int64), followed(context, InitialCarry(tree, weak, weak))
        bounded = (
            lambda state: _and_then(state[0] < max_steps, cond_fn(state[1])),
            lambda state: (state[0] + 1, follow(state[1], body_fn(state[1]))),
        )
        try:
            _, value = _captured_steps(*bounded, (start, tree), context, (None, *weak), None, checkpoints, first)
        except Exception as error:
            if max_steps == 0:
                note_untaken(error)
            raise
        return value
    leaves, initial = OutputSpec.flatten(tree)
    sources = [Carried(x, i) for i, x in enumerate(leaves)]
    is_constant, cond = _capture_condition(context, cond_fn, initial, sources)
    if is_constant is False and not any(weak):
        return tree
    try:
        carry, (body, lifted, _) = capture_step(context, _without_outputs(body_fn), initial, weak, sources)
        if carry != initial:
            leaves = pytree.flatten(converted(tree, kinds_of(carry)))[0]
            is_constant, cond = _capture_condition(context, cond_fn, carry, sources)
    except Exception as error:
        note_untaken(error)  # but the first condition is asked, where a step may be taken
        raise
    if is_constant is False:
        return carry.unflatten(leaves)
    (cond_graph, body_graph), lifted = merge_lifted([cond, (body, lifted)], len(leaves))
    if cond_graph.holds_effects or body_graph.holds_effects:
        loop = begin_loop(context.operation, first)
        cond_graph, body_graph = in_loop(cond_graph, loop, ends_step=False), in_loop(body_graph, loop)
    params = WhileLoopParams(cond_graph, body_graph, len(leaves), checkpoints=checkpoints)
    params, flat, restore = simplify_call(while_loop_passthrough, params, [*leaves, *lifted])
    with recorded_as_bodies_say(body_graph):
        return carry.unflatten(restore(while_loop_op(params, *flat)))


def _capture_condition(
    context: ErrorContext, cond_fn: Callable[..., Any], carry: OutputSpec, sources: Sequence[Carried]
) -> tuple[bool | None, tuple[Subgraph, list[Tensor]]]:
    """The condition as a graph, and False if that is what it always is."""
    constants: list[Any] = []

    def run(*flat: Tensor) -> list[Tensor]:
        pred = _checked_predicate(cond_fn(carry.unflatten(flat)))
        known = _torch.known_number(pred) if isinstance(pred, Tensor) else None
        pred = pred if known is None else known
        if not isinstance(pred, Tensor):
            constants.append(bool(pred))
            return [torch.full((), bool(pred))]
        pred = pred.reshape(())
        return [pred if pred.dtype == torch.bool else pred != 0]

    captured = speculate_subgraph(
        run,
        carry.metas,
        operation=context.operation,
        parameter="cond_fn",
        sources=[dataclasses.replace(source, place=None) for source in sources],
    )
    if constants == [True]:
        endless = InfiniteLoopError(
            message(
                "while_loop",
                "the condition is constantly true",
                parameter="cond_fn",
                expected="a condition that depends on the carry",
                remedy="pass max_steps=, or compute the condition from the carry",
            )
        )
        note_untaken(endless)
        raise endless
    return (False if constants else None), captured


def _and_then(bound: Tensor, pred: Any) -> Any:
    pred = _checked_predicate(pred)
    if not isinstance(pred, Tensor):
        return bound if pred else False
    return bound & (pred.reshape(()) != 0)
