"""Operators that are others for Inductor (torch 2.13)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from .nearest import which_nearest

__all__ = ["decomposed_above_autograd", "decompositions", "is_printed"]

aten = torch.ops.aten

_NONE, _MEAN = 0, 1
"""Reductions of a loss."""
_MOST_UNROLLED = 25
"""Elements of a window up to which Inductor makes C++ of its sum."""


def decompositions() -> dict[Any, Callable[..., Any]]:
    from torch._inductor.decomposition import select_decomp_table

    table = select_decomp_table()
    return {**table, **_ours(table)}


def _ours(table: dict[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    by_row = aten.index_add.default, aten.index_copy.default, aten.index_select.default
    fills = aten.index_fill.int_Scalar, aten.index_fill.int_Tensor
    unpools = aten.max_unpool2d.default, aten.max_unpool3d.default
    return {
        **{operator: _of_rows(table[operator]) for operator in by_row},
        aten.avg_pool2d_backward.default: functools.partial(_averaged_backward, aten.avg_pool2d_backward.default, 2),
        aten.avg_pool3d_backward.default: functools.partial(_averaged_backward, aten.avg_pool3d_backward.default, 3),
        aten.div.Tensor_mode: _divided,
        aten.embedding_dense_backward.default: functools.partial(
            _embedding_backward, table[aten.embedding_dense_backward.default]
        ),
        aten.eye.default: lambda n, **options: _eye(n, n, **options),
        aten.eye.m: _eye,
        aten.hardshrink_backward.default: _shrunk_backward,
        **{operator: functools.partial(_filled, table[operator]) for operator in fills},
        aten.linalg_pinv.atol_rtol_tensor: _pseudoinverse,
        aten.linspace.default: functools.partial(_spaced, table[aten.linspace.default]),
        **{operator: functools.partial(_unpooled, table[operator]) for operator in unpools},
        aten.multi_margin_loss_backward.default: _multi_margin_backward,
        aten.multilabel_margin_loss_forward.default: _multilabel_margin,
        aten.multilabel_margin_loss_backward.default: _multilabel_margin_backward,
        **dict.fromkeys((aten.nll_loss_backward.default, aten.nll_loss2d_backward.default), _likelihood_backward),
        aten.pow.Scalar: _integer_power,
        **dict.fromkeys((aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor), _remainder),
        aten.softshrink_backward.default: _shrunk_backward,
        aten.take.default: lambda x, index: aten.index.Tensor(x.reshape(-1), [index]),  # torch's asks what a number is
        aten.upsample_nearest2d_backward.default: _upsampled_backward,
        aten.var_mean.correction: _spread_and_mean,
    }


@contextlib.contextmanager
def decomposed_above_autograd() -> Iterator[None]:
    """Of some operators (``multilabel_margin_loss_forward``) torch (2.13) has Python code above autograd, which runs
    where AOTAutograd traces, before any table is asked: ours takes its place.
    """
    from torch._inductor.decomposition import select_decomp_table

    key = _torch.DispatchKey.Autograd
    ours = {op: function for op, function in _ours(select_decomp_table()).items() if key in op.py_kernels}
    torchs = {op: op.py_kernels[key] for op in ours}

    def take(kernels: dict[Any, Callable[..., Any]]) -> None:
        for op, function in kernels.items():
            op.py_kernels[key] = function
            op._dispatch_cache.clear()

    take(ours)
    try:
        yield
    finally:
        take(torchs)


def is_printed(operator: _torch.OpOverload) -> bool:
    """Whether Inductor makes kernels of an operator, or calls a library for products: torch's own code does not run."""
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.lowering import fallbacks, lowerings

    return operator not in fallbacks and (operator in lowerings or operator in select_decomp_table())


def _pseudoinverse(
    a: Tensor, *, atol: Tensor | None = None, rtol: Tensor | None = None, hermitian: bool = False
) -> Any:
    """Inside torch's own a functionalized graph loses the conjugates of complex matrices. In a loop this is C++."""
    if any(size == 0 for size in a.shape[-2:]):
        return NotImplemented
    if rtol is None:
        default = torch.finfo(a.dtype).eps * torch.sym_max(*a.shape[-2:])
        epsilon = torch.full((), default, dtype=a.dtype.to_real(), device=a.device)
        rtol = epsilon if atol is None else torch.where(atol > 0, 0.0, epsilon)
    if hermitian:
        values, left = torch.linalg.eigh(a)
        right, sizes = left, values.abs()
    else:
        left, values, right = torch.linalg.svd(a, full_matrices=False)
        sizes, right = values, right.mH
    least = rtol[..., None] * sizes.amax(-1, keepdim=True)
    least = least if atol is None else torch.maximum(atol[..., None], least)
    inverses = torch.where(sizes > least, 1 / values, 0.0)
    return (right * inverses[..., None, :]) @ left.mH


