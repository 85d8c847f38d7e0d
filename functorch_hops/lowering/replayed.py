"""Graphs whose loops are launched step by step, on a GPU, replayed as CUDA graphs.

NOTE [Replayed loops] A loop that is no kernel launches those of each step from Python, which takes longer than they
run. If its trip count is known when it is compiled, each call launches the same kernels: they are recorded once, and
each later call is one launch. What is recorded reads and writes memory of its own, so operands are copied to it and
results from it. Values on the CPU are part of what was recorded: a call with others, to the bit, runs as if nothing
had been. What Python does while it is recorded depends on nothing else, for CUDA lets nobody wait for a device
meanwhile. Not recorded are graphs with effects, random numbers or calls of Python, nor such as move tensors between
devices, for which torch waits, or run code of which it is not known whether it waits: what Inductor does not print, but
for operators of torch's that were recorded. Inductor's option ``triton.cudagraphs``, if given, decides instead.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from .._torch import OpOverload, can_record_on_cuda, is_pointwise, recorded_on_cuda
from ..ir.subgraph import Subgraph, has_effect, params_of
from .decompositions import is_printed
from .stages import Code

__all__ = ["Replayed", "bits", "is_replayable", "moves"]

_MOST_STEPS = 4096
"""Each launch that is recorded takes about a kB, and each step has some."""
_MOST_BYTES = 1 << 28
"""Of operands and results, which have copies."""
_MOST_RESERVED = 1 << 30
"""By the recordings of all graphs: a function that is compiled for many shapes has one for each."""
_MOST_NUMBERS = 16
"""Elements of an operand on the CPU: it is compared with that of the recorded call."""

_OF_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_log = logging.getLogger("functorch_hops")


def is_replayable(body: Subgraph) -> bool:
    """Whether each call of this graph, whose kernels are made, launches the same, and many times."""
    metas = (*body.inputs, *body.outputs)
    if body.shape_env is not None or body.random or not all(meta.device.type == "cuda" for meta in body.outputs):
        return False
    if len({meta.device for meta in metas if meta.device.type != "cpu"}) != 1:
        return False
    if any(meta.device.type != "cuda" and torch.Size(meta.shape).numel() > _MOST_NUMBERS for meta in body.inputs):
        return False
    if sum(meta.nbytes for meta in metas) > _MOST_BYTES:
        return False
    steps = _steps(body)
    return steps is not None and 0 < steps <= _MOST_STEPS


def _steps(body: Subgraph) -> int | None:
    """How many steps the loops take that are no kernels; None if that may be another number in each call."""
    total = 0
    for node in body.module.graph.nodes:
        if has_effect(node, body.module) or _waits_for_a_device(node):
            return None
        params = params_of(node, body.module)
        if params is None:
            continue
        inside = [_steps(part) for part in params.run_bodies]
        if params.calls_python or None in inside:
            return None
        steps = sum(inner for inner in inside if inner is not None)
        if params.operator.rules.native_loop(params) is not None:
            trips = params.trip_count([x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]])
            if trips is None:
                return None
            steps = trips * (1 + steps)
        elif len(inside) != 1:
            return None
        total += steps
    return total


def _waits_for_a_device(node: fx.Node) -> bool:
    operator = node.target
    if not isinstance(operator, OpOverload):
        return False
    return not _OF_VALUES.isdisjoint(operator.tags) or moves(node) or not _can_record(operator, node)


def _can_record(operator: OpOverload, node: fx.Node) -> bool:
    if operator.namespace == "functorch_hops" or is_pointwise(operator) or is_printed(operator):
        return True
    first = next(iter(_tensors(n.meta.get("val") for n in node.all_input_nodes)), None)
    return can_record_on_cuda(operator, None if first is None else first.shape)


def moves(node: fx.Node) -> bool:
    """Whether a tensor goes to another device. A number on the CPU is an argument of the kernel that reads it."""
    value = node.meta.get("val")
    made = _tensors(value if isinstance(value, (list, tuple)) else [value])
    given = _tensors(n.meta.get("val") for n in node.all_input_nodes)
    moved = [x for x in given if any(x.device != y.device for y in made)]
    is_kernel = is_pointwise(node.target) or getattr(node.target, "namespace", "") == "functorch_hops"
    are_arguments = is_kernel and len(moved) < len(given) and not any(x.dim() for x in moved)
    return bool(moved) and not are_arguments


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [x for x in values if isinstance(x, Tensor)]


class _Memory:
    """What recordings hold, in bytes."""

    reserved: ClassVar[int] = 0

    @classmethod
    def hold(cls, owner: object, size: int) -> None:
        cls.reserved += size
        weakref.finalize(owner, cls._release, size)

    @classmethod
    def _release(cls, size: int) -> None:
        cls.reserved -= size


class Replayed:
    """Compiled ``code``, recorded when it is called for the second time: the first call may compile and tune."""

    def __init__(self, code: Code, device: torch.device) -> None:
        self._code, self._device = code, device
        self._calls = 0
        self._recorded: _Recorded | None = None
        self._lock = threading.Lock()

    def __call__(self, operands: list[Tensor]) -> Sequence[Tensor]:
        with torch.cuda.device(self._device):
            if torch.cuda.is_current_stream_capturing():
                return self._code(operands)
            with self._lock:
                self._calls += 1
                if self._calls == 2 and _Memory.reserved < _MOST_RESERVED:
                    self._recorded = self._record(operands)
                if self._recorded is not None and self._recorded.is_for(operands):
                    return self._recorded(operands)
            return self._code(operands)

    def _record(self, operands: Sequence[Tensor]) -> _Recorded | None:
        before = torch.cuda.memory_reserved()
        try:
            recorded = _Recorded(self._code, operands, self._device)
        except RuntimeError as error:
            _log.info("a graph is launched step by step, as CUDA can't record it: %s", error)
            return None
        _Memory.hold(recorded, max(0, torch.cuda.memory_reserved() - before))
        return recorded


class _Recorded:
    """A call as a CUDA graph, with the memory that it reads and writes."""

    def __init__(self, code: Code, operands: Sequence[Tensor], device: torch.device) -> None:
        self._stream = torch.cuda.current_stream()
        self._numbers = [(i, bits(x)) for i, x in enumerate(operands) if not x.is_cuda]
        with torch.inference_mode(False), torch.no_grad():  # calls outside of inference mode write to its operands
            self._operands = [x.clone() for x in operands]
            self._graph, self._results = recorded_on_cuda(device, lambda: code([*self._operands]))

    def is_for(self, operands: Sequence[Tensor]) -> bool:
        return all(bits(operands[i]) == number for i, number in self._numbers)

    def __call__(self, operands: Sequence[Tensor]) -> list[Tensor]:
        own = [(x, operand) for x, operand in zip(self._operands, operands) if x.is_cuda]
        stream = torch.cuda.current_stream()
        if stream != self._stream:
            stream.wait_stream(self._stream)
            self._stream = stream
            for x, _ in own:
                x.record_stream(stream)
        for x, operand in own:
            x.copy_(operand)
        self._graph.replay()
        return [x.clone() for x in self._results]


def bits(number: Tensor) -> list[int]:
    """Of a tensor on the CPU: a zero has a sign, and NaN is itself."""
    return number.reshape(-1).view(torch.uint8).tolist()
