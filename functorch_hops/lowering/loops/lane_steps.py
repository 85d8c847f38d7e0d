"""A step of a loop over lanes of several numbers: see NOTE [Lanes of several numbers] (torch 2.13)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy
import torch

from .body import Lowered, Lowering
from .forms import Form, Refused
from .lane_rows import LANE, Rows, rows_of
from .products import PRODUCTS, product_body
from .unrolled import Held, Scope, Work, check_work, counted, least_work, unrolled, work_of

__all__ = ["Block", "Body", "Source", "Step", "Written"]

Written = tuple[str, list[tuple[Any, int]], Held]
"""A name, where numbers are in it, and the array where they belong."""


@dataclass(frozen=True)
class Body:
    """A body, and the loops that the kernels in it are."""

    lowering: Lowering
    inner: Mapping[str, Form]

    @property
    def lowered(self) -> Lowered:
        return self.lowering.plain


@dataclass(frozen=True)
class Source:
    """An operand of a loop: a place in memory, or the values of a block."""

    memory: str | None
    held: Held | None


class Block(Protocol):
    """The code of a block of lanes: its functions, and the arrays of ``width`` lanes that they use.

    ``largest_product``: multiplications of a lane with a matrix that is the same for all; from there on it is a product
    of matrices. ``any_order``: whether a lane may read an input anywhere.
    """

    lanes: int
    width: int
    largest_product: int
    any_order: bool
    used: set[str]

    def array(self, rows: Rows, dtype: torch.dtype) -> Held: ...

    def part(self, step: Step, works: Sequence[Work], written: Sequence[Written]) -> list[str]:
        """Statements that do ``works`` and then write."""

    def inner(
        self, form: Form, sources: Sequence[Source], targets: Sequence[Held | None]
    ) -> tuple[list[str], list[Held], int]:
        """A loop in a step: statements, results, operations. ``targets``: what its results are for the step."""


class Step:
    """A step for a block of lanes: functions of those nodes that no inner loop parts, and these loops."""

    def __init__(self, block: Block, body: Body, sources: Sequence[Source], targets: Sequence[Held]) -> None:
        self.block, self.inner, self.targets = block, body.inner, targets
        self.graph = body.lowered.graph
        self.sources = dict(zip(self.graph.graph_input_names, sources))
        held = {name: source.held for name, source in self.sources.items() if source.held is not None}
        metas = zip(self.sources.items(), body.lowered.body.inputs)
        memory = {name: rows_of(x.shape, block.lanes) for (name, source), x in metas if source.memory is not None}
        self.scope = Scope(block.lanes, block.width, held, memory, {}, block.any_order)
        self.counter = counted()
        self.handler = unrolled()(self.counter, self.scope, LANE, sympy.Integer(0))
        self.stages: list[list[Work] | list[str]] = [[]]
        self.made: dict[str, int] = {}
        self.work = 0

    def statements(self) -> tuple[list[str], int]:
        self._parts()
        nodes = [part for node in self.graph.scheduler.nodes for part in node.get_nodes()]
        check_work(sum(map(self._checked, nodes)))
        for node in nodes:
            self._add(node)
        outputs = [self._output(i) for i in range(len(self.targets)) if not self._is_there(i)]
        lines: list[str] = []
        last = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            if i % 2:
                lines += stage  # type: ignore[arg-type]
                continue
            kept = [self._kept(name) for name, made in self.made.items() if made == i and name in self.scope.held]
            written = [out for out in (*kept, *(outputs if i == last else [])) if out[2].rows.size > 0]
            if written:
                lines += self.block.part(self, stage, written)  # type: ignore[arg-type]
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

    def _checked(self, node: Any) -> int:
        """What shows before anything is replayed, which may take seconds. The fewest operations of a lane."""
        from torch._inductor.scheduler import NopKernelSchedulerNode, SchedulerNode

        if isinstance(node, SchedulerNode):
            if any(buffer.get_mutations() for buffer in node.get_outputs()):
                raise Refused("a buffer is written in place")
            return least_work(node._body, *_sizes(node), self.block.lanes)
        if _is_product(node):
            _, ranges, reduced = product_body(node.node)
            if self._is_large(ranges, reduced) and math.prod(ranges[:-2]) % self.block.lanes != 0:
                raise Refused("a product of all lanes with one matrix")
        elif not isinstance(node, NopKernelSchedulerNode) and not self._is_loop(node):
            raise Refused(f"{type(node.node).__name__} is no work of one lane")
        return 0

    def _is_loop(self, node: Any) -> bool:
        return getattr(node.node, "function", None) in self.inner

    def _is_large(self, ranges: Sequence[int], reduced: Sequence[int]) -> bool:
        return math.prod([*ranges, *reduced]) > self.block.largest_product * self.block.lanes

    def _add(self, node: Any) -> None:
        from torch._inductor.scheduler import NopKernelSchedulerNode

        if isinstance(node, NopKernelSchedulerNode):
            return
        if self._is_loop(node):
            self._inner_loop(node.node)
            return
        names = [dep.name for dep in node.read_writes.reads]
        body: Any
        if _is_product(node):
            body, ranges, reduced = product_body(node.node)
            if self._is_large(ranges, reduced) and not all(map(self._differs, names)):
                raise Refused("a product of all lanes with one matrix")
        else:
            body, (ranges, reduced) = node._body, _sizes(node)
        work = work_of(self.scope, self.handler, body, ranges, reduced, names)
        now = len(self.stages) - 1
        self.stages[-1].append(work)  # type: ignore[arg-type]
        for name in work.reads:
            if self.made.get(name, now) != now:
                self._keep(name)
        for buffer in node.get_outputs():
            self.made[self.scope.place(buffer.get_name(), sympy.Integer(0))[0]] = now

    def _differs(self, name: str) -> bool:
        """Whether lanes have numbers of their own in a buffer."""
        return getattr(self.scope.rows_in(name), "step", 0) != 0

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
        own = {out.get_name(): target for out, target in zip(self.graph.graph_outputs, self.targets)}
        lines, results, work = self.block.inner(form, sources, [own.get(name) for name in kernel.arguments[n:]])
        self.work += work
        self.stages += [lines, []]
        for name, held in zip(kernel.arguments[n:], results):
            self.scope.held[name] = held

    def _is_there(self, place: int) -> bool:
        """Whether a loop in the step wrote an output where it belongs."""
        return self.scope.held.get(self.graph.graph_outputs[place].get_name()) is self.targets[place]

    def _output(self, place: int) -> Written:
        out, target = self.graph.graph_outputs[place], self.targets[place]
        layout = out.get_layout()
        name, offset = self.scope.place(out.get_name(), sympy.Integer(int(layout.offset)))
        if self.made.get(name, len(self.stages) - 1) != len(self.stages) - 1:
            self._keep(name)
        places = [(target.rows.index(i) + offset, i) for i in range(target.rows.size)]
        for index, _ in places:
            self.handler.load(name, index)
        return name, places, target

    def _kept(self, name: str) -> Written:
        held = self.scope.held[name]
        return name, [(held.rows.index(i), i) for i in range(held.rows.size)], held


def _sizes(node: Any) -> tuple[list[int], list[int]]:
    ranges, reduced = ([int(size) for size in sizes] for sizes in node._sizes)
    return ranges, reduced


def _is_product(node: Any) -> bool:
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    return isinstance(node, ExternKernelSchedulerNode) and getattr(node.node, "op_overload", None) in PRODUCTS
