"""A step of a loop over lanes of several numbers: see NOTE [Lanes of several numbers] (torch 2.13)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy
import torch

from .body import Lowered
from .forms import Form, Refused
from .lane_rows import LANE, Rows
from .lanes import held_dtype, loop_code
from .products import PRODUCTS, product_body
from .source import c_type
from .unrolled import Held, Scope, Work, counted, unrolled, work_of

__all__ = ["Block", "Body", "Source", "Step"]

_LARGEST_PRODUCT = 16
"""Multiplications of a lane with a matrix that is the same for all: from there on it is a product of matrices."""

_AT = sympy.Symbol("at", integer=True, nonnegative=True)


@dataclass(frozen=True)
class Body:
    """A body, and the loops that the kernels in it are."""

    lowered: Lowered
    inner: Mapping[str, Form]


@dataclass(frozen=True)
class Source:
    """An operand of a loop: a place in memory, or the values of a block."""

    memory: str | None
    held: Held | None


class Block(Protocol):
    """The code of a block of lanes: its functions, and the arrays of ``width`` lanes that they use."""

    lanes: int
    width: int
    code: list[str]
    used: set[str]

    def array(self, rows: Rows, dtype: torch.dtype) -> Held: ...

    def loop(
        self, form: Form, sources: Sequence[Source], targets: Sequence[str] | None
    ) -> tuple[list[str], list[Held], int]: ...


class Step:
    """A step for a block of lanes: functions of those nodes that no inner loop parts, and these loops."""

    def __init__(self, block: Block, body: Body, sources: Sequence[Source], targets: Sequence[Held]) -> None:
        self.block, self.inner, self.targets = block, body.inner, targets
        self.graph = body.lowered.graph
        self.sources = dict(zip(self.graph.graph_input_names, sources))
        held = {name: source.held for name, source in self.sources.items() if source.held is not None}
        memory = frozenset(name for name, source in self.sources.items() if source.memory is not None)
        self.scope = Scope(block.lanes, block.width, held, memory, {})
        self.counter = counted()
        self.handler = unrolled()(self.counter, self.scope, LANE, sympy.Integer(0))
        self.stages: list[list[Work] | list[str]] = [[]]
        self.made: dict[str, int] = {}
        self.work = 0

    def statements(self) -> tuple[list[str], int]:
        self._parts()
        for node in self.graph.scheduler.nodes:
            for part in node.get_nodes():
                self._add(part)
        outputs = [self._output(i) for i in range(len(self.targets))]
        lines: list[str] = []
        last = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            if i % 2:
                lines += stage  # type: ignore[arg-type]
                continue
            kept = [self._kept(name) for name, made in self.made.items() if made == i and name in self.scope.held]
            written = [out for out in (*kept, *(outputs if i == last else [])) if out[2].rows.size > 0]
            if written:
                lines.append(self._function(stage, written))  # type: ignore[arg-type]
        return lines, self.counter.count + self.work

    def _parts(self) -> None:
        """Buffers that are parts of others: of a concatenation."""
        from torch._inductor.ir import NonOwningLayout

        parts: dict[str, tuple[str, int]] = {}
        for buffer in self.graph.buffers:
            layout = buffer.get_output_spec()
            if isinstance(layout, NonOwningLayout):
                parts[buffer.get_name()] = layout.view.get_name(), int(layout.view.get_layout().offset)
        self.scope.parts = parts

    def _add(self, node: Any) -> None:
        from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode, SchedulerNode

        if isinstance(node, NopKernelSchedulerNode):
            return
        names = [dep.name for dep in node.read_writes.reads]
        if isinstance(node, SchedulerNode):
            if any(buffer.get_mutations() for buffer in node.get_outputs()):
                raise Refused("a buffer is written in place")
            ranges, reduced = ([int(size) for size in sizes] for sizes in node._sizes)
            body: Any = node._body
        elif isinstance(node, ExternKernelSchedulerNode) and getattr(node.node, "function", None) in self.inner:
            self._inner_loop(node.node)
            return
        elif isinstance(node, ExternKernelSchedulerNode) and getattr(node.node, "op_overload", None) in PRODUCTS:
            body, ranges, reduced = product_body(node.node)
            of_many = any(getattr(self.scope.rows_in(name), "step", 0) == 0 for name in names)
            if of_many and math.prod([*ranges, *reduced]) > _LARGEST_PRODUCT * self.block.lanes:
                raise Refused("a product of all lanes with one matrix")
        else:
            raise Refused(f"{type(node.node).__name__} is no work of one lane")
        work = work_of(self.scope, self.handler, body, ranges, reduced, names)
        now = len(self.stages) - 1
        self.stages[-1].append(work)  # type: ignore[arg-type]
        for name in work.reads:
            if self.made.get(name, now) != now:
                self._keep(name)
        for buffer in node.get_outputs():
            self.made[self.scope.place(buffer.get_name(), sympy.Integer(0))[0]] = now

    def _keep(self, name: str) -> Held:
        """An array for a value that is read after another loop, or by it."""
        held = self.scope.held.get(name)
        if held is None:
            held = self.block.array(self.scope.rows[name], self.graph.get_dtype(name))
            self.scope.held[name] = held
        return held

    def _inner_loop(self, kernel: Any) -> None:
        form = self.inner[kernel.function]
        n = len(form.inputs)
        if any(kernel.offsets):
            raise Refused("a loop in its body reads part of a value")
        sources = []
        for name in kernel.arguments[:n]:
            if name in self.sources:
                sources.append(self.sources[name])
                self.block.used.update([] if sources[-1].held is None else [sources[-1].held.name])
            else:
                buffer, offset = self.scope.place(name, sympy.Integer(0))
                if offset != 0 or self.scope.rows_in(buffer) is None:
                    raise Refused("a loop in its body reads part of a value")
                sources.append(Source(None, self._keep(buffer)))
        lines, results, work = self.block.loop(form, sources, None)
        self.work += work
        self.stages += [["{", *lines, "}"], []]
        for name, held in zip(kernel.arguments[n:], results):
            self.scope.held[name] = held

    def _output(self, place: int) -> tuple[str, list[tuple[Any, int]], Held]:
        """A name, where the numbers of an output are in it, and the array where they belong."""
        out, target = self.graph.graph_outputs[place], self.targets[place]
        layout = out.get_layout()
        name, offset = self.scope.place(out.get_name(), sympy.Integer(int(layout.offset)))
        if self.made.get(name, len(self.stages) - 1) != len(self.stages) - 1:
            self._keep(name)
        places = [(target.rows.index(i) + offset, i) for i in range(target.rows.size)]
        for index, _ in places:
            self.handler.load(name, index)
        return name, places, target

    def _kept(self, name: str) -> tuple[str, list[tuple[Any, int]], Held]:
        held = self.scope.held[name]
        return name, [(held.rows.index(i), i) for i in range(held.rows.size)], held

    def _function(self, works: Sequence[Work], written: Sequence[tuple[str, list[tuple[Any, int]], Held]]) -> str:
        """The call of a function that does ``works`` and writes: all loads come before the stores."""
        from torch._inductor.utils import sympy_index_symbol_with_prefix
        from torch._inductor.virtualized import V
        from torch.utils._sympy.functions import Min
        from torch.utils._sympy.symbol import SymT

        width, graph = self.block.width, self.graph
        lane = sympy_index_symbol_with_prefix(SymT.INDEX, 0)
        own = lane + _AT
        if self.block.lanes % width:  # the last one, repeated, reads its own places too
            own = Min(own, sympy.Integer(self.block.lanes - 1))
        names = [f"result_buf{i}" for i in range(len(written))]  # Inductor stores to what is called so only
        dtypes = {held.name: held_dtype(held.dtype) for held in self.scope.held.values()}
        dtypes |= {name: held_dtype(held.dtype) for name, (_, _, held) in zip(names, written)}

        def run(indices: Any) -> None:
            handler = unrolled()(V.get_ops_handler(), self.scope, own, lane)
            for work in works:
                handler.run(work)
            results = [
                [(i, handler.stored(name, index, held.dtype)) for index, i in places] for name, places, held in written
            ]
            inner = V.get_ops_handler()
            for out, numbers, (_, _, held) in zip(names, results, written):
                for i, value in numbers:
                    if held.dtype is torch.bool:
                        value = inner.where(value, *(inner.constant(x, torch.float32) for x in (1.0, 0.0)))
                    inner.store(out, i * width + lane, value, None)

        group = loop_code(graph, dtypes, names, [sympy.Integer(width)], run)
        definitions, arguments = [], []
        for outer, inner_name in group.args.input_buffers.items():
            source = self.sources.get(outer)
            arguments.append(outer if source is None else str(source.memory))
            definitions.append(f"const {c_type(graph.get_dtype(outer) if source else dtypes[outer])}* {inner_name}")
            self.block.used.add(outer)
        for i, (name, (_, _, held)) in enumerate(zip(names, written)):
            definitions.append(f"{c_type(dtypes[name])}* o_{i}")
            arguments.append(held.name)
        if group.args.sizevars:
            definitions += [f"const int64_t {inner_name}" for inner_name in group.args.sizevars.values()]
            arguments += [str(outer) for outer in group.args.sizevars]
        name = f"part_{len(self.block.code)}"
        head = f"static C10_ALWAYS_INLINE void {name}({', '.join([*definitions, f'[[maybe_unused]] int64_t {_AT}'])})"
        self.block.code.append(f"{head}\n{{\n{group.loops_code.getvalue()}\n}}")
        return f"{name}({', '.join([*arguments, str(_AT)])});"
