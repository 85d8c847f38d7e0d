"""Functions of torch that a trace or a vmap can't see through, written in operators that it can."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import message, warn
from .cells import elman_step, gru_step, lstm_step
from .indexing import put_by_mask, put_by_mask_

__all__ = ["replaced"]

_HAS_LINEAR_CROSS_ENTROPY = hasattr(torch.nn.functional, "linear_cross_entropy")
"""From torch 2.13 on."""


def replaced(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the call gives, by other operators; NotImplemented where torch's own will do."""
    other = _REPLACED.get(func)
    if other is None:
        return NotImplemented
    named = next((name for name in ("input", "self") if name in kwargs), None)  # the first operand, in torch's names
    if named is None:
        return other(*args, **kwargs)
    return other(kwargs[named], *args, **{name: value for name, value in kwargs.items() if name != named})


def _one_hot(classes: Tensor, num_classes: int = -1) -> Any:
    """torch reads the classes to check them, or checks nothing, if it finds a traced tensor that no transform wraps.
    Here the check is that of an index.
    """
    if num_classes < 0 or classes.dtype != torch.int64:
        return NotImplemented  # a size that depends on values, or an error of torch's
    numbers = torch.arange(num_classes, device=classes.device)
    checked = numbers.gather(0, classes.reshape(-1)).reshape(classes.shape)
    return (checked.unsqueeze(-1) == numbers).to(torch.int64)


