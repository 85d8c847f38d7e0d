"""What operators on complex numbers are on their real and imaginary parts.

Each rule takes what its operator takes, ``Parts`` for complex tensors, and returns Parts where that returns complex
ones; NotImplemented where there is none for such arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from ..ir.nodes import assigned, conjugated, packed, rebound, size_at, untracked
from . import complex_functions as functions
from .complex_parts import Parts, Value, imag_part, paired, real_part, with_parts

__all__ = ["RULES", "product"]

aten = torch.ops.aten


def product(multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """The rule of an operator that is linear in each of two tensors."""

    def rule(x: Value, y: Value) -> Parts:
        (a, b), (c, d) = (real_part(x), imag_part(x)), (real_part(y), imag_part(y))
        if b is None or d is None:
            first, second = multiply(a, c), multiply(a if b is None else b, c if d is None else d)
            return Parts(first, second)
        return Parts(multiply(a, c) - multiply(b, d), multiply(a, d) + multiply(b, c))

    return rule


_mm, _bmm, _dot = product(aten.mm.default), product(aten.bmm.default), product(aten.dot.default)


def _added(product: Callable[..., Any]) -> Callable[..., Any]:
    return lambda c, x, y, *, beta=1, alpha=1: functions.add(
        functions.scaled(c, beta), functions.scaled(product(x, y), alpha)
    )


def _eq(x: Value, y: Value) -> Tensor:
    b, d = imag_part(x), imag_part(y)
    is_equal: Tensor = (real_part(x) == real_part(y)) & ((0 if b is None else b) == (0 if d is None else d))
    return is_equal


def _ne(x: Value, y: Value) -> Tensor:
    return ~_eq(x, y)


def _either(test: Callable[[Tensor], Tensor]) -> Callable[[Parts], Tensor]:
    return lambda x: test(x.real) | test(x.imag)


def _prod(x: Value, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Of pairs, of pairs of pairs, and so on."""
    factors = x if dtype is None else _to_copy(x, dtype=dtype)
    if not isinstance(factors, Parts):
        return NotImplemented
    factors = factors.map(lambda part: part.reshape(-1) if dim is None else part.movedim(dim, 0))
    n = factors.real.shape[0]
    if type(n) is not int or n == 0:
        return NotImplemented
    while n > 1:
        half, rest = n // 2, n % 2
        product = functions.multiplied(_part_of(factors, 0, 0, half), _part_of(factors, 0, half, half))
        factors = _cat(product, _part_of(factors, 0, n - 1, 1), 0) if rest else product
        n = half + rest
    return factors.map(lambda part: part[0].unsqueeze(dim) if keepdim and dim is not None else part[0])


