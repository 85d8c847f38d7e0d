"""What ``fh.debug.find_nan`` reports, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["NanOrigin", "NanReport"]

_SHOWN = 8
"""The most elements of a tensor that are shown."""


@dataclass(frozen=True)
class NanOrigin:
    """Where a NaN or an infinity comes from.

    Attributes:
        found: "nan" or "inf".
        is_made: whether the operation made it, from operands that are finite (or, of a NaN, hold none); if False, it
            came in as an operand: nothing that was seen had made it.
        operation: the function of torch that was called, such as "torch.Tensor.log".
        node: None for a value, and for what the Python of a derivative rule calls itself; of a gradient what autograd
            ran for that call, such as "LogBackward0", and "tangent" in forward mode. A rule that is a graph where it
            runs, under another transform, is named with the operator in it: "aten.div.Tensor in the backward pass", or
            "in the graph".
        file, line, source: where the user called it; ``source`` is the text of that line.
        loops: the loops around, such as "scan", from the outermost.
        iteration: the step of the loop around, counted from 0, a tuple in nested loops; None outside of loops.
        lane: of the vmap around, a tuple in nested ones; None outside.
        operands: the values that the call was given, tensors and numbers, in their order.
        cotangents: of a gradient, those that arrived at the node.

    >>> import torch, functorch_hops as fh
    >>> found = fh.debug.find_nan(fh.vmap(torch.log))(torch.tensor([1.0, 0.0])).value
    >>> found.found, found.operation, found.lane, found.operands
    ('inf', 'torch.log', 1, (tensor(0.),))
    """

    found: str
    is_made: bool
    operation: str
    node: str | None
    file: str | None
    line: int | None
    source: str
    loops: tuple[str, ...]
    iteration: int | tuple[int, ...] | None
    lane: int | tuple[int, ...] | None
    operands: tuple[Any, ...]
    cotangents: tuple[Tensor, ...]

    def __str__(self) -> str:
        kind = "infinity" if self.found == "inf" else "NaN"
        did = "made the first" if self.is_made else "was given the first"
        what = self.operation if self.node is None else f"{self.node} of {self.operation}"
        lines = [f"{what} {did} {kind}"]
        if self.file is not None:
            lines.append(f"  at {self.file}:{self.line}" + (f": {self.source}" if self.source else ""))
        if self.loops:
            lines.append(f"  iteration: {self.iteration} of {' of '.join(reversed(self.loops))}")
        if self.lane is not None:
            lines.append(f"  lane: {self.lane}")
        lines += [f"  operand {i}: {_shown(value)}" for i, value in enumerate(self.operands)]
        lines += [f"  cotangent {i}: {_shown(value)}" for i, value in enumerate(self.cotangents)]
        return "\n".join(lines)


@dataclass(frozen=True)
class NanReport:
    """What ``find_nan`` returns; ``print`` shows it as text. It is true if something was found.

    Attributes:
        name: of the function.
        value: where the first NaN or infinity on the way to the results comes from, derivatives that the function
            itself takes included; None if there is none.
        gradient: the same on the way back, from the sum of the results to the arguments and closed-over tensors.
        in_value: whether the results hold a NaN or an infinity; one that was made may have been masked.
        in_gradient: whether one of these gradients does; None if there is none, or if the function runs a backward pass
            itself, after which there is no other.
        refused: what the backward pass raised, of a function that has no gradient; else None.

    >>> import torch, functorch_hops as fh
    >>> root = lambda x: torch.where(x > 0, x.sqrt(), 0.0)
    >>> report = fh.debug.find_nan(root)(torch.zeros(()))
    >>> report.value, report.in_value, report.gradient.node, report.in_gradient
    (None, False, 'SqrtBackward0', True)
    """

    name: str
    value: NanOrigin | None
    gradient: NanOrigin | None
    in_value: bool
    in_gradient: bool | None
    refused: Exception | None = None

    def __bool__(self) -> bool:
        return self.value is not None or self.gradient is not None

    def __str__(self) -> str:
        lines = []
        results = ("result", self.value, self.in_value), ("gradient", self.gradient, self.in_gradient)
        for name, origin, is_there in results:
            if is_there is None:
                lines.append(f"{self.name}: no gradient of the result was taken{self._why()}")
            elif origin is None:
                lines.append(f"{self.name}: no NaN and no infinity on the way to the {name}")
            else:
                holds = "holds NaN or infinity" if is_there else "is finite all the same"
                lines.append(f"{self.name}: the {name} {holds}; {origin}")
        return "\n".join(lines)

    def _why(self) -> str:
        return "" if self.refused is None else f"; {type(self.refused).__name__}: {self.refused}"


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if value.numel() <= _SHOWN:
        return str(value.tolist())
    text = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    finite = torch.isfinite(value)
    numbers = value[finite]
    if numbers.numel() and not value.is_complex():
        text += f", from {numbers.min().item()} to {numbers.max().item()}"
    others = value.numel() - int(finite.sum())
    return f"{text}, {others} NaN or infinite" if others else text
