"""The prefix reductions in O(log n) steps, each on all elements at once.

Combine neighbours, solve the half-sized problem, which gives every odd prefix, and combine those with the elements
between them (the odd-even scheme of Ladner and Fischer, "Parallel prefix computation", 1980; as in
``jax.lax.associative_scan``). Where a graph leaves the number of elements open, so would be that of the steps: there
the prefixes are a scan. Those of half precision are a graph for each number of steps, since a scan would round more
often; an export, which can't be several graphs, is a scan nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import _torch
from ...derive.batch import batched
from .op import AssociativeScanParams
from .sequential import sequential_prefixes

__all__ = ["associative_scan_abstract_eval", "associative_scan_impl", "prefixes"]

Combine = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def prefixes(combine: Combine, elems: Sequence[Tensor]) -> list[Tensor]:
    """``combine`` works on many pairs at once, along dimension 0."""
    n = elems[0].shape[0]
    if n < 2:
        return [e.clone() for e in elems]
    odd = prefixes(combine, combine([e[:-1:2] for e in elems], [e[1::2] for e in elems]))
    left = [o[:-1] for o in odd] if n % 2 == 0 else odd
    if left[0].shape[0] == 0:
        return [torch.cat((e[:1], o)) for e, o in zip(elems, odd)]
    even = combine(left, [e[2::2] for e in elems])
    return [_interleaved(torch.cat((e[:1], v)), o) for e, v, o in zip(elems, even, odd)]


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    n = odd.shape[0]
    merged = torch.stack((even[:n], odd), 1).flatten(0, 1)
    return merged if even.shape[0] == n else torch.cat((merged, even[n:]))


def associative_scan_impl(params: AssociativeScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    body = params.body
    k = params.n_leaves
    elems, consts = operands[:k], operands[k:]
    if type(elems[0].shape[0]) is not int and (_torch.is_exporting() or not params.is_half):
        return sequential_prefixes(params, operands)

    def combine(a: Sequence[Tensor], b: Sequence[Tensor]) -> Sequence[Tensor]:
        mapped = (*(True,) * (2 * k), *(False,) * len(consts))
        pairs, _ = batched(body, mapped, a[0].shape[0], "different", (True,) * k)
        return pairs(*a, *b, *consts)

    outs = prefixes(combine, elems)
    return [*outs, *(x.clone() for _ in range(params.copies - 1) for x in outs)]


def associative_scan_abstract_eval(params: AssociativeScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    elems = params.copies * tuple(operands[: params.n_leaves])
    return [torch.empty_like(e, memory_format=torch.contiguous_format) for e in elems]
