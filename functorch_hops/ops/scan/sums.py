"""Sums over the steps that are reduced once, after the loop.

The gradient of a closed-over number or bias is a carry to which a step only adds what is left of a value when it is
reduced: ``s' = s + reduce(v)``. A reduction is linear, so the final carry is ``s + reduce(sum of all v)``. Where the
values are stacked anyway, the sum over the steps is taken of the stack. Else it is a carry of the size of ``v``, if the
rest of the body is pointwise: then no step reads what belongs to another lane (NOTE [Lanes]).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..._torch import is_pointwise
from ...derive.batch import batched
from ...derive.rewrite import rewritten
from ...ir.build import Builder
from ...ir.memory import is_view, without_copies
from ...ir.nodes import frozen, meta_of
from ...ir.subgraph import Subgraph
from ...passes.cleaning import close
from .op import ScanParams, scan_op

__all__ = ["LateSums", "is_sum"]

aten = torch.ops.aten

_REDUCTIONS = (aten.sum.default, aten.sum.dim_IntList)
_LINEAR_VIEWS = (aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default)


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds two different tensors of its own shape and dtype: sums of half precision that a carry of
    float32 takes up would overflow where they are added among themselves.
    """
    if node.target is not aten.add.Tensor or node.kwargs or len(set(node.all_input_nodes)) < 2:
        return False
    total, terms = node.meta["val"], [n.meta["val"] for n in node.all_input_nodes]
    # A float that Dynamo leaves open is a term too.
    return all(isinstance(x, Tensor) and x.shape == total.shape and x.dtype == total.dtype for x in terms)


_Rest = tuple[int, Subgraph]
"""A carry, and ``value -> reduced``: what is left to add to it."""


@dataclass(frozen=True)
class _Term:
    """What is added to a carry: ``value``, to which the operators ``reduction`` are applied one after the other."""

    carry: int
    value: fx.Node
    reduction: tuple[fx.Node, ...]

    @property
    def key(self) -> Hashable:
        """Equal for terms of one carry that are reduced alike: their values can be added before."""
        steps = tuple((node.target, frozen(node.args[1:]), frozen(node.kwargs)) for node in self.reduction)
        return self.carry, meta_of(self.value), steps

    def rest(self, module: fx.GraphModule) -> _Rest:
        builder = Builder(module)
        builder.placeholder(self.value, meta_of(self.value))
        return self.carry, close(builder, [self.reduction[-1] if self.reduction else self.value])


@dataclass(frozen=True)
class LateSums:
    """A loop without the carries ``dropped``, which are sums. ``smaller`` has the sums of the ``wide`` values as its
    first carries; ``stacked`` are reductions of ys, by number.
    """

    n_carry: int
    dropped: frozenset[int]
    wide: tuple[_Rest, ...]
    stacked: tuple[tuple[int, _Rest], ...]
    smaller: Subgraph

    @classmethod
    def make(cls, body: Subgraph, n_carry: int) -> LateSums | None:
        return body.derive(("late sums", n_carry), lambda: (cls._make(body, n_carry),))[0]

    @classmethod
    def _make(cls, body: Subgraph, n_carry: int) -> LateSums | None:
        ys = {without_copies(node): i for i, node in enumerate(body.output_nodes()[n_carry:])}
        sums = [terms for i in range(n_carry) if (terms := _terms(body, i))]
        reducing = {node for terms in sums for term in terms for node in term.reduction}
        may_widen = _is_pointwise(body, reducing)
        largest = max((math.prod(meta.shape) for meta in body.inputs), default=0)

        def fits(term: _Term) -> bool:
            return term.value in ys or (may_widen and math.prod(meta_of(term.value).shape) <= largest)

        sums = [terms for terms in sums if all(map(fits, terms))]
        if not sums:
            return None
        found = [term for terms in sums for term in terms]
        stacked = tuple((ys[term.value], term.rest(body.module)) for term in found if term.value in ys)
        wide = [term for term in found if term.value not in ys]
        dropped = frozenset(term.carry for term in found)
        groups: dict[Hashable, list[_Term]] = {}
        for term in wide:
            groups.setdefault(term.key, []).append(term)
        rests = tuple(terms[0].rest(body.module) for terms in groups.values())
        smaller = _widened(body, n_carry, dropped, [[term.value for term in terms] for terms in groups.values()])
        return cls(n_carry, dropped, rests, stacked, smaller)

    def run(
        self, length: int, init: Sequence[Tensor], xs: Sequence[Tensor], consts: Sequence[Tensor], reverse: bool
    ) -> list[Tensor]:
        kept = [c for i, c in enumerate(init) if i not in self.dropped]
        zeros = [reduce.inputs[0].zeros() for _, reduce in self.wide]
        n = len(zeros) + len(kept)
        outs = scan_op(ScanParams(self.smaller, n, len(xs), reverse), length, *zeros, *kept, *xs, *consts)
        totals, carry, ys = outs[: len(zeros)], iter(outs[len(zeros) : n]), outs[n:]
        result: list[Any] = [init[i] if i in self.dropped else next(carry) for i in range(self.n_carry)]
        for (i, reduce), total in zip(self.wide, totals):
            result[i] = result[i] + reduce(total)[0]
        for y, (i, reduce) in self.stacked:
            rows, _ = batched(reduce, (True,), length, "error", (True,))
            result[i] = result[i] + rows(ys[y])[0].sum(0)
        return [*result, *ys]


