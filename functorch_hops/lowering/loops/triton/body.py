"""What a lane computes in a step, printed by Inductor's operators for Triton (torch 2.13 and 2.11)."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from .... import _torch
from ....ir.meta import TensorMeta
from ..body import Lowered, handlers, settings
from ..lanes import lane_nodes, replayed
from ..sizes import OpenSize, Size, expression_of, size_of
from ..source import numel
from ..unrolled import Held
from .numbers import DRAWN
from .values import assigned, compute_type, text, variables

__all__ = ["LaneStep", "Programs"]

_LARGE = 1 << 30
"""Elements from which on places in a tensor are numbers of 64 bits; so are they if a size is open."""
_MOST_BEFORE = 32
"""Values that are read before the first step: they stay in registers."""


@dataclass(frozen=True)
class LaneStep:
    """Lines that read what no step changes, and those of a step."""

    before: list[str]
    lines: list[str]


class Programs:
    """The code of the programs of a kernel, which share the ``lanes`` of a loop: ``header`` says which lanes each has.
    ``metas``: what they read and write in a step; ``options``: those of Inductor.
    """

    def __init__(self, lanes: Size, metas: Iterable[TensorMeta], options: dict[str, Any]) -> None:
        self.lanes, self.options = lanes, options
        self._numbers = itertools.count()
        self.header: list[str] = []
        sizes = (lanes, *map(numel, metas))
        self._is_large = any(isinstance(size, OpenSize) or size >= _LARGE for size in sizes)

    def kernel(self, consts: Iterable[str]) -> Any:
        """A generator of code; no step changes the inputs ``consts``."""
        kernel = _kernel_class()(self.lanes, frozenset(consts), self._is_large, self._numbers)
        self.header = kernel.header
        return kernel

    def printing(self, lowered: Lowered) -> contextlib.ExitStack:
        """What Inductor finds around it where it prints for Triton."""
        stack = contextlib.ExitStack()
        stack.enter_context(_torch.suspended(keep_autocast=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(settings({**self.options, "eager_numerics.division_rounding": True}))
        stack.enter_context(handlers(lowered.graph))
        stack.enter_context(lowered.graph.set_current_device(torch.device("cuda")))
        return stack

    def step(self, lowered: Lowered, sources: Sequence[str | Held], targets: Sequence[Held], n_const: int) -> LaneStep:
        """A step in which a lane has one number of each value. ``sources``: the carries, then the pointers to the other
        inputs; no step changes the last ``n_const``.
        """
        from torch._inductor.codegen.common import CSEProxy
        from torch._inductor.virtualized import V

        graph = lowered.graph
        with self.printing(lowered):
            nodes, shape = lane_nodes(graph, self.lanes, has_shared=True)
            names = graph.graph_input_names
            kernel = self.kernel(names[len(names) - n_const :])
            pointers = {name: x for name, x in zip(names, sources) if isinstance(x, str)}
            kernel.args.input_buffers.update(pointers)
            with V.set_kernel_handler(kernel), V.set_ops_handler(CSEProxy(kernel, kernel.overrides())):
                place = kernel.lane([expression_of(size) for size in shape])
                carry = lambda i, _: kernel.variable(sources[i], 0)
                results = replayed(graph, nodes, shape, place, len(names) - len(pointers), carry)
                values = [kernel.held(value, meta.dtype) for value, meta in zip(results, lowered.body.outputs)]
        lines = [line for target, value in zip(targets, values) for line in assigned(target, [value])]
        return LaneStep(kernel.lines_before(), [*kernel.lines(), *lines])


def _lines(code: Any) -> list[str]:
    return [line for line in code.getvalue().splitlines() if line.strip()]


@functools.cache
def _kernel_class() -> Any:
    from torch._inductor.codegen.simd_kernel_features import SIMDKernelFeatures
    from torch._inductor.codegen.triton import TritonKernel, TritonKernelOverrides
    from torch._inductor.utils import triton_type, upcast_compute_type

    class Features(SIMDKernelFeatures):
        def __init__(self, is_large: bool, count: Any) -> None:
            super().__init__([], count)
            self.is_large = is_large

        def select_index_dtype(self) -> torch.dtype:  # type: ignore[override]
            return torch.int64 if self.is_large else torch.int32

    class Operators(TritonKernelOverrides):
        """With numbers by count (NOTE [Numbers by count]), those of the kernels on CPUs."""

        @staticmethod
        def rand(key: Any, count: Any) -> str:
            return f"{DRAWN}uniform({key}, {count})"

        @staticmethod
        def randn(key: Any, count: Any) -> str:
            return f"{DRAWN}normal({key}, {count})"

        @staticmethod
        def randint64(key: Any, count: Any, low: Any, high: Any) -> str:
            return f"{DRAWN}integer({key}, {count}, {low}, {high})"

    class LaneKernel(TritonKernel):
        """Inductor's generator of Triton kernels, for ``count`` lanes. What no step changes is read before the first,
        and what a lane carries is a variable.
        """

        overrides = Operators

        def __init__(self, count: Size, consts: frozenset[str], is_large: bool, numbers: itertools.count[int]) -> None:
            lanes = expression_of(count)
            super().__init__({"x": lanes}, features=Features(is_large, lanes))
            self.cse.iter_buffer_ids = numbers
            self.count, self.consts, self.reads_const, self.n_before = count, consts, False, 0
            self.header = _lines(self.body)

        def lane(self, shape: Sequence[Any]) -> list[Any]:
            """The place of a lane in each dimension."""
            return self.range_trees[0].construct([*shape]) if self.count != 1 else [sympy.Integer(0)]

        def lines_before(self) -> list[str]:
            """Behind the header, before the first step."""
            sizes = [f"{inner} = {text(size_of(outer))}" for outer, inner in self.args.sizevars.items()]
            return [*sizes, *_lines(self.body)[len(self.header) :]]

        def lines(self) -> list[str]:
            return _lines(self.compute)

        def indexing(
            self, index: Any, *, block_ptr: bool = False, tma_compatibility_checker: Any = None, **how: Any
        ) -> Any:
            """By plain pointers, which move from step to step; whether others pay depends on the GPU."""
            return super().indexing(index, **how)

        def load(self, name: str, index: Any) -> Any:
            self.reads_const = name in self.consts
            return super().load(name, index)

        def get_load_buffer(self, indexing: Any) -> Any:
            """In the order of the program, whatever an index or a mask depends on."""
            in_step = not self.reads_const or indexing.has_indirect() or indexing.has_tmpmask()
            self.n_before += not in_step
            return self.compute if in_step or self.n_before > _MOST_BEFORE else self.body

        def variable(self, held: Held, number: int) -> Any:
            """What lanes hold; behind the last lane anything: no place to read at."""
            return self._of_lanes(variables(held)[number], held.dtype)

        def held(self, value: Any, dtype: torch.dtype) -> str:
            """A value of each lane, rounded as memory would."""
            types = dict.fromkeys((triton_type(dtype), compute_type(dtype)))
            casts = "".join(f".to({kind})" for kind in types)
            return str(self._of_lanes(f"tl.broadcast_to({value}{casts}, {self.dense_size_str()})", dtype))

        def _of_lanes(self, text: str, dtype: torch.dtype) -> Any:
            shape = tuple(self.dense_size_list())
            variable = self.cse.generate(self.compute, text, dtype=upcast_compute_type(dtype), shape=shape)
            variable.mask_vars.update(f"{tree.prefix}mask" for tree in self.range_trees)
            return variable

    return LaneKernel
