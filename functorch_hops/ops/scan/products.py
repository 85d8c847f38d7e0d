"""Products of a scan that wait for no carry, and sums of products over the steps.

A sum is a carry that a step only adds to: ``s' = s + a^T b``. With the rows of all steps below one another in ``A`` and
``B``, its final value is ``s + A^T B``. An outer product has a single row in each step: it is the gradient of a matrix
that is multiplied by a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..._torch import OpOverload
from ...derive.batch import batched
from ...derive.rewrite import rewritten
from ...ir.build import Builder
from ...ir.memory import base_of
from ...ir.nodes import meta_of
from ...ir.subgraph import Subgraph
from ...passes.cleaning import close
from ...passes.hoisting import split_invariant
from ...passes.products import is_product
from ...passes.rewiring import rewired
from .op import ScanParams, scan_op
from .sums import LateSums, is_sum

__all__ = ["scan_products"]

aten = torch.ops.aten


def scan_products(params: ScanParams, operands: Sequence[Any]) -> Subgraph | None:
    """The scan as a graph over its operands but the length, products taken outside; None where there are none."""
    length = operands[0]
    body = params.body
    if not isinstance(length, int) or length < 2 or body.shape_env is not None:
        return None
    n, m, reverse = params.n_carry, params.n_xs, params.reverse
    before, body = _products_before(body, n, m)
    loop = _Summing.make(body, n, m + (len(before.outputs) if before else 0))
    if before is None and not loop.sums and loop.late is None:
        return None

    def run(*args: Tensor) -> list[Tensor]:
        init, xs, consts = args[:n], args[n : n + m], args[n + m :]
        if before is not None:
            mapped = (*(True,) * m, *(False,) * len(consts))
            products, _ = batched(before, mapped, length, "error", (True,) * len(before.outputs))
            xs = (*xs, *products(*xs, *consts))
        return loop.run(length, init, xs, consts, reverse)

    inputs = params.body.inputs
    metas = [*inputs[:n], *(x.with_leading(length) for x in inputs[n : n + m]), *inputs[n + m :]]
    return params.body.derive(("fission", n, m, reverse, length), lambda: rewritten(run, metas, "scan"))


def _products_before(body: Subgraph, n: int, m: int) -> tuple[Subgraph | None, Subgraph]:
    """``(x, consts) -> products``, and the body that finds them behind its xs."""
    rest = len(body.inputs) - n
    parts = split_invariant(body, (*(False,) * n, *(True,) * rest), _is_operator, _gains_from_rows)
    if parts is None:
        return None, body
    outside, inside = parts
    k = len(outside.outputs)
    consts = range(n + m, n + rest)
    places = [*range(n + m), *(i + k for i in consts), *range(n + m, n + m + k)]
    return outside, rewired(inside, places, (True,) * len(body.outputs))


def _is_operator(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload)


def _gains_from_rows(node: fx.Node) -> bool:
    """Whether a product has few rows in each step - with many it is efficient as it is - and takes little memory."""
    if not is_product(node):
        return False
    first = node.all_input_nodes[0].meta["val"]
    is_thin = node.target is aten.mv.default or 2 * min(node.meta["val"].shape[-2:]) <= first.shape[-1]
    return is_thin and _numel(node) <= 4 * min(map(_numel, node.all_input_nodes))


def _numel(node: fx.Node) -> int:
    return int(node.meta["val"].numel())


@dataclass(frozen=True)
class _Sum:
    """A carry to which each step adds these products."""

    carry: int
    products: tuple[fx.Node, ...]

    @property
    def factors(self) -> list[fx.Node]:
        return [factor for product in self.products for factor in product.args]  # type: ignore[misc]

    @property
    def bases(self) -> list[fx.Node]:
        """Where the memory of the factors comes from."""
        return list(dict.fromkeys(map(base_of, self.factors)))


@dataclass(frozen=True)
class _Summing:
    """A loop without its sums: ``smaller`` emits the ``stacked`` values that it had not as xs."""

    body: Subgraph
    n_carry: int
    sums: tuple[_Sum, ...]
    stacked: tuple[int | fx.Node, ...]
    smaller: Subgraph
    factors: Subgraph
    late: LateSums | None

    @classmethod
    def make(cls, body: Subgraph, n_carry: int, n_xs: int) -> _Summing:
        nodes, outputs = body.input_nodes(), body.output_nodes()
        xs = {node: i for i, node in enumerate(nodes[n_carry : n_carry + n_xs])}
        consts = set(nodes[n_carry + n_xs :])
        sums = tuple(s for s in _sums(body, n_carry) if consts.isdisjoint(s.bases) and _is_cheaper(s, body, set(xs)))
        dropped = {s.carry for s in sums}
        bases = list(dict.fromkeys(base for s in sums for base in s.bases))
        smaller = Builder(body.module)
        for i, (node, meta) in enumerate(zip(nodes, body.inputs)):
            if i not in dropped:
                smaller.placeholder(node, meta)
        factors = Builder(body.module)
        for base in bases:
            factors.placeholder(base, meta_of(base))
        kept = [node for i, node in enumerate(outputs) if i not in dropped]
        stacked = [base for base in bases if base not in xs]
        without = close(smaller, [*kept, *stacked], also=body.pinned_nodes())
        return cls(
            body,
            n_carry,
            sums,
            tuple(xs.get(base, base) for base in bases),
            without,
            close(factors, [f for s in sums for f in s.factors]),
            LateSums.make(without, n_carry - len(dropped)),
        )

    def run(
        self, length: int, init: Sequence[Tensor], xs: Sequence[Tensor], consts: Sequence[Tensor], reverse: bool
    ) -> list[Tensor]:
        dropped = {s.carry for s in self.sums}
        kept = [c for i, c in enumerate(init) if i not in dropped]
        if self.late is None:
            outs = scan_op(ScanParams(self.smaller, len(kept), len(xs), reverse), length, *kept, *xs, *consts)
        else:
            outs = tuple(self.late.run(length, kept, xs, consts, reverse))
        n_ys = len(self.body.outputs) - self.n_carry
        carry, ys, new = iter(outs[: len(kept)]), outs[len(kept) : len(kept) + n_ys], iter(outs[len(kept) + n_ys :])
        stacks = [xs[base] if isinstance(base, int) else next(new) for base in self.stacked]
        everything = (True,) * len(self.factors.outputs)
        factors, _ = batched(self.factors, (True,) * len(stacks), length, "error", everything)
        left = iter(factors(*stacks))
        totals: dict[int, Tensor] = {}
        for s in self.sums:
            products = [_over_steps(product.target, next(left), next(left)) for product in s.products]
            totals[s.carry] = sum(products, start=init[s.carry])
        return [*(totals[i] if i in totals else next(carry) for i in range(self.n_carry)), *ys]


def _over_steps(operator: Any, a: Tensor, b: Tensor) -> Tensor:
    """The sum over the steps, at dimension 0, of their products."""
    if operator is aten.mul.Tensor:
        a, b = (x[:, *[None] * (max(a.dim(), b.dim()) - x.dim())] for x in (a, b))
        return torch.einsum("t...,t...->...", a, b)
    if operator is aten.mv.default:
        return _over_steps(aten.mm.default, a, b[..., None]).squeeze(-1)
    columns, rows = (x.movedim(0, -3).flatten(-3, -2) for x in (a.mT, b))
    return columns.mT @ rows


def _sums(body: Subgraph, n_carry: int) -> list[_Sum]:
    found = []
    for i, (carry, out) in enumerate(zip(body.input_nodes()[:n_carry], body.output_nodes())):
        if is_sum(out) and list(carry.users) == [out] and len(out.users) == 1:
            (added,) = (a for a in out.args if a is not carry)
            products = _products(added)
            if products:
                found.append(_Sum(i, tuple(products)))
    return found


def _products(node: Any) -> list[fx.Node]:
    """The products whose sum a node is and that only it reads; empty if it is no such sum."""
    if len(node.users) > 1:
        return []
    if is_product(node) or _is_outer(node):
        return [node]
    parts = [_products(n) for n in node.args] if is_sum(node) else []
    return [product for part in parts for product in part] if all(parts) else []


def _is_outer(node: fx.Node) -> bool:
    """Whether a node multiplies two tensors, each of which is broadcast along a dimension of the other."""
    if node.target is not aten.mul.Tensor or len(node.all_input_nodes) != 2:
        return False
    x, a, b = (n.meta["val"] for n in (node, *node.all_input_nodes))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    has_one_dtype = x.dtype.is_floating_point and x.dtype == a.dtype == b.dtype
    return has_one_dtype and x.numel() > 0 and _is_broadcast(a, b) and _is_broadcast(b, a)


def _is_broadcast(x: Tensor, by: Tensor) -> bool:
    """Whether a dimension of ``x`` is expanded to that of another tensor."""
    return any(n > 1 and (i > x.dim() or x.shape[-i] == 1) for i, n in enumerate(reversed(by.shape), 1))


def _is_cheaper(s: _Sum, body: Subgraph, xs: set[fx.Node]) -> bool:
    """Whether stacking what is not stacked yet moves less than reading and writing the sum in each step."""
    total = math.prod(body.inputs[s.carry].shape)
    return sum(_numel(base) for base in s.bases if base not in xs) <= 2 * total
