"""The loop around what a lane computes, as a function in Triton."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from ....ir.meta import TensorMeta
from ..forms import Refused, Scan, While
from ..sizes import number
from ..source import identifier, numel
from .body import LaneStep, compute_type
from .numbers import DRAWN, NUMBERS

__all__ = ["Launch", "lanes_of", "scan_by_lanes", "scan_sources", "while_by_lanes", "while_sources"]

_WARP = 32
_MANY = 1 << 16
"""Lanes from which on a program has four warps; fewer are spread over as many multiprocessors as they can be."""
_MOST = 1 << 20
"""From which on a thread has two lanes: there are enough of them to hide what memory takes."""


@dataclass(frozen=True)
class Launch:
    """A kernel ``name`` in ``source``, a program for each ``block`` of its ``lanes``."""

    source: str
    name: str
    lanes: int
    block: int
    warps: int


def scan_sources(form: Scan) -> dict[int, str]:
    n, first_const = form.n_carry, form.n_carry + form.n_xs
    return {i: f"row_{i}" if i < first_const else f"in_{i}" for i in range(n, len(form.body.inputs))}


def while_sources(form: While) -> dict[int, str]:
    return {i: f"in_{i}" for i in range(form.n_carry, len(form.body.inputs))}


def lanes_of(form: Scan | While) -> int:
    """How many lanes a loop has; what it carries or returns may be one number: NOTE [Shared numbers]."""
    n, outputs = form.n_carry, form.body.outputs
    counts = {*map(_count, (*form.body.inputs[:n], *outputs))}
    if not counts:
        raise Refused("it computes nothing")
    if len(counts - {1}) > 1:
        raise Refused("carries and outputs differ in size")
    return max(counts)


def scan_by_lanes(form: Scan, step: LaneStep) -> Launch:
    n, metas, length = form.n_carry, form.body.inputs, number(form.length)
    starts, moves = _rows(form)
    stores = []
    for i, meta in enumerate(form.body.outputs[n:], n):
        size, lead = _count(meta), form.lead(i)
        first = 0 if not form.reverse else length - 1
        if lead is not None:
            starts.append(_store(_at(f"out_{i}", length * size if form.reverse else 0), f"now_{lead}", size))
            first += not form.reverse
        starts.append(f"to_{i} = {_at(f'out_{i}', first * size)}")
        stores.append(_store(f"to_{i}", step.results[i], size))
        moves.append(f"to_{i} {'-' if form.reverse else '+'}= {size}")
    lines = [*_loaded(metas[:n]), *starts]
    lines += [f"for s in range({length}):", *_indented([*step.lines, *stores, *_carried(step, n), *moves])]
    lines += _returned(metas[:n])
    return _launch(form.label, form.inputs, form.outputs, lanes_of(form), step.before, lines)


def _rows(form: Scan) -> tuple[list[str], list[str]]:
    """Pointers to the rows of the first step, and how they move to those of the next one: no product overflows."""
    length = number(form.length)
    sign, first = ("-", length - 1) if form.reverse else ("+", 0)
    starts, moves = [], []
    for i, shift in enumerate(form.shifts or (None,) * form.n_xs, form.n_carry):
        size = _count(form.body.inputs[i])
        if shift is None:
            starts.append(f"row_{i} = {_at(f'in_{i}', first * size)}")
            moves.append(f"row_{i} {sign}= {size}")
        elif (shift.by < 0) is not form.reverse:  # the first step reads the head, and the next one the first row
            starts += [f"row_{i} = in_{shift.head}", f"next_{i} = {_at(f'in_{i}', first * size)}"]
            moves += [f"row_{i} = next_{i}", f"next_{i} {sign}= {size}"]
        else:  # the last step reads the head
            start = _at(f"in_{i}", (first + shift.by) * size) if length > 1 else f"in_{shift.head}"
            starts += [f"row_{i} = {start}", f"next_{i} = row_{i}"]
            moves += [f"next_{i} {sign}= {size}"]
            moves += [f"row_{i} = tl.where(s < {length - 2}, next_{i}, in_{shift.head})"]
    return starts, moves


def while_by_lanes(form: While, test: LaneStep | None, step: LaneStep) -> Launch:
    """``test`` of what all lanes share, or None: NOTE [Lanes end by themselves]."""
    n, metas = form.n_carry, form.inputs
    lines = _loaded(metas[:n])
    if test is None:
        lines.append("now_0 = now_0 & xmask")
        go = ["go = tl.max(now_0.to(tl.int32), 0) > 0"]
    else:
        go = [*test.lines, f"go = tl.max(({test.results[0]} & xmask).to(tl.int32), 0) > 0"]
    lines += [*go, "while go:", *_indented([*step.lines, *_carried(step, n), *go]), *_returned(metas[:n])]
    before = list(dict.fromkeys([*(test.before if test else []), *step.before]))
    return _launch(form.label, form.inputs, form.outputs, lanes_of(form), before, lines)


def _count(meta: TensorMeta) -> int:
    return number(numel(meta))


def _at(pointer: str, offset: int) -> str:
    return f"{pointer} + {offset}" if offset else pointer


def _loaded(metas: Sequence[TensorMeta]) -> list[str]:
    def value(i: int, meta: TensorMeta) -> str:
        return f"tl.load(in_{i} + {_place(_count(meta))}, xmask).to({compute_type(meta.dtype)})"

    return [f"now_{i} = {value(i, meta)}" for i, meta in enumerate(metas)]


def _carried(step: LaneStep, n: int) -> list[str]:
    return [f"now_{i} = {step.results[i]}" for i in range(n)]


def _returned(metas: Sequence[TensorMeta]) -> list[str]:
    return [_store(f"out_{i}", f"now_{i}", _count(meta)) for i, meta in enumerate(metas)]


def _store(pointer: str, value: str, size: int) -> str:
    mask = "xmask & (xindex == 0)" if size == 1 else "xmask"
    return f"tl.store({pointer} + {_place(size)}, {value}, {mask})"


def _place(size: int) -> str:
    """Where a lane finds its own value, or the one that all share."""
    return "0 * xindex" if size == 1 else "xindex"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _launch(
    label: str,
    inputs: Sequence[TensorMeta],
    outputs: Sequence[TensorMeta],
    lanes: int,
    before: Sequence[str],
    lines: Sequence[str],
) -> Launch:
    """A kernel with a name of its content."""
    arguments = [*(f"in_{i}" for i in range(len(inputs))), *(f"out_{i}" for i in range(len(outputs)))]
    warps = 1 if lanes < _MANY else 4
    block = min(_WARP * warps * (1 if lanes < _MOST else 2), 1 << (lanes - 1).bit_length())
    code = "\n".join(_indented([f"xnumel = {lanes}", *before, *lines]))
    name = f"{identifier(label)}_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    head = f"@triton.jit\ndef {name}({', '.join(arguments)}, XBLOCK: tl.constexpr):"
    parts = [_IMPORTS, *([NUMBERS] if DRAWN in code else []), f"{head}\n{code}\n"]
    return Launch("\n\n".join(parts), name, lanes, block, warps)


_IMPORTS = textwrap.dedent("""\
    import triton
    import triton.language as tl
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
""")
