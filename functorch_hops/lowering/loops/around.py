"""The loop or branch around functions of its bodies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...ir.meta import TensorMeta
from .forms import TAPE_META, Branches, Prefixes, Scan, While
from .lane_blocks import REST, Blocks
from .lanes import LaneBody, held_dtype, position
from .sizes import OpenSize, Size, largest, size_of
from .source import Function, c_type, computed_dtype, defined, n_bytes, nanoseconds_of, numel, offset_after
from .tapes import TAPE, Layout

__all__ = [
    "LOOK_AFTER",
    "ONCE",
    "branches",
    "ended",
    "filled",
    "led",
    "left",
    "length_of",
    "prefixes",
    "scan_by_lanes",
    "scan_by_steps",
    "scan_of_tape",
    "sources_of",
    "targets_of",
    "time_of",
    "while_by_lanes",
    "while_by_steps",
]

LOOK_AFTER = 1 << 14
"""Elements that a loop computes between two looks at the control block: a millisecond at most."""


_MANY_BYTES = 1 << 22


def _nested(loops: bool, length: Size | str) -> list[str]:
    """Before a loop: those in its steps, if there are, see it around them. ``length``: -1 if unknown. NOTE [Watched
    steps].
    """
    return [f"fh::Nested nested(control, {length});"] if loops else []


def _leave(work: Size, loops: bool, done: str, length: Size | str) -> str:
    """Leave a loop that was told to stop. Loops inside one another count what they compute together. ``done``: how many
    steps are.
    """
    here = "" if loops else f", {done}, {length}"
    look = f"((control.work += {work}) >= {LOOK_AFTER} && fh::interrupted(control{here}))"
    return f"nested.level.step = {done}; if (control.stopped || {look}) break;" if loops else f"if ({look}) break;"


def left(done: Size | str, length: Size | str) -> str:
    """Behind a loop."""
    return f"control.last = {{{done}, {length}, nullptr}};"


def ended(loops: bool) -> str:
    """Behind a loop that a function is. ``loops``: whether there are loops in its steps. NOTE [Watched steps]."""
    return f"fh::ended(control, {str(loops).lower()});"


def _row(name: str, meta: TensorMeta) -> str:
    return f"{name} + t * int64_t({numel(meta)})"


def length_of(form: Scan) -> Size:
    return size_of(form.length)


def sources_of(form: Scan) -> list[str]:
    """Where the inputs of a step lie, those behind the carries."""
    n, metas = form.n_carry, form.body.inputs
    shifts = form.shifts or (None,) * form.n_xs
    sources = [f"in_{i}" for i in range(n, len(metas))]
    for i, shift in enumerate(shifts):
        row = _row(f"in_{n + i}", metas[n + i])
        if shift is not None:
            is_there = "t > 0" if shift.by < 0 else f"t < {length_of(form) - 1}"
            row = f"({is_there} ? {row} + {shift.by} * int64_t({numel(metas[n + i])}) : in_{shift.head})"
        sources[i] = row
    return sources


def targets_of(form: Scan) -> list[str]:
    """Where the ys of a step belong."""
    targets = []
    for i, meta in enumerate(form.body.outputs):
        if i in form.sums:
            targets.append(f"sum_{i}")
        elif i >= form.n_carry:
            is_later = form.lead(i) is not None and not form.reverse
            targets.append(_row(f"out_{i}", meta) + (f" + {numel(meta)}" if is_later else ""))
    return targets


def led(form: Scan) -> list[str]:
    """Put the initial carries where they lead a stack."""
    lines = []
    for i, meta in enumerate(form.body.outputs):
        lead = form.lead(i)
        if lead is not None:
            place = f"out_{i} + {length_of(form) * numel(meta) if form.reverse else 0}"
            lines.append(f"std::memcpy({place}, in_{lead}, {n_bytes(meta)});")
    return lines


def _carries(metas: Sequence[TensorMeta], body: Function) -> tuple[list[str], Size]:
    """Two copies of each carry, which take turns, the first filled from the inputs; of what ``body`` updates in place
    that which is the result.
    """
    lines: list[str] = []
    offset: Size = 0
    for i, meta in enumerate(metas):
        c = c_type(meta.dtype)
        if i in body.in_place:
            lines.append(f"auto *now_{i} = out_{i}, *next_{i} = out_{i};")
        else:
            for name in ("now", "next"):
                lines.append(f"auto* {name}_{i} = reinterpret_cast<{c}*>(workspace + {offset});")
                offset = offset_after(offset, n_bytes(meta))
        lines.append(f"std::memcpy(now_{i}, in_{i}, {n_bytes(meta)});")
    return lines, offset


def _results(metas: Sequence[TensorMeta], body: Function) -> list[str]:
    sizes = {i: n_bytes(meta) for i, meta in enumerate(metas) if i not in body.in_place}
    return [f"std::memcpy(out_{i}, now_{i}, {size});" for i, size in sizes.items()]


def _call(function: Function, arguments: Sequence[str], dense: Sequence[str] = (), inner: str = "inner") -> str:
    last = inner if function.has_workspace else "nullptr"
    return f"{function.name}({', '.join([*arguments, *dense, *map(str, function.sizes), last, 'control'])});"


def _dense(label: str, function: Function, offset: Size) -> tuple[list[str], list[str], Size]:
    """Make the copies that a function asks for: statements, names, the next place."""
    lines, names = [], []
    for i, copy in enumerate(function.dense):
        names.append(f"{label}_{i}")
        lines += [
            f"auto* {names[-1]} = reinterpret_cast<{c_type(computed_dtype(copy.dtype))}*>(workspace + {offset});",
            copy.copied(f"in_{copy.place}", names[-1]),
        ]
        offset = offset_after(offset, copy.size)
    return lines, names, offset


def _step(
    body: Function,
    arguments: Sequence[str],
    dense: Sequence[str],
    carries: Sequence[TensorMeta],
    leave: str,
    last: str,
) -> list[str]:
    """The end of a loop: a step, after which carries take turns, and the results."""
    swaps = [f"std::swap(now_{i}, next_{i});" for i in range(len(carries)) if i not in body.in_place]
    return [_call(body, arguments, dense), *swaps, leave, "}", last, *_results(carries, body)]


def scan_by_steps(form: Scan, body: Function) -> Function:
    n, metas, length = form.n_carry, form.body.inputs, length_of(form)
    lines, offset = _carries(metas[:n], body)
    copies, dense, offset = _dense("factor", body, offset)
    arguments = [
        *(f"now_{i}" for i in range(n)),
        *sources_of(form),
        *(f"next_{i}" for i in range(n)),
        *targets_of(form),
    ]
    lines += [
        *filled(form),
        *copies,
        *led(form),
        f"[[maybe_unused]] char* const inner = workspace + {offset};",
        *_nested(body.loops, length),
        f"for (int64_t s = 0; s < {length}; ++s) {{",
        time_of(form),
        *_step(body, arguments, dense, metas[:n], _leave(body.work, body.loops, "s + 1", length), left(length, length)),
        ended(body.loops),
    ]
    return defined(
        form.label,
        form.inputs,
        form.outputs,
        lines,
        calls=[body],
        workspace=offset + body.workspace,
        work=body.work,
        loops=True,
        sizes=[length],
        steps=length,
    )


def filled(form: Scan) -> list[str]:
    """Announce the stacks of many MiB."""
    sizes = {i: n_bytes(meta) for i, meta in enumerate(form.outputs) if i >= form.n_carry}
    return [
        f"fh::will_fill(out_{i}, {size});"
        for i, size in sizes.items()
        if isinstance(size, OpenSize) or size >= _MANY_BYTES
    ]


def time_of(form: Scan) -> str:
    return f"[[maybe_unused]] const int64_t t = {f'{length_of(form) - 1} - s' if form.reverse else 's'};"


def while_by_steps(form: While, cond: Function, body: Function, record: Layout | None = None) -> Function:
    """With a ``record`` it writes what it stacks to a tape, the place of which is its last output."""
    n, metas = form.n_carry, form.inputs
    lines, offset = _carries(metas[:n], body)
    test_copies, test_dense, offset = _dense("test_factor", cond, offset)
    copies, dense, offset = _dense("factor", body, offset)
    given = [*(f"now_{i}" for i in range(n)), *(f"in_{i}" for i in range(n, len(metas)))]
    work, loops = cond.work + body.work, cond.loops or body.loops
    rows = _records("row", form.body.outputs[n:], record.offsets) if record else []
    lines += [
        *test_copies,
        *copies,
        *([f"fh::Tape tape({record.size});"] if record else []),
        f"[[maybe_unused]] char* const inner = workspace + {offset};",
        *_nested(loops, -1),
        "int64_t s = 0;",
        "for (;;) {",
        "bool go;",
        _call(cond, [*given, "&go"], test_dense),
        "if (!go) break;",
        *(["char* const row = tape.next();"] if record else []),
        *_step(
            body,
            [*given, *(f"next_{i}" for i in range(n)), *rows],
            dense,
            metas[:n],
            f"++s; {_leave(work, loops, 's', -1)}",
            left("s", -1),
        ),
        ended(loops),
        *([f"tape.hand_over(out_{n});"] if record else []),
    ]
    size = offset + largest([cond.workspace, body.workspace])
    return defined(
        form.label,
        form.inputs,
        [*form.outputs, *([TAPE_META] if record else [])],
        lines,
        needs=[TAPE] if record else [],
        calls=[cond, body],
        workspace=size,
        work=work,
        loops=True,
    )


def _records(row: str, metas: Sequence[TensorMeta], offsets: Sequence[Size], const: str = "") -> list[str]:
    """Where values lie in a record."""
    return [f"reinterpret_cast<{const}{c_type(m.dtype)}*>({row} + {offset})" for m, offset in zip(metas, offsets)]


def scan_of_tape(form: Scan, body: Function, record: Layout, rows: Sequence[int]) -> Function:
    """The loop over the records of a tape, the place of which is its last input; ``rows``: which value each x is."""
    n, first_const = form.n_carry, form.n_carry + form.n_xs
    metas = form.body.inputs
    lines, offset = _carries(metas[:n], body)
    moved = replace(body, dense=tuple(replace(copy, place=copy.place - form.n_xs) for copy in body.dense))
    copies, dense, offset = _dense("factor", moved, offset)
    consts = metas[first_const:]
    arguments = [f"now_{i}" for i in range(n)]
    arguments += _records("row", metas[n:first_const], [record.offsets[i] for i in rows], "const ")
    arguments += [f"in_{n + i}" for i in range(len(consts))]
    arguments += [f"next_{i}" for i in range(n)]
    leave = _leave(body.work, body.loops, "s + 1", "head.rows")
    lines += [
        *copies,
        f"[[maybe_unused]] char* const inner = workspace + {offset};",
        f"const fh::TapeHead& head = fh::head_of(in_{n + len(consts)}, {record.size});",
        *_nested(body.loops, "head.rows"),
        "for (int64_t s = 0; s < head.rows; ++s) {",
        f"const int64_t t = {'head.rows - 1 - s' if form.reverse else 's'};",
        f"[[maybe_unused]] const char* const row = reinterpret_cast<const char*>(&head + 1) + t * {record.size};",
        *_step(body, arguments, dense, metas[:n], leave, left("head.rows", "head.rows")),
        ended(body.loops),
    ]
    return defined(
        form.label,
        [*metas[:n], *consts, TAPE_META],
        form.body.outputs,
        lines,
        needs=[TAPE],
        calls=[body],
        workspace=offset + body.workspace,
        work=body.work,
        loops=True,
    )


def prefixes(form: Prefixes, scan: Function) -> Function:
    """One pass over the elements, by ``form.scan``: the first is the initial carry, and the first of the results."""
    k, lines = form.n_leaves, [f"if ({size_of(form.length)} == 0) return;"]
    offset: Size = 0
    firsts, xs, lasts, ys = [], [], [], []
    for i, meta in enumerate(form.body.outputs):
        lasts.append(f"last_{i}")
        lines.append(f"auto* last_{i} = reinterpret_cast<{c_type(meta.dtype)}*>(workspace + {offset});")
        lines.append(f"std::memcpy(out_{i}, in_{i}, {n_bytes(meta)});")
        offset = offset_after(offset, n_bytes(meta))
        firsts.append(f"in_{i}")
        xs.append(f"in_{i} + {numel(meta)}")
        ys.append(f"out_{i} + {numel(meta)}")
    consts = [f"in_{i}" for i in range(k, len(form.inputs))]
    lines.append(f"[[maybe_unused]] char* const inner = workspace + {offset};")
    lines.append(_call(scan, [*firsts, *xs, *consts, *lasts, *ys]))
    size = offset + scan.workspace
    return defined(
        form.label, form.inputs, form.outputs, lines, calls=[scan], workspace=size, work=scan.work, loops=True
    )


def branches(form: Branches, functions: Sequence[Function]) -> Function:
    arguments = [f"in_{i}" for i in range(1, len(form.inputs))]
    arguments += [f"out_{i}" for i in range(len(form.outputs))]
    lines = ["switch (int(*in_0)) {"]
    for i, function in enumerate(functions):
        lines += [f"case {i}:", _call(function, arguments, inner="workspace"), "break;"]
    return defined(
        "cond",
        form.inputs,
        form.outputs,
        [*lines, "}"],
        calls=functions,
        workspace=largest(function.workspace for function in functions),
        work=largest(function.work for function in functions),
        loops=any(function.loops for function in functions),
    )


ONCE = "__attribute__((noinline))"
"""One function, though there are several calls."""


def _each_block(lanes: LaneBody, steps: Size | None, statements: Callable[[Size, Size], list[str]]) -> list[str]:
    """``statements`` of so many rows and lanes for each block. ``steps``: None if unknown."""
    cut = lanes.blocks
    *outer, first = map(str, position(cut))
    lines = [f"const int64_t {first} = block % {cut.in_dimension} * {cut.rows};"]
    rest = f"block / {cut.in_dimension}"
    for name, size in zip(reversed(outer), reversed(cut.shape[: cut.cut])):
        lines.append(f"const int64_t {name} = {rest} % {size};")
        rest += f" / {size}"
    lane = [*outer, first][0]
    for name, size in zip([*outer, first][1:], cut.shape[1:]):
        lane = f"({lane} * {size} + {name})"
    lines.append(f"const int64_t lane = {lane} * {math.prod(cut.inner)};")
    cases = [statements(rows, cut.size(rows)) for rows in cut.row_counts]
    if len(cases) == 1:
        lines += cases[0]
    else:
        rows = cut.shape[cut.cut]
        last = [f"const int64_t {REST} = {rows} - {first};"] if isinstance(rows, OpenSize) else []
        lines += [f"if ({first} + {cut.rows} <= {rows}) {{", *cases[0], "} else {", *last, *cases[1], "}"]
    nanoseconds = 0 if steps is None else nanoseconds_of(lanes.work * steps)
    return [
        f"fh::each_block({cut.number}, {nanoseconds}, control, [&](int64_t block, fh::Control& control) {ONCE} {{",
        *lines,
        "});",
    ]


def _most(blocks: Blocks, k: Size) -> int:
    """Lanes of a block of ``k`` lanes at most."""
    return int(blocks.size(blocks.rows)) if isinstance(k, OpenSize) else k


def _loaded(metas: Sequence[TensorMeta], blocks: Blocks, k: Size) -> list[str]:
    most = _most(blocks, k)
    return [
        f"alignas(64) {c_type(held_dtype(meta.dtype))} now_{i}[{most}]; fh::copy_lanes(in_{i} + lane, now_{i}, {k});"
        for i, meta in enumerate(metas)
    ]


def _stored(metas: Sequence[TensorMeta], k: Size) -> list[str]:
    return [f"fh::copy_lanes(now_{i}, out_{i} + lane, {k});" for i in range(len(metas))]


_MOST_ADDED = 32
"""Steps, the values of which are added up in their own precision: sums of those are in double precision."""


def scan_by_lanes(form: Scan, lanes: LaneBody) -> Function:
    n, metas, length = form.n_carry, form.body.inputs, length_of(form)
    carries = [f"now_{i}" for i in range(n)]
    sums = sorted(form.sums)
    sources = [*carries, *sources_of(form), *(f"sum_{i}" for i in sums)]
    targets = [*carries, *targets_of(form)]

    def block(rows: Size, k: Size) -> list[str]:
        most = _most(lanes.blocks, k)
        period = max(1, LOOK_AFTER // (lanes.per_lane * most))
        added = [f"fh::add_lanes(sum_{i}, total_{i}, {k});" for i in sums]
        if sums:
            period = min(period, _MOST_ADDED)
            every = _MOST_ADDED // period * period
            added = [f"if (s % {every} == 0 || s == {length}) {{ {' '.join(added)} }}"]
        return [
            *_loaded(metas[:n], lanes.blocks, k),
            *(f"alignas(64) {c_type(form.body.outputs[i].dtype)} sum_{i}[{most}] = {{}};" for i in sums),
            *(f"alignas(64) double total_{i}[{most}] = {{}};" for i in sums),
            f"for (int64_t s = 0; s < {length};) {{",
            f"const int64_t end = std::min<int64_t>({length}, s + {period});",
            "for (; s < end; ++s) {",
            time_of(form),
            lanes.call(rows, sources, targets),
            "}",
            *added,
            f"if (s < {length} && fh::interrupted(control, s, {length})) break;",
            "}",
            *_stored(metas[:n], k),
            *(f"fh::store_lanes(total_{i}, out_{i} + lane, {k});" for i in sums),
        ]

    lines = [*filled(form), *led(form), *_each_block(lanes, length, block), left(length, length), ended(False)]
    return defined(
        form.label,
        form.inputs,
        form.outputs,
        lines,
        before=lanes.code,
        work=lanes.work,
        loops=True,
        sizes=[length],
        steps=length,
    )


def while_by_lanes(form: While, cond: LaneBody | None, body: LaneBody) -> Function:
    """``cond`` of a loop of one lane, or None: NOTE [Lanes end by themselves]."""
    n, metas = form.n_carry, form.inputs
    sources = [f"in_{i}" for i in range(len(metas))]
    targets = [f"now_{i}" for i in range(n)]

    def block(rows: Size, k: Size) -> list[str]:
        if cond is None:
            test = f"const bool go = fh::any(now_0, {k});"
        else:
            test = f"bool go; {cond.call(rows, sources, ['(&go)'])}"
        return [
            *_loaded(metas[:n], body.blocks, k),
            "int64_t s = 0;",
            "for (;;) {",
            test,
            "if (!go) break;",
            body.call(rows, sources, targets),
            f"++s; {_leave(k * body.per_lane, False, 's', -1)}",
            "}",
            left("s", -1),
            *_stored(metas[:n], k),
        ]

    code = body.code if cond is None else f"{cond.code}\n{body.code}"
    lines = [*_each_block(body, None, block), ended(False)]
    return defined(form.label, form.inputs, form.outputs, lines, before=code, work=body.work, loops=True)
