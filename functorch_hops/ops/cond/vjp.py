"""vjp of cond: partition each branch; the residuals are the union of the branches'.

Each branch fills its own residuals into shared slots, one per kind of tensor, and zeros into the slots that it does not
use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...derive.partition import Partition, partition
from ...derive.rewrite import rewritten
from ...ir.dependence import Through
from ...ir.meta import Mask, TensorMeta, count
from ...ir.subgraph import Subgraph
from .dependence import cond_dependent_outputs
from .op import CondParams, cond_op

__all__ = ["cond_vjp_backward", "cond_vjp_forward"]


@dataclass(frozen=True)
class _Plan:
    """How the branches of a cond are differentiated together."""

    parts: tuple[Partition, ...]
    slots: tuple[TensorMeta, ...]
    cotangents: Mask

    def places(self, part: Partition) -> list[int]:
        """The slot of each residual of a branch."""
        free = list(enumerate(self.slots))
        places = []
        for meta in part.residuals:
            place = next(entry for entry in free if entry[1] == meta)
            free.remove(place)
            places.append(place[0])
        return places


def _plan(params: CondParams, active: Mask) -> _Plan:
    cotangents = cond_dependent_outputs(params, active, Through.GRADIENT)
    parts = tuple(partition(body, active[1:], cotangents) for body in params.branches)
    needed: Counter[TensorMeta] = Counter()
    for part in parts:
        needed |= Counter(part.residuals)
    return _Plan(parts, tuple(needed.elements()), cotangents)


def cond_vjp_forward(params: CondParams, active: Mask) -> CondParams:
    plan = _plan(params, active)
    n = params.n_outputs
    branches = []
    for part in plan.parts:

        def run(*operands: Tensor, part: Partition = part) -> list[Tensor]:
            outs = part.forward(*operands)
            slots = [meta.zeros() for meta in plan.slots]
            for place, residual in zip(plan.places(part), outs[n:]):
                slots[place] = residual
            return [*outs[:n], *slots]

        make = lambda part=part, run=run: rewritten(run, part.forward.inputs, "grad")
        branches.append(part.forward.derive(("slots", n, plan.slots, tuple(plan.places(part))), make))
    return CondParams(tuple(branches))


def cond_vjp_backward(
    params: CondParams,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    plan = _plan(params, active)
    selector, *rest = operands
    given = [meta.or_zeros(ct) for ct, meta, c in zip(cotangents, params.branches[0].outputs, plan.cotangents) if c]
    absent = tuple(ct is None for ct, c in zip(cotangents, plan.cotangents) if c)
    n_slots, n_rest = len(plan.slots), len(rest)
    branches = []
    for part in plan.parts:
        backward = part.backward_without(absent)

        def run(*args: Tensor, part: Partition = part, backward: Subgraph = backward) -> Sequence[Tensor]:
            slots, inputs, cts = args[:n_slots], args[n_slots : n_slots + n_rest], args[n_slots + n_rest :]
            own = [slots[place] for place in plan.places(part)]
            return backward(*own, *(x for x, k in zip(inputs, part.kept) if k), *cts)

        metas = [
            *plan.slots,
            *params.branches[0].inputs,
            *(m for m, c in zip(params.branches[0].outputs, plan.cotangents) if c),
        ]
        make = lambda run=run, metas=metas: rewritten(run, metas, "grad")
        key = ("slots", tuple(metas), n_slots, part.kept, tuple(plan.places(part)))
        branches.append(backward.derive(key, make))
    grads = (
        iter(cond_op(CondParams(tuple(branches)), selector, *residuals, *rest, *given)) if count(active) else iter(())
    )
    return [next(grads) if a else None for a in active]
