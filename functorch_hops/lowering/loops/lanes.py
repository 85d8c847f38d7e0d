"""A body for a block of lanes, where lanes don't read one another (torch 2.13).

NOTE [Lanes] Where every kernel of a body is pointwise over the same lanes, and reads carries and buffers at its own
lane only, a lane can run through all steps before the next one begins. So a block of lanes does, with its carries in
registers. Whether that is so is proved from the indices that Inductor generates code of; what is not proved is refused.
The kernels are replayed as one, in which buffers are values: all its loads come before its stores, hence the carries
are written in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from ... import _torch
from ...ir.meta import TensorMeta
from .body import Lowered, handlers, settings
from .forms import Refused
from .source import c_type, numel
from .vector_math import kernel_proxy

__all__ = ["LaneBody", "held_dtype", "lane_body"]

_LANE = sympy.Symbol("lane", integer=True, nonnegative=True)
_FEW, _BLOCK, _LONG_BLOCK = 256, 64, 1024
"""The carries of ``_BLOCK`` lanes fit into registers; more than ``_FEW`` lanes are read and written in long rows."""


@dataclass(frozen=True)
class LaneBody:
    """``code`` defines a function for a block of each of ``sizes``; ``places``: the inputs that it reads, by number."""

    count: int
    size: int
    code: str
    names: dict[int, str]
    places: dict[int, tuple[int, ...]]
    n_carry: int
    work: int

    @property
    def sizes(self) -> list[int]:
        return list(self.names)

    def call(self, k: int, sources: Sequence[str], targets: Sequence[str]) -> str:
        """A call for ``k`` lanes from ``lane`` on; ``sources`` of the inputs but the carries, which are ``now_i``."""
        read = [f"now_{i}" if i < self.n_carry else sources[i] for i in self.places[k]]
        return f"{self.names[k]}({', '.join([*read, *targets, 'lane'])});"


def held_dtype(meta: TensorMeta) -> torch.dtype:
    """What a carry of a block is held as: Inductor reads and writes vectors of bool byte by byte."""
    return torch.float32 if meta.dtype is torch.bool else meta.dtype


def lane_body(
    lowered: Lowered, n_carry: int, options: dict[str, Any], label: str, *, is_test: bool = False
) -> LaneBody:
    """``lowered`` for blocks of lanes. Its first outputs are the next carries, unless it is the test of a loop."""
    body, graph = lowered.body, lowered.graph
    metas = [*body.inputs[:n_carry], *body.outputs]
    count, n_written = numel(metas[0]), 0 if is_test else n_carry
    if any(numel(meta) != count for meta in metas):
        raise Refused("carries and outputs differ in size")
    with _torch.suspended(keep_autocast=False), torch.no_grad(), settings(options), handlers(graph):
        nodes = [part for node in graph.scheduler.nodes for part in node.get_nodes()]
        nodes = [node for node in nodes if not _is_nothing(node)]
        _check_lanes(graph, nodes, count, n_carry)
        size = min(count, _BLOCK if count <= _FEW else _LONG_BLOCK)
        texts, names, places = [], {}, {}
        for k in dict.fromkeys((size, count % size)):
            if k:
                names[k] = f"{label}_{k}"
                text, places[k] = _printed(lowered, nodes, n_carry, n_written, count, k, names[k])
                texts.append(text)
    return LaneBody(count, size, "\n".join(texts), names, places, n_carry, lowered.work)


def _is_nothing(node: Any) -> bool:
    from torch._inductor.scheduler import NopKernelSchedulerNode

    return isinstance(node, NopKernelSchedulerNode)


def _check_lanes(graph: Any, nodes: Sequence[Any], count: int, n_carry: int) -> None:
    for out in graph.graph_outputs:
        layout = out.get_layout()
        if int(graph.get_numel(out.get_name())) != count or layout.offset != 0:
            raise Refused("an output is part of another value")
    from torch._inductor.dependencies import MemoryDep
    from torch._inductor.scheduler import SchedulerNode

    carries = set(graph.graph_input_names[:n_carry])
    made = {name for node in nodes for name in node.get_buffer_names()}
    for node in nodes:
        if not isinstance(node, SchedulerNode):
            raise Refused(f"{type(node.node).__name__} is no pointwise work")
        if node.is_reduction():
            raise Refused("a reduction reads many lanes")
        ranges, _ = node._sizes
        size = math.prod(map(int, ranges))
        if size not in (count, 1) or len(ranges) > 1:
            raise Refused(f"a kernel runs over {tuple(map(int, ranges))}, and the lanes over {(count,)}")
        for dep in (*node.read_writes.reads, *node.read_writes.writes):
            if not isinstance(dep, MemoryDep):
                raise Refused("an access has no index")
            if dep.name in carries or dep.name in made:
                length = int(graph.get_numel(dep.name))
                own = sympy.Integer(0) if length == 1 else next(iter(dep.var_names), None)
                if length not in (count, 1) or dep.mode is not None or dep.index != own:
                    raise Refused("a carry or an intermediate value is accessed at another lane")


def _printed(
    lowered: Lowered, nodes: Sequence[Any], n_carry: int, n_written: int, count: int, k: int, name: str
) -> tuple[str, tuple[int, ...]]:
    """The function for ``k`` lanes, and the numbers of the inputs that it takes."""
    from torch._inductor.codegen.common import KernelArgs
    from torch._inductor.codegen.cpp import KernelGroup
    from torch._inductor.loop_body import LoopBody
    from torch._inductor.ops_handler import WrapperHandler
    from torch._inductor.utils import sympy_index_symbol_with_prefix
    from torch._inductor.virtualized import V
    from torch.utils._sympy.symbol import SymT

    body, graph = lowered.body, lowered.graph
    names = list(graph.graph_input_names)
    carried = {name: f"carry_{i}" for i, name in enumerate(names[:n_carry])}
    outputs = [f"result_buf{i}" for i in range(len(body.outputs))]  # Inductor stores to what is called so only
    masks = {local for local, meta in zip(carried.values(), body.inputs) if meta.dtype is torch.bool}
    dtypes = {local: held_dtype(meta) for local, meta in zip(carried.values(), body.inputs)}
    for i, (out, meta) in enumerate(zip(outputs, body.outputs)):
        dtypes[out] = held_dtype(meta) if i < n_written else meta.dtype

    class Fused(WrapperHandler):
        """Buffers are values, and carries are read from their block."""

        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.values: dict[str, Any] = {}

        def load(self, name: str, index: Any) -> Any:
            if name in self.values:
                return self.values[name]
            local = carried.get(name)
            if local is None:
                return self._inner.load(name, index)
            value = self._inner.load(local, index - start)
            return self._inner.ne(value, self._inner.constant(0.0, torch.float32)) if local in masks else value

        def store(self, name: str, index: Any, value: Any, mode: Any = None) -> None:
            self.values[name] = value

    start = _LANE if count > 1 else sympy.Integer(0)
    zero = sympy.Integer(0)

    def run(index: Any) -> None:
        (x,) = index
        inner = V.get_ops_handler()
        handler = Fused(inner)
        with V.set_ops_handler(handler):
            for node in nodes:
                is_single = math.prod(map(int, node._sizes[0])) == 1
                node._body([zero if is_single else x + start] * len(node._sizes[0]), [])
            results = [handler.load(out.get_name(), x + start) for out in graph.graph_outputs]
        one, nothing = (inner.constant(value, torch.float32) for value in (1.0, 0.0))
        for i, (out, value) in enumerate(zip(outputs, results)):
            is_mask = dtypes[out] is not body.outputs[i].dtype
            held = inner.where(value, one, nothing) if is_mask else value
            inner.store(out, x if i < n_written else x + start, held, None)

    variable = sympy_index_symbol_with_prefix(SymT.INDEX, 0)
    group = KernelGroup()
    group.args = KernelArgs()
    for i, out in enumerate(outputs):
        group.args.output_buffers[out] = f"o_{i}"
    proxy = kernel_proxy()(group)
    graph.local_dtypes = dtypes
    try:
        with graph.set_current_device(torch.device("cpu")):
            loop = LoopBody(run, ([variable],), {variable: sympy.Integer(k)}, [variable], [])
            proxy.codegen_loop_bodies([loop], [((sympy.Integer(k),), ())])
            group.finalize_kernel(proxy, [])
            group.stack.close()
    finally:
        graph.local_dtypes = {}
    if group.args.sizevars:
        raise Refused("a size is open")
    numbers = {**{local: i for i, local in enumerate(carried.values())}, **{n: i for i, n in enumerate(names)}}
    definitions, places = [], []
    for outer, inner_name in group.args.input_buffers.items():
        places.append(numbers[outer])
        dtype = dtypes.get(outer, body.inputs[numbers[outer]].dtype)
        definitions.append(f"const {c_type(dtype)}* {inner_name}")
    definitions += [f"{c_type(dtypes[out])}* o_{i}" for i, out in enumerate(outputs)]
    head = f"static C10_ALWAYS_INLINE void {name}({', '.join([*definitions, 'const int64_t lane'])})"
    return f"{head}\n{{\n{group.loops_code.getvalue()}\n}}", tuple(places)
