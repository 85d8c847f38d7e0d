"""Operators whose rule for forward mode is wrong, and the same by operators whose rules are right.

NOTE [Right rules for forward mode] Some of torch's rules (2.13) are wrong: those of ``cholesky_inverse``,
``triangular_solve``, of the determinant of a singular matrix and of products by ``scatter_reduce``. Others read results
that have no derivative of their own - factors of a matrix, means and deviations - and so are right once and wrong when
they are differentiated again, in either mode ("we never differentiate over forward AD", says a comment there); of a few
there is no second derivative at all, of ``index_reduce`` no tangent. Tangents of scalars and numbers have another dtype
(``number_forms.py``). Nearly all are silent. So where a level of forward mode is active, :class:`ForwardRules` computes
these functions by others.
``tests/test_forward_rules.py`` says which of torch's rules are still wrong.

It does so as well where reverse mode is differentiated again, or maps over its cotangents: the backward pass of a
normalisation is right for its second derivative, which accounts for mean and deviation; not for the third one, and not
as vmap computes it, by operators to which both are constants. In a graph the backward pass itself is replaced, wherever
the graph is transformed.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from .levels import in_forward_level, number_of_derivatives, top_interpreter
from .number_forms import NUMBER_FORMS

__all__ = ["ForwardRules", "differentiated_again", "once", "right_form"]

_aten = torch.ops.aten


class ForwardRules(TorchFunctionMode):
    """A function mode under which forward mode is right."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _FORMS.get(func, func)(*args, **kwargs or {})


def right_form(func: Any) -> Callable[..., Any]:
    """In a capture: the function itself, or what is called in its place."""
    derivatives = number_of_derivatives() + (func in _READING)
    if func in _FORMS and (_again.depth or in_forward_level() or derivatives > 1):
        return _FORMS[func]
    return _BACKWARD_FORMS[func] if func in _BACKWARD_FORMS and top_interpreter() is not None else func


class _Again(threading.local):
    depth = 0


_again = _Again()


@contextlib.contextmanager
def differentiated_again() -> Iterator[None]:
    """Around a function whose derivative is differentiated, or mapped over."""
    if torch.compiler.is_dynamo_compiling():
        yield
        return
    is_there = any(isinstance(mode, ForwardRules) for mode in _get_current_function_mode_stack())
    _again.depth += 1
    try:
        with contextlib.nullcontext() if is_there else ForwardRules():
            yield
    finally:
        _again.depth -= 1


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Around what has nothing to do with that function."""
    depth, _again.depth = _again.depth, 0
    try:
        yield
    finally:
        _again.depth = depth


# ---------------------------------------------------------------------------------------------------------------------
# linear algebra


def _solve_ex(
    A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False, name: str = "torch.linalg.solve_ex"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, pivots, info = torch.linalg.lu_factor_ex(A)
    if check_errors:
        _aten._linalg_check_errors(info, name, is_matrix=A.dim() == 2)
    is_vector = left and (B.dim() == 1 or (A.dim() - 1 == B.dim() and B.shape == A.shape[:-1]))
    solution = torch.linalg.lu_solve(factors, pivots, B.unsqueeze(-1) if is_vector else B, left=left)
    return solution.squeeze(-1) if is_vector else solution, factors, pivots, info


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    return _solve_ex(A, B, left=left, check_errors=True, name="torch.linalg.solve")[0]


def _solve_ex_pair(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    solution, _, _, info = _solve_ex(A, B, left=left, check_errors=check_errors)
    return torch.return_types.linalg_solve_ex((solution, info))  # type: ignore[attr-defined]


def _tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    if dims is not None:
        A = A.movedim(tuple(dims), tuple(range(A.dim() - len(dims), A.dim())))
    shape = A.shape[B.dim() :]
    return _solve(A.reshape(B.numel(), math.prod(shape)), B.reshape(-1)).reshape(shape)


def _diagonal_and_sign(factors: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of an LU decomposition, and the sign of its permutation."""
    in_place = torch.arange(1, pivots.shape[-1] + 1, device=pivots.device)
    sign = 1 - 2 * ((pivots != in_place).sum(-1) % 2)
    return factors.diagonal(dim1=-2, dim2=-1), sign.to(factors.dtype)


