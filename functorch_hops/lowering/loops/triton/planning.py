"""A loop on a CUDA device as a kernel, or the reason why it has none."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ....ir.build import copy_of
from ....ir.meta import TensorMeta
from ....ir.subgraph import Subgraph
from ..body import Lowering
from ..forms import Form, Prefixes, Refused, Scan, While
from ..lane_rows import Rows
from ..lane_steps import Body
from ..masked import is_masked, without_representatives
from ..plans import Plan
from ..source import numel
from ..unrolled import Held
from .around import Launch, kernel_of, lanes_of, returned, scan_lines, targets_of, while_lines
from .body import LaneStep, Programs
from .operator import device_of, launch_arguments, triton_loop
from .selects import with_selects
from .systems import Bodies, systems
from .values import copied

__all__ = ["check_form", "is_on_cuda", "launch_of", "launched"]

aten = torch.ops.aten

_CPU = torch.device("cpu")


def is_on_cuda(form: Form | Subgraph) -> bool:
    return any(meta.device.type == "cuda" for meta in form.outputs)


def check_form(form: Form, has_effects: bool) -> None:
    """Refuse what is no loop over lanes; NOTE [Kernels on CUDA]."""
    if has_effects:
        raise Refused("a kernel on CUDA can't check, print or call back")
    if 0 in map(numel, (*form.inputs, *form.outputs)):
        raise Refused("a tensor is empty")
    if isinstance(form, Prefixes):
        raise Refused("on CUDA, operators on all elements at once are faster than one after the other")


def launch_of(form: Form, draft: Callable[[Subgraph], Plan], options: dict[str, Any]) -> tuple[Launch, Sequence[Plan]]:
    """The kernel of a loop that ``check_form`` let pass, and what became of the loops in its bodies. ``draft``: names
    for these.
    """
    assert isinstance(form, Scan | While)
    made: dict[tuple[Subgraph, bool], tuple[Body, Plan]] = {}

    def body(given: Subgraph, is_open: bool) -> Body:
        if (given, is_open) not in made:
            selecting = with_selects(given)
            plan = draft(without_representatives(selecting) if is_open else selecting)
            made[given, is_open] = Body(Lowering(_on_cpu(plan.body), options), plan.kernels), plan
        return made[given, is_open][0]

    try:
        launch = _by_lanes(form, body, options)
    except Refused as refused:
        why = str(refused)
        try:
            launch = systems(form, body, options)
        except Refused as again:
            reasons = dict.fromkeys((why, str(again)))
            raise Refused("; with the numbers of a lane in registers, ".join(reasons)) from None
    own = [form.body] if isinstance(form, Scan) else [form.cond, form.body]
    return launch, [plan for (body, _), (_, plan) in made.items() if body in own]


def _by_lanes(form: Scan | While, bodies: Bodies, options: dict[str, Any]) -> Launch:
    """With one number of each value for a lane."""
    lanes, n, metas = lanes_of(form), form.n_carry, form.body.inputs
    programs = Programs(lanes, [*metas, *form.body.outputs], options)
    targets = targets_of(form, lanes)
    carries = targets[:n]
    pointers = [f"in_{i}" for i in range(len(form.inputs))]
    begin = [line for held, pointer in zip(carries, pointers) for line in copied(held, pointer)]

    def step(body: Subgraph, rows: Sequence[str], targets: Sequence[Held], is_open: bool = False) -> LaneStep:
        consts = pointers[n + len(rows) : len(metas)]
        return programs.step(bodies(body, is_open).lowered, [*carries, *rows, *consts], targets, len(consts))

    if isinstance(form, Scan):
        rows, stacks = (
            [f"{x}_{i}" for i in range(n, end)] for x, end in (("row", n + form.n_xs), ("out", len(targets)))
        )
        loop = scan_lines(form, targets, pointers, stacks, step(form.body, rows, targets))
        return kernel_of(form, programs, [*begin, *loop, *returned(carries)])
    if is_masked(form):
        loop = while_lines(carries[0], None, step(form.body, [], targets, is_open=True))
    else:
        answer = Held("answer", Rows(lanes, 0, 1), torch.bool)
        loop = while_lines(answer, step(form.cond, [], [answer]), step(form.body, [], targets))
    return kernel_of(form, programs, [*begin, *loop, *returned(carries)])


def launched(
    graph: fx.Graph, launch: Launch, operands: Sequence[fx.Node], outputs: Sequence[TensorMeta], sizes: Any
) -> list[fx.Node]:
    """The call of a kernel, and its results. It writes to its GPU only: numbers that the loop keeps on the CPU, as
    counters are, are copied there if anybody reads them.
    """
    device, mode = device_of(outputs), sizes.new_mode()
    written = [meta._replace(device=device) for meta in (*outputs, *launch.scratch)]
    given = [_made_on(x, device, mode) if x.target in _INDICES else x for x in operands]
    new = graph.call_function(triton_loop, launch_arguments(launch, given, written, sizes.node_of))
    new.meta["val"] = [meta.fake(mode) for meta in written]
    results = []
    for i, (meta, value) in enumerate(zip(outputs, new.meta["val"])):
        result = graph.call_function(operator.getitem, (new, i))
        result.meta["val"] = value
        if meta.device != device:
            result = graph.call_function(torch.ops.aten._to_copy.default, (result,), {"device": meta.device})
            result.meta["val"] = meta.fake(mode)
        results.append(result)
    return results


_INDICES = {aten.arange.default, aten.arange.start, aten.arange.start_step}


def _made_on(indices: fx.Node, device: torch.device, mode: Any) -> fx.Node:
    """Indices of steps, which loops have on the CPU: there Inductor would need a C++ compiler for them."""
    assert callable(indices.target)
    new = indices.graph.call_function(indices.target, indices.args, {**indices.kwargs, "device": device})
    new.meta["val"] = TensorMeta.of(indices.meta["val"])._replace(device=device).fake(mode)
    return new


def _on_cpu(body: Subgraph) -> Subgraph:
    """The same graph on the CPU: what it computes does not depend on where."""
    module = copy_of(body)

    def moved(value: Any) -> Any:
        return _CPU if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(node.args, moved), fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()
    inputs, outputs = ([meta._replace(device=_CPU) for meta in metas] for metas in (body.inputs, body.outputs))
    return Subgraph.intern(module, inputs, outputs)
