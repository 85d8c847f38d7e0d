"""What a lane computes in a step, printed by Inductor's operators for Triton (torch 2.13)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from .... import _torch
from ..body import Lowered, handlers, settings
from ..forms import Refused
from ..lanes import lane_nodes, replayed
from ..sizes import number
from ..source import computed_dtype, numel
from .numbers import DRAWN

__all__ = ["LaneStep", "compute_type", "lane_step"]

_LARGE = 1 << 30
"""Elements from which on places in a tensor are numbers of 64 bits."""


@dataclass(frozen=True)
class LaneStep:
    """Lines that say which lanes a program has and read what no step changes, those of a step, and the results."""

    before: list[str]
    lines: list[str]
    results: list[str]


def compute_type(dtype: torch.dtype) -> str:
    """The type in which a lane holds values of a dtype."""
    from torch._inductor.utils import triton_type

    return triton_type(computed_dtype(dtype))


def lane_step(
    lowered: Lowered,
    count: int,
    n_carry: int,
    sources: Mapping[int, str],
    first_const: int,
    options: dict[str, Any],
    numbers: itertools.count[int],
) -> LaneStep:
    """A step of a program's lanes, of which there are ``count``. ``sources``: the pointers to the inputs behind the
    carries, which are ``now_i``; no step changes the inputs from ``first_const`` on. ``numbers``: of variables.
    """
    from torch._inductor.codegen.common import CSEProxy
    from torch._inductor.virtualized import V

    body, graph = lowered.body, lowered.graph
    with (
        _torch.suspended(keep_autocast=False),
        torch.no_grad(),
        settings({**options, "eager_numerics.division_rounding": True}),
        handlers(graph),
        graph.set_current_device(torch.device("cuda")),
    ):
        nodes, shape = lane_nodes(graph, count, has_shared=True)
        names = graph.graph_input_names
        is_large = any(number(numel(meta)) >= _LARGE for meta in (*body.inputs, *body.outputs))
        kernel = _kernel_class()(count, frozenset(names[first_const:]), is_large, numbers)
        for i, pointer in sources.items():
            kernel.args.input_buffers[names[i]] = pointer
        with V.set_kernel_handler(kernel), V.set_ops_handler(CSEProxy(kernel, kernel.overrides())):
            sizes = [sympy.Integer(size) for size in shape]
            place = kernel.range_trees[0].construct(sizes) if count > 1 else [sympy.Integer(0)]
            carry = lambda i, _: kernel.carry(f"now_{i}", body.inputs[i].dtype)
            results = replayed(graph, nodes, shape, place, n_carry, carry)
            held = [kernel.held(value, meta.dtype) for value, meta in zip(results, body.outputs)]
    if kernel.args.sizevars:
        raise Refused("a size is open")
    return LaneStep(_lines(kernel.body), _lines(kernel.compute), held)


def _lines(code: Any) -> list[str]:
    return [line for line in code.getvalue().splitlines() if line.strip()]


@functools.cache
def _kernel_class() -> Any:
    from torch._inductor.codegen.simd_kernel_features import SIMDKernelFeatures
    from torch._inductor.codegen.triton import TritonKernel, TritonKernelOverrides
    from torch._inductor.utils import triton_type, upcast_compute_type

    class Features(SIMDKernelFeatures):
        def __init__(self, is_large: bool, count: int) -> None:
            super().__init__([], sympy.Integer(count))
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

        def __init__(self, count: int, consts: frozenset[str], is_large: bool, numbers: itertools.count[int]) -> None:
            super().__init__({"x": sympy.Integer(count)}, features=Features(is_large, count))
            self.cse.iter_buffer_ids = numbers
            self.consts, self.reads_const = consts, False

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
            return self.compute if in_step else self.body

        def carry(self, name: str, dtype: torch.dtype) -> Any:
            """Behind the last lane anything: no place to read at."""
            return self._of_lanes(name, dtype)

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
