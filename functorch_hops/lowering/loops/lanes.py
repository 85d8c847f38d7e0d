"""A body for a block of lanes, where lanes don't read one another (torch 2.13).

NOTE [Lanes] Where every kernel of a body is pointwise over the same lanes, and reads carries and buffers at its own
lane only, a lane can run through all steps before the next one begins. So a block of lanes does, with its carries in
registers. Whether that is so is proved from the indices that Inductor generates code of; what is not proved is refused.
The kernels are replayed as one, in which buffers are values: all its loads come before its stores, hence the carries
are written in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from ... import _torch
from ...ir.subgraph import Subgraph
from .body import Lowered, handlers, settings
from .forms import Refused
from .lane_blocks import Blocks, blocks, lane_shape
from .sizes import Size, expression_of, hint, size_of, symbols
from .source import c_type, is_long, numel
from .vector_math import kernel_proxy

__all__ = ["LaneBody", "held_dtype", "lane_body", "lane_count", "lane_nodes", "loop_code", "position", "replayed"]


Held = Callable[[int, Any], Any]


@dataclass(frozen=True)
class LaneBody:
    """``code`` defines a function for a block of each number of rows, which ``names`` holds; ``places``: the inputs
    that it reads, by number; ``sizes``: the open ones that it takes. ``work`` of a call; ``per_lane``: about.
    """

    blocks: Blocks
    code: str
    names: dict[Size, str]
    places: dict[Size, tuple[int, ...]]
    sizes: dict[Size, tuple[str, ...]]
    n_carry: int
    work: Size

    @property
    def per_lane(self) -> int:
        return max(1, hint(self.work) // hint(self.blocks.lanes))

    def call(self, rows: Size, sources: Sequence[str], targets: Sequence[str]) -> str:
        """A call for the block at ``at_0, ...``; ``sources`` of the inputs but the carries, which are ``now_i``."""
        read = [f"now_{i}" if i < self.n_carry else sources[i] for i in self.places[rows]]
        at = [str(x) for x in position(self.blocks)]
        return f"{self.names[rows]}({', '.join([*read, *targets, *at, *self.sizes[rows]])});"


def position(blocks: Blocks) -> list[sympy.Symbol]:
    """Where a block begins, in each dimension up to the one that is cut."""
    return [sympy.Symbol(f"at_{i}", integer=True, nonnegative=True) for i in range(blocks.cut + 1)]


def held_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a carry of a block is held as: Inductor reads and writes vectors of bool byte by byte."""
    return torch.float32 if dtype is torch.bool else dtype


def lane_body(
    lowered: Lowered,
    n_carry: int,
    options: dict[str, Any],
    label: str,
    *,
    steps: Size | None,
    is_test: bool = False,
    sums: frozenset[int] = frozenset(),
) -> LaneBody:
    """``lowered`` for blocks of lanes. Its first outputs are the next carries, unless it is the test of a loop.
    ``steps``: None if unknown. ``sums``: outputs that are added to what is there, in memory of a block; calls take them
    behind the inputs, too.
    """
    body, graph = lowered.body, lowered.graph
    count, n_written = lane_count(body, n_carry), 0 if is_test else n_carry
    with _torch.suspended(keep_autocast=False), torch.no_grad(), settings(options), handlers(graph):
        nodes, shape = lane_nodes(graph, count)
        held = [held_dtype(meta.dtype) for meta in body.inputs[:n_carry]]
        held += [body.outputs[i].dtype for i in sums]
        parts = torch.get_num_threads() if steps is not None and is_long(lowered.work * steps) else 1
        cut = blocks(shape, sum(dtype.itemsize for dtype in held), has_rows=steps is not None, parts=parts)
        texts, names = [], {rows: f"{label}_{rows}" for rows in cut.row_counts}
        places: dict[Size, tuple[int, ...]] = {}
        sizes: dict[Size, tuple[str, ...]] = {}
        for rows, name in names.items():
            text, places[rows], sizes[rows] = _printed(lowered, nodes, n_carry, n_written, sums, cut, rows, name)
            texts.append(text)
    return LaneBody(cut, "\n".join(texts), names, places, sizes, n_carry, lowered.work)


