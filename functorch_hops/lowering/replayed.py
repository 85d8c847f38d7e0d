"""Graphs whose loops are launched step by step, on a GPU, replayed as CUDA graphs.

NOTE [Replayed loops] A loop that is no kernel launches those of each step from Python, which takes longer than they
run. If its trip count is known when it is compiled, each call launches the same kernels: they are recorded once, and
each later call is one launch. What is recorded reads and writes memory of its own, so operands are copied to it and
results from it. Values on the CPU are part of what was recorded: a call with others runs as if nothing had been. What
Python does while it is recorded depends on nothing else, for CUDA lets nobody wait for a device meanwhile, and graphs
with effects, random numbers or calls of Python are not recorded. Replays on different streams wait for one another:
graphs share the workspace of the library that computes products, as they were recorded on one stream. Inductor's option
``triton.cudagraphs``, if given, decides instead.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, fx

from .._torch import OpOverload
from ..ir.subgraph import Subgraph, has_effect, params_of

__all__ = ["Replayed", "is_replayable"]

Code = Callable[[list[Tensor]], Sequence[Tensor]]

_MOST_STEPS = 4096
"""Each launch that is recorded takes about a kB, and each step has some."""
_MOST_BYTES = 1 << 28
"""Of operands and results, which have copies."""
_MOST_RESERVED = 1 << 30
"""By all graphs together: a function that is compiled for many shapes has a graph for each."""
_MOST_NUMBERS = 16
"""Elements of an operand on the CPU: it is compared with that of the recorded call."""
_OF_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_log = logging.getLogger("functorch_hops")


def is_replayable(body: Subgraph) -> bool:
    """Whether each call of this graph, whose kernels are made, launches the same, and many times."""
    metas = (*body.inputs, *body.outputs)
    if body.shape_env is not None or body.random or any(meta.device.type != "cuda" for meta in body.outputs):
        return False
    if len({meta.device for meta in metas if meta.device.type != "cpu"}) != 1:
        return False
    if any(meta.device.type == "cpu" and torch.Size(meta.shape).numel() > _MOST_NUMBERS for meta in body.inputs):
        return False
    if sum(meta.nbytes for meta in metas) > _MOST_BYTES:
        return False
    steps = _steps(body)
    return steps is not None and 0 < steps <= _MOST_STEPS


def _steps(body: Subgraph) -> int | None:
    """How many steps the loops take that are no kernels; None if that may be another number in each call."""
    total = 0
    for node in body.module.graph.nodes:
        if has_effect(node, body.module) or _asks_the_device(node) or node.kwargs.get("non_blocking"):
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


def _asks_the_device(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and not _OF_VALUES.isdisjoint(node.target.tags)


class _Shared:
    """What all graphs share: whoever replays one holds ``lock``, on ``streams`` of the devices."""

    lock: ClassVar = threading.Lock()
    streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}
    reserved: ClassVar[int] = 0


def _release(size: int) -> None:
    _Shared.reserved -= size


class Replayed:
    """Compiled ``code`` for a device, recorded when it is called for the second time: the first call may compile and
    tune.
    """

    def __init__(self, code: Code, device: torch.device) -> None:
        self._code, self._device, self._calls = code, device, 0
        self._recorded: _Recorded | None = None

    def __call__(self, operands: list[Tensor]) -> Sequence[Tensor]:
        if torch.cuda.is_current_stream_capturing():
            return self._code(operands)
        with _Shared.lock, torch.cuda.device(self._device):
            self._calls += 1
            if self._calls == 2 and _Shared.reserved < _MOST_RESERVED:
                self._record(operands)
            if self._recorded is not None and self._recorded.is_for(operands):
                self._take_turns()
                return self._recorded(operands)
        return self._code(operands)

    def _record(self, operands: Sequence[Tensor]) -> None:
        before = torch.cuda.memory_reserved()
        try:
            self._recorded = _Recorded(self._code, operands)
        except RuntimeError as error:
            _log.info("a graph is launched step by step, as CUDA can't record it: %s", error)
            return
        size = max(0, torch.cuda.memory_reserved() - before)
        _Shared.reserved += size
        weakref.finalize(self._recorded, _release, size)

    def _take_turns(self) -> None:
        stream = torch.cuda.current_stream()
        last = _Shared.streams.setdefault(self._device, stream)
        if stream != last:
            stream.wait_stream(last)
            _Shared.streams[self._device] = stream


class _Recorded:
    """A call as a CUDA graph, with the memory that it reads and writes, in inference mode or not."""

    def __init__(self, code: Code, operands: Sequence[Tensor]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(False), torch.no_grad():
            self._operands = [x.clone() for x in operands]
            self._numbers = [(i, _bits(x)) for i, x in enumerate(operands) if not x.is_cuda]
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._results = code([*self._operands])

    def is_for(self, operands: Sequence[Tensor]) -> bool:
        return all(_bits(operands[i]) == bits for i, bits in self._numbers)

    def __call__(self, operands: Sequence[Tensor]) -> list[Tensor]:
        for own, operand in zip(self._operands, operands):
            if own.is_cuda:
                own.copy_(operand)
        self._graph.replay()
        return [x.clone() for x in self._results]


def _bits(x: Tensor) -> list[int]:
    bits: list[int] = x.reshape(-1).view(torch.uint8).tolist()
    return bits
