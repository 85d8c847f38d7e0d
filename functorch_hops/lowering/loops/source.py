"""The C++ that all kernels share: functions, their signature, and the entry of a kernel.

NOTE [Names in kernels] A loop under a name of the user's (``fh.annotate``) is a C++ function of that name, which is not
inlined, and a range of that name in a profile of torch's. So such loops share no code with equal ones of other names;
all others do, whatever their lines are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...ir.meta import TensorMeta
from .forms import Refused
from .happening import EVENTS
from .headers import header
from .sizes import OpenSize, Size, aligned, hint, quotient, size_of, symbols
from .throwing import DIVISION, checked_divisions
from .vector_math import VECTOR_MATH

__all__ = [
    "Dense",
    "Function",
    "Program",
    "c_type",
    "check_metas",
    "computed_dtype",
    "defined",
    "identifier",
    "is_long",
    "n_bytes",
    "nanoseconds_of",
    "numel",
    "offset_after",
    "program",
]

_CONTROL = header("control")
_RANGES = header("ranges")

_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "at::BFloat16",
    torch.float16: "at::Half",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
_ALIGNMENT = 64


def c_type(dtype: torch.dtype) -> str:
    if dtype not in _TYPES:
        raise Refused(f"kernels do not compute in {dtype}")
    return _TYPES[dtype]


def check_metas(metas: Iterable[TensorMeta]) -> None:
    """On one device, or on a GPU and numbers on the CPU."""
    devices = set()
    for meta in metas:
        c_type(meta.dtype)
        if meta.device.type not in ("cpu", "cuda"):
            raise Refused(f"it runs on {meta.device.type}")
        if meta.device.type == "cuda" or meta.shape:
            devices.add((meta.device.type, meta.device.index or 0))
    if len(devices) > 1:
        raise Refused("it runs on several devices")


def computed_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a kernel computes products of half precision in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def numel(meta: TensorMeta) -> Size:
    return math.prod(map(size_of, meta.shape))


def n_bytes(meta: TensorMeta) -> Size:
    return numel(meta) * meta.dtype.itemsize


def offset_after(offset: Size, size: Size) -> Size:
    """The next aligned place in a workspace behind ``size`` bytes at ``offset``, which is aligned."""
    return offset + aligned(size, _ALIGNMENT)


def nanoseconds_of(work: Size) -> Size:
    """What it takes to compute so many elements on one thread, roughly."""
    return quotient(work, 10)


def is_long(work: Size) -> bool:
    """Whether so many elements are worth several threads, see ``fh::each_block``."""
    return hint(nanoseconds_of(work)) >= _ENOUGH


_ENOUGH = 2_000_000


@dataclass(frozen=True)
class Dense:
    """Input ``place`` from element ``offset`` on as ``count`` matrices, ``step`` elements apart, to be copied row after
    row, or panel after panel.
    """

    place: int
    dtype: torch.dtype
    offset: Size
    count: Size
    step: Size
    shape: tuple[Size, Size]
    strides: tuple[Size, Size]
    in_panels: bool

    @property
    def size(self) -> Size:
        return self.count * math.prod(self.shape) * computed_dtype(self.dtype).itemsize

    def copied(self, source: str, target: str) -> str:
        sizes = ", ".join(map(str, (self.count, *self.shape)))
        steps = ", ".join(map(str, (self.step, *self.strides)))
        copy = "fh::copy_panels" if self.in_panels else "fh::copy_dense"
        return f"{copy}({source} + {self.offset}, {steps}, {target}, {sizes});"


@dataclass(frozen=True)
class Function:
    """A C++ function of pointers to its inputs, to its outputs, to ``dense`` copies of inputs that its caller makes
    once, of the open ``sizes``, by name, of a pointer to a workspace, and of the control block.

    ``parts`` are the texts that define it and what it calls, in order, each once in a program. ``work`` is how many
    elements a call computes, as far as it does not loop; ``loops``: whether it may stop early (``control.stopped``).
    ``in_place``: the outputs that it leaves in the inputs of the same number, which it writes to.
    """

    name: str
    parts: tuple[str, ...]
    workspace: Size
    work: Size
    loops: bool
    dense: tuple[Dense, ...] = ()
    sizes: tuple[OpenSize, ...] = ()
    in_place: frozenset[int] = frozenset()

    @property
    def has_workspace(self) -> bool:
        return isinstance(self.workspace, OpenSize) or self.workspace > 0


def defined(
    label: str,
    inputs: Sequence[TensorMeta],
    outputs: Sequence[TensorMeta],
    statements: Sequence[str],
    *,
    before: str = "",
    needs: Sequence[str] = (),
    calls: Sequence[Function] = (),
    dense: Sequence[Dense] = (),
    workspace: Size = 0,
    work: Size,
    loops: bool,
    sizes: Iterable[Size] = (),
    steps: Size = -1,
    in_place: frozenset[int] = frozenset(),
) -> Function:
    """A function with a name of its content, so that equal ones are one, and their source is the same in every run.

    ``before``: functions of its own; ``needs``: parts that it uses; ``sizes``: open ones that no input, output or
    function that it calls has; ``steps``: of the loop that it is, -1 if unknown. See NOTE [Names in kernels].
    """
    is_named = "/" in label
    if is_named:
        statements = [f'fh::Range range("{_escaped(label)}", {steps});', *statements]
        needs = [*needs, _RANGES]
    label, inlined = identifier(label), "C10_NOINLINE" if is_named else "C10_ALWAYS_INLINE"
    shapes = (size for meta in (*inputs, *outputs) for size in meta.shape)
    called = (size for function in calls for size in function.sizes)
    open_sizes = symbols([*sizes, *shapes, *called, workspace, work])
    arguments = [f"const {c_type(m.dtype)}* in_{i}" for i, m in enumerate(inputs)]
    arguments += [f"{c_type(m.dtype)}* out_{i}" for i, m in enumerate(outputs)]
    arguments += [f"const {c_type(computed_dtype(d.dtype))}* dense_{i}" for i, d in enumerate(dense)]
    arguments += [f"[[maybe_unused]] const int64_t {name}" for name in open_sizes]
    head = f"void {label}({', '.join([*arguments, 'char* workspace', 'fh::Control& control'])})"
    code = "\n".join([before, f"static {inlined} {head}", "{", *statements, "}"])
    if checked := checked_divisions(code):
        code, needs = f"{checked}\n{code}", [*needs, DIVISION]
    space = f"fh_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    parts = [*needs, *(part for function in calls for part in function.parts)]
    parts.append(f"#ifndef {space}\n#define {space}\nnamespace {space}_ {{\n{code}\n}}\n#endif")
    name = f"{space}_::{label}"
    return Function(name, tuple(dict.fromkeys(parts)), workspace, work, loops, tuple(dense), open_sizes, in_place)


def identifier(label: str) -> str:
    """A name for a function."""
    name = re.sub(r"\W", "_", label, flags=re.ASCII)
    return f"_{name}" if name[0].isdigit() else name


def _escaped(text: str) -> str:
    """As C++ writes it between quotes."""
    return "".join(chr(x) if 32 <= x < 127 and chr(x) not in '"?\\' else f"\\{x:03o}" for x in text.encode())


class Program(NamedTuple):
    """Functions of C++, and what a function of these ``types`` does with them: pointers to the inputs, to the outputs,
    open sizes, the bytes of the workspace. ``shared``: what all programs begin with.
    """

    shared: tuple[str, ...]
    parts: tuple[str, ...]
    types: tuple[str, ...]
    statements: tuple[str, ...]

    def defined_as(self, name: str) -> str:
        """The function alone."""
        arguments = ", ".join(f"{kind} p{i}" for i, kind in enumerate(self.types))
        return "\n".join([f'extern "C" void {name}({arguments})', "{", *self.statements, "}", ""])

    def source(self, name: str) -> str:
        return "\n".join([*self.shared, *self.parts, self.defined_as(name)])


def program(
    parts: Sequence[str],
    name: str,
    n_sizes: int,
    inputs: Sequence[torch.dtype],
    outputs: Sequence[torch.dtype],
    offsets: Sequence[int] = (),
) -> Program:
    """The function that calls ``name``. ``offsets``: where the elements begin, 0 for all if empty."""
    types = [*(f"const {c_type(dtype)}*" for dtype in inputs), *(f"{c_type(dtype)}*" for dtype in outputs)]
    n = len(types)
    places = [f"p{i} + {offset}" if offset else f"p{i}" for i, offset in enumerate(offsets or [0] * n)]
    sizes = [f"p{n + i}" for i in range(n_sizes)]
    types += ["int64_t"] * (n_sizes + 1)
    statements = [
        f"fh::Call call(p{n + n_sizes});",
        f"{name}({', '.join([*places, *sizes, 'call.workspace.get()', 'call.control'])});",
        *(["fh::tell(call.control);"] if EVENTS in parts else []),
    ]
    shared = f"#define FH_ENOUGH {_ENOUGH}", _CONTROL, VECTOR_MATH
    return Program(shared, tuple(parts), tuple(types), tuple(statements))