def _det(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of a nearly singular matrix have no derivatives to compute with. But the determinant is a polynomial:
    those of a matrix nearby are nearly its own, and its value is known.
    """
    factors, pivots, _ = torch.linalg.lu_factor_ex(A.detach())
    diagonal, sign = _diagonal_and_sign(factors, pivots)
    value, n = diagonal.prod(-1) * sign, A.shape[-1]
    few = torch.finfo(A.dtype).eps ** 0.5
    size = A.detach().abs().square().mean((-2, -1)).sqrt() * n**0.5
    is_singular = (diagonal.abs() <= few * size[..., None]).any(-1)
    shift = few * torch.where(is_singular, torch.where(size > 0, size, 1.0), 0.0)
    nearby = A + shift[..., None, None] * torch.eye(n, dtype=A.dtype, device=A.device)
    diagonal, sign = _diagonal_and_sign(*torch.linalg.lu_factor_ex(nearby)[:2])
    result = diagonal.prod(-1) * sign
    return result + (value - result).detach(), factors, pivots


def _slogdet(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(A)
    diagonal, sign = _diagonal_and_sign(factors, pivots)
    return diagonal.sgn().prod(-1) * sign, diagonal.abs().log().sum(-1), factors, pivots


def _logdet(input: Tensor) -> Tensor:
    sign, logarithm, _, _ = _slogdet(input)
    return logarithm + sign.log() if sign.is_complex() else torch.where(sign == -1, math.nan, logarithm)


def _householder_product(input: Tensor, tau: Tensor) -> Tensor:
    """The product of the reflections ``1 - tau v v^H``."""
    m, n = input.shape[-2:]
    one = torch.eye(m, n, dtype=input.dtype, device=input.device)
    vectors, product = input.tril(-1) + one, one
    for i in reversed(range(tau.shape[-1])):
        v = vectors[..., i : i + 1]
        product = product - tau[..., i, None, None] * (v @ (v.mH @ product))
    return product


def _cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    one = torch.eye(input.shape[-1], dtype=input.dtype, device=input.device)
    return torch.cholesky_solve(one.expand_as(input), input, upper=upper)


def _triangular_solve(
    input: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    matrix = A.mT if transpose else A
    solution = torch.linalg.solve_triangular(matrix, input, upper=upper != transpose, unitriangular=unitriangular)
    return torch.return_types.triangular_solve((solution, A.clone()))


# ---------------------------------------------------------------------------------------------------------------------
# normalisation


def _normalized(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    return (x - mean) * scale, mean, scale


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _as_computed(x: Tensor) -> Tensor:
    """In the dtype in which kernels add up."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = range(-len(normalized_shape), 0)
    result, mean, scale = _normalized(_as_computed(input), tuple(dims), eps)
    kept = input.dtype if input.device.type == "cpu" and (weight is None or weight.dtype == input.dtype) else mean.dtype
    return _scaled(result, weight, bias, normalized_shape).to(input.dtype), mean.to(kept), scale.to(kept)


def _normalised_backward(
    cotangent: Tensor, normalised: Tensor, scale: Tensor, weight: Tensor | None, dims: tuple[int, ...]
) -> Tensor:
    """Of ``weight * normalised``, to the operand of the normalisation over ``dims``."""
    g = cotangent if weight is None else cotangent * weight
    return scale * (g - g.mean(dims, keepdim=True) - normalised * (g * normalised).mean(dims, keepdim=True))


def _native_layer_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Mean and deviation follow from the input, and so have derivatives; what was added to the variance is found."""
    n = input.dim() - len(normalized_shape)
    dims, outer = tuple(range(n, input.dim())), tuple(range(n))
    g, x = _as_computed(grad_out), _as_computed(input)
    variance = torch.var(x, dims, correction=0, keepdim=True)
    scale = (variance + (rstd.to(x.dtype) ** -2 - variance).detach()).rsqrt()
    normalised = (x - x.mean(dims, keepdim=True)) * scale
    of_weight, of_bias = (t.sum(outer) if outer else t for t in (g * normalised, g))
    return (
        _normalised_backward(g, normalised, scale, weight, dims).to(input.dtype) if output_mask[0] else None,
        of_weight.to(weight.dtype) if output_mask[1] and weight is not None else None,
        of_bias.to(bias.dtype) if output_mask[2] and bias is not None else None,
    )


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (-1, *[1] * (input.dim() - 2))
    x = _as_computed(input)
    if training or running_mean is None or running_var is None:
        if training and running_mean is not None:
            _aten.native_batch_norm(input.detach(), None, None, running_mean, running_var, True, momentum, eps)
        result, mean, scale = _normalized(x, (0, *range(2, x.dim())), eps)
        saved = mean.flatten(), scale.flatten()
    else:
        result = (x - running_mean.reshape(shape)) * (running_var.reshape(shape) + eps).rsqrt()
        saved = x.new_empty(0), x.new_empty(0)
    return _scaled(result, weight, bias, shape).to(input.dtype), *saved


def _native_batch_norm_backward(
    grad_out: Tensor,
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    dims, shape = (0, *range(2, input.dim())), (-1, *[1] * (input.dim() - 2))
    g, x = _as_computed(grad_out), _as_computed(input)
    factor = None if weight is None else weight.reshape(shape)
    if train or running_mean is None or running_var is None:
        normalised, _, scale = _normalized(x, dims, eps)
        of_input = _normalised_backward(g, normalised, scale, factor, dims)
    else:
        scale = (running_var.reshape(shape) + eps).rsqrt()
        normalised = (x - running_mean.reshape(shape)) * scale
        of_input = g * scale if factor is None else g * factor * scale
    kept = input.dtype if weight is None else weight.dtype
    return (
        of_input.to(input.dtype) if output_mask[0] else None,
        (g * normalised).sum(dims).to(kept) if output_mask[1] else None,
        g.sum(dims).to(kept) if output_mask[2] else None,
    )


def _batch_norm_without_statistics(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _native_batch_norm(input, weight, bias, None, None, training, momentum, eps)


def _batch_norm(*args: Any) -> Tensor:
    return _native_batch_norm(*args[:8])[0]


def _batch_norm_of_module(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        F._verify_batch_size(input.size())  # type: ignore[attr-defined]
    return _native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)[0]


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm_of_module(input, running_mean, running_var, weight, bias, False, momentum, eps)
    F._verify_spatial_size(input.size())  # type: ignore[attr-defined]
    if running_mean is not None:
        torch.instance_norm(input.detach(), None, None, running_mean, running_var, True, momentum, eps, False)
    dims = range(2, input.dim())
    result, _, _ = _normalized(_as_computed(input), tuple(dims), eps)
    return _scaled(result, weight, bias, (-1, *(1 for _ in dims))).to(input.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# others


def _scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Products by a table of which element goes where: ``out[i] = prod(where(index == i, src, 1))``."""
    if reduce != "prod":
        return torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self)
    if input.dim() == 0:
        input, index, src = (t.reshape(-1) for t in (input, index, src))
        return _scatter_reduce(input, 0, index, src, reduce, include_self=include_self).reshape(())
    dim = dim % input.dim()
    src = src[tuple(slice(size) for size in index.shape)]
    places = torch.arange(input.shape[dim], device=input.device).reshape(-1, *[1] * (input.dim() - dim))
    goes = index.unsqueeze(dim) == places
    product = torch.where(goes, src.unsqueeze(dim), 1.0).prod(dim + 1)
    own = input[tuple(slice(None if d == dim else size) for d, size in enumerate(index.shape))]
    result = own * product if include_self else torch.where(goes.any(dim + 1), product, own)
    missing = [pad for d in reversed(range(input.dim())) for pad in (0, input.shape[d] - result.shape[d])]
    return torch.where(F.pad(torch.ones_like(result, dtype=torch.bool), missing), F.pad(result, missing), input)


