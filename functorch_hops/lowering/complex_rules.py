"""What operators on complex numbers are on their real and imaginary parts.

Each rule takes what its operator takes, ``Parts`` for complex tensors, and returns Parts where that returns complex
ones. Where a factor is a real number or tensor, it multiplies both parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from ..ir.nodes import assigned, conjugated, packed, rebound, size_at, untracked

__all__ = ["RULES", "Parts", "combined", "multiplied", "paired", "product", "real_dtype", "separated"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Parts:
    """A complex tensor; ``whole`` is where it came from, if it was one."""

    real: Tensor
    imag: Tensor
    whole: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.real, self.imag))


Value = Tensor | Parts | complex


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the parts of numbers of a complex dtype."""
    real: torch.dtype = torch.empty((), dtype=dtype, device="meta").real.dtype
    return real


def separated(x: Tensor) -> Parts:
    pairs = torch.view_as_real(x)
    return Parts(pairs.select(-1, 0), pairs.select(-1, 1), x)


def combined(x: Any) -> Any:
    """The complex tensor; anything else as it is."""
    if not isinstance(x, Parts):
        return x
    return torch.view_as_complex(paired(x)) if x.whole is None else x.whole


def paired(x: Parts) -> Tensor:
    """The parts as pairs, in a last dimension."""
    return torch.stack((x.real, x.imag), -1) if x.whole is None else torch.view_as_real(x.whole)


def _real(x: Value) -> Any:
    return x.real if isinstance(x, (Parts, complex)) else x


def _imag(x: Value) -> Any:
    """None for what is real."""
    return x.imag if isinstance(x, (Parts, complex)) else None


def _parts(x: Value, like: Tensor) -> Parts:
    """``x`` with an imaginary part in any case."""
    if isinstance(x, Parts):
        return x
    if isinstance(x, Tensor):
        return Parts(x.to(like.dtype), torch.zeros_like(x, dtype=like.dtype))
    number = complex(x)
    return Parts(torch.full_like(like, number.real), torch.full_like(like, number.imag))


# ---------------------------------------------------------------------------------------------------------------------
# arithmetic


def _scaled(x: Value, factor: complex) -> Value:
    return x if factor == 1 else multiplied(x, factor)


def _add(x: Value, y: Value, *, alpha: complex = 1) -> Parts:
    y = _scaled(y, alpha)
    return Parts(_real(x) + _real(y), _sum(_imag(x), _imag(y), x, y))


def _sum(a: Any, b: Any, x: Value, y: Value) -> Any:
    if a is not None and b is not None:
        return a + b
    shape = torch.broadcast_shapes(*(_real(v).shape for v in (x, y) if not isinstance(v, (int, float, complex))))
    one = a if b is None else b
    return (
        one.expand(shape)
        if isinstance(one, Tensor)
        else torch.full(shape, one, dtype=torch.float64, device=_any_part(x, y).device)
    )


def _any_part(*values: Value) -> Tensor:
    return next(part for v in values for part in (v if isinstance(v, Parts) else (v,)) if isinstance(part, Tensor))


def _negative(x: Value) -> Any:
    return Parts(-x.real, -x.imag) if isinstance(x, Parts) else -x


def _sub(x: Value, y: Value, *, alpha: complex = 1) -> Parts:
    return _add(x, _negative(_scaled(y, alpha)))


def multiplied(x: Value, y: Value) -> Any:
    (a, b), (c, d) = (_real(x), _imag(x)), (_real(y), _imag(y))
    if b is None:
        return a * c if d is None else Parts(a * c, a * d)
    return Parts(a * c, b * c) if d is None else Parts(a * c - b * d, a * d + b * c)


def _div(x: Value, y: Value) -> Any:
    c, d = _real(y), _imag(y)
    if d is None:
        return Parts(x.real / c, x.imag / c) if isinstance(x, Parts) else x / c
    if not isinstance(y, Parts):
        return multiplied(x, 1 / complex(y)) if y else _div(_parts(x, _any_part(x)), 0.0)
    # By the larger part, so that no square overflows. Zero and infinity have no direction: they count as real ones.
    scale = torch.maximum(c.abs(), d.abs()).reciprocal()
    is_regular = (scale > 0) & (scale < math.inf)
    c, d = torch.where(is_regular, c * scale, 1), torch.where(is_regular, d * scale, 0)
    return multiplied(multiplied(x, Parts(c, -d)), scale / (c * c + d * d))


