"""Lanes of a vmap that take different ways.

NOTE [Representative lanes] A lane that does not take a branch, or has finished a loop, still computes along. Whatever
it computes is thrown away by a select, but its NaN would come back in the gradient (0 * inf) and its inner loops might
never end. So it computes with the operands of a lane that does take the branch: then nothing happens in it that does
not happen in that lane. The borrowed operands are detached, hence the borrowed lane's gradients hold no term of the
others, and the select hands zero cotangents to the borrowing lanes only.

NOTE [Numbers of lanes] torch combines a tensor without dimensions on the CPU, a number, with tensors of any device. If
it differs between lanes it has one, and torch does not. So a number that lanes decide about is where they decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..derive.rewrite import rewritten
from ..ir.meta import TensorMeta
from ..ir.subgraph import Subgraph, params_of

__all__ = ["borrow_operands", "expand_lanes", "select_lanes", "with_numbers_on"]


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


def with_numbers_on(device: torch.device, body: Subgraph, n_inputs: int, n_outputs: int) -> Subgraph:
    """``body`` with the numbers among its first inputs and outputs on ``device``: NOTE [Numbers of lanes]."""
    if device.type == "cpu" or not any(_is_number(x) for x in (*body.inputs[:n_inputs], *body.outputs[:n_outputs])):
        return body

    def run(*args: Tensor) -> Sequence[Tensor]:
        outs = _Moved(body.module).run(*args)
        return [*(x.to(device) if _is_number(x) else x for x in outs[:n_outputs]), *outs[n_outputs:]]

    inputs = [x._replace(device=device) if _is_number(x) else x for x in body.inputs[:n_inputs]]
    key = "numbers", device, n_inputs, n_outputs
    return body.derive(key, lambda: rewritten(run, [*inputs, *body.inputs[n_inputs:]], "vmap"))


def _is_number(x: Tensor | TensorMeta) -> bool:
    return x.device.type == "cpu" and not x.shape


class _Moved(fx.Interpreter):
    """Runs a graph on inputs some of which moved: to the calls in it they are where they were."""

    def run_node(self, n: fx.Node) -> Any:
        if params_of(n, self.module) is None:
            return super().run_node(n)
        given: Any = self.map_nodes_to_values(n.args, n)
        params, *operands = given
        places = [x.meta["val"].device if isinstance(x, fx.Node) else None for x in n.args[1:]]
        moved = [x if place is None else x.to(place) for x, place in zip(operands, places)]
        return n.target(params, *moved)  # type: ignore[operator]