def _embedding(
    places: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """A graph holds no sparse gradients: see NOTE [Sparse matrices]."""
    if not sparse:
        return NotImplemented
    return torch.nn.functional.embedding(places, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)


def _embedding_bag(
    places: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """torch.func differentiates the operator (2.13) by a kernel that refuses integers, and does not batch it."""
    if max_norm is not None or scale_grad_by_freq or places.dim() > 2 or (offsets is None) != (places.dim() == 2):
        return NotImplemented  # also what torch refuses
    flat = places.reshape(-1)
    if offsets is None:
        n_bags = places.shape[0]
        bags = torch.arange(n_bags, device=flat.device).repeat_interleave(places.shape[1])
    else:
        n_bags = offsets.shape[0] - include_last_offset
        order = torch.arange(flat.shape[0], device=flat.device)
        bags = torch.searchsorted(offsets[:n_bags].contiguous(), order.to(offsets.dtype), right=True) - 1
    rows = weight.index_select(0, flat)
    counted = torch.ones_like(flat, dtype=weight.dtype)
    if padding_idx is not None:
        counted = (flat != padding_idx % weight.shape[0]).to(weight.dtype)
    zeros = rows.new_zeros((n_bags, *rows.shape[1:]))
    if mode == "max":
        rows = torch.where(counted.bool().unsqueeze(-1), rows, -torch.inf)
        largest = torch.full_like(zeros, -torch.inf).scatter_reduce(0, bags.unsqueeze(-1).expand_as(rows), rows, "amax")
        return torch.where(largest == -torch.inf, zeros, largest)
    factors = counted if per_sample_weights is None else counted * per_sample_weights.reshape(-1)
    total = zeros.index_add(0, bags, rows * factors.unsqueeze(-1))
    if mode == "sum":
        return total
    sizes = counted.new_zeros(n_bags).index_add(0, bags, counted)
    return total / sizes.clamp(min=1).unsqueeze(-1)


def _linear_cross_entropy(*operands: Tensor, options: Any = None, **rest: Any) -> Any:
    """The form in chunks computes gradients with the value, where eager asks for them before: a trace has none then."""
    if options is None:
        return NotImplemented
    problem = "a captured function computes all of its logits at once: the form in chunks has no derivative in a graph"
    remedy = "call it outside of the captured function to save the memory, or pass options=None"
    warn(message("linear_cross_entropy", problem, remedy=remedy), once=True)
    return torch.nn.functional.linear_cross_entropy(*operands, **rest)


def _masked_select(x: Tensor, mask: Tensor, *, out: None = None) -> Any:
    """Indexing counts a mask once, so that a value and its tangents have one size; torch's operator counts for each."""
    if out is not None or not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        return NotImplemented
    x, mask = torch.broadcast_tensors(x, mask)
    return x[mask]


def _flip(x: Tensor, *places: Any, dims: Any = None) -> Any:
    """torch's batching rule (2.13) refuses what has no dimensions."""
    given = places if dims is None else (dims,)
    return x.clone() if x.dim() == 0 and given in ((0,), (-1,), ((0,),), ((-1,),), ([0],), ([-1],)) else NotImplemented


def _cov(x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None) -> Any:
    """torch reads the number that it divides by."""
    is_given = isinstance(x, Tensor) and x.dim() <= 2 and (x.is_floating_point() or x.is_complex())
    if fweights is not None or aweights is not None or not is_given:
        return NotImplemented
    rows = x if x.dim() == 2 else x.reshape(1, -1)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred @ centred.mH / max(rows.shape[1] - correction, 0)).squeeze()


def _corrcoef(x: Tensor) -> Any:
    covariance = _cov(x)
    if covariance is NotImplemented or covariance.dim() == 0:
        return NotImplemented if covariance is NotImplemented else covariance / covariance
    deviation = torch.sqrt(torch.real(covariance.diagonal()))
    coefficients = covariance / deviation.unsqueeze(1) / deviation
    if not coefficients.is_complex():
        return coefficients.clamp(-1, 1)
    return torch.complex(coefficients.real.clamp(-1, 1), coefficients.imag.clamp(-1, 1))


def _combinations(x: Tensor, r: int = 2, with_replacement: bool = False) -> Any:
    """torch selects them by a mask, so that their number is unknown to a trace."""
    if not isinstance(x, Tensor) or x.dim() != 1 or r < 1 or not isinstance(x.shape[0], int):
        return NotImplemented
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    places = torch.tensor([*choose(range(x.shape[0]), r)], dtype=torch.int64, device=x.device)
    return x[places.reshape(-1, r)]


def _random(x: Tensor, *bounds: Any, generator: Any = None, **named: Any) -> Any:
    """A graph can't be written as Python that calls the overload ``from``."""
    if len(bounds) != 2 or named or generator is not None or not all(isinstance(b, int) for b in bounds):
        return NotImplemented
    return x.copy_(torch.randint_like(x, *bounds))


def _polygamma(x: Tensor, n: int) -> Any:
    """torch (2.13) has no functional form of it. Its derivative reads what is written over."""
    if not x.is_floating_point():
        return NotImplemented
    return x.copy_(torch.polygamma(n, x.clone()))


def _cell(step: Callable[..., Tensor]) -> Callable[..., Any]:
    """torch's own (2.13) makes numbers of open sizes where it cuts its gates (``unsafe_chunk``), or is called for each
    lane of a vmap; and neither vmap nor forward mode nor Inductor knows its kernel for GPUs.
    """

    def cell(
        x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
    ) -> Any:
        if not _is_written_out(x, h) or x.shape[0] != h.shape[0]:
            return NotImplemented
        return step(torch.nn.functional.linear(x, w_x, b_x), h, w_h, b_h)

    return cell


def _lstm_cell(
    x: Tensor, state: Any, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> Any:
    """As :func:`_cell`."""
    h, c = state
    if not _is_written_out(x, h, c) or not x.shape[0] == h.shape[0] == c.shape[0]:
        return NotImplemented
    return lstm_step(torch.nn.functional.linear(x, w_x, b_x), h, c, w_h, b_h)


def _is_written_out(*tensors: Tensor) -> bool:
    return any(t.device.type != "cpu" or any(isinstance(size, torch.SymInt) for size in t.shape) for t in tensors)


def _out_dtype(operator: Any, dtype: torch.dtype, *args: Any) -> Tensor:
    """torch's operator (2.13) knows no transform."""
    inputs = [a.dtype for a in args if isinstance(a, Tensor)]
    common = functools.reduce(torch.promote_types, inputs, dtype)
    result: Tensor = operator(*(a.to(common) if isinstance(a, Tensor) else a for a in args)).to(dtype)
    return result


def _split(input: Tensor, split_size: int, dim: int = 0) -> Any:
    return torch.split(input, split_size, dim)


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.one_hot: _one_hot,
    torch.nn.functional.embedding: _embedding,
    torch.nn.functional.embedding_bag: _embedding_bag,
    **({torch.nn.functional.linear_cross_entropy: _linear_cross_entropy} if _HAS_LINEAR_CROSS_ENTROPY else {}),
    torch.ops.higher_order.out_dtype: _out_dtype,
    torch.masked_select: _masked_select,
    Tensor.masked_select: _masked_select,
    torch.cov: _cov,
    Tensor.cov: _cov,
    torch.corrcoef: _corrcoef,
    Tensor.corrcoef: _corrcoef,
    torch.combinations: _combinations,
    Tensor.random_: _random,
    Tensor.polygamma_: _polygamma,
    torch.gru_cell: _cell(gru_step),
    torch.lstm_cell: _lstm_cell,
    torch.rnn_relu_cell: _cell(functools.partial(elman_step, torch.relu)),
    torch.rnn_tanh_cell: _cell(functools.partial(elman_step, torch.tanh)),
    # torch's functional forms (2.13) take their results for copies; they are views, to which some write.
    **dict.fromkeys((torch.unsafe_split, Tensor.unsafe_split, torch.ops.aten.unsafe_split.Tensor), _split),
    **dict.fromkeys(
        (torch.unsafe_split_with_sizes, Tensor.unsafe_split_with_sizes, torch.ops.aten.unsafe_split_with_sizes.default),
        torch.split_with_sizes,
    ),
    **dict.fromkeys((torch.unsafe_chunk, Tensor.unsafe_chunk), torch.chunk),
    torch.flip: _flip,
    Tensor.flip: _flip,
    **dict.fromkeys((torch.index_put, Tensor.index_put, torch.ops.aten.index_put.default), put_by_mask),
    **dict.fromkeys((torch.index_put_, Tensor.index_put_), put_by_mask_),
}
