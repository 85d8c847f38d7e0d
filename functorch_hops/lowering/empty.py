"""Empty tensors stay on their side of an operator's edge.

An empty tensor holds nothing but its strides, and torch (2.13) does not agree with itself on those: ``contiguous``
keeps any, a fake tensor counts a size of 0 as 1, Inductor multiplies with it. So carries and branches seem to differ.
Here a body makes the empty tensors that it reads, and the caller those that the operator would return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..ir.build import copy_of
from ..ir.dependence import Pruned
from ..ir.meta import Mask, TensorMeta
from ..ir.subgraph import P, Subgraph
from ..passes.cleaning import clean

__all__ = ["without_empty"]

Prune = Callable[[P, Mask], Pruned[P] | None]
Abstract = Callable[[P, Sequence[Tensor]], Sequence[Tensor]]


def without_empty(
    prune: Prune[P], abstract: Abstract[P], params: P, operands: Sequence[Any]
) -> tuple[P, Sequence[Any], Callable[[Sequence[Tensor]], list[Tensor]]]:
    """A call without empty operands and outputs, and a function from its outputs to those of the call as it was."""
    if not any(_is_empty(meta) for body in params.bodies for meta in (*body.inputs, *body.outputs)):
        return params, operands, list
    with _torch.disable_proxy_modes_tracing(), _torch.sizes_forgotten():
        outputs = [TensorMeta.of(x) for x in abstract(params, operands)]
    fed = params.derive("without empty inputs", lambda: params.with_bodies(_without_empty_inputs))
    pruned = prune(fed, tuple(not _is_empty(meta) for meta in outputs))
    if pruned is None:
        return params, operands, list

    def restore(outs: Sequence[Tensor]) -> list[Tensor]:
        kept = iter(outs)
        return [next(kept) if k else meta.zeros() for k, meta in zip(pruned.outputs, outputs)]

    return pruned.params, [x for x, k in zip(operands, pruned.operands) if k], restore


def _is_empty(meta: TensorMeta) -> bool:
    """Whether a tensor is empty whatever the open sizes, all of which are known before a run."""
    return all(type(size) is int for size in meta.shape) and 0 in meta.shape


def _without_empty_inputs(body: Subgraph) -> Subgraph:
    """The same graph, which does not read its empty inputs."""
    empty = [(node, meta) for node, meta in zip(body.input_nodes(), body.inputs) if _is_empty(meta) and node.users]
    return body.derive("without empty inputs", lambda: _fed(body)) if empty else body


def _fed(body: Subgraph) -> Subgraph:
    module = copy_of(body)
    placeholders = module.graph.find_nodes(op="placeholder")
    for node, meta in zip(placeholders, body.inputs):
        if _is_empty(meta):
            with module.graph.inserting_after(placeholders[-1]):
                made = module.graph.call_function(
                    torch.ops.aten.zeros.default, (list(meta.shape),), {"dtype": meta.dtype, "device": meta.device}
                )
            made.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(made)
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)
