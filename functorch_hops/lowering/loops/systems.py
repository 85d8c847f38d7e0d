"""Loops whose lanes hold several numbers each, a block of lanes at a time (torch 2.13).

NOTE [Lanes of several numbers] A batch of small systems - chains of a sampler, filters, differential equations of few
variables - has lanes that don't read one another, but whose numbers do: they are reduced, multiplied by a matrix,
shifted. Where a lane has few, all of them are values of one function, which a vector computes for as many lanes as it
holds; so a block of lanes keeps number after number, with the lanes of each side by side, and memory is laid out anew
when the block begins and ends, and for the rows of each step. Which dimension the lanes are is proved as in NOTE
[Lanes]: each node is replayed at all numbers of a lane, and every index is one of the lane's own, or the node reads
what is the same for all. Loops inside the body are loops of the block; what is computed before and read after one is
kept in memory. A block that has fewer lanes repeats its last one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from ... import _torch
from ...ir.meta import TensorMeta
from .around import LOOK_AFTER, ONCE, ended, filled, led, left, length_of, sources_of, targets_of, time_of
from .body import handlers, settings
from .forms import Form, Refused, Scan, While
from .headers import header
from .lane_rows import Rows, rows_of
from .lane_steps import Body, Source, Step, Written
from .lanes import held_dtype, loop_code
from .masked import is_masked
from .sizes import number
from .source import Function, c_type, defined, nanoseconds_of
from .unrolled import Held, Work, unrolled

__all__ = ["Bodies", "lane_counts", "systems"]

SYSTEMS = header("systems")

_FEWEST_LANES = _VECTOR = 16
_FEW_LANES = 64
_MANY_LANES = 256
_CACHE = 1 << 14
"""Bytes of what a block carries, reads and writes in a step."""
_MOST_BYTES = 1 << 16
"""That a block holds."""
_LEAST_WORK = 2
"""Operations for each number that is laid out anew in a step."""

_AT = sympy.Symbol("at", integer=True, nonnegative=True)

Bodies = Callable[[Scan | While], Body]
"""The body of a loop; of a masked while loop, without representatives."""


def systems(form: Scan | While, bodies: Bodies, options: dict[str, Any]) -> Function:
    """The loop for blocks of lanes, of which each has several numbers."""
    shapes = [tuple(map(number, meta.shape)) for meta in form.body.inputs[: form.n_carry]]
    why: Refused | None = None
    for lanes in lane_counts(shapes, _FEWEST_LANES):
        try:
            return _Block(lanes, _width(form, lanes), bodies, options).kernel(form)
        except Refused as refused:
            why = refused
    raise why or Refused("its carries have no dimension of many lanes")


def lane_counts(shapes: Sequence[tuple[int, ...]], fewest: int) -> list[int]:
    """What dimensions have in common, ``fewest`` lanes at least, the largest first. Carries that have none are the same
    for all lanes; one without elements says nothing of lanes.
    """
    found: set[int] = set()
    for shape in shapes:
        if 0 in shape:
            continue
        ends = itertools.combinations(range(len(shape) + 1), 2)
        found |= {math.prod(shape[start:end]) for start, end in ends if start == 0 or end == start + 1}
    fitting = [n for n in found if n >= fewest]
    return sorted(fitting, reverse=True)


def _width(form: Scan | While, lanes: int) -> int:
    """The lanes of a block: few, but of many lanes that read or write at every step so many that rows are long."""
    most = _FEW_LANES
    if isinstance(form, Scan) and lanes > _MANY_LANES:
        first = form.n_carry + form.n_xs
        rows = [(rows_of(x.shape, lanes), x) for x in (*form.body.inputs[:first], *form.body.outputs[form.n_carry :])]
        each = sum(row.size * x.dtype.itemsize for row, x in rows if row.step)
        most = max(most, min(_CACHE // each, lanes // torch.get_num_threads()))
    number = -(-lanes // most)
    return -(-lanes // (number * _VECTOR)) * _VECTOR


class _Block:
    """The code of a loop for one block of lanes: functions, and the arrays that they work on."""

    largest_product, any_order = 16, False

    def __init__(self, lanes: int, width: int, bodies: Bodies, options: dict[str, Any]) -> None:
        self.lanes, self.bodies, self.options = lanes, bodies, options
        self.width = width
        self.code: list[str] = []
        self.arrays: dict[Held, int] = {}
        self.beside: set[Held] = set()
        self.names = itertools.count()
        self.used: set[str] = set()

    def kernel(self, form: Scan | While) -> Function:
        sources = [Source(f"in_{i}", None) for i in range(len(form.inputs))]
        lines, _, work = self.loop(form, sources, [f"out_{i}" for i in range(len(form.outputs))])
        self._check_bytes()
        is_scan = isinstance(form, Scan)
        n_blocks = -(-self.lanes // self.width)
        nanoseconds = nanoseconds_of(work * self.lanes * number(form.length)) if isinstance(form, Scan) else 0
        arrays = [
            f"alignas(64) {c_type(held_dtype(x.dtype))} {x.name}[{x.rows.size * self.width}];" for x in self.arrays
        ]
        length = length_of(form) if isinstance(form, Scan) else -1
        all_lines = [
            *([*filled(form), *led(form)] if isinstance(form, Scan) else []),
            f"fh::each_block({n_blocks}, {nanoseconds}, control, [&](int64_t block, fh::Control& control) {ONCE} {{",
            f"const int64_t at = block * {self.width}, n = std::min<int64_t>({self.width}, {self.lanes} - at);",
            *arrays,
            *lines,
            "});",
            *([left(length, length), ended(False)] if is_scan else []),
        ]
        return defined(
            form.label,
            form.inputs,
            form.outputs,
            all_lines,
            before="\n".join(self.code),
            needs=[SYSTEMS],
            work=work * self.lanes,
            loops=True,
            steps=length,
        )

    def _check_bytes(self) -> None:
        kept = (size for held, size in self.arrays.items() if held not in self.beside or held.name in self.used)
        if sum(kept) > _MOST_BYTES:
            raise Refused("a lane has many numbers")

    def array(self, rows: Rows, dtype: torch.dtype) -> Held:
        held = self._declared(rows, dtype)
        self._check_bytes()  # before nodes are replayed for all numbers, which may take seconds
        return held

    def _declared(self, rows: Rows, dtype: torch.dtype) -> Held:
        held = Held(f"held_{next(self.names)}", rows, dtype)
        self.arrays[held] = rows.size * self.width * held_dtype(held.dtype).itemsize
        return held

    def name(self) -> str:
        return f"place_{next(self.names)}"

    def filled(self, source: Source, meta: TensorMeta, target: Held) -> str:
        if source.held is not None:
            if source.held.rows != target.rows:
                raise Refused("the numbers of a lane lie in no order")
            return f"std::copy_n({source.held.name}, {target.rows.size * self.width}, {target.name});"
        return self.copied("spread", target.rows, f"{source.memory}", target.name)

    def copied(self, function: str, rows: Rows, source: str, target: str) -> str:
        return f"fh::{function}<{self.width}, {rows.step}, {rows.size}>({source}, {self.lanes}, at, n, {target});"

    def loop(
        self, form: Form, sources: Sequence[Source], targets: Sequence[str] | None
    ) -> tuple[list[str], list[Held], int]:
        """Statements, results in arrays, operations of a lane. ``targets`` in memory, of the outermost loop."""
        if isinstance(form, Scan):
            return self._scan(form, sources, targets)
        if isinstance(form, While) and is_masked(form) and not form.flags:
            return self._while(form, sources, targets)
        raise Refused("a loop in its body is not over lanes")

    def inner(
        self, form: Form, sources: Sequence[Source], targets: Sequence[Held | None]
    ) -> tuple[list[str], list[Held], int]:
        lines, results, work = self.loop(form, sources, None)
        return ["{", *lines, "}"], results, work

    def _carries(self, form: Scan | While, sources: Sequence[Source]) -> tuple[list[Held], list[str]]:
        carries, lines = [], []
        for source, meta in zip(sources[: form.n_carry], form.body.inputs):
            rows = source.held.rows if source.held else rows_of(meta.shape, self.lanes)
            carries.append(self.array(rows, meta.dtype))
            lines.append(self.filled(source, meta, carries[-1]))
        return carries, lines

    def _held_later(self, source: Source, meta: TensorMeta) -> tuple[Source, str | None]:
        """A source in memory with an array beside it, and what fills that."""
        rows = rows_of(meta.shape, self.lanes)
        if source.held is not None or rows.step == 0:
            return source, None
        held = self._declared(rows, meta.dtype)
        self.beside.add(held)
        return Source(source.memory, held), self.copied("spread", rows, f"{source.memory}", held.name)

    def _fillings(self, sources: Sequence[Source], lines: Sequence[str | None]) -> list[str]:
        """Of arrays that somebody reads; no others are kept."""
        found = []
        for source, line in zip(sources, lines):
            if line is not None and source.held is not None:
                if source.held.name in self.used:
                    found.append(line)
                else:
                    del self.arrays[source.held]
        return found

    def _scan(
        self, form: Scan, sources: Sequence[Source], targets: Sequence[str] | None
    ) -> tuple[list[str], list[Held], int]:
        length, n, first = number(form.length), form.n_carry, form.n_carry + form.n_xs
        metas = form.body.inputs
        carries, lines = self._carries(form, sources)
        inside: list[str] = []
        given: list[Source] = []
        rows = sources_of(form)
        for i, (source, meta) in enumerate(zip(sources[n:first], metas[n:])):
            name = self.name()
            if targets is not None:
                inside.append(f"[[maybe_unused]] const {c_type(meta.dtype)}* const {name} = {rows[i]};")
                given.append(Source(name, None))
            elif any(form.shifts):
                raise Refused("a loop in its body reads rows of other steps")
            else:
                given.append(self._row(source, meta, name, inside))
        beside = [self._held_later(source, meta) for source, meta in zip(given, metas[n:])]
        consts = [self._held_later(source, meta) for source, meta in zip(sources[first:], metas[first:])]
        xs = [source for source, _ in beside]
        body_sources = [Source(None, held) for held in carries] + xs + [source for source, _ in consts]
        outs, stacks = self._stacks(form, targets, inside)
        body, work = self.body(self.bodies(form), body_sources, [*carries, *outs])
        turned = [held for held in (*outs, *(x.held for x in xs if x.held and x.memory)) if held.rows.step > 1]
        if targets is not None and work < _LEAST_WORK * sum(held.rows.size for held in turned):
            raise Refused("little is computed of what would be laid out anew")
        lines += self._fillings([source for source, _ in consts], [line for _, line in consts])
        row_lines = self._fillings(xs, [line for _, line in beside])
        stored = []
        if targets is not None:
            stored = [self.copied("collect", held.rows, held.name, t) for held, t in zip(outs, targets_of(form))]
        lines += [
            f"for (int64_t s = 0; s < {length}; ++s) {{",
            time_of(form),
            *inside,
            *row_lines,
            *body,
            *stored,
            self._leave(work, f"s + 1, {length}" if targets is not None else ""),
            "}",
        ]
        results = [*carries, *stacks]
        if targets is not None:
            lines += [self.copied("collect", held.rows, held.name, t) for held, t in zip(carries, targets)]
        return lines, results, work * length

    def _row(self, source: Source, meta: TensorMeta, name: str, inside: list[str]) -> Source:
        """A row of the x of an inner loop."""
        own = rows_of(meta.shape, self.lanes)
        if source.held is None:
            count = math.prod(map(number, meta.shape))
            inside.append(f"const {c_type(meta.dtype)}* const {name} = {source.memory} + t * int64_t({count});")
            return Source(name, None)
        if source.held.rows.step != own.step:
            raise Refused("the numbers of a lane lie in no order")
        self.used.add(source.held.name)
        inside.append(f"const auto* const {name} = {source.held.name} + t * {own.size * self.width};")
        return Source(None, Held(name, own, meta.dtype))

    def _stacks(self, form: Scan, targets: Sequence[str] | None, inside: list[str]) -> tuple[list[Held], list[Held]]:
        """Where a step puts its ys; those of an inner loop lie in arrays for all steps, which come second."""
        outs: list[Held] = []
        stacks: list[Held] = []
        for i, meta in enumerate(form.body.outputs[form.n_carry :]):
            rows = rows_of(meta.shape, self.lanes)
            if targets is not None:
                outs.append(self.array(rows, meta.dtype))
                continue
            if form.lead(i + form.n_carry) is not None:
                raise Refused("a loop in its body stacks its first carry")
            stacks.append(self.array(Rows(self.lanes, rows.step, rows.size * number(form.length)), meta.dtype))
            outs.append(Held(self.name(), rows, meta.dtype))
            inside.append(f"auto* const {outs[-1].name} = {stacks[-1].name} + t * {rows.size * self.width};")
        return outs, stacks

    def _while(
        self, form: While, sources: Sequence[Source], targets: Sequence[str] | None
    ) -> tuple[list[str], list[Held], int]:
        n, metas = form.n_carry, form.body.inputs
        carries, lines = self._carries(form, sources)
        consts = [self._held_later(source, meta) for source, meta in zip(sources[n:], metas[n:])]
        given = [Source(None, held) for held in carries] + [source for source, _ in consts]
        body, work = self.body(self.bodies(form), given, carries)
        lines += self._fillings([source for source, _ in consts], [line for _, line in consts])
        if carries[0].rows.size != 1:
            raise Refused("a lane ends in part")
        lines += [f"while (fh::any({carries[0].name}, {self.width})) {{", *body, self._leave(work, ""), "}"]
        if targets is not None:
            lines += [self.copied("collect", held.rows, held.name, t) for held, t in zip(carries, targets)]
        return lines, carries, work

    def _leave(self, work: int, done: str) -> str:
        here = f", {done}" if done else ""
        look = f"(control.work += {work * self.width}) >= {LOOK_AFTER} && fh::interrupted(control{here})"
        return f"if (control.stopped || ({look})) break;"

    def body(self, body: Body, sources: Sequence[Source], targets: Sequence[Held]) -> tuple[list[str], int]:
        """The statements of a step, which writes to ``targets``, and the operations of a lane."""
        graph = body.lowered.graph
        work_here = graph.set_current_device(torch.device("cpu"))  # dtypes of half precision depend on it
        with _torch.suspended(keep_autocast=False), torch.no_grad(), settings(self.options), handlers(graph), work_here:
            return Step(self, body, sources, targets).statements()

    def part(self, step: Step, works: Sequence[Work], written: Sequence[Written]) -> list[str]:
        """The call of a function: all loads come before the stores. Its code takes far longer than what was proved
        before: it is made once nothing refuses.
        """
        from torch._inductor.utils import sympy_index_symbol_with_prefix
        from torch._inductor.virtualized import V
        from torch.utils._sympy.functions import Min
        from torch.utils._sympy.symbol import SymT

        width, graph, scope = self.width, step.graph, step.scope
        self.used |= scope.read
        self._check_bytes()
        lane = sympy_index_symbol_with_prefix(SymT.INDEX, 0)
        own = lane + _AT
        if self.lanes % width:  # the last one, repeated, reads its own places too
            own = Min(own, sympy.Integer(self.lanes - 1))
        names = [f"result_buf{i}" for i in range(len(written))]  # Inductor stores to what is called so only
        dtypes = {held.name: held_dtype(held.dtype) for held in scope.held.values()}
        dtypes |= {name: held_dtype(held.dtype) for name, (_, _, held) in zip(names, written)}

        def run(indices: Any) -> None:
            handler = unrolled()(V.get_ops_handler(), scope, own, lane)
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
            source = step.sources.get(outer)
            arguments.append(outer if source is None else str(source.memory))
            definitions.append(f"const {c_type(graph.get_dtype(outer) if source else dtypes[outer])}* {inner_name}")
        for i, (name, (_, _, held)) in enumerate(zip(names, written)):
            definitions.append(f"{c_type(dtypes[name])}* o_{i}")
            arguments.append(held.name)
        if group.args.sizevars:
            definitions += [f"const int64_t {inner_name}" for inner_name in group.args.sizevars.values()]
            arguments += [str(outer) for outer in group.args.sizevars]
        name = f"part_{len(self.code)}"
        head = f"static C10_ALWAYS_INLINE void {name}({', '.join([*definitions, f'[[maybe_unused]] int64_t {_AT}'])})"
        self.code.append(f"{head}\n{{\n{group.loops_code.getvalue()}\n}}")
        return [f"{name}({', '.join([*arguments, str(_AT)])});"]