def _index_reduce(
    input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    source = source if source.dim() else source.reshape(1)
    index = index.reshape(-1, *[1] * (source.dim() - 1 - dim % source.dim())).expand(source.shape)
    return _scatter_reduce(input, dim, index, source, reduce, include_self=include_self)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return (input / 6 + 0.5).clamp(0.0, 1.0)


def _first(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: function(*args, **kwargs)[0]


def _sign_and_logarithm(result: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: result(_slogdet(*args, **kwargs)[:2])


_FORMS: dict[Any, Callable[..., Any]] = {
    torch.linalg.solve: _solve,
    torch.linalg.solve_ex: _solve_ex_pair,
    torch.linalg.tensorsolve: _tensorsolve,
    _aten._linalg_solve_ex.default: _solve_ex,
    torch.linalg.det: _first(_det),
    torch.det: _first(lambda input: _det(input)),
    Tensor.det: _first(_det),
    _aten._linalg_det.default: _det,
    torch.linalg.slogdet: _sign_and_logarithm(torch.return_types.linalg_slogdet),  # type: ignore[attr-defined]
    torch.slogdet: _sign_and_logarithm(torch.return_types.slogdet),
    Tensor.slogdet: _sign_and_logarithm(torch.return_types.slogdet),
    _aten._linalg_slogdet.default: _slogdet,
    torch.logdet: _logdet,
    Tensor.logdet: _logdet,
    torch.linalg.householder_product: _householder_product,
    torch.orgqr: _householder_product,
    Tensor.orgqr: _householder_product,
    _aten.linalg_householder_product.default: _householder_product,
    torch.cholesky_inverse: _cholesky_inverse,
    Tensor.cholesky_inverse: _cholesky_inverse,
    _aten.cholesky_inverse.default: _cholesky_inverse,
    torch.triangular_solve: _triangular_solve,
    Tensor.triangular_solve: _triangular_solve,
    _aten.triangular_solve.default: _triangular_solve,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.native_layer_norm: _native_layer_norm,
    _aten.native_layer_norm.default: _native_layer_norm,
    F.batch_norm: _batch_norm_of_module,
    torch.batch_norm: _batch_norm,
    torch.native_batch_norm: _native_batch_norm,
    _aten.native_batch_norm.default: _native_batch_norm,
    _aten._native_batch_norm_legit.no_stats: _batch_norm_without_statistics,
    F.instance_norm: _instance_norm,
    torch.scatter_reduce: _scatter_reduce,
    Tensor.scatter_reduce: _scatter_reduce,
    _aten.scatter_reduce.two: _scatter_reduce,
    torch.index_reduce: _index_reduce,
    Tensor.index_reduce: _index_reduce,
    _aten.index_reduce.default: _index_reduce,
    F.glu: _glu,
    _aten.glu.default: _glu,
    F.hardsigmoid: _hardsigmoid,
    _aten.hardsigmoid.default: _hardsigmoid,
    **NUMBER_FORMS,
}
_READING = {function for function, form in _FORMS.items() if form in (_scatter_reduce, _index_reduce)}
"""Those whose backward pass, of a product, looks at its data."""
_BACKWARD_FORMS: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm_backward.default: _native_layer_norm_backward,
    _aten.native_batch_norm_backward.default: _native_batch_norm_backward,
}