def lane_count(body: Subgraph, n_carry: int) -> Size:
    metas = [*body.inputs[:n_carry], *body.outputs]
    if not metas:
        raise Refused("it computes nothing")
    count = numel(metas[0])
    if count == 0:
        raise Refused("there are no lanes")
    if any(numel(meta) != count for meta in metas):
        raise Refused("carries and outputs differ in size")
    return count


def lane_nodes(graph: Any, count: Size, *, has_shared: bool = False) -> tuple[list[Any], tuple[Size, ...]]:
    """What a body computes for each of ``count`` lanes, checked, and the dimensions of the lanes. ``has_shared``:
    whether it may return a number for all of them.
    """
    nodes = [part for node in graph.scheduler.nodes for part in node.get_nodes()]
    nodes = [node for node in nodes if not _is_nothing(node)]
    _check_lanes(graph, nodes, count, (count, 1) if has_shared else (count,))
    return nodes, lane_shape(count, [_ranges(node) for node in nodes if math.prod(_ranges(node)) == count])


def _ranges(node: Any) -> tuple[Size, ...]:
    from torch._inductor.virtualized import V

    return tuple(size_of(size, V.graph.sizevars.optimization_hint(size)) for size in node._sizes[0])


def _is_nothing(node: Any) -> bool:
    from torch._inductor.scheduler import NopKernelSchedulerNode

    return isinstance(node, NopKernelSchedulerNode)


def _check_lanes(graph: Any, nodes: Sequence[Any], count: Size, sizes: Sequence[Size]) -> None:
    """Check what nodes are; ``replayed`` looks at where they read and write. ``sizes`` of what is returned."""
    for out in graph.graph_outputs:
        layout = out.get_layout()
        if size_of(graph.get_numel(out.get_name())) not in sizes or layout.offset != 0:
            raise Refused("an output is part of another value")
    from torch._inductor.dependencies import MemoryDep
    from torch._inductor.scheduler import SchedulerNode

    for node in nodes:
        if not isinstance(node, SchedulerNode):
            operator = getattr(node.node, "op_overload", None) or type(node.node).__name__
            raise Refused(f"{operator} is no pointwise work")
        if node.is_reduction():
            raise Refused("a reduction reads many lanes")
        if any(buffer.get_mutations() for buffer in node.get_outputs()):
            raise Refused("a buffer is written in place")
        if math.prod(_ranges(node)) not in (count, 1):
            ranges = ", ".join(map(str, _ranges(node)))
            raise Refused(f"a kernel runs over ({ranges}), and the lanes over ({count})")
        if not all(isinstance(dep, MemoryDep) and dep.mode is None for dep in node.read_writes.reads_and_writes()):
            raise Refused("an access has no index, or adds to what is there")


def _merged(indices: Sequence[Any], shape: Sequence[Size], ranges: Sequence[Size]) -> list[Any]:
    """Indices of the dimensions ``shape`` as those of ``ranges``, each of which is some neighbours merged."""
    left, merged = [*zip(indices, shape)], []
    for size in ranges:
        index: Any = sympy.Integer(0)
        length: Size = 1
        while length != size:
            if not left:
                raise Refused("its kernels run over dimensions that do not fit together")
            i, n = left.pop(0)
            index, length = index * expression_of(n) + i, length * n
        merged.append(index)
    return merged


