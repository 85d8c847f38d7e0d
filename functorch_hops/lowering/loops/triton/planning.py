"""A loop on a CUDA device as a kernel, or the reason why it has none."""

from __future__ import annotations

import itertools
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
from ..masked import is_masked, without_representatives
from ..source import numel
from .around import Launch, lanes_of, scan_by_lanes, scan_sources, while_by_lanes, while_sources
from .body import LaneStep, lane_step
from .operator import device_of, launch_arguments, triton_loop
from .selects import with_selects

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
    sizes = [numel(meta) for meta in (*form.inputs, *form.outputs)]
    if not all(type(size) is int for size in sizes) or (isinstance(form, Scan) and type(form.length) is not int):
        raise Refused("a size is open")
    if 0 in sizes:
        raise Refused("a tensor is empty")
    if isinstance(form, Prefixes):
        raise Refused("on CUDA, operators on all elements at once are faster than one after the other")
    if isinstance(form, While) and form.flags:
        raise Refused("it stacks values for a gradient, which takes a tape, and CUDA has none")


def launch_of(form: Form, options: dict[str, Any]) -> Launch:
    """The kernel of a loop that ``check_form`` let pass."""
    assert isinstance(form, Scan | While)
    n, numbers = form.n_carry, itertools.count()
    count = lanes_of(form)

    def step(body: Subgraph, sources: dict[int, str], first_const: int) -> LaneStep:
        return lane_step(
            lowered(_on_cpu(with_selects(body)), options), count, n, sources, first_const, options, numbers
        )

    if isinstance(form, Scan):
        return scan_by_lanes(form, step(form.body, scan_sources(form), n + form.n_xs))
    sources = while_sources(form)
    if is_masked(form):
        return while_by_lanes(form, None, step(without_representatives(form.body), sources, n))
    return while_by_lanes(form, step(form.cond, sources, n), step(form.body, sources, n))


def launched(
    graph: fx.Graph, launch: Launch, operands: Sequence[fx.Node], outputs: Sequence[TensorMeta], mode: Any
) -> list[fx.Node]:
    """The call of a kernel, and its results. It writes to its GPU only: numbers that the loop keeps on the CPU, as
    counters are, are copied there if anybody reads them.
    """
    new = graph.call_function(triton_loop, launch_arguments(launch, operands, outputs))
    device = device_of(outputs)
    new.meta["val"] = [meta._replace(device=device).fake(mode) for meta in outputs]
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
