"""Lanes of a vmap that take different ways.

NOTE [Representative lanes] A lane that does not take a branch, or has finished a loop, still computes along. Whatever
it computes is thrown away by a select, but its NaN would come back in the gradient (0 * inf) and its inner loops might
never end. So it computes with the operands of a lane that does take the branch: then nothing happens in it that does
not happen in that lane. The borrowed operands are detached, hence the borrowed lane's gradients hold no term of the
others, and the select hands zero cotangents to the borrowing lanes only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..derive.placing import Placing
from ..derive.rewrite import rewritten
from ..ir.meta import TensorMeta
from ..ir.subgraph import Subgraph

__all__ = ["borrow_operands", "expand_lanes", "place_of", "select_lanes", "with_numbers_on"]


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.to(like.device).reshape(mask.shape[0], *(1,) * (like.dim() - 1))


def borrow_operands(taken: Tensor, x: Tensor) -> Tensor:
    """``x`` with the lanes that are not ``taken`` replaced by the first one that is (lanes at dimension 0)."""
    if taken.shape[0] == 0:
        return x  # a vmap over nothing: there is no first lane
    first = taken.to(x.device, torch.int64).argmax().reshape(1)
    return torch.where(_column(taken, x), x, x.detach().index_select(0, first))


def select_lanes(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(_column(taken, new), new, old)


def expand_lanes(x: Tensor, size: int) -> Tensor:
    """The same value for every lane, in memory of its own (a stride of 0 miscompiles in Inductor's loops)."""
    return x.expand(size, *x.shape).contiguous()


def place_of(decided: Tensor | TensorMeta, *values: Sequence[Tensor | TensorMeta]) -> torch.device:
    """Where lanes compute what they decide about: on the accelerator if they have anything there, otherwise where they
    decide.
    """
    return next((x.device for x in (decided, *itertools.chain(*values)) if x.device.type != "cpu"), decided.device)


def with_numbers_on(device: torch.device, body: Subgraph, n_inputs: int, n_outputs: int) -> Subgraph:
    """``body`` with the numbers among its first inputs and outputs on ``device``: NOTE [Numbers of lanes]."""
    if device.type == "cpu" or not any(_is_number(x) for x in (*body.inputs[:n_inputs], *body.outputs[:n_outputs])):
        return body

    def run(*args: Tensor) -> Sequence[Tensor]:
        outs = Placing(body.module).run(*args)
        places = [device if _is_number(x) else x.device for x in body.outputs[:n_outputs]]
        places += [x.device for x in body.outputs[n_outputs:]]
        return [x.to(place) for x, place in zip(outs, places)]

    inputs = [x._replace(device=device) if _is_number(x) else x for x in body.inputs[:n_inputs]]
    key = "numbers", device, n_inputs, n_outputs
    return body.derive(key, lambda: rewritten(run, [*inputs, *body.inputs[n_inputs:]], "vmap"))


def _is_number(x: TensorMeta) -> bool:
    return x.device.type == "cpu" and not x.shape