def replayed(
    graph: Any, nodes: Sequence[Any], shape: Sequence[Size], place: Sequence[Any], n_carry: int, held: Held
) -> list[Any]:
    """What a lane returns, computed by the handler of operators that is set now; its buffers are values. ``place`` of
    the lane in each dimension of ``shape``; ``held(i, ops)``: its carry ``i``, by a handler.
    """
    from torch._inductor.ops_handler import WrapperHandler
    from torch._inductor.virtualized import V

    (own,) = _merged(place, shape, [math.prod(shape)])

    def place_in(name: str) -> Any:
        """Of the lane, in a value of all lanes or in a number that they share."""
        return sympy.Integer(0) if graph.get_numel(name) == 1 else own

    given = frozenset(graph.graph_input_names)
    carries = {name: i for i, name in enumerate(graph.graph_input_names[:n_carry])}

    class Fused(WrapperHandler):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.values: dict[str, tuple[Any, Any]] = {}

        def load(self, name: str, index: Any) -> Any:
            if name not in self.values and name not in carries:
                if name not in given:
                    raise Refused("a value is put together of parts, or read under a condition")
                return self._inner.load(name, index)
            place, value = self.values[name] if name in self.values else (place_in(name), None)
            if sympy.expand(index - place) != 0:
                raise Refused("a carry or an intermediate value is accessed at another lane")
            return value if name in self.values else held(carries[name], self._inner)

        def store(self, name: str, index: Any, value: Any, mode: Any = None) -> None:
            self.values[name] = index, value

        def masked(self, mask: Any, body: Any, other: Any) -> Any:
            """What is done under a condition is a block of its own, whose values are not those around it."""

            def inside() -> Any:
                with V.set_ops_handler(Fused(V.get_ops_handler())):
                    return body()

            vars(inside).update(vars(body))  # its graph, which the printer for Triton looks at

            return self._inner.masked(mask, inside, other)

    handler = Fused(V.get_ops_handler())
    with V.set_ops_handler(handler):
        for node in nodes:
            ranges = _ranges(node)
            is_single = math.prod(ranges) == 1
            node._body([sympy.Integer(0)] * len(ranges) if is_single else _merged(place, shape, ranges), [])
        return [handler.load(out.get_name(), place_in(out.get_name())) for out in graph.graph_outputs]


@functools.cache
def _loop_body() -> Any:
    from torch._inductor.loop_body import LoopBody

    class Body(LoopBody):
        """Its indices at given variables are computed once: Inductor asks for all of them at each load and store, which
        takes seconds where an unrolled step has thousands.
        """

        known: tuple[Any, dict[str, Any]] | None = None

        def indexing_from_args(self, indices: Any, allow_same_symbol_in_index: bool = False) -> dict[str, Any]:
            at = tuple(map(tuple, indices)), allow_same_symbol_in_index, len(self.indexing_exprs)
            if self.known is None or self.known[0] != at:
                self.known = at, super().indexing_from_args(indices, allow_same_symbol_in_index)
            return self.known[1]

    return Body


def loop_code(
    graph: Any,
    dtypes: Mapping[str, torch.dtype],
    outputs: Sequence[str],
    lengths: Sequence[sympy.Expr],
    run: Callable[[Sequence[Any]], None],
) -> Any:
    """Inductor's code of the loop of ``run(indices)`` over these lengths, as the group of its kernel. It writes to
    ``outputs``, arguments ``o_0``, ...; ``dtypes``: of buffers that are not the graph's. Over a single element there is
    no loop: Inductor would cut a vector of one, which passes through memory.
    """
    from torch._inductor.codegen.common import KernelArgs
    from torch._inductor.codegen.cpp import KernelGroup
    from torch._inductor.utils import sympy_index_symbol_with_prefix
    from torch.utils._sympy.symbol import SymT

    group = KernelGroup()
    group.args = KernelArgs()
    for i, out in enumerate(outputs):
        group.args.output_buffers[out] = f"o_{i}"
    proxy = kernel_proxy()(group)
    indices = [sympy_index_symbol_with_prefix(SymT.INDEX, i) for i in range(len(lengths))]
    variables = indices if any(length != 1 for length in lengths) else []
    graph.local_dtypes = dtypes
    # torch 2.11 asks how large a size may be, and knows the answer for those of the trace. Later versions assume this.
    guesses = graph.sizevars.var_to_hint_override
    asked = {symbol for length in lengths for symbol in length.free_symbols}
    unknown = asked - {*graph.sizevars.backed_var_to_val, *guesses}
    guesses.update(dict.fromkeys(unknown, 8192))
    try:
        over = lambda variables: run(variables or [sympy.Integer(0)] * len(lengths))
        loop = _loop_body()(over, (variables,), dict(zip(variables, lengths)), variables, [])
        proxy.codegen_loop_bodies([loop], [(tuple(lengths[: len(variables)]), ())])
        group.finalize_kernel(proxy, [])
        group.stack.close()
    finally:
        graph.local_dtypes = {}
        for symbol in unknown:
            del guesses[symbol]
    return group


