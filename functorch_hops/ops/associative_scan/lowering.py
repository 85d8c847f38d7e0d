"""associative_scan in torch's own operators.

NOTE [Where torch's associative_scan is right] torch's operator (2.13) calls its function on many pairs at once, not
vmapped: it has to be pointwise, which nothing checks. Its derivative takes the leaves one by one, so what one leaf does
to another is missing from it without a word; it refuses constants and complex numbers. Export therefore keeps the
operator for pointwise functions of one real tensor. Elsewhere, for ONNX, which has no such operator, and for
compilation - Inductor lowers it on CUDA only -, the O(log n) steps are written out; on the CPU a kernel of one pass
takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ... import _torch
from ...ir.subgraph import Subgraph
from ...lowering.loops.forms import Prefixes, Refused
from .eager import associative_scan_impl
from .op import AssociativeScanParams

__all__ = ["associative_scan_form", "associative_scan_lower"]


def associative_scan_lower(params: AssociativeScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    body = params.body
    has_native = _torch.is_exporting() and not _torch.is_exporting_to_onnx()
    if not has_native or operands[0].shape[0] == 0 or not _is_native(body):
        return associative_scan_impl(params, operands)
    # A list, since Dynamo, for a strict export of the program, compares the tree of results with that of the elements.
    return _torch.native_associative_scan(lambda a, b: list(body(a, b)), [_torch.dense(operands[0])], ())


def _is_native(body: Subgraph) -> bool:
    """Whether a body is pointwise in a pair of real tensors: the same graph is right for a pair and for many."""
    return (
        len(body.inputs) == 2
        and not body.inputs[0].dtype.is_complex
        and all(node.op != "call_function" or _is_pointwise(node) for node in body.module.graph.nodes)
    )


def _is_pointwise(node: fx.Node) -> bool:
    """Whether a node computes each number from those at the same place, and all its operands from the pair. One more
    dimension changes nothing if the operands have the same number of dimensions.
    """
    value = node.meta.get("val")
    return (
        _torch.is_pointwise(node.target)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and isinstance(value, Tensor)
        and bool(node.all_input_nodes)
        and all(x.meta["val"].dim() == value.dim() for x in node.all_input_nodes)
    )


def associative_scan_form(params: AssociativeScanParams, operands: Sequence[Any]) -> Prefixes:
    if params.is_half:
        raise Refused("prefixes of half precision are more accurate as a tree")
    return Prefixes(params.body, params.n_leaves, operands[0].shape[0])
