"""Sorts, running sums and searches inside a loop, by the algorithms of torch's own CPU operators (torch 2.13)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .forms import Refused
from .headers import header
from .sizes import Size, size_of
from .source import c_type

__all__ = ["ORDERING", "ORDERING_STATEMENTS"]

ORDERING = header("ordering")

aten = torch.ops.aten


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _over_rows(x: Tensor, dim: int, call: Callable[[str, str], str], n_out: Size | None = None) -> str:
    """``call(source, target)`` for each row of ``x`` along ``dim``: places of its first element, and of the result's,
    whose rows have ``n_out`` elements. The next element of a row is ``inner`` elements away.
    """
    n, inner = _inner(x, dim)
    rows = math.prod(_sizes(x)[: dim % len(_sizes(x))])
    source, target = (f"row * int64_t({size * inner}) + inner" for size in (n, n if n_out is None else n_out))
    return (
        f"for (int64_t row = 0; row < {rows}; ++row) for (int64_t inner = 0; inner < {inner}; ++inner) "
        f"{call(source, target)};"
    )


def _sizes(x: Tensor) -> tuple[Size, ...]:
    return tuple(map(size_of, x.shape)) or (1,)


def _inner(x: Tensor, dim: int) -> tuple[Size, Size]:
    """The length of a row, and how far one element is from the next."""
    shape = _sizes(x)
    return shape[dim], math.prod(shape[dim % len(shape) + 1 :])


def _running(step: str, first: str) -> Callable[..., str]:
    """Sums and the like: torch takes those of single precision in double."""

    def statement(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], x: str, out: str) -> str:
        (given,), dim, c = tensors, _argument(node, 1, "dim", None), c_type(results[0].dtype)
        n, stride = _inner(given, dim)
        held = c if not results[0].dtype.is_floating_point else "float" if results[0].dtype.itemsize == 2 else "double"
        call = lambda i, o: f"fh::running<{c}, {held}>({x} + {i}, {out} + {o}, {n}, {stride}, {first}, {step})"
        return _over_rows(given, dim, call)

    return statement


def _extreme(test: str) -> Callable[..., str]:
    def statement(
        node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], x: str, out: str, places: str
    ) -> str:
        (given,), dim = tensors, _argument(node, 1, "dim", None)
        n, stride = _inner(given, dim)
        call = lambda i, o: f"fh::extreme({x} + {i}, {out} + {o}, {places} + {o}, {n}, {stride}, {test})"
        return _over_rows(given, dim, call)

    return statement


def _sorted(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], x: str, out: str, places: str) -> str:
    (given,), dim = tensors, _argument(node, 1, "dim", -1)
    n, stride = _inner(given, dim)
    falls = str(_argument(node, 2, "descending", False)).lower()
    call = lambda i, o: f"fh::sorted<{falls}>({x} + {i}, {out} + {o}, {places} + {o}, {n}, {stride})"
    return _over_rows(given, dim, call)


def _topk(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], x: str, out: str, places: str) -> str:
    (given,), k, dim = tensors, node.args[1], _argument(node, 2, "dim", -1)
    n, stride = _inner(given, dim)
    if type(k) is not int or k == 0:
        raise Refused("topk takes no element, or an open number")
    largest, in_order = (str(_argument(node, *at, True)).lower() for at in ((3, "largest"), (4, "sorted")))
    call = lambda i, o: f"fh::topk<{largest}, {in_order}>({x} + {i}, {out} + {o}, {places} + {o}, {n}, {k}, {stride})"
    return _over_rows(given, dim, call, k)


def _searched(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], rows: str, x: str, out: str) -> str:
    sequence, values = tensors
    if node.kwargs.get("sorter") is not None or sequence.dtype != values.dtype:
        raise Refused("a search through a sequence in another order or dtype")
    right = str(node.kwargs.get("right", False) or node.kwargs.get("side") == "right").lower()
    n = _sizes(sequence)[-1]
    row = f"(i / {_sizes(values)[-1]}) * int64_t({n})" if sequence.ndim > 1 else "0"
    count = math.prod(_sizes(values))
    return f"for (int64_t i = 0; i < {count}; ++i) {out}[i] = fh::place_in<{right}>({rows} + {row}, {n}, {x}[i]);"


def _bucketized(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], x: str, rows: str, out: str
) -> str:
    return _searched(node, tensors[::-1], results, rows, x, out)


ORDERING_STATEMENTS: dict[Any, Callable[..., str]] = {
    aten.cumsum.default: _running("[](auto a, auto b) { return a + b; }", "0"),
    aten.cumprod.default: _running("[](auto a, auto b) { return a * b; }", "1"),
    aten.logcumsumexp.default: _running("[](auto a, auto b) { return fh::log_of_sum(a, b); }", "-INFINITY"),
    aten.cummax.default: _extreme("[](auto a, auto b) { return a >= b; }"),
    aten.cummin.default: _extreme("[](auto a, auto b) { return a <= b; }"),
    aten.sort.default: _sorted,
    aten.sort.stable: _sorted,
    aten.topk.default: _topk,
    aten.searchsorted.Tensor: _searched,
    aten.bucketize.Tensor: _bucketized,
}