def _terms(body: Subgraph, i: int) -> list[_Term]:
    """What a step adds to carry ``i``, if it does nothing else to it and something of it is reduced."""
    carry, out = body.input_nodes()[i], body.output_nodes()[i]
    if not is_sum(out) or list(carry.users) != [out] or len(out.users) > 1:
        return []
    if not meta_of(out).dtype.is_floating_point:
        return []  # the sum of integers has another dtype
    (added,) = (a for a in out.args if a is not carry)
    terms = _parts(i, added)
    return terms if any(term.reduction for term in terms) else []


def _parts(carry: int, node: Any) -> list[_Term]:
    if is_sum(node) and len(node.users) == 1:
        return [term for part in node.args for term in _parts(carry, part)]
    reduction: list[fx.Node] = []
    value = node
    while _reduces(value) and len(value.users) == 1:
        reduction.insert(0, value)
        value = value.args[0]
    while reduction and reduction[0].target not in _REDUCTIONS:
        value = reduction.pop(0)
    return [_Term(carry, value, tuple(reduction))]


def _reduces(node: fx.Node) -> bool:
    if node.target in _REDUCTIONS:
        return bool(node.meta["val"].dtype == node.args[0].meta["val"].dtype)  # type: ignore[union-attr]
    return node.target in _LINEAR_VIEWS


def _is_pointwise(body: Subgraph, besides: set[fx.Node]) -> bool:
    """Whether a body computes each element by itself, but for these nodes."""
    nodes = [n for n in body.module.graph.nodes if n.op == "call_function" and n not in besides]
    return all(is_pointwise(n.target) or is_view(n) or n.target in _COPIES for n in nodes)


_COPIES = (aten.clone.default, aten._to_copy.default, aten.zeros_like.default, aten.full.default)


def _widened(body: Subgraph, n_carry: int, dropped: frozenset[int], groups: Sequence[Sequence[fx.Node]]) -> Subgraph:
    """``(totals, carry..., x..., consts...) -> (totals', carry..., y...)`` without the dropped carries."""
    builder = Builder(body.module)
    for i, (node, meta) in enumerate(zip(body.input_nodes(), body.inputs)):
        if i not in dropped:
            builder.placeholder(node, meta)
    kept = [node for i, node in enumerate(body.output_nodes()) if i not in dropped]
    values = [value for group in groups for value in group]
    emitting = close(builder, [*kept, *values], also=body.pinned_nodes())

    def run(*args: Tensor) -> list[Tensor]:
        outs = emitting(*args[len(groups) :])
        added = iter(outs[len(kept) :])
        totals = [sum((next(added) for _ in group), start=total) for total, group in zip(args, groups)]
        return [*totals, *outs[: len(kept)]]

    totals = [meta_of(group[0]) for group in groups]
    return rewritten(run, [*totals, *emitting.inputs], "scan")