def _pow(base: Value, exponent: Value) -> Parts:
    x = _parts(base, _any_part(base, exponent))
    if isinstance(exponent, (int, float, complex)) and exponent in _POWERS:
        return _POWERS[exponent](x)
    logarithm = multiplied(_log(x), exponent)
    power, is_zero = _exp(logarithm), logarithm.real == -math.inf
    return Parts(torch.where(is_zero, 0, power.real), torch.where(is_zero, 0, power.imag))


def _lerp(x: Value, y: Value, weight: Value) -> Parts:
    return _add(x, multiplied(weight, _sub(y, x)))


def _square(x: Parts) -> Parts:
    return Parts(x.real * x.real - x.imag * x.imag, 2 * x.real * x.imag)


def _reciprocal(x: Parts) -> Parts:
    return _div(1.0, x)


def _abs(x: Parts) -> Tensor:
    a, b = x.real.abs(), x.imag.abs()
    large, small = torch.maximum(a, b), torch.minimum(a, b)
    ratio = small / large
    return torch.where(ratio == ratio, large * (1 + ratio * ratio).sqrt(), large)


def _angle(x: Parts) -> Tensor:
    return torch.atan2(x.imag, x.real)


def _sgn(x: Parts) -> Parts:
    size = _abs(x)
    size = torch.where(size == 0, 1, size)
    return Parts(x.real / size, x.imag / size)


def _polar(size: Tensor, angle: Tensor) -> Parts:
    return Parts(size * angle.cos(), size * angle.sin())


def _exp(x: Parts) -> Parts:
    return _polar(x.real.exp(), x.imag)


def _log(x: Parts) -> Parts:
    return Parts(_abs(x).log(), _angle(x))


def _sqrt(x: Parts) -> Parts:
    """The root with the larger part without cancellation, the other one from their product."""
    large = (_abs(x) * 0.5 + x.real.abs() * 0.5).sqrt()
    small = x.imag.abs() / torch.where(large == 0, 1, 2 * large)
    is_right = x.real >= 0
    return Parts(torch.where(is_right, large, small), torch.copysign(torch.where(is_right, small, large), x.imag))


def _sin(x: Parts) -> Parts:
    return Parts(x.real.sin() * x.imag.cosh(), x.real.cos() * x.imag.sinh())


def _cos(x: Parts) -> Parts:
    return Parts(x.real.cos() * x.imag.cosh(), -x.real.sin() * x.imag.sinh())


def _sinh(x: Parts) -> Parts:
    return Parts(x.real.sinh() * x.imag.cos(), x.real.cosh() * x.imag.sin())


def _cosh(x: Parts) -> Parts:
    return Parts(x.real.cosh() * x.imag.cos(), x.real.sinh() * x.imag.sin())


def _tanh(x: Parts) -> Parts:
    """``(t + u i) / (1 + t u i)`` with ``t = tanh(a)`` and ``u = tan(b)``; ``1 - t^2`` as ``1 / cosh(a)^2``."""
    t, u, c = x.real.tanh(), x.imag.tan(), 1 / x.real.cosh()
    size = 1 + (t * u).square()
    return Parts(t * (1 + u.square()) / size, u * c * c / size)


def _sigmoid(x: Parts) -> Parts:
    half = _tanh(Parts(x.real * 0.5, x.imag * 0.5))
    return Parts(0.5 + half.real * 0.5, half.imag * 0.5)


def _expm1(x: Parts) -> Parts:
    """``e^a cos(b) - 1`` without cancellation near zero: ``(e^a - 1) cos(b) - 2 sin(b / 2)^2``."""
    sine = (x.imag * 0.5).sin()
    return Parts(x.real.expm1() * x.imag.cos() - 2 * sine * sine, x.real.exp() * x.imag.sin())


