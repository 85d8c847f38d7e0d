"""How many lanes a kernel computes at a time (torch 2.13).

NOTE [Interleaved vectors] A function as ``tanh`` is a chain of operations, each of which waits for the one before. A
core looks some hundred instructions ahead; where a kernel is one long chain, it finds little else to do there, as the
next lanes begin behind it. Such a kernel computes two or four vectors at a time, operation by operation. One whose
operations don't wait for each other does not: it would only keep more values than there are registers. Nor does one
that converts numbers of one width to another: torch's vectors do so number by number where there are several.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["FUNCTIONS", "tilings_by_work"]

FUNCTIONS = "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sin", "cos", "erf"
"""Of one argument, in ``cpp/vector_math.h``."""

_FREE = "load", "store", "store_reduction", "reduction", "index_expr", "value_expr", "to_dtype", "constant"
_LONG = *FUNCTIONS, "pow", "reciprocal", "rsqrt", "sqrt", "truediv"
_LENGTH = 8
_BY_GAPS = 2.5
"""Operations that a vector saves as much with as it loses where it is read or written with gaps."""
_AT_A_TIME = {4: 2.0, 2: 4.0}
"""So many vectors, where the work of a kernel is less than so many times its longest chain."""
_WASTE = 1 / 8
"""Of the lanes that are computed, those at the end that are none."""
_selecting = threading.RLock()


def _work(name: str) -> int:
    return 0 if name in _FREE else _LENGTH if name in _LONG else 1


def _pays_in_vectors(counts: Any) -> bool:
    """Of a kernel that reads or writes with gaps. ``counts``: of its operations, by Inductor."""
    gaps = sum(counts.non_contig_indexing_op_counter.values())
    return sum(n * _work(name) for name, n in counts.op_counter.items()) >= _BY_GAPS * gaps > 0


def _work_and_chain(bodies: Sequence[Any]) -> tuple[int, int]:
    """Of kernels that run as one: all that they compute, each value once, and the longest chain in it."""
    values: dict[Any, int] = {}
    ends: list[int] = []
    in_memory: dict[str, int] = {}
    work = 0
    for body in bodies:
        of_node: dict[Any, int] = {}
        for node in body.root_block.graph.nodes:
            name = str(node.target)
            if name == "get_index":
                args = (body.indexing_exprs[node.args[0]],)
            else:
                args = torch.fx.map_arg(node.args, of_node.__getitem__)
            length = _work(name) if node.op == "call_method" else 0
            value = values.setdefault((name, repr(args)), len(values))
            if value == len(ends):
                before = in_memory.get(node.args[1], 0) if name == "load" else 0
                ends.append(length + max([before, *(ends[of_node[x]] for x in node.all_input_nodes)]))
                work += length
            if name == "store":
                in_memory[node.args[1]] = ends[value]
            of_node[node] = value
    return work, max(ends)


def _is_contiguous(functions: Sequence[Any], sizes: Sequence[Any], tiled: int, lanes: int) -> bool:
    """Whether so many lanes read and write places that lie side by side, or all one."""
    from torch._inductor import dependencies
    from torch._inductor.codegen.cpp import stride_at_vec_range
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    for function, ranges in zip(functions, sizes):
        used = dependencies.extract_read_writes(function, *ranges)
        for access in itertools.chain(used.reads, used.writes):
            symbols = access.index.free_symbols
            if any(symbol_is_type(symbol, (SymT.TMP, SymT.INDIRECT)) for symbol in symbols):
                return False
            lane = next((symbol for symbol in symbols if symbol.name == f"d{tiled}"), None)
            if lane is not None and stride_at_vec_range(access.index, lane, lanes) not in (0, 1):
                return False
    return True


def _lanes_at_a_time(factor: int, tiled: int, functions: Sequence[Any], sizes: Sequence[Any]) -> int:
    """``factor``, by Inductor, or more (NOTE [Interleaved vectors])."""
    import sympy
    from torch._inductor import cpu_vec_isa
    from torch._inductor.codegen.cpp_utils import _get_dtype_from_loopbodies, _get_loop_body

    size = sizes[0][0][tiled] if all(ranges == sizes[0] and not ranges[1] for ranges in sizes) else None
    if not isinstance(size, (int, sympy.Integer)):
        return factor
    bodies = _get_loop_body(functions)
    names = {str(node.target) for body in bodies for node in body.root_block.graph.nodes}
    if any(body.subblocks for body in bodies) or names & {"index_expr", "value_expr"}:
        return factor
    widths = {dtype.itemsize for dtype in _get_dtype_from_loopbodies(bodies) if dtype is not torch.bool}
    if widths not in ({4}, {8}):
        return factor
    work, chain = _work_and_chain(bodies)
    vector = cpu_vec_isa.pick_vec_isa().nelements() * 4 // widths.pop()
    for vectors, parallel in _AT_A_TIME.items():
        lanes = vectors * vector
        computed = -(-size // lanes) * lanes
        if lanes > factor and chain >= _LENGTH and work < parallel * chain and computed - size <= _WASTE * computed:
            return lanes if _is_contiguous(functions, sizes, tiled, lanes) else factor
    return factor


@functools.cache
def _tiling() -> type:
    from torch._inductor import config
    from torch._inductor.codegen import cpp

    class Tiling(cpp.TilingSelect):
        """Inductor computes number by number where one of eight operations is a read or write with gaps, whatever the
        others are.
        """

        def select_tiling(self, functions: Any, sizes: Any) -> Any:
            chosen = super().select_tiling(functions, sizes)
            factors, tiled, *counts = chosen  # torch 2.11 has none
            if len(factors) == 1:
                return [_lanes_at_a_time(factors[0], tiled[0], functions, sizes)], tiled, *counts
            if factors or not counts or not _pays_in_vectors(counts[0]):
                return chosen
            with config.patch({"cpp.enable_tiling_heuristics": False}):
                return super().select_tiling(functions, sizes)

    return Tiling


@contextmanager
def tilings_by_work() -> Iterator[None]:
    """Kernels that are printed inside are cut into vectors by what they compute."""
    from torch._inductor.codegen import cpp

    with _selecting:  # which class selects is named in Inductor's module, and nowhere else
        usual = cpp.TilingSelect
        setattr(cpp, "TilingSelect", _tiling())  # noqa: B010 - to mypy classes are constants
        try:
            yield
        finally:
            setattr(cpp, "TilingSelect", usual)  # noqa: B010