def _printed(
    lowered: Lowered,
    nodes: Sequence[Any],
    n_carry: int,
    n_written: int,
    sums: frozenset[int],
    cut: Blocks,
    rows: Size,
    name: str,
) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """The function for a block of ``rows``, the numbers of the inputs that it takes, and the sizes."""
    from torch._inductor.virtualized import V

    body, graph = lowered.body, lowered.graph
    names = list(graph.graph_input_names)
    carried = {name: f"carry_{i}" for i, name in enumerate(names[:n_carry])}
    outputs = [f"result_buf{i}" for i in range(len(body.outputs))]  # Inductor stores to what is called so only
    masks = {local for local, meta in zip(carried.values(), body.inputs) if meta.dtype is torch.bool}
    dtypes = {local: held_dtype(meta.dtype) for local, meta in zip(carried.values(), body.inputs)}
    for i, (out, meta) in enumerate(zip(outputs, body.outputs)):
        dtypes[out] = held_dtype(meta.dtype) if i < n_written else meta.dtype
    added = {i: f"sum_{i}" for i in sorted(sums)}
    dtypes.update({local: body.outputs[i].dtype for i, local in added.items()})

    sizes = (rows, *cut.inner)
    at = position(cut)

    def run(indices: Any) -> None:
        begin, *inside = indices
        place = [*at[:-1], at[-1] + begin, *inside] if cut.lanes != 1 else [sympy.Integer(0)]
        (own,) = _merged(place, cut.shape, [cut.lanes])
        (local,) = _merged(indices, sizes, [cut.size(rows)])
        inner = V.get_ops_handler()

        def held(i: int, ops: Any) -> Any:
            value = ops.load(f"carry_{i}", local)
            return ops.ne(value, ops.constant(0.0, torch.float32)) if f"carry_{i}" in masks else value

        results = replayed(graph, nodes, cut.shape, place, n_carry, held)
        one, nothing = (inner.constant(value, torch.float32) for value in (1.0, 0.0))
        for i, (out, value) in enumerate(zip(outputs, results)):
            is_mask = dtypes[out] is not body.outputs[i].dtype
            stored = inner.where(value, one, nothing) if is_mask else value
            if i in added:
                stored = inner.add(inner.load(added[i], local), stored)
            inner.store(out, local if i < n_written or i in added else own, stored, None)

    with graph.set_current_device(torch.device("cpu")):
        group = loop_code(graph, dtypes, outputs, [*map(expression_of, sizes)], run)
    numbers = {**{local: i for i, local in enumerate(carried.values())}, **{n: i for i, n in enumerate(names)}}
    numbers |= {local: len(names) + i for i, local in enumerate(added.values())}
    definitions, places = [], []
    for outer, inner_name in group.args.input_buffers.items():
        places.append(numbers[outer])
        dtype = dtypes[outer] if outer in dtypes else body.inputs[numbers[outer]].dtype
        definitions.append(f"const {c_type(dtype)}* {inner_name}")
    definitions += [f"{c_type(dtypes[out])}* o_{i}" for i, out in enumerate(outputs)]
    definitions += [f"const int64_t {x}" for x in at]
    taken = {inner: str(size_of(outer)) for outer, inner in group.args.sizevars.items()}
    taken |= {str(size): str(size) for size in symbols([rows])}
    definitions += [f"const int64_t {inner}" for inner in taken]
    head = f"static C10_ALWAYS_INLINE void {name}({', '.join(definitions)})"
    return f"{head}\n{{\n{group.loops_code.getvalue()}\n}}", tuple(places), tuple(taken.values())
