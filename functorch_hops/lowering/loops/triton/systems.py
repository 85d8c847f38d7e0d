"""Loops whose lanes hold several numbers each, or have loops in their steps, in Triton (torch 2.13 and 2.11).

NOTE [Systems in registers] What a lane holds is variables of the kernel, one for each number, and a loop in the body
is a loop of the kernel: NOTE [Lanes of several numbers] says what is proved. Variables have no index, so what a loop in
the body stacks, and what it reads row by row, is in memory: in the stack that the loop around it returns, or in memory
of the kernel's own. A lane reads there what it wrote itself, but may have several threads, hence the barriers. Where
there are no lanes at all, one program computes all numbers: a launch for each operator of a step takes longer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from ....ir.meta import TensorMeta
from ....ir.subgraph import Subgraph
from ..forms import Form, Refused, Scan, While
from ..lane_rows import LANE, Rows
from ..lane_steps import Body, Source, Step, Written
from ..masked import is_masked
from ..sizes import number
from ..systems import lane_counts
from ..unrolled import Held, Work, unrolled
from .around import Launch, block_of, kernel_of, returned, scan_lines, targets_of, while_lines
from .body import LaneStep, Programs
from .operator import device_of
from .values import Stored, assigned, copied, rows_in, variables

__all__ = ["Bodies", "systems"]

_MOST_CARRIED = 64
"""Numbers that a lane carries: registers."""
_MOST_KEPT = 16
"""Numbers of a value that a lane keeps in registers behind a loop in its body; more are in memory."""
_MOST_WORK = 2000
"""Operations of a lane in a step: more take Triton long."""
_MOST_ALONE = 500
"""Of one that is alone, whose operators each run on many threads otherwise."""
_BARRIER = "tl.debug_barrier()"

Bodies = Callable[[Subgraph, bool], Body]
"""A body with loops as kernels; of a masked loop, without representatives."""


def systems(form: Scan | While, bodies: Bodies, options: dict[str, Any]) -> Launch:
    shapes = [tuple(map(number, meta.shape)) for meta in form.body.outputs]
    why: Refused | None = None
    for lanes in dict.fromkeys([*lane_counts(shapes, fewest=2), 1]):
        try:
            return _Program(form, lanes, bodies, options).launch(form)
        except Refused as refused:
            why = refused if why is None or lanes > 1 else why
    raise why or Refused("it computes nothing")


class _Program:
    """The code of a loop. ``memory``: its own, behind its results; ``own``: lines that say where that of a program is.
    ``before`` and ``consts``: lines before the first of the steps that are printed, and the inputs that none changes.
    """

    width, any_order, largest_product = 1, True, 512

    def __init__(self, form: Scan | While, lanes: int, bodies: Bodies, options: dict[str, Any]) -> None:
        self.lanes, self.bodies = lanes, bodies
        self.programs = Programs(lanes, [*form.body.inputs, *form.body.outputs], options)
        self.used: set[str] = set()
        self.memory: dict[str, TensorMeta] = {}
        self.n_results, self.device = len(form.outputs), device_of(form.outputs)
        self.names, self.loops = itertools.count(), itertools.count()
        self.own: list[str] = []
        self.before: list[str] = []
        self.consts: list[str] = []

    def launch(self, form: Scan | While) -> Launch:
        n = form.n_carry
        sources = [Source(f"in_{i}", None) for i in range(len(form.inputs))]
        targets = targets_of(form, self.lanes)
        lines, work = self._loop(form, sources, targets, [f"out_{i}" for i in range(n, self.n_results)])
        if work > (_MOST_WORK if self.lanes > 1 else _MOST_ALONE):
            raise Refused("a step of one lane is long")
        return kernel_of(form, self.programs, [*self.own, *lines, *returned(targets[:n])], [*self.memory.values()])

    def array(self, rows: Rows, dtype: torch.dtype) -> Held:
        return Held(f"held_{next(self.names)}", rows, dtype) if rows.size <= _MOST_KEPT else self._memory(rows, dtype)

    def _memory(self, rows: Rows, dtype: torch.dtype) -> Stored:
        """Each program has a place for what its lanes share: others are at other steps."""
        pointer, copies = f"out_{self.n_results + len(self.memory)}", self.lanes
        name = pointer
        if rows.step == 0:
            copies, name = -(-self.lanes // block_of(self.lanes)[0]), f"own_{len(self.memory)}"
            self.own.append(f"{name} = {pointer} + tl.program_id(0).to(tl.int64) * {rows.size}")
        self.memory[name] = TensorMeta((rows.size * copies,), dtype, self.device)
        return Stored(name, rows, dtype)

    def inner(
        self, form: Form, sources: Sequence[Source], targets: Sequence[Held | None]
    ) -> tuple[list[str], list[Held], int]:
        if not isinstance(form, Scan | While) or (isinstance(form, While) and form.flags):
            raise Refused("a loop in its body is not over lanes")
        n, label = form.n_carry, f"_{next(self.loops)}"
        own, lines, given = targets_of(form, self.lanes, label), list[str](), list(sources)
        for i, source in enumerate(sources[:n]):
            if source.held is not None:
                own[i] = Held(own[i].name, source.held.rows, own[i].dtype)
        stacks: list[Stored] = []
        if isinstance(form, Scan):
            stacks = [self._stack(form, i, target) for i, target in enumerate(targets[n:], n)]
            heads = (shift.head for shift in form.shifts if shift is not None)
            for i in dict.fromkeys([*range(n, n + form.n_xs), *heads]):
                given[i], spilled = self._in_memory(sources[i])
                lines += spilled
        loop, work = self._loop(form, given, own, [stack.name for stack in stacks], label)
        return [*lines, *([_BARRIER, *loop, _BARRIER] if stacks else loop)], [*own[:n], *stacks], work

    def _stack(self, form: Scan, place: int, target: Held | None) -> Stored:
        """Where a loop in the body stacks an output: where it belongs, if it is one of the loop around."""
        meta, row = form.body.outputs[place], rows_in(form.body.outputs[place], self.lanes)
        rows = Rows(self.lanes, row.step, row.size * number(form.outputs[place].shape[0]))
        return target if isinstance(target, Stored) and target.rows == rows else self._memory(rows, meta.dtype)

    def _in_memory(self, source: Source) -> tuple[Source, list[str]]:
        """What is read row by row."""
        if source.held is None or isinstance(source.held, Stored):
            return source, []
        memory = self._memory(source.held.rows, source.held.dtype)
        return Source(None, memory), [_BARRIER, *assigned(memory, variables(source.held)), _BARRIER]

    def _loop(
        self,
        form: Scan | While,
        sources: Sequence[Source],
        targets: Sequence[Held],
        stacks: Sequence[str],
        label: str = "",
    ) -> tuple[list[str], int]:
        """Lines that leave the last values in the carries among ``targets``, and the operations of a lane."""
        n = form.n_carry
        carries = targets[:n]
        if sum(held.rows.size for held in carries) > (_MOST_CARRIED if self.lanes > 1 else _MOST_KEPT):
            raise Refused("a lane carries many numbers")
        lines = [line for held, source in zip(carries, sources) for line in copied(held, _value(source))]
        begin = [Source(None, held) for held in carries]
        if isinstance(form, Scan):
            first_const = n + form.n_xs
            rows = [self._row(form, i, sources[i], label) for i in range(n, first_const)]
            consts = sources[first_const:]
            step, work = self._step(self.bodies(form.body, False), [*begin, *rows], consts, targets)
            return [*lines, *scan_lines(form, targets, [*map(_pointer, sources)], stacks, step, label)], work
        consts = sources[n:]
        if is_masked(form):
            if carries[0].rows.size != 1:
                raise Refused("a lane ends in part")
            step, work = self._step(self.bodies(form.body, True), begin, consts, targets)
            return [*lines, *while_lines(carries[0], None, step, label)], work
        answer = Held(f"answer{label}", Rows(self.lanes, 0, 1), torch.bool)
        test, of_test = self._step(self.bodies(form.cond, False), begin, consts, [answer])
        step, work = self._step(self.bodies(form.body, False), begin, consts, targets)
        return [*lines, *while_lines(answer, test, step, label)], work + of_test

    def _row(self, form: Scan, place: int, source: Source, label: str) -> Source:
        name, meta = f"row{label}_{place}", form.body.inputs[place]
        if source.held is None:
            return Source(name, None)
        rows = rows_in(meta, self.lanes)
        if source.held.rows.step != rows.step:
            raise Refused("the numbers of a lane lie in no order")
        return Source(None, Stored(name, rows, meta.dtype))

    def _step(
        self, body: Body, changing: Sequence[Source], consts: Sequence[Source], targets: Sequence[Held]
    ) -> tuple[LaneStep, int]:
        around = self.before, self.consts
        self.before, self.consts = [], body.lowered.graph.graph_input_names[len(changing) :]
        with self.programs.printing(body.lowered):
            lines, work = Step(self, body, [*changing, *consts], targets).statements()
        step = LaneStep(self.before, lines)
        self.before, self.consts = around
        return step, work

    def part(self, step: Step, works: Sequence[Work], written: Sequence[Written]) -> list[str]:
        from torch._inductor.codegen.common import CSEProxy
        from torch._inductor.virtualized import V

        scope = step.scope
        kernel = self.programs.kernel(self.consts)
        pointers = {name: source.memory for name, source in step.sources.items() if source.memory is not None}
        pointers |= {name: held.name for name, held in scope.held.items() if isinstance(held, Stored)}
        kernel.args.input_buffers.update(pointers)
        with V.set_kernel_handler(kernel), V.set_ops_handler(CSEProxy(kernel, kernel.overrides())):
            (lane,) = kernel.lane([sympy.Integer(self.lanes)])
            handler = _registers()(V.get_ops_handler(), scope, lane, lane)
            for work in works:
                handler.run(work)
            values = [
                [kernel.held(handler.stored(name, index, held.dtype), held.dtype) for index, _ in places]
                for name, places, held in written
            ]
        self.before += kernel.lines_before()
        lines = [line for (_, _, held), numbers in zip(written, values) for line in assigned(held, numbers)]
        has_memory = any(held.name in self.memory for _, _, held in written)
        return [*kernel.lines(), *([_BARRIER, *lines, _BARRIER] if has_memory else lines)]


def _value(source: Source) -> str | Held:
    return source.held if source.held is not None else str(source.memory)


def _pointer(source: Source) -> str:
    """To what is in memory."""
    return source.held.name if isinstance(source.held, Stored) else str(source.memory)


@functools.cache
def _registers() -> Any:
    from torch._inductor.virtualized import V

    class Registers(unrolled()):  # type: ignore[misc]
        """Reads what lanes hold: variables, or what the kernel wrote."""

        def held(self, name: str, held: Held, number: int) -> Any:
            if isinstance(held, Stored):
                return self._inner.load(name, held.rows.index(number).subs(LANE, self.lane))
            return V.kernel.variable(held, number)

    return Registers