def _cumprod(x: Value, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """Of the last 2, 4, 8... factors each."""
    factors = x if dtype is None else _to_copy(x, dtype=dtype)
    if not isinstance(factors, Parts) or factors.real.dim() == 0:
        return NotImplemented
    n, k = factors.real.shape[dim], 1
    if type(n) is not int:
        return NotImplemented
    while k < n:
        later = functions.multiplied(_part_of(factors, dim, 0, n - k), _part_of(factors, dim, k, n - k))
        factors, k = _cat(_part_of(factors, dim, 0, k), later, dim), 2 * k
    return factors


def _part_of(x: Parts, dim: int, start: int, length: int) -> Parts:
    return x.map(lambda part: part.narrow(dim, start, length))


def _cat(x: Parts, y: Parts, dim: int) -> Parts:
    return Parts(torch.cat((x.real, y.real), dim), torch.cat((x.imag, y.imag), dim))


def _var(x: Parts, *args: Any, **kwargs: Any) -> Tensor:
    spread: Tensor = aten.var.correction(x.real, *args, **kwargs) + aten.var.correction(x.imag, *args, **kwargs)
    return spread


def _norm(x: Any, ord: complex = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return torch.linalg.vector_norm(
        functions.absolute(x if dtype is None else _to_copy(x, dtype=dtype)), ord, dim, keepdim
    )


# ---------------------------------------------------------------------------------------------------------------------
# what makes and unmakes complex numbers


def _to_copy(x: Value, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    if dtype is None or dtype.is_complex:
        real = None if dtype is None else dtype.to_real()
        parts = x if isinstance(x, Parts) else with_parts(x, torch.empty((), dtype=real))
        return Parts(*(aten._to_copy.default(part, dtype=real, **options) for part in parts))
    if dtype == torch.bool and isinstance(x, Parts):
        return aten._to_copy.default(_ne(x, 0), **options)
    return aten._to_copy.default(real_part(x), dtype=dtype, **options)


def _as_complex(x: Tensor) -> Parts:
    return Parts(x.select(-1, 0), x.select(-1, 1))


def _made(make: Callable[..., Tensor]) -> Callable[..., Any]:
    """The rule of an operator that makes a tensor of zeros and ones."""

    def rule(*args: Any, dtype: torch.dtype | None = None, **options: Any) -> Any:
        (first, *rest), real = args, None if dtype is None else dtype.to_real()
        made = make(first.real if isinstance(first, Parts) else first, *rest, dtype=real, **options)
        is_real = dtype is not None and not dtype.is_complex
        return made if is_real else Parts(made, torch.zeros_like(made))

    return rule


def _filled(make: Callable[..., Tensor]) -> Callable[..., Any]:
    """The rule of an operator that makes a tensor of one number, its last argument."""

    def rule(*args: Any, dtype: torch.dtype | None = None, **options: Any) -> Any:
        *like, number = (real_part(x) if isinstance(x, Parts) else x for x in args)
        real = None if dtype is None else dtype.to_real()
        if dtype is not None and not dtype.is_complex:
            return make(*like, number, dtype=real, **options)
        number = complex(number)
        return Parts(*(make(*like, x, dtype=real, **options) for x in (number.real, number.imag)))

    return rule


def _each(operator: Callable[..., Tensor]) -> Callable[..., Any]:
    """The rule of an operator that moves or adds up elements, as those of ``dtype``: it does the same to both parts."""

    def rule(*args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        if dtype is not None:
            args = (_to_copy(args[0], dtype=dtype), *args[1:])
        values = [x for a in (*args, *kwargs.values()) for x in (a if _is_sequence(a) else (a,))]
        like = next((x.real for x in values if isinstance(x, Parts)), None)
        if like is None:
            return operator(*args, **kwargs)

        def of(x: Any, part: int) -> Any:
            if isinstance(x, Parts):
                return (x.real, x.imag)[part]
            if _is_sequence(x) and any(isinstance(y, Parts) for y in x):
                return [of(with_parts(y, like), part) for y in x]
            return (x.real, x.imag)[part] if isinstance(x, complex) else x

        results = [operator(*(of(a, k) for a in args), **{n: of(a, k) for n, a in kwargs.items()}) for k in (0, 1)]
        return list(map(Parts, *results)) if isinstance(results[0], (list, tuple)) else Parts(*results)

    return rule


def _is_sequence(x: Any) -> bool:
    return isinstance(x, (list, tuple))


def _between(operator: Callable[..., Tensor], *places: int) -> Callable[..., Any]:
    """As :func:`_each`, for an operator whose arguments at ``places`` are elements, complex or real."""
    each = _each(operator)

    def rule(*args: Any, **kwargs: Any) -> Any:
        like = next(args[i].real for i in places if isinstance(args[i], Parts))
        made = [_elements(x, like) if i in places and not isinstance(x, Parts) else x for i, x in enumerate(args)]
        return each(*made, **kwargs)

    return rule


def _elements(x: Any, like: Tensor) -> Any:
    """A real tensor as a complex one; a number as it is, complex."""
    return with_parts(x, like) if isinstance(x, Tensor) else complex(x)


_MOVES = (
    aten.alias.default,
    aten.as_strided.default,
    aten.cat.default,
    aten.clone.default,
    aten.cumsum.default,
    aten.detach.default,
    aten.diag_embed.default,
    aten.diagonal.default,
    aten.diagonal_backward.default,
    aten.expand.default,
    aten.flip.default,
    aten.gather.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.lift_fresh_copy.default,
    aten.mean.default,
    aten.mean.dim,
    aten.nan_to_num.default,
    aten.neg.default,
    aten.permute.default,
    aten.repeat.default,
    aten.reshape.default,
    aten.roll.default,
    aten.select.int,
    aten.select_backward.default,
    aten.slice.Tensor,
    aten.slice_backward.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.stack.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.t.default,
    aten.transpose.int,
    aten.trace.default,
    aten.tril.default,
    aten.triu.default,
    aten.unbind.int,
    aten.unfold.default,
    aten.unfold_backward.default,
    aten.unsqueeze.default,
    aten.view.default,
    packed,
    untracked,
)

_MOVES_BETWEEN: dict[Any, tuple[int, ...]] = {
    aten.constant_pad_nd.default: (0, 2),
    aten.diagonal_scatter.default: (0, 1),
    aten.index_add.default: (0, 3),
    aten.index_copy.default: (0, 3),
    aten.index_put.default: (0, 2),
    aten.masked_fill.Scalar: (0, 2),
    aten.masked_fill.Tensor: (0, 2),
    aten.scatter.src: (0, 3),
    aten.scatter.value: (0, 3),
    aten.scatter_add.default: (0, 3),
    aten.select_scatter.default: (0, 1),
    aten.slice_scatter.default: (0, 1),
    aten.where.self: (1, 2),
    assigned: (0, 1),
    rebound: (0, 1),
}

RULES: dict[Any, Callable[..., Any]] = {
    **{operator: _each(operator) for operator in _MOVES},
    **{operator: _between(operator, *places) for operator, places in _MOVES_BETWEEN.items()},
    getitem: getitem,
    conjugated: functions.conj,
    size_at: lambda x, dim: x.real.shape[dim],
    aten._conj_physical.default: functions.conj,
    aten._to_copy.default: _to_copy,
    aten.abs.default: functions.absolute,
    aten.acos.default: functions.acos,
    aten.acosh.default: functions.acosh,
    aten.add.Scalar: functions.add,
    aten.add.Tensor: functions.add,
    aten.addcdiv.default: lambda x, y, z, *, value=1: functions.add(x, functions.scaled(functions.div(y, z), value)),
    aten.addcmul.default: lambda x, y, z, *, value=1: functions.add(
        x, functions.scaled(functions.multiplied(y, z), value)
    ),
    aten.addmm.default: _added(_mm),
    aten.angle.default: functions.angle_of,
    aten.asin.default: functions.asin,
    aten.asinh.default: functions.turned(functions.asin),
    aten.atan.default: functions.turned(functions.atanh),
    aten.atanh.default: functions.atanh,
    aten.baddbmm.default: _added(_bmm),
    aten.bmm.default: _bmm,
    aten.complex.default: lambda real, imag: Parts(*torch.broadcast_tensors(real, imag)),
    aten.cos.default: functions.cos,
    aten.cosh.default: functions.cosh,
    aten.cumprod.default: _cumprod,
    aten.div.Scalar: functions.div,
    aten.div.Tensor: functions.div,
    aten.dot.default: _dot,
    aten.eq.Scalar: _eq,
    aten.eq.Tensor: _eq,
    aten.exp.default: functions.exp,
    aten.exp2.default: lambda x: functions.exp(functions.multiplied(x, math.log(2))),
    aten.expm1.default: functions.expm1,
    aten.eye.default: _made(aten.eye.default),
    aten.eye.m: _made(aten.eye.m),
    aten.full.default: _filled(aten.full.default),
    aten.full_like.default: _filled(aten.full_like.default),
    aten.isfinite.default: lambda x: x.real.isfinite() & x.imag.isfinite(),
    aten.isinf.default: _either(torch.isinf),
    aten.isnan.default: _either(torch.isnan),
    aten.lerp.Scalar: functions.lerp,
    aten.lerp.Tensor: functions.lerp,
    aten.linalg_vector_norm.default: _norm,
    aten.log.default: functions.log,
    aten.log10.default: functions.logarithm(10),
    aten.log1p.default: functions.log1p,
    aten.log2.default: functions.logarithm(2),
    aten.mm.default: _mm,
    aten.mul.Scalar: functions.multiplied,
    aten.mul.Tensor: functions.multiplied,
    aten.mv.default: product(aten.mv.default),
    aten.ne.Scalar: _ne,
    aten.ne.Tensor: _ne,
    aten.new_full.default: _filled(aten.new_full.default),
    aten.new_ones.default: _made(aten.new_ones.default),
    aten.new_zeros.default: _made(aten.new_zeros.default),
    aten.ones.default: _made(aten.ones.default),
    aten.ones_like.default: _made(aten.ones_like.default),
    aten.polar.default: functions.polar,
    aten.pow.Scalar: functions.power,
    aten.pow.Tensor_Scalar: functions.power,
    aten.pow.Tensor_Tensor: functions.power,
    aten.prod.default: _prod,
    aten.prod.dim_int: _prod,
    aten.reciprocal.default: functions.reciprocal,
    aten.rsqrt.default: lambda x: functions.reciprocal(functions.sqrt(x)),
    aten.rsub.Scalar: lambda x, y, alpha=1: functions.sub(y, x, alpha=alpha),
    aten.scalar_tensor.default: _filled(aten.scalar_tensor.default),
    aten.sgn.default: functions.sgn,
    aten.sigmoid.default: functions.sigmoid,
    aten.sigmoid_backward.default: functions.of_result(lambda y: functions.multiplied(y, functions.sub(1.0, y))),
    aten.sin.default: functions.sin,
    aten.sinh.default: functions.sinh,
    aten.sqrt.default: functions.sqrt,
    aten.sub.Scalar: functions.sub,
    aten.sub.Tensor: functions.sub,
    aten.tan.default: functions.tan,
    aten.tanh.default: functions.tanh,
    aten.tanh_backward.default: functions.of_result(lambda y: functions.sub(1.0, functions.square(y))),
    aten.var.correction: _var,
    aten.vdot.default: lambda x, y: _dot(functions.conj(x), y),
    aten.view_as_complex.default: _as_complex,
    aten.view_as_real.default: paired,
    aten.zeros.default: _made(aten.zeros.default),
    aten.zeros_like.default: _made(aten.zeros_like.default),
}