def _shrunk_backward(cotangent: Tensor, x: Tensor, limit: float) -> Tensor:
    return torch.where((x >= -limit) & (x <= limit), 0, cotangent)


def _spaced(original: Callable[..., Tensor], start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    """Integers between integers, as eager makes its ends before it divides; torch's own (2.13) does not."""
    dtype = options.get("dtype")
    if dtype is None or dtype.is_floating_point or dtype.is_complex or not isinstance(steps, int) or steps < 2:
        return original(start, end, steps, **options)
    start, end = int(start), int(end)
    step, places = (end - start) / (steps - 1), torch.arange(steps, device=options.get("device"))
    numbers = torch.where(
        places < steps // 2,
        start + step * places.double(),
        end - step * (steps - 1 - places).double(),
    )
    return numbers.to(dtype)


def _multi_margin_backward(
    cotangent: Tensor,
    x: Tensor,
    target: Tensor,
    p: Any,
    margin: Any,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:
    """Of ``sum_i max(0, margin - x[target] + x[i]) ** p / classes``, which torch (2.13) has no shapes for."""
    rows, places = torch.atleast_2d(x), target.reshape(-1, 1)
    is_place = _is_place(places.squeeze(1), rows)
    gap = margin - rows.gather(1, places) + rows
    others = (gap > 0) & ~is_place
    slopes = torch.where(others, 1 if p == 1 else 2 * gap, 0).to(x.dtype)
    if weight is not None:
        slopes = slopes * weight[places]
    slopes = slopes - torch.where(is_place, slopes.sum(1, keepdim=True), 0)
    return (slopes * _of_each(cotangent, rows, reduction)).reshape(x.shape)


def _multilabel_margin(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """``sum_ij max(0, 1 - x[target[j]] + x[i]) / classes``, over the i that are no target and the j before the first
    target that is negative: torch's own (2.13) adds up what is behind it, too.
    """
    gap, is_pair, is_target = _margins(x, target)
    losses = torch.where(is_pair, gap, 0).sum((1, 2)) / gap.shape[-1]
    if reduction == _NONE:
        loss = losses.reshape(x.shape[:-1])
    else:
        loss = losses.mean() if reduction == _MEAN else losses.sum()
    return loss, is_target.to(x.dtype).reshape(x.shape)


def _multilabel_margin_backward(
    cotangent: Tensor, x: Tensor, target: Tensor, reduction: int, is_target: Tensor
) -> Tensor:
    """torch (2.13) has no shapes for it."""
    _, is_pair, _ = _margins(x, target)
    rows, pairs = torch.atleast_2d(x), is_pair.to(x.dtype)
    of_targets = torch.where(_is_place(target.reshape(rows.shape), rows), pairs.sum(2, keepdim=True), 0).sum(1)
    return ((pairs.sum(1) - of_targets) * _of_each(cotangent, rows, reduction)).reshape(x.shape)


def _margins(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row ``1 - x[target[j]] + x[i]``, whether it is positive and counts, and which i are targets."""
    rows = torch.atleast_2d(x)
    places = target.reshape(rows.shape)
    counts = (places >= 0).to(x.dtype).cumprod(1).unsqueeze(2) > 0
    gap = 1 - rows.gather(1, places.clamp(min=0)).unsqueeze(2) + rows.unsqueeze(1)
    is_target = (counts & _is_place(places, rows)).any(1)
    return gap, counts & ~is_target.unsqueeze(1) & (gap > 0), is_target


def _is_place(places: Tensor, rows: Tensor) -> Tensor:
    """For each class whether it is the one at a place."""
    return places.unsqueeze(-1) == torch.arange(rows.shape[1], device=rows.device)


def _of_each(cotangent: Tensor, rows: Tensor, reduction: int) -> Tensor:
    """The cotangent of each row's loss, divided by the classes."""
    each = cotangent.reshape(-1, 1) / rows.shape[1]
    return each / rows.shape[0] if reduction == _MEAN else each


def _not_from_end(places: Tensor, size: Any) -> Tensor:
    """Places of which negative ones are none; Inductor counts them from the end."""
    return torch.where(places < 0, size, places)


def _checked(places: Tensor, size: Any) -> Tensor:
    """Places that are used without a check: an error where one is none."""
    every = torch.arange(size, device=places.device)
    return every.gather(0, _not_from_end(places, size).reshape(-1)).reshape(places.shape)


def _of_rows(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Rows of numbers that are no rows, negative ones among them, are an error."""

    def made(x: Tensor, dim: int, index: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        size = x.shape[dim] if x.dim() else 1
        return operator(x, dim, _not_from_end(index, size), *args, **kwargs)

    return made


def _filled(original: Callable[..., Tensor], x: Tensor, dim: int, rows: Tensor, value: Any) -> Tensor:
    """Here alone negative rows are counted from the end."""
    size = x.shape[dim] if x.dim() else 1
    return original(x, dim, torch.where(rows < 0, rows + size, rows), value)


def _embedding_backward(
    original: Callable[..., Tensor], cotangent: Tensor, rows: Tensor, n: Any, padding: int, by_frequency: bool
) -> Tensor:
    """torch's (2.13) leaves out rows that are none: the embedding itself, which finds them, is not there any more where
    only its gradient is asked for. Loops update a sum into rows in place; in half precision it rounds each time.
    """
    if by_frequency or cotangent.dtype.itemsize < 4:
        return original(cotangent, _checked(rows.long(), n), n, padding, by_frequency)
    if padding >= 0:
        cotangent = torch.where((rows == padding).unsqueeze(-1), 0, cotangent)
    zeros = cotangent.new_zeros(n, cotangent.shape[-1])
    return aten.index_put(zeros, [_not_from_end(rows, n)], cotangent, True)


def _likelihood_backward(
    cotangent: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignored: int,
    total_weight: Tensor,
) -> Tensor:
    """Of ``-x[target]``, where torch's (2.13) has zeros for targets that are no classes."""
    dim = min(x.dim() - 1, 1)
    if reduction == _MEAN:
        cotangent = cotangent / total_weight
    if x.dim() == 1:
        target = target.reshape(())
    is_counted = target != ignored
    places = _checked(torch.where(is_counted, target, 0), x.shape[dim])
    weights = 1 if weight is None else aten.index.Tensor(weight, [places])
    each = torch.where(is_counted, -cotangent * weights, 0)
    classes = torch.arange(x.shape[dim], device=x.device).reshape(-1, *[1] * (x.dim() - 1 - dim))
    return torch.where(places.unsqueeze(dim) == classes, each.unsqueeze(dim), 0)


def _unpooled(original: Callable[..., Tensor], x: Tensor, places: Tensor, size: Sequence[int], *args: Any) -> Tensor:
    """torch's (2.13) writes to places that are none, without a check."""
    return original(x, _checked(places, math.prod(size)), size, *args)


def _averaged_backward(
    operator: Callable[..., Tensor],
    n: int,
    cotangent: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    """A window that begins inside may end behind the padding, and has fewer elements then: Inductor divides by all.
    One number stands for all ``n`` dimensions.
    """
    if not (ceil_mode and count_include_pad) or divisor_override is not None:
        return NotImplemented
    kernel, stride, padding = (
        [*given] * n if len(given) == 1 else given for given in (kernel, stride or kernel, padding)
    )
    for d, (size, k, step, pad) in enumerate(zip(x.shape[-n:], kernel, stride, padding, strict=True), start=-n):
        first = torch.arange(cotangent.shape[d], device=x.device) * step
        count = (first + k).clamp(max=size + 2 * pad) - first
        cotangent = cotangent / count.to(x.dtype).reshape(-1, *[1] * (-1 - d))
    return operator(cotangent, x, kernel, stride, padding, ceil_mode, count_include_pad, 1)


def _upsampled_backward(cotangent: Tensor, out: Sequence[int], size: Sequence[int], *scales: float | None) -> Any:
    """Inductor counts by the sizes alone, in whole numbers."""
    if not all(type(n) is int for n in (*out, *size)):
        return NotImplemented
    by_dim = list(zip((-2, -1), size[-2:], out, scales or (None, None), strict=True))
    if not any(_counts_by_itself(n, m, scale) for _, n, m, scale in by_dim):
        if any(m % n for _, n, m, _ in by_dim) or math.prod(m // n for _, n, m, _ in by_dim) <= _MOST_UNROLLED:
            return NotImplemented
        sides = [part for _, n, m, _ in by_dim for part in (n, m // n)]
        return cotangent.reshape(*cotangent.shape[:-2], *sides).sum((-3, -1))
    for d, n, m, scale in by_dim:
        shape = list(cotangent.shape)
        shape[d] = n
        places = which_nearest(n, m, scale, is_exact=False).to(cotangent.device)
        cotangent = cotangent.new_zeros(shape).index_add(d, places, cotangent)
    return cotangent


def _counts_by_itself(n: int, m: int, scale: float | None) -> bool:
    """Whether torch reads other elements than whole numbers say, ``o * n // m``."""
    with _torch.suspended(keep_autocast=False):
        return which_nearest(n, m, scale, is_exact=False).tolist() != [o * n // m for o in range(m)]


def _spread_and_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Any:
    """Of no elements, for which Inductor says that their mean is 0."""
    if all(size != 0 for size in x.shape if type(size) is int):
        return NotImplemented
    mean = aten.mean.dim(x, dim, keepdim)
    return aten.var.correction(x, dim, correction=correction, keepdim=keepdim), mean


def _divided(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """Rounded quotients. Those of integers are truncated by operators for which a division by zero is an error: in C++
    it ends the process.
    """
    dtype = torch.result_type(x, y)
    if rounding_mode == "floor" and dtype.is_floating_point:
        return _floored(*_tensors(x, y))
    if rounding_mode != "trunc" or dtype.is_floating_point:
        return NotImplemented
    x, y = _tensors(x, y)
    return aten.div.Tensor_mode(x - aten.fmod.Tensor(x, y), y, rounding_mode="floor")


def _floored(x: Tensor, y: Tensor) -> Tensor:
    """Python's ``x // y``, as torch computes it. Inductor rounds a quotient down that is rounded already: ``7 // 0.1``
    is 69, since 0.1 is a little more than a tenth; nor is ``-1 // inf`` a zero.
    """
    quotient, rest = x / y, aten.fmod.Tensor(x, y)
    exact = (x - rest) / y - _is_off(rest, y).to(quotient.dtype)
    floor = exact.floor()
    floor = torch.where(exact - floor > 0.5, floor + 1, floor)
    floor = torch.where(exact == 0, torch.copysign(torch.zeros_like(quotient), quotient), floor)
    overflows = (quotient.abs() == math.inf) & (x.abs() != math.inf)
    return torch.where((y == 0) | overflows, quotient, floor)


def _remainder(x: Any, y: Any) -> Any:
    """Python's ``x % y``, as torch computes it. Inductor's vectors multiply the quotient again, which is rounded:
    ``1 % inf`` would be NaN, and ``5e15 % 0.3`` zero.
    """
    if not torch.result_type(x, y).is_floating_point:
        return NotImplemented
    x, y = _tensors(x, y)
    rest = aten.fmod.Tensor(x, y)
    return torch.where(_is_off(rest, y), rest + y, rest)


def _is_off(rest: Tensor, y: Tensor) -> Tensor:
    """Whether what is left of a truncated quotient has not the sign of the divisor."""
    return (rest != 0) & ((rest < 0) != (y < 0))


def _tensors(x: Any, y: Any) -> Any:
    dtype = torch.result_type(x, y)
    return (v if isinstance(v, Tensor) else aten.scalar_tensor.default(v, dtype=dtype) for v in (x, y))


def _eye(
    rows: Any, columns: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> Tensor:
    """torch's own compares bytes where they are enough, of which Inductor makes each vector element by element."""
    row, column = (torch.arange(size, device=device) for size in (rows, columns))
    return (row.unsqueeze(1) == column).to(dtype or torch.get_default_dtype())


def _integer_power(base: Any, exponent: Tensor) -> Any:
    """``2 ** n`` with the base as a tensor: the C++ wrapper (torch 2.13) hands a number on as a float."""
    dtype = torch.result_type(exponent, base)
    if dtype.is_floating_point:
        return NotImplemented
    return aten.pow.Tensor_Tensor(aten.scalar_tensor.default(base, dtype=dtype), exponent)
