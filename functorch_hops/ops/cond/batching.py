"""vmap of cond.

An unbatched selector selects for all lanes. With a batched one, branch i must run for the lanes that selected it and
must not be felt by the others. So each branch becomes a cond of its own, taken if any lane selected it, in which the
other lanes compute with the operands of a lane that did (see ``borrow_operands``): no NaN can arise that the branch's
own lanes do not have, in values, tangents or gradients of any order, and a loop inside ends when those lanes end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...derive.batch import batched
from ...derive.rewrite import rewritten
from ...ir.build import with_inputs
from ...ir.meta import Mask, TensorMeta
from ...ir.origin import made_for
from ...ir.sizes import is_closed
from ...ir.subgraph import Subgraph
from ..effect.marking import enter_scope, in_scope, new_scope
from ..lanes import borrow_operands, place_of, select_lanes, with_numbers_on
from .op import CondParams, cond_op

__all__ = ["cond_batch"]


def cond_batch(
    params: CondParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    if mapped[0]:
        return _per_lane(params, operands, mapped, size, randomness)
    new, out = _batched_branches(params, mapped[1:], size, randomness)
    return cond_op(new, *operands), out


def _batched_branches(
    params: CondParams, mapped: Mask, size: int, randomness: str, out: Mask | None = None
) -> tuple[CondParams, Mask]:
    if out is None:
        masks = [batched(body, mapped, size, randomness)[1] for body in params.branches]
        out = tuple(any(column) for column in zip(*masks, strict=True))
    return params.with_bodies(lambda body: batched(body, mapped, size, randomness, out)[0]), out


def _per_lane(
    params: CondParams, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    selector, *rest = operands
    everywhere = (True,) * params.n_outputs
    device = place_of(selector, rest)
    params = params.with_bodies(lambda body: with_numbers_on(device, body, 0, params.n_outputs))
    if not any(mapped[1:]) and not is_closed((size,)):  # a branch knows by its inputs how many lanes there are
        params, rest, mapped = _with_selector(params, selector), [selector, *rest], (True, *mapped)
    batched_params, _ = _batched_branches(params, mapped[1:], size, randomness, everywhere)
    results: list[Tensor] | None = None
    for i, branch in enumerate(batched_params.branches):
        taken = selector == i
        if branch.holds_effects:
            scope = branch.derive("scope", new_scope)
            enter_scope(scope, taken)
            branch = in_scope(branch, scope)
        mask = TensorMeta.of(taken)
        with made_for(params.origin and params.origin.of_branch(i)):
            masked = CondParams((_zeros(branch, mask), _masked(branch, mask, mapped[1:])))
        outs = cond_op(masked, taken.any(), taken, *rest)
        results = list(outs) if results is None else [select_lanes(taken, new, old) for new, old in zip(outs, results)]
    assert results is not None
    return results, everywhere


def _with_selector(params: CondParams, selector: Tensor) -> CondParams:
    """With branches that take a lane of the selector first, and ignore it."""
    first = TensorMeta(tuple(selector.shape[1:]), selector.dtype, selector.device)

    def change(body: Subgraph) -> Subgraph:
        return with_inputs(body, range(1, len(body.inputs) + 1), [first, *body.inputs])

    return params.with_bodies(change)


def _masked(branch: Subgraph, mask: TensorMeta, mapped: Mask) -> Subgraph:
    """``(taken, operands)``: the branch, lanes that did not take it computing as one that did."""

    def run(taken: Tensor, *operands: Tensor) -> Sequence[Tensor]:
        return branch(*(borrow_operands(taken, x) if m else x for x, m in zip(operands, mapped)))

    return branch.derive(("masked", mask, mapped), lambda: rewritten(run, [mask, *branch.inputs], "vmap"))


def _zeros(branch: Subgraph, mask: TensorMeta) -> Subgraph:
    """A branch of the same signature that computes nothing: no lane took it."""

    def run(*_: Tensor) -> list[Tensor]:
        return [meta.zeros() for meta in branch.outputs]

    return branch.derive(("zeros", mask), lambda: rewritten(run, [mask, *branch.inputs], "vmap"))
