"""Solves, inverses and factorizations of small matrices inside a loop (torch 2.13).

LAPACK takes a microsecond to begin: here these are templates of the sizes, with partial pivoting as there. A matrix
that has no inverse raises what ``aten._linalg_check_errors`` does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect

from .forms import Refused
from .headers import header
from .sizes import Size, number, size_of
from .source import c_type

__all__ = ["CHECKS", "LINEAR", "LINEAR_STATEMENTS"]

LINEAR = header("linear")

_LARGEST = 32
"""Rows up to which a kernel is faster than LAPACK, and its code is short."""

_LARGEST_TURNED = 24
"""The same, of a factorization by reflections and of an exponential."""

_MOST_NUMBERS = 1 << 12
"""Of right-hand sides, which lie on the stack."""

aten = torch.ops.aten

CHECKS = (aten._linalg_check_errors.default,)
"""The effects that a kernel has."""

for _check in CHECKS:
    has_side_effect(_check)  # torch 2.11 drops what has no results

_FAILURES = {
    "inv": (
        "LinAlgError: ",
        "The diagonal element # is zero, the inversion could not be completed because the input matrix is singular.",
    ),
    "solve": ("LinAlgError: ", "The solver failed because the input matrix is singular."),
    "cholesky": (
        "LinAlgError: ",
        (
            "The factorization could not be completed because the input is not positive-definite (the leading minor of "
            "order # is not positive-definite)."
        ),
    ),
    "lu_factor": (
        "",
        (
            "U[#,#] is zero and using it on lu_solve would result in a division by zero. If you still want to perform "
            "the factorization, consider calling linalg.lu(A, pivot) or linalg.lu_factor_ex(A, pivot)"
        ),
    ),
}
"""The kind of the error that torch raises, and what it says of a number # in the result ``info``, by a part of the name
of the function that asks.
"""


def _outer(x: Tensor) -> tuple[Size, ...]:
    return tuple(map(size_of, x.shape[:-2]))


def _batch(*tensors: Tensor) -> Size:
    """How many matrices there are; of all, or one for all."""
    shapes = {_outer(x) for x in tensors if math.prod(_outer(x)) != 1}
    if len(shapes) > 1:
        raise Refused("the matrices of a solve are as many as another's only after expansion")
    return math.prod(next(iter(shapes), ()))


def _rows(x: Tensor) -> int:
    n, m = map(number, x.shape[-2:])
    if n != m or n > _LARGEST:
        raise Refused(f"LAPACK computes with a matrix of {n} x {m}")
    return n


def _sides(n: int, size: Any) -> int:
    sides = number(size)
    if n * sides > _MOST_NUMBERS:
        raise Refused(f"LAPACK solves for {sides} sides of {n} rows")
    return sides


def _matrix(name: str, x: Tensor, *, transposed: bool = False, is_result: bool = False) -> str:
    """Matrix ``batch`` of ``x``."""
    n, m = map(number, x.shape[-2:])
    if n * m == 0:
        raise Refused("a matrix without elements")
    steps = "1, {m}" if transposed else "{m}, 1"
    place = f"{name} + batch * int64_t({n * m})" if math.prod(_outer(x)) != 1 else name
    constant = "" if is_result else "const "
    return f"fh::Matrix<{constant}{c_type(x.dtype)}>{{{place}, {steps.format(m=m)}}}"


def _each(count: Size, call: str) -> str:
    return f"for (int64_t batch = 0; batch < {count}; ++batch) {call};"


def _is_factored_transposed(a: Tensor) -> bool:
    """torch factors the transposed matrix where that one is laid out by columns."""
    return a.is_contiguous()


def _solve(
    node: fx.Node,
    tensors: Sequence[Tensor],
    results: Sequence[Tensor],
    a: str,
    b: str,
    x: str,
    lu: str,
    pivots: str,
    info: str,
) -> str:
    left, (m, rhs), (solution, factors, *_) = node.kwargs.get("left", True), tensors, results
    is_vector = rhs.ndim == m.ndim - 1 and rhs.shape == m.shape[:-1]
    if is_vector:
        rhs, solution = rhs.unsqueeze(-1), solution.unsqueeze(-1)
    n, flipped = _rows(m), _is_factored_transposed(m)
    count = _batch(m, rhs)
    if math.prod(_outer(m)) != count:
        raise Refused("a matrix is solved for many sides")
    k = _sides(n, rhs.shape[-1 if left else -2])
    views = [
        _matrix(a, m, transposed=flipped),
        _matrix(b, rhs, transposed=not left),
        _matrix(x, solution, transposed=not left, is_result=True),
        _matrix(lu, factors, is_result=True),
    ]
    adjoint = str(flipped is bool(left)).lower()
    places = f"{pivots} + batch * {n}, {info} + batch"
    return _each(count, f"fh::solve<{c_type(m.dtype)}, {n}, {k}>({', '.join(views)}, {places}, {adjoint})")


def _inverse(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, x: str, info: str) -> str:
    (m,), (result, _) = tensors, results
    views = f"{_matrix(a, m)}, {_matrix(x, result, is_result=True)}"
    return _each(_batch(m), f"fh::inverse<{c_type(m.dtype)}, {_rows(m)}>({views}, {info} + batch)")


def _factored(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, lu: str, pivots: str, info: str
) -> str:
    (m,), (factors, *_) = tensors, results
    if not node.kwargs.get("pivot", True):
        raise Refused("rows are factored in their order")
    n = _rows(m)
    views = f"{_matrix(a, m)}, {_matrix(lu, factors, is_result=True)}"
    call = f"fh::factored<{c_type(m.dtype)}, {n}>({views}, {pivots} + batch * {n}, {info} + batch)"
    return _each(_batch(m), call)


def _solve_with_factors(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], lu: str, pivots: str, b: str, x: str
) -> str:
    (m, _, rhs), (result,), left = tensors, results, node.kwargs.get("left", True)
    views = [
        _matrix(lu, m),
        f"{pivots} + batch * {_rows(m)}" if math.prod(_outer(m)) != 1 else pivots,
        _matrix(b, rhs, transposed=not left),
        _matrix(x, result, transposed=not left, is_result=True),
    ]
    n, adjoint = _rows(m), str(node.kwargs.get("adjoint", False) is bool(left)).lower()
    k = _sides(n, rhs.shape[-1 if left else -2])
    call = f"fh::solve_with_factors<{c_type(m.dtype)}, {n}, {k}>({', '.join(views)}, {adjoint})"
    return _each(_batch(m, rhs, result), call)


def _unpacked(
    node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], lu: str, pivots: str, *names: str
) -> str:
    (m, _), n = tensors, _rows(tensors[0])
    views = [_matrix(name, result, is_result=True) for name, result in zip(names, results, strict=True)]
    places = f"{_matrix(lu, m)}, {pivots} + batch * {n}"
    return _each(_batch(m), f"fh::unpacked<{c_type(m.dtype)}, {n}>({places}, {', '.join(views)})")


def _orthogonal(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, q: str, r: str) -> str:
    (m,), (of_q, of_r) = tensors, results
    rows, columns = map(number, m.shape[-2:])
    if max(rows, columns) > _LARGEST_TURNED:
        raise Refused(f"LAPACK computes with a matrix of {rows} x {columns}")
    views = _matrix(a, m), _matrix(q, of_q, is_result=True), _matrix(r, of_r, is_result=True)
    sizes = f"{rows}, {columns}, {number(of_q.shape[-1])}"
    call = f"fh::orthogonal_and_triangle<{c_type(m.dtype)}, {sizes}>({', '.join(views)})"
    return _each(_batch(m), call)


def _exponential(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, x: str) -> str:
    (m,), (result,) = tensors, results
    if m.dtype.itemsize < 4 or _rows(m) > _LARGEST_TURNED:
        raise Refused(f"torch computes the exponential of a matrix of {_rows(m)} rows of {m.dtype}")
    views = f"{_matrix(a, m)}, {_matrix(x, result, is_result=True)}"
    return _each(_batch(m), f"fh::exponential<{c_type(m.dtype)}, {_rows(m)}>({views})")


def _cholesky(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, x: str, info: str) -> str:
    (m,), (result, _) = tensors, results
    upper = _argument(node, 1, "upper", False)
    views = _matrix(a, m, transposed=upper), _matrix(x, result, transposed=upper, is_result=True)
    return _each(_batch(m), f"fh::cholesky<{c_type(m.dtype)}, {_rows(m)}>({', '.join(views)}, {info} + batch)")


def _triangular(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, b: str, x: str) -> str:
    (m, rhs), (result,) = tensors, results
    left, upper = node.kwargs.get("left", True), node.kwargs["upper"]
    unit = str(node.kwargs.get("unitriangular", False)).lower()
    views = [
        _matrix(a, m, transposed=not left),
        _matrix(b, rhs, transposed=not left),
        _matrix(x, result, transposed=not left, is_result=True),
    ]
    n, above = _rows(m), str(upper is bool(left)).lower()
    k = _sides(n, rhs.shape[-1 if left else -2])
    call = f"fh::triangular<{c_type(m.dtype)}, {n}, {k}>({', '.join(views)}, {above}, {unit})"
    return _each(_batch(m, rhs, result), call)


def _cholesky_solve(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], b: str, a: str, x: str) -> str:
    (rhs, m), (result,) = tensors, results
    upper = _argument(node, 2, "upper", False)
    views = _matrix(a, m, transposed=upper), _matrix(b, rhs), _matrix(x, result, is_result=True)
    n = _rows(m)
    call = f"fh::cholesky_solve<{c_type(m.dtype)}, {n}, {_sides(n, rhs.shape[-1])}>({', '.join(views)})"
    return _each(_batch(m, rhs, result), call)


def _determinant(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], a: str, *names: str) -> str:
    """``names`` of the results: the determinant, or its sign and the logarithm of its size, the factors, the pivots."""
    (m,) = tensors
    n, numbers = _rows(m), [f"{name} + batch" for name in names[:-2]]
    view = _matrix(a, m, transposed=_is_factored_transposed(m))
    factors = _matrix(names[-2], results[-2], is_result=True)
    function = "determinant" if len(numbers) == 1 else "sign_and_log"
    places = f"{factors}, {names[-1]} + batch * {n}, {', '.join(numbers)}"
    return _each(_batch(m), f"fh::{function}<{c_type(m.dtype)}, {n}>({view}, {places})")


def _checked(node: fx.Node, tensors: Sequence[Tensor], results: Sequence[Tensor], info: str) -> str:
    name, is_matrix = str(node.args[1]), node.kwargs["is_matrix"]
    failure = next((failure for part, failure in _FAILURES.items() if part in name), None)
    if failure is None:
        raise Refused(f"{name} checks its result")
    kind, text = failure
    count = math.prod(map(size_of, tensors[0].shape))
    return f"fh::check({info}, {count}, {json.dumps(kind + name)}, {str(is_matrix).lower()}, {json.dumps(text)});"


def _unchecked(statement: Callable[..., str]) -> Callable[..., str]:
    def made(node: fx.Node, *args: Any) -> str:
        if node.kwargs.get("check_errors", False):
            raise Refused(f"{node.target} checks its result")
        return statement(node, *args)

    return made


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


LINEAR_STATEMENTS: dict[Any, Callable[..., str]] = {
    aten._linalg_solve_ex.default: _unchecked(_solve),
    aten.linalg_inv_ex.default: _unchecked(_inverse),
    aten.linalg_cholesky_ex.default: _unchecked(_cholesky),
    aten.linalg_lu_factor_ex.default: _unchecked(_factored),
    aten.linalg_lu_solve.default: _solve_with_factors,
    aten.linalg_matrix_exp.default: _exponential,
    aten.linalg_qr.default: _orthogonal,
    aten.linalg_solve_triangular.default: _triangular,
    aten.cholesky_solve.default: _cholesky_solve,
    aten.lu_unpack.default: _unpacked,
    aten._linalg_det.default: _determinant,
    aten._linalg_slogdet.default: _determinant,
    aten._linalg_check_errors.default: _checked,
}