def _log1p(x: Parts) -> Parts:
    """``|1 + z|^2 - 1 = a (a + 2) + b^2``, where that does not overflow."""
    moved = Parts(1 + x.real, x.imag)
    is_small = torch.maximum(x.real.abs(), x.imag.abs()) < 1
    near = 0.5 * (x.real * (x.real + 2) + x.imag * x.imag).log1p()
    return Parts(torch.where(is_small, near, _abs(moved).log()), _angle(moved))


def _logarithm(base: float) -> Callable[[Parts], Any]:
    return lambda x: multiplied(_log(x), 1 / math.log(base))


def _atanh(x: Parts) -> Parts:
    a, b = x.real.abs(), x.imag
    size = 0.25 * (4 * a / ((1 - a) * (1 - a) + b * b)).log1p()
    return Parts(torch.copysign(size, x.real), 0.5 * torch.atan2(2 * b, (1 - a) * (1 + a) - b * b))


def _asin(x: Parts) -> Parts:
    """Right on both sides of the cuts, as the next two are (Kahan, Branch cuts for complex elementary functions)."""
    left, right = _sqrt(_sub(1.0, x)), _sqrt(_add(1.0, x))
    return Parts(torch.atan2(x.real, multiplied(left, right).real), multiplied(_conj(left), right).imag.asinh())


def _acos(x: Parts) -> Parts:
    left, right = _sqrt(_sub(1.0, x)), _sqrt(_add(1.0, x))
    return Parts(2 * torch.atan2(left.real, right.real), multiplied(_conj(right), left).imag.asinh())


def _acosh(x: Parts) -> Parts:
    left, right = _sqrt(_sub(x, 1.0)), _sqrt(_add(x, 1.0))
    return Parts(multiplied(_conj(left), right).real.asinh(), 2 * torch.atan2(left.imag, right.real))


def _turned(f: Callable[[Parts], Parts]) -> Callable[[Parts], Parts]:
    """``-i f(i z)``."""

    def rule(x: Parts) -> Parts:
        y = f(Parts(-x.imag, x.real))
        return Parts(y.imag, -y.real)

    return rule


_tan = _turned(_tanh)


def _of_result(derivative: Callable[[Parts], Value]) -> Callable[..., Any]:
    """The rule of an operator that multiplies a cotangent with the conjugate of a derivative."""
    return lambda cotangent, result: multiplied(cotangent, _conj(derivative(result)))


def _conj(x: Any) -> Any:
    return Parts(x.real, -x.imag) if isinstance(x, Parts) else x


# ---------------------------------------------------------------------------------------------------------------------
# products and comparisons


