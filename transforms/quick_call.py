"""A call like one that found its trace, as one function written for it: it validates all that there is to validate,
and runs the compiled code.

NOTE [A quick call refuses what it does not know] It answers, or it leaves the call to :class:`JittedFunction`, which
looks for a trace as if there were no quick call. So what it compares may be stricter than what a trace depends on:
strides, which tensors need gradients, which objects among arguments and environment are the same. It may not be laxer,
and asks for all of NOTE [When a trace is valid]: the arguments (``calls.reading``, and the check of the tensors), the
ambient settings and whether anything is active that a call must be dispatched to, the environment (its ``Guard``), the
answers that tensors gave, and the facts about open sizes: those hold because the sizes are what they were.
Everything is read first and used afterwards, so no lock is needed: what another thread changes meanwhile changes after
this call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from functorch_hops import _torch
from functorch_hops.calls.output import Constant, OutputSpec
from functorch_hops.calls.reading import Reader
from functorch_hops.calls.recording import is_recorded_under_no_grad
from functorch_hops.environment.source import Source
from functorch_hops.hop.operator import is_plain_call
from functorch_hops.ir.active import state
from functorch_hops.lowering.backends import OtherSizesError
from functorch_hops.ops.closed_call.prepared import prepared
from functorch_hops.ops.mode import forced, is_capturing
from functorch_hops.trace.history import Question
from functorch_hops.transforms.compiled_trace import CompiledTrace, Places

__all__ = ["QuickCall", "quick_call"]

QuickCall = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any] | None]
"""The result of a call, alone in a tuple; None if it is not for this function to answer."""


def quick_call(
    entry: CompiledTrace,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static: Mapping[int | str, Any],
    static_floats: bool,
    operands: Sequence[Tensor],
) -> QuickCall | None:
    """The function for calls like this one, for which ``entry`` was found to be valid just now; None where there can be
    none. ``static``: the arguments that are static as a whole, by place or name.
    """
    guard, places = entry.watched
    tensors = guard.fetch()
    if tensors is None or is_capturing() or not is_plain_call(operands):
        return None
    source = Source()
    reader = Reader(source, static_floats)
    reader.call(args, kwargs, static)
    found = [(f"e{i}", tensor) for i, tensor in enumerate(tensors)]
    known = dict([*reader.tensors, *found])
    if not (reader.is_complete and known and all(map(_is_common, known.values()))):
        return None
    _write_tensors(source, reader.tensors)  # first, for that is what most often differs
    _write_settings(source, entry.params.backend.name)
    source.add(f"found = {source.name(guard.fetch)}()")
    source.refuse_if("found is None")
    if found:
        source.add(f"{', '.join(name for name, _ in found)}, = found")
        _write_tensors(source, found)
    selected = iter([found[at][0] for at in guard.selected])
    sources = [next(selected) if isinstance(s, str) else source.name(s) for s in entry.trace.sources]
    names = [*reader.operands, *sources]
    if len(names) != len(operands) or any(known.get(name, x) is not x for name, x in zip(names, operands)):
        return None  # another thread has changed something meanwhile
    try:
        run = _run(entry, operands, places)
    except OtherSizesError:
        return None
    if any(asked.question in _UNSEEN for asked in entry.trace.assumed):
        source.refuse_if(f"not {source.name(entry.trace.holds_for)}([{', '.join(names)}])")
    source.add(f"outs = {source.name(run)}([{', '.join(names)}])")
    if entry.trace.returned is not None:
        source.add(f"outs = {source.name(entry.trace.returned)}([{', '.join(names)}], outs)")
    _write_result(source, entry.trace.output)
    made: QuickCall = source.function("quick_call", "args, kwargs")
    return made


def _run(
    entry: CompiledTrace, operands: Sequence[Tensor], places: Places
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    if entry.trace.updates or _torch.autocast_enabled() or is_recorded_under_no_grad(entry.params.body):
        return functools.partial(entry.call, places=places)
    return prepared(entry.params, operands)


def _is_common(tensor: Tensor) -> bool:
    return type(tensor) in _torch.PLAIN_TYPES and _torch.is_dense(tensor)


def _write_settings(source: Source, backend: Any) -> None:
    source.refuse_if(f"{source.name(state)}.capture is not None or {source.name(forced)}.either")
    for get, arguments, expected in _torch.ambient_checks(backend):
        call = f"{source.name(get)}({', '.join(map(source.name, arguments))})"
        source.refuse_if(f"{call} {'is not' if type(expected) is bool else '!='} {source.name(expected)}")


def _write_tensors(source: Source, named: Sequence[tuple[str, Tensor]]) -> None:
    """Tensors like these; those that are one object still are, the others are not."""
    first: dict[int, str] = {}
    for name, tensor in named:
        if first.setdefault(id(tensor), name) != name:
            source.refuse_if(f"{name} is not {first[id(tensor)]}")
    distinct = {id(tensor): tensor for _, tensor in named}
    if distinct:
        source.refuse_if(f"not {source.name(_torch.tensor_check([*distinct.values()]))}({', '.join(first.values())})")


def _write_result(source: Source, output: OutputSpec) -> None:
    outs = [f"o{i}" for i in range(len(output.metas))]
    if outs:
        source.add(f"{', '.join(outs)}, = outs")
    tensors = iter(outs)
    leaves = [source.name(leaf.value) if isinstance(leaf, Constant) else next(tensors) for leaf in output.leaves]
    if output.spec.is_leaf():
        source.add(f"return {leaves[0]},")
    else:
        source.add(f"return {source.name(output.spec.unflatten)}([{', '.join(leaves)}]),")


_UNSEEN = frozenset({Question.IS_LEAF, Question.LIES_PLAINLY, Question.OFFSET, Question.IS_CONJ, Question.IS_NEG})
"""What the check of the tensors does not compare."""
