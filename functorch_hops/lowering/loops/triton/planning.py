"""A loop on a CUDA device as a kernel, or the reason why it has none."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ....ir.build import copy_of
from ....ir.meta import TensorMeta
from ....ir.subgraph import Subgraph
from ..body import lowered
from ..forms import Form, Prefixes, Refused, Scan, While
from ..graph_sizes import GraphSizes
from ..lane_rows import Rows
from ..masked import is_masked, without_representatives
from ..source import numel
from ..unrolled import Held
from .around import Launch, kernel_of, lanes_of, returned, scan_lines, targets_of, while_lines
from .body import LaneStep, Programs
from .operator import device_of, launch_arguments, triton_loop
from .selects import with_selects
from .values import copied

__all__ = ["check_form", "is_on_cuda", "launch_of", "launched"]

_CPU = torch.device("cpu")


def is_on_cuda(form: Form | Subgraph) -> bool:
    return any(meta.device.type == "cuda" for meta in form.outputs)


def check_form(form: Form, has_effects: bool, is_inner: bool) -> None:
    """Refuse what is no single loop over lanes; NOTE [Kernels on CUDA]."""
    if has_effects:
        raise Refused("a kernel on CUDA can't check, print or call back")
    if is_inner:
        raise Refused("a kernel on CUDA has one loop")
    if 0 in map(numel, (*form.inputs, *form.outputs)):
        raise Refused("a tensor is empty")
    if isinstance(form, Prefixes):
        raise Refused("on CUDA, operators on all elements at once are faster than one after the other")
    if isinstance(form, While) and form.flags:
        raise Refused("it stacks values for a gradient, which takes a tape, and CUDA has none")


def launch_of(form: Form, options: dict[str, Any]) -> Launch:
    """The kernel of a loop that ``check_form`` let pass."""
    assert isinstance(form, Scan | While)
    lanes, n, body = lanes_of(form), form.n_carry, form.body
    programs = Programs(lanes, [*body.inputs, *body.outputs], options)
    targets = targets_of(form, lanes)
    pointers = [f"in_{i}" for i in range(len(form.inputs))]
    begin = [line for held, pointer in zip(targets[:n], pointers) for line in copied(held, pointer)]

    def step(body: Subgraph, rows: Sequence[str], targets: Sequence[Held]) -> LaneStep:
        consts = pointers[n + len(rows) : len(body.inputs)]
        lowered_body = lowered(_on_cpu(with_selects(body)), options)
        return programs.step(lowered_body, [*carries, *rows, *consts], targets, len(consts))

    carries = targets[:n]
    if isinstance(form, Scan):
        rows = [f"row_{i}" for i in range(n, n + form.n_xs)]
        outputs = [f"out_{i}" for i in range(len(targets))]
        loop = scan_lines(form, targets, pointers, outputs, step(body, rows, targets))
        return kernel_of("scan", form, programs, [*begin, *loop, *returned(carries)])
    if is_masked(form):
        loop = while_lines(carries[0], None, step(without_representatives(body), [], targets))
    else:
        answer = Held("answer", Rows(lanes, 0, 1), torch.bool)
        loop = while_lines(answer, step(form.cond, [], [answer]), step(body, [], targets))
    return kernel_of("while_loop", form, programs, [*begin, *loop, *returned(carries)])


def launched(
    graph: fx.Graph, launch: Launch, operands: Sequence[fx.Node], outputs: Sequence[TensorMeta], sizes: GraphSizes
) -> list[fx.Node]:
    """The call of a kernel, and its results. It writes to its GPU only: numbers that the loop keeps on the CPU, as
    counters are, are copied there if anybody reads them.
    """
    device, mode = device_of(outputs), sizes.new_mode()
    written = [meta._replace(device=device) for meta in (*outputs, *launch.scratch)]
    new = graph.call_function(triton_loop, launch_arguments(launch, operands, written, sizes.node_of))
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
