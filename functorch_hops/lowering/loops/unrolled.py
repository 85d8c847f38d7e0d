"""The work of one lane, number by number: Inductor's nodes replayed at known places (torch 2.13).

Indices are numbers but for that of the lane, so what depends on them alone - the masks of a pad, the parts of a
concatenation - is decided here, and a reduction or a product is a sum of values.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from .forms import Refused
from .lane_rows import LANE, Rows, places, rows_of

__all__ = ["Held", "Scope", "Work", "check_work", "counted", "least_work", "unrolled", "work_of"]

_MOST = 4000
"""Operations of a lane: more take the compiler long, and leave no value in its register."""


@dataclass(frozen=True)
class Held:
    """A buffer of a block, the lanes of each number side by side; ``name`` in C++."""

    name: str
    rows: Rows
    dtype: torch.dtype


@dataclass
class Scope:
    """What nodes of a body may read: ``held`` buffers; ``memory``: inputs of the body that hold the same for all lanes,
    or are read where values say; with ``any_order`` wherever a lane reads. How their numbers lie, if they are those of
    lanes. ``parts`` of buffers: the buffer that each is in, and from which element on. ``rows``: of the buffers that
    nodes computed. ``read``: the names of held buffers that they read.
    """

    lanes: int
    width: int
    held: dict[str, Held]
    memory: Mapping[str, Rows]
    parts: Mapping[str, tuple[str, int]]
    any_order: bool = False
    rows: dict[str, Rows] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def place(self, name: str, index: Any) -> tuple[str, Any]:
        while name in self.parts:
            name, offset = self.parts[name]
            index = index + offset
        return name, sympy.expand(index)

    def rows_in(self, name: str) -> Rows | None:
        held = self.held.get(name)
        return self.rows.get(name) if held is None else held.rows


@dataclass(frozen=True)
class Work:
    """What a node does at the indices ``points`` of a lane, reducing over ``reduced``."""

    body: Callable[..., Any]
    points: Sequence[Sequence[Any]]
    reduced: Sequence[Sequence[Any]]
    reads: frozenset[str]


@dataclass(frozen=True)
class _Known:
    """A number. ``dtype``: that of a value."""

    value: Any
    dtype: torch.dtype


@dataclass(frozen=True)
class _Typed:
    dtype: torch.dtype


_FOLDED: dict[str, Callable[..., Any]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "logical_and": lambda a, b: bool(a) and bool(b),
    "logical_or": lambda a, b: bool(a) or bool(b),
    "logical_not": operator.not_,
}
_FOLDED_IF_BOOL = {"and_": operator.and_, "or_": operator.or_, "bitwise_and": operator.and_, "bitwise_or": operator.or_}
_FOLDED_IF_INT = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


@functools.cache
def unrolled() -> Any:
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
    from torch._inductor.ops_handler import DefaultHandler, WrapperHandler
    from torch._inductor.virtualized import V

    class Dtypes(DefaultHandler):
        """Computes the dtypes of values."""

        def _default(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _Typed(getattr(DtypePropagationOpsHandler(), name)(*args, **kwargs))

        def masked(self, mask: Any, body: Any, other: Any) -> Any:
            return body()

        def indirect_indexing(self, *args: Any) -> Any:
            return sympy.Integer(0)

    class Unrolled(WrapperHandler):
        """``lane``: the number of the lane, as an index; ``at``: its place in the block."""

        def __init__(self, inner: Any, scope: Scope, lane: Any, at: Any) -> None:
            super().__init__(inner)
            self.scope, self.lane, self.at = scope, lane, at
            self.values: dict[str, dict[Any, Any]] = {}
            self.sums: list[Any] = []
            self.n_reduced = self.place = 0
            self.only_guessed = self.only_own = False

        def run(self, work: Work) -> None:
            with V.set_ops_handler(self):
                for point in work.points:
                    self.sums = []
                    for self.n_reduced, reduced in enumerate(work.reduced):
                        self.place = 0
                        work.body(list(point), list(reduced))

        def stored(self, name: str, index: Any, dtype: torch.dtype) -> Any:
            """A value as one of the handler below."""
            value = self.load(name, index)
            return self._inner.constant(value.value, dtype) if isinstance(value, _Known) else value

        def load(self, name: str, index: Any) -> Any:
            name, index = self.scope.place(name, index)
            if name in self.values:
                if index not in self.values[name]:
                    raise Refused("a carry or an intermediate value is accessed at another lane")
                return self.values[name][index]
            held = self.scope.held.get(name)
            number = held.rows.number(index) if held is not None else None
            if held is not None and number is not None:
                self.scope.read.add(held.name)
                return self.held(name, held, number)
            if name not in self.scope.memory:
                raise Refused("a carry or an intermediate value is accessed at another lane")
            if self.only_own and self.scope.memory[name].number(index) is None:
                raise Refused("a lane reads an input at another lane")
            return self._inner.load(name, self._given(index))

        def _given(self, index: Any) -> Any:
            """Where an input is read."""
            if LANE in index.free_symbols and not self.scope.any_order:
                raise Refused("lanes read an input in no order")
            return index.subs(LANE, self.lane)

        def held(self, name: str, held: Held, number: int) -> Any:
            """A number of the lane, which the block holds of buffer ``name``."""
            value = self._inner.load(held.name, number * self.scope.width + self.at)
            is_mask = held.dtype is torch.bool
            return self._inner.ne(value, self._inner.constant(0.0, torch.float32)) if is_mask else value

        def store(self, name: str, index: Any, value: Any, mode: Any = None) -> None:
            if mode is not None:
                raise Refused("a value is added to what is there")
            buffer, index = self.scope.place(name, index)
            rows = self.scope.rows.get(buffer)
            if rows is None:
                shape = [int(size) for size in V.graph.get_buffer(buffer).get_layout().size]
                size, step = math.prod(shape), int(index.coeff(LANE))
                rows = Rows(self.scope.lanes, step, size // self.scope.lanes if step else size)
                if self.only_guessed and step != rows_of(shape, self.scope.lanes).step:
                    raise Refused("lanes lie in another dimension")
                self.scope.rows[buffer] = rows
            if rows.number(index) is None:
                raise Refused("the numbers of a lane lie in no order")
            self.values.setdefault(buffer, {})[index] = value

        def store_reduction(self, name: str, index: Any, value: Any) -> None:
            self.store(name, index, value)

        def reduction(self, dtype: torch.dtype, src_dtype: torch.dtype, kind: str, value: Any) -> Any:
            """The reduction of what came up to now."""
            if self.n_reduced == 0:
                self.sums.append(_first(self, kind, value))
            else:
                self.sums[self.place] = _next(self, kind, self.sums[self.place], value, self.n_reduced)
            self.place += 1
            result = self.sums[self.place - 1]
            return result[1] if kind in ("argmax", "argmin") else result

        def masked(self, mask: Any, body: Any, other: Any) -> Any:
            """What is done under an open condition is a block of its own, whose values are not those around it."""
            if isinstance(mask, _Known):
                if mask.value:
                    return body()
                with V.set_ops_handler(Dtypes()):
                    return _Known(other, body().dtype)

            def inside() -> Any:
                handler = type(self)(V.get_ops_handler(), self.scope, self.lane, self.at)
                with V.set_ops_handler(handler):
                    return handler.plain(body())

            return self._inner.masked(mask, inside, other)

        def constant(self, value: Any, dtype: torch.dtype) -> Any:
            return _Known(value, dtype)

        def index_expr(self, index: Any, dtype: torch.dtype) -> Any:
            return self._number("index_expr", index, dtype)

        def value_expr(self, index: Any, dtype: torch.dtype) -> Any:
            return self._number("value_expr", index, dtype)

        def _number(self, name: str, index: Any, dtype: torch.dtype) -> Any:
            index = sympy.expand(index)
            if index.is_Integer:
                return _Known(int(index), dtype)
            return getattr(self._inner, name)(index.subs(LANE, self.lane), dtype)

        def indirect_indexing(self, x: Any, size: Any, check: bool = True, wrap_neg: bool = True) -> Any:
            if isinstance(x, _Known):
                return sympy.Integer(x.value + int(size) if wrap_neg and x.value < 0 else x.value)
            return self._inner.indirect_indexing(x, size, check, wrap_neg)

        def check_bounds(self, index: Any, size: Any, lower: bool, upper: bool) -> None:
            self._inner.check_bounds(self._given(sympy.expand(index)), size, lower, upper)

        def where(self, mask: Any, a: Any, b: Any) -> Any:
            if isinstance(mask, _Known):
                return a if mask.value else b
            return self._inner.where(mask, self.plain(a), self.plain(b))

        def to_dtype(self, x: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
            if isinstance(x, _Known):
                return _Known(torch.tensor(x.value, dtype=x.dtype).to(dtype).item(), dtype)
            return self._inner.to_dtype(x, dtype, *args, **kwargs)

        def plain(self, x: Any) -> Any:
            return self._inner.constant(x.value, x.dtype) if isinstance(x, _Known) else x

        def _default(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            folded = _fold_of(name, args)
            if folded is not None and not kwargs:
                value = folded(*(x.value for x in args))
                is_test = isinstance(value, bool)
                return _Known(value, torch.bool if is_test else args[0].dtype)
            plain = {key: self.plain(x) for key, x in kwargs.items()}
            return getattr(self._inner, name)(*map(self.plain, args), **plain)

    return Unrolled


def _fold_of(name: str, args: Sequence[Any]) -> Callable[..., Any] | None:
    if not args or not all(isinstance(x, _Known) for x in args):
        return None
    if name in _FOLDED_IF_BOOL and all(x.dtype is torch.bool for x in args):
        return _FOLDED_IF_BOOL[name]
    if name in _FOLDED_IF_INT and all(x.dtype is torch.int64 for x in args):
        return _FOLDED_IF_INT[name]
    return _FOLDED.get(name)


def _first(ops: Any, kind: str, value: Any) -> Any:
    if kind == "welford_reduce":
        one, nothing = (ops.constant(x, torch.float32) for x in (1.0, 0.0))
        return value, ops.mul(value, nothing), one
    if kind in ("argmax", "argmin"):
        return value, ops.constant(0, torch.int64)
    if kind not in ("sum", "prod", "max", "min", "any"):
        raise Refused(f"a reduction is {kind}")
    return value


def _next(ops: Any, kind: str, sum_: Any, value: Any, n: int) -> Any:
    """The reduction of ``n`` values and one more."""
    if kind == "welford_reduce":
        mean, squares, _ = sum_
        count, part = (ops.constant(x, torch.float32) for x in (n + 1.0, 1.0 / (n + 1)))
        off = ops.sub(value, mean)
        mean = ops.add(mean, ops.mul(off, part))
        return mean, ops.add(squares, ops.mul(off, ops.sub(value, mean))), count
    if kind in ("argmax", "argmin"):
        best, place = sum_
        beats = (ops.gt if kind == "argmax" else ops.lt)(value, best)
        is_new_nan = ops.logical_and(ops.ne(value, value), ops.eq(best, best))
        beats = ops.logical_or(beats, is_new_nan)
        return ops.where(beats, value, best), ops.where(beats, ops.constant(n, torch.int64), place)
    names = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum", "any": "logical_or"}
    return getattr(ops, names[kind])(sum_, value)


def counted() -> Any:
    """A handler that computes nothing, and counts."""
    from torch._inductor.ops_handler import DefaultHandler

    class Counted(DefaultHandler):
        def __init__(self) -> None:
            self.count = 0
            self.indices = itertools.count()

        def _default(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.count += name not in ("load", "constant")
            check_work(self.count)
            return "value"

        def masked(self, mask: Any, body: Any, other: Any) -> Any:
            return body()

        def frexp(self, x: Any) -> Any:
            raise Refused("a number is taken apart")

        def indirect_indexing(self, *args: Any) -> Any:
            return sympy.Symbol(f"indirect_{next(self.indices)}", integer=True, nonnegative=True)

    return Counted()


_UNCOUNTED = (
    *("load", "store", "store_reduction", "reduction", "constant", "index_expr", "value_expr", "indirect_indexing"),
    *("check_bounds", "where", "masked"),
)


def least_work(body: Any, ranges: Sequence[int], reduced: Sequence[int], lanes: int) -> int:
    """The fewest operations of a lane: those that come after a load are done for each of its numbers."""
    loaded = set[Any]()
    count = 0
    for node in body.root_block.graph.nodes:
        if node.op != "call_method":
            continue
        is_after = not loaded.isdisjoint(node.all_input_nodes)
        count += is_after and node.target not in _UNCOUNTED
        if is_after or node.target == "load":
            loaded.add(node)
    return count * -(-math.prod(ranges) * math.prod(reduced) // lanes)


def check_work(work: int) -> None:
    if work > _MOST:
        raise Refused("a step of one lane is long")


def work_of(
    scope: Scope, handler: Any, body: Any, ranges: Sequence[int], reduced: Sequence[int], names: Iterable[str]
) -> Work:
    """The way in which ``body`` runs over lanes; ``handler`` then holds its values. ``names``: what it reads."""
    if math.prod(ranges) * math.prod(reduced) > _MOST * scope.lanes or 0 in (*ranges, *reduced):
        raise Refused("a step of one lane is long")
    why: Refused | None = None
    sums = [*itertools.product(*([sympy.Integer(i) for i in range(n)] for n in reduced))]
    reads = frozenset(scope.place(name, sympy.Integer(0))[0] for name in names)
    for ways in places(ranges, scope.lanes):
        own = (True, False) if scope.any_order else (False,)
        for handler.only_guessed, handler.only_own, points in itertools.product((True, False), own, ways):
            if len(points) * len(sums) > _MOST:
                why = why or Refused("a step of one lane is long")
                continue
            work = Work(body, points, sums, reads)
            rows, read, values = dict(scope.rows), set(scope.read), {name: {**x} for name, x in handler.values.items()}
            try:
                handler.run(work)
            except Refused as refused:
                why = why or refused
                scope.rows, scope.read, handler.values = rows, read, values
            else:
                return work
    raise why or Refused("its kernels run over dimensions that do not fit together")