def product(multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """The rule of an operator that is linear in each of two tensors."""

    def rule(x: Value, y: Value) -> Parts:
        (a, b), (c, d) = (_real(x), _imag(x)), (_real(y), _imag(y))
        if b is None or d is None:
            first, second = multiply(a, c), multiply(a if b is None else b, c if d is None else d)
            return Parts(first, second)
        return Parts(multiply(a, c) - multiply(b, d), multiply(a, d) + multiply(b, c))

    return rule


_mm, _bmm, _dot = product(aten.mm.default), product(aten.bmm.default), product(aten.dot.default)


def _added(product: Callable[..., Any]) -> Callable[..., Any]:
    return lambda c, x, y, *, beta=1, alpha=1: _add(_scaled(c, beta), _scaled(product(x, y), alpha))


def _eq(x: Value, y: Value) -> Tensor:
    b, d = _imag(x), _imag(y)
    is_equal: Tensor = (_real(x) == _real(y)) & ((0 if b is None else b) == (0 if d is None else d))
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
    factors = _mapped(factors, lambda part: part.reshape(-1) if dim is None else part.movedim(dim, 0))
    n = factors.real.shape[0]
    if type(n) is not int or n == 0:
        return NotImplemented
    while n > 1:
        half, rest = n // 2, n % 2
        product = multiplied(_part_of(factors, 0, 0, half), _part_of(factors, 0, half, half))
        factors = _cat(product, _part_of(factors, 0, n - 1, 1), 0) if rest else product
        n = half + rest
    return _mapped(factors, lambda part: part[0].unsqueeze(dim) if keepdim and dim is not None else part[0])


def _cumprod(x: Value, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """Of the last 2, 4, 8... factors each."""
    factors = x if dtype is None else _to_copy(x, dtype=dtype)
    if not isinstance(factors, Parts) or factors.real.dim() == 0:
        return NotImplemented
    n, k = factors.real.shape[dim], 1
    if type(n) is not int:
        return NotImplemented
    while k < n:
        later = multiplied(_part_of(factors, dim, 0, n - k), _part_of(factors, dim, k, n - k))
        factors, k = _cat(_part_of(factors, dim, 0, k), later, dim), 2 * k
    return factors


def _part_of(x: Parts, dim: int, start: int, length: int) -> Parts:
    return _mapped(x, lambda part: part.narrow(dim, start, length))


def _cat(x: Parts, y: Parts, dim: int) -> Parts:
    return Parts(torch.cat((x.real, y.real), dim), torch.cat((x.imag, y.imag), dim))


def _mapped(x: Parts, change: Callable[[Tensor], Tensor]) -> Parts:
    return Parts(change(x.real), change(x.imag))


def _var(x: Parts, *args: Any, **kwargs: Any) -> Tensor:
    spread: Tensor = aten.var.correction(x.real, *args, **kwargs) + aten.var.correction(x.imag, *args, **kwargs)
    return spread


def _norm(x: Any, ord: complex = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return torch.linalg.vector_norm(_abs(x if dtype is None else _to_copy(x, dtype=dtype)), ord, dim, keepdim)


# ---------------------------------------------------------------------------------------------------------------------
# what makes and unmakes complex numbers


def _to_copy(x: Value, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    if dtype is None or dtype.is_complex:
        real = None if dtype is None else real_dtype(dtype)
        parts = x if isinstance(x, Parts) else _parts(x, torch.empty((), dtype=real))
        return Parts(*(aten._to_copy.default(part, dtype=real, **options) for part in parts))
    if dtype == torch.bool and isinstance(x, Parts):
        return aten._to_copy.default(_ne(x, 0), **options)
    return aten._to_copy.default(_real(x), dtype=dtype, **options)


def _as_complex(x: Tensor) -> Parts:
    return Parts(x.select(-1, 0), x.select(-1, 1))


def _made(make: Callable[..., Tensor]) -> Callable[..., Any]:
    """The rule of an operator that makes a tensor of zeros and ones."""

    def rule(*args: Any, dtype: torch.dtype | None = None, **options: Any) -> Any:
        (first, *rest), real = args, None if dtype is None else _real_dtype(dtype)
        made = make(first.real if isinstance(first, Parts) else first, *rest, dtype=real, **options)
        is_real = dtype is not None and not dtype.is_complex
        return made if is_real else Parts(made, torch.zeros_like(made))

    return rule


def _filled(make: Callable[..., Tensor]) -> Callable[..., Any]:
    """The rule of an operator that makes a tensor of one number, its last argument."""

    def rule(*args: Any, dtype: torch.dtype | None = None, **options: Any) -> Any:
        *like, number = (_real(x) if isinstance(x, Parts) else x for x in args)
        real = None if dtype is None else _real_dtype(dtype)
        if dtype is not None and not dtype.is_complex:
            return make(*like, number, dtype=real, **options)
        number = complex(number)
        return Parts(*(make(*like, x, dtype=real, **options) for x in (number.real, number.imag)))

    return rule


def _real_dtype(dtype: torch.dtype) -> torch.dtype:
    return real_dtype(dtype) if dtype.is_complex else dtype


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
                return [of(_parts(y, like), part) for y in x]
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
    return _parts(x, like) if isinstance(x, Tensor) else complex(x)


_POWERS: dict[complex, Callable[[Parts], Parts]] = {
    0: lambda x: Parts(torch.ones_like(x.real), torch.zeros_like(x.imag)),
    1: lambda x: x,
    2: _square,
    3: lambda x: multiplied(_square(x), x),
    4: lambda x: _square(_square(x)),
    -1: _reciprocal,
    -2: lambda x: _reciprocal(_square(x)),
    0.5: _sqrt,
    -0.5: lambda x: _reciprocal(_sqrt(x)),
}

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
    conjugated: _conj,
    size_at: lambda x, dim: x.real.shape[dim],
    aten._conj_physical.default: _conj,
    aten._to_copy.default: _to_copy,
    aten.abs.default: _abs,
    aten.acos.default: _acos,
    aten.acosh.default: _acosh,
    aten.add.Scalar: _add,
    aten.add.Tensor: _add,
    aten.addcdiv.default: lambda x, y, z, *, value=1: _add(x, _scaled(_div(y, z), value)),
    aten.addcmul.default: lambda x, y, z, *, value=1: _add(x, _scaled(multiplied(y, z), value)),
    aten.addmm.default: _added(_mm),
    aten.angle.default: _angle,
    aten.asin.default: _asin,
    aten.asinh.default: _turned(_asin),
    aten.atan.default: _turned(_atanh),
    aten.atanh.default: _atanh,
    aten.baddbmm.default: _added(_bmm),
    aten.bmm.default: _bmm,
    aten.complex.default: Parts,
    aten.cos.default: _cos,
    aten.cosh.default: _cosh,
    aten.cumprod.default: _cumprod,
    aten.div.Scalar: _div,
    aten.div.Tensor: _div,
    aten.dot.default: _dot,
    aten.eq.Scalar: _eq,
    aten.eq.Tensor: _eq,
    aten.exp.default: _exp,
    aten.exp2.default: lambda x: _exp(multiplied(x, math.log(2))),
    aten.expm1.default: _expm1,
    aten.eye.default: _made(aten.eye.default),
    aten.eye.m: _made(aten.eye.m),
    aten.full.default: _filled(aten.full.default),
    aten.full_like.default: _filled(aten.full_like.default),
    aten.isfinite.default: lambda x: x.real.isfinite() & x.imag.isfinite(),
    aten.isinf.default: _either(torch.isinf),
    aten.isnan.default: _either(torch.isnan),
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.linalg_vector_norm.default: _norm,
    aten.log.default: _log,
    aten.log10.default: _logarithm(10),
    aten.log1p.default: _log1p,
    aten.log2.default: _logarithm(2),
    aten.mm.default: _mm,
    aten.mul.Scalar: multiplied,
    aten.mul.Tensor: multiplied,
    aten.mv.default: product(aten.mv.default),
    aten.ne.Scalar: _ne,
    aten.ne.Tensor: _ne,
    aten.new_full.default: _filled(aten.new_full.default),
    aten.new_ones.default: _made(aten.new_ones.default),
    aten.new_zeros.default: _made(aten.new_zeros.default),
    aten.ones.default: _made(aten.ones.default),
    aten.ones_like.default: _made(aten.ones_like.default),
    aten.polar.default: _polar,
    aten.pow.Scalar: _pow,
    aten.pow.Tensor_Scalar: _pow,
    aten.pow.Tensor_Tensor: _pow,
    aten.prod.default: _prod,
    aten.prod.dim_int: _prod,
    aten.reciprocal.default: _reciprocal,
    aten.rsqrt.default: lambda x: _reciprocal(_sqrt(x)),
    aten.rsub.Scalar: lambda x, y, alpha=1: _sub(y, x, alpha=alpha),
    aten.scalar_tensor.default: _filled(aten.scalar_tensor.default),
    aten.sgn.default: _sgn,
    aten.sigmoid.default: _sigmoid,
    aten.sigmoid_backward.default: _of_result(lambda y: multiplied(y, _sub(1.0, y))),
    aten.sin.default: _sin,
    aten.sinh.default: _sinh,
    aten.sqrt.default: _sqrt,
    aten.sub.Scalar: _sub,
    aten.sub.Tensor: _sub,
    aten.tan.default: _tan,
    aten.tanh.default: _tanh,
    aten.tanh_backward.default: _of_result(lambda y: _sub(1.0, _square(y))),
    aten.var.correction: _var,
    aten.vdot.default: lambda x, y: _dot(_conj(x), y),
    aten.view_as_complex.default: _as_complex,
    aten.view_as_real.default: paired,
    aten.zeros.default: _made(aten.zeros.default),
    aten.zeros_like.default: _made(aten.zeros_like.default),
}
