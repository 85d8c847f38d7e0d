"""A whole call - positional and keyword arguments of any tree - as a graph of flat tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _torch, environment, pytree
from ..ir.meta import Mask
from ..ir.origin import unannotated
from ..ir.subgraph import Subgraph
from ..trace.buffers import Buffers, Update
from ..trace.capture import current_capture
from ..trace.history import Itself, Question
from ..trace.regrouping import check_regrouped
from ..trace.settings import settings_kept
from ..trace.speculate import capture_function
from .arguments import Arguments, is_operand
from .numbers import symbol_as_tensor
from .output import OutputSpec
from .returned import Returned, separated

__all__ = ["Assumed", "TracedCall", "trace_call"]


class Assumed(NamedTuple):
    """What an operand answered while the call was traced."""

    operand: int
    question: Question
    answer: Any


@dataclass(frozen=True)
class TracedCall:
    """A graph whose operands are the call's operands, then ``lifted``; ``constants`` are those that tracing made."""

    body: Subgraph
    output: OutputSpec
    lifted: list[Tensor]
    constants: set[int]
    updates: list[Update]
    """Of buffers; their new values follow the outputs."""
    assumed: list[Assumed]
    changed: list[str]
    """The places in containers among the arguments that the function changed, which are not the caller's."""
    effects: dict[str, str]
    """What bodies of loops changed, once for all their steps, and where."""
    returned: Returned | None
    """See NOTE [Results that share memory]; None if the results are the outputs."""
    differentiated: Mask
    """The operands by which a transform in the function differentiates, in reverse mode."""


def trace_call(
    func: Callable[..., Any],
    arguments: Arguments,
    operation: str,
    buffers: Buffers | None = None,
    grad_enabled: bool | None = None,
    may_share: bool = False,
) -> TracedCall:
    """Capture ``func`` on arguments like these, called once, in the caller's gradient mode unless one is given.

    ``may_share``: results may share memory with operands and one another, see NOTE [Results that share memory].
    """
    with _torch.one_at_a_time:
        buffers = buffers or Buffers(environment.snapshot(func).buffers, operation, writable=False)
        return _trace_call(func, arguments, operation, buffers, grad_enabled, may_share)


def _trace_call(
    func: Callable[..., Any],
    arguments: Arguments,
    operation: str,
    buffers: Buffers,
    grad_enabled: bool | None,
    may_share: bool,
) -> TracedCall:
    is_traced_float = [type(leaf) is float for leaf in arguments.leaves]
    dynamic = _dynamic_places(arguments)
    outputs: list[tuple[OutputSpec, Returned | None]] = []
    updates: list[Update] = []
    changed: list[str] = []
    enabled = torch.is_grad_enabled() if grad_enabled is None else grad_enabled

    def run(*flat: Tensor) -> list[Tensor]:
        leaves = list(arguments.leaves)
        for place, first in zip(dynamic, arguments.first_places()):
            value = flat[first]  # equal objects among the arguments are one inside
            leaves[place] = _torch.read_scalar(value) if is_traced_float[place] else value
        args, kwargs = pytree.unflatten(arguments.spec, leaves)
        capture: Any = current_capture()
        with torch.set_grad_enabled(enabled), unannotated(), settings_kept(capture.context):
            result = func(*args, **kwargs)
        changed.extend(_changes(arguments, leaves, args, kwargs))
        tensors, output = OutputSpec.flatten(pytree.map(symbol_as_tensor, result))
        check_regrouped(capture, tensors)  # all of them: some are not computed by the graph
        tensors, returned = separated(tensors, capture) if may_share else (tensors, None)
        outputs.append((output, returned))
        made, values = buffers.updates(capture)
        updates.extend(made)
        return [*tensors, *values]

    try:
        body, capture = capture_function(
            run,
            arguments.metas(),
            operation=operation,
            parameter=_name(func),
            sources=[Itself(x) if isinstance(x, Tensor) else None for x in arguments.operands],
            buffers=buffers,
        )
    finally:
        buffers.restore()
    places = {id(x): i for i, x in enumerate([*arguments.operands, *capture.lifted])}
    assumed = [Assumed(places[id(a.tensor)], a.question, a.answer) for a in capture.history.assumed.values()]
    output, returned = outputs[-1]
    facts = updates, assumed, changed, capture.session.effects
    differentiated = tuple(node in capture.differentiated for node in capture.history.inputs)
    return TracedCall(body, output, capture.lifted, capture.constants, *facts, returned, differentiated)


def _changes(arguments: Arguments, leaves: list[Any], args: Any, kwargs: Any) -> list[str]:
    """Where a call changed the containers that it was given, as far as no tensor stands there now."""
    now, spec = pytree.flatten((args, kwargs))
    if spec == arguments.spec:
        paths = [*pytree.leaf_paths(pytree.flatten(args)[1], "args"), *pytree.leaf_paths(pytree.flatten(kwargs)[1], "")]
        pairs = zip(paths, now, leaves, strict=True)
        return [path for path, new, old in pairs if new is not old and not isinstance(new, Tensor)]
    statics, before = ([leaf for leaf in side if not isinstance(leaf, Tensor)] for side in (now, leaves))
    only_new_tensors = len(now) >= len(leaves) and [*map(id, statics)] == [*map(id, before)]
    return [] if only_new_tensors else ["an argument"]


def _dynamic_places(arguments: Arguments) -> list[int]:
    """The places among the leaves of the operands, in their order."""
    floats = any(entry is float for entry in arguments.key[1:])
    return [i for i, leaf in enumerate(arguments.leaves) if is_operand(leaf) or (floats and type(leaf) is float)]


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", None) or type(func).__name__
