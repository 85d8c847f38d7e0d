"""The loop around what a lane computes, as lines of Triton."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from ....ir.meta import TensorMeta
from ..forms import Refused, Scan, While
from ..sizes import OpenSize, Size, hint, size_of, symbols
from ..source import identifier, numel
from ..unrolled import Held
from .body import LaneStep, Programs
from .numbers import DRAWN, NUMBERS
from .values import Stored, assigned, rows_in, text, variables

__all__ = ["Launch", "block_of", "kernel_of", "lanes_of", "returned", "scan_lines", "targets_of", "while_lines"]

_WARP = 32
_MANY = 1 << 16
"""Lanes from which on a program has four warps; fewer are spread over as many multiprocessors as they can be."""
_MOST = 1 << 20
"""From which on a thread has two lanes: there are enough of them to hide what memory takes."""


@dataclass(frozen=True)
class Launch:
    """A kernel ``name`` in ``source``, a program for each ``block`` of its ``lanes``. It takes its inputs, its outputs,
    memory like ``scratch`` of its own, and the open ``sizes``.
    """

    source: str
    name: str
    lanes: Size
    block: int
    warps: int
    sizes: tuple[OpenSize, ...] = ()
    scratch: tuple[TensorMeta, ...] = ()


def lanes_of(form: Scan | While) -> Size:
    """How many lanes a loop has; what it carries or returns may be one number: NOTE [Shared numbers]."""
    n, outputs = form.n_carry, form.body.outputs
    counts = {*map(numel, (*form.body.inputs[:n], *outputs))}
    if not counts:
        raise Refused("it computes nothing")
    if len(counts - {1}) > 1:
        raise Refused("carries and outputs differ in size")
    return max(counts, key=lambda count: count != 1)


def targets_of(form: Scan | While, lanes: Size, label: str = "") -> list[Held]:
    """What a step writes to: the carries, and the places of its ys."""
    n, held = form.n_carry, []
    for i, meta in enumerate(form.body.outputs):
        kind, name = (Held, "now") if i < n else (Stored, "to")
        held.append(kind(f"{name}{label}_{i}", rows_in(meta, lanes), meta.dtype))
    return held


def scan_lines(
    form: Scan, targets: Sequence[Held], inputs: Sequence[str], stacks: Sequence[str], step: LaneStep, label: str = ""
) -> list[str]:
    """The loop, which begins with the carries in ``targets``. Pointers to the ``inputs`` that are stacks or single
    rows, and to the ``stacks`` of its ys; a step finds its rows at ``row_i``.
    """
    n, length = form.n_carry, size_of(form.length)
    starts, moves = _rows(form, inputs, label)
    for i, target in enumerate(targets[n:], n):
        size, lead = numel(form.body.outputs[i]), form.lead(i)
        first = length - 1 if form.reverse else 0
        if lead is not None:
            starts.append(f"{target.name} = {_at(stacks[i - n], length * size if form.reverse else 0)}")
            starts += assigned(target, variables(targets[lead]))
            first = first if form.reverse else 1
        starts.append(f"{target.name} = {_at(stacks[i - n], first * size)}")
        moves.append(f"{target.name} {'-' if form.reverse else '+'}= {text(size)}")
    head = f"for s{label} in range({text(length)}):"
    return [*starts, *step.before, head, *_indented([*step.lines, *moves])]


def _rows(form: Scan, inputs: Sequence[str], label: str) -> tuple[list[str], list[str]]:
    """Pointers to the rows of the first step, and how they move to those of the next one: no product overflows."""
    length = size_of(form.length)
    sign, first = ("-", length - 1) if form.reverse else ("+", 0)
    starts, moves = [], []
    for i, shift in enumerate(form.shifts or (None,) * form.n_xs, form.n_carry):
        size = numel(form.body.inputs[i])
        row, later, move = f"row{label}_{i}", f"next{label}_{i}", f"{sign}= {text(size)}"
        if shift is None:
            starts.append(f"{row} = {_at(inputs[i], first * size)}")
            moves.append(f"{row} {move}")
        elif (shift.by < 0) is not form.reverse:  # the first step reads the head, and the next one the first row
            starts += [f"{row} = {inputs[shift.head]}", f"{later} = {_at(inputs[i], first * size)}"]
            moves += [f"{row} = {later}", f"{later} {move}"]
        else:  # the last step reads the head
            head, start = inputs[shift.head], _at(inputs[i], (first + shift.by) * size)
            if isinstance(length, OpenSize):
                start = f"tl.where({text(length)} > 1, {start}, {head})"
            starts += [f"{row} = {start if length != 1 else head}", f"{later} = {row}"]
            moves += [f"{later} {move}", f"{row} = tl.where(s{label} < {text(length - 2)}, {later}, {head})"]
    return starts, moves


def while_lines(answer: Held, test: LaneStep | None, step: LaneStep, label: str = "") -> list[str]:
    """``test`` of what all lanes share, or None: NOTE [Lanes end by themselves]. ``answer``: where it is."""
    (running,) = variables(answer)
    go = [f"go{label} = tl.max({f'({running} & xmask)' if test is None else running}.to(tl.int32), 0) > 0"]
    if test is not None:
        go = [*test.lines, *go]
    before = [*(test.before if test else []), *step.before]
    return [*before, *go, f"while go{label}:", *_indented([*step.lines, *go])]


def _at(pointer: str, offset: Size) -> str:
    return f"{pointer} + {text(offset)}" if isinstance(offset, OpenSize) or offset else pointer


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def kernel_of(
    form: Scan | While, programs: Programs, lines: Sequence[str], scratch: Sequence[TensorMeta] = ()
) -> Launch:
    """The kernel of a loop, with a name of its content."""
    shapes = (size for meta in (*form.inputs, *form.outputs) for size in meta.shape)
    sizes, lanes = symbols([*shapes, *([form.length] if isinstance(form, Scan) else [])]), programs.lanes
    arguments = [*(f"in_{i}" for i in range(len(form.inputs))), *_results(len(form.outputs) + len(scratch))]
    block, warps = block_of(lanes)
    wide = [f"{size} = {size}.to(tl.int64)" for size in sizes]
    code = "\n".join(_indented([*wide, f"xnumel = {text(lanes)}", *programs.header, *lines]))
    name = f"{identifier(form.label)}_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    any_size = f"(do_not_specialize={[*map(str, sizes)]})" if sizes else ""
    head = f"@triton.jit{any_size}\ndef {name}({', '.join([*arguments, *map(str, sizes), 'XBLOCK: tl.constexpr'])}):"
    parts = [_IMPORTS, *([NUMBERS] if DRAWN in code else []), f"{head}\n{code}\n"]
    return Launch("\n\n".join(parts), name, lanes, block, warps, sizes, tuple(scratch))


def block_of(lanes: Size) -> tuple[int, int]:
    """The lanes of a program, and its warps."""
    warps = 1 if hint(lanes) < _MANY else 4
    most = _WARP * warps * (1 if hint(lanes) < _MOST else 2)
    return most if isinstance(lanes, OpenSize) else min(most, 1 << (lanes - 1).bit_length()), warps


def _results(n: int) -> list[str]:
    return [f"out_{i}" for i in range(n)]


def returned(carries: Sequence[Held]) -> list[str]:
    """Lines that return the last values."""
    targets = [Stored(name, held.rows, held.dtype) for name, held in zip(_results(len(carries)), carries)]
    return [line for target, held in zip(targets, carries) for line in assigned(target, variables(held))]


_IMPORTS = textwrap.dedent("""\
    import triton
    import triton.language as tl
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
""")
