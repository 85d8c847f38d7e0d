"""Whether a function that is linear in its tangents may be transposed by its gradient.

NOTE [Only what is linear is transposed] The transpose of a linear function is its gradient, at any tangents: it is
taken at zero. That holds for a program without decisions. But a solver that iterates until its residual is small takes
no step for zeros, or another number of steps than for the cotangents; its gradient at zero is that of another function.
So a comparison of what depends on the tangents is refused, if the gradient depends on its outcome: the transpose of
such a solver is another run of it, which ``custom_linear_solve`` makes. Products of two values that depend on tangents
are not refused: forward mode inside of the function has terms that are zero, such as ``0 * tangent``. Nor is the
question whether a value is finite, which has one answer for all finite tangents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from ..ir.dependence import Through, depends
from ..ir.meta import Mask
from ..ir.subgraph import Subgraph
from .joint import joint

__all__ = ["is_transposable"]

_aten = torch.ops.aten


def is_transposable(body: Subgraph, tangents: Mask, cotangents: Mask) -> bool:
    """Whether the gradients in the marked inputs come without a decision that depends on these."""
    return body.derive(("transposable", tangents, cotangents), lambda: _is_transposable(body, tangents, cotangents))


def _is_transposable(body: Subgraph, tangents: Mask, cotangents: Mask) -> bool:
    graph = joint(body, tangents, cotangents)
    module, inputs = graph.module, iter(tangents)
    read: dict[fx.Node, bool | Mask] = {}
    decided: dict[fx.Node, bool | Mask] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            read[node], decided[node] = next(inputs, False), False
        elif node.op != "output":
            read[node] = not _asks_for_finite(node) and depends(node, read, Through.READ, module)
            after = depends(node, decided, Through.READ, module)
            decided[node] = _either(after, _decides(node, read, module))
    return not any(isinstance(out, fx.Node) and decided[out] for out in graph.output_nodes()[len(body.outputs) :])


def _decides(node: fx.Node, read: dict[fx.Node, bool | Mask], module: fx.GraphModule) -> bool | Mask:
    """Whether the node compares what is marked; of an operator with bodies, which outputs depend on that alone."""
    found, smooth = read[node], depends(node, read, Through.TANGENT, module)
    if isinstance(found, tuple) and isinstance(smooth, tuple):
        return tuple(f and not s for f, s in zip(found, smooth))
    value = node.meta.get("val")
    return bool(found) and isinstance(value, Tensor) and value.dtype == torch.bool


def _asks_for_finite(node: fx.Node) -> bool:
    if node.target in (_aten.isnan.default, _aten.isinf.default):
        return True
    if node.target in (_aten.eq.Tensor, _aten.ne.Tensor):
        return node.args[0] is node.args[1]
    return node.target in (_aten.eq.Scalar, _aten.ne.Scalar) and bool(node.args[1] == math.inf)


def _either(a: bool | Mask, b: bool | Mask) -> bool | Mask:
    if isinstance(a, tuple) or isinstance(b, tuple):
        assert isinstance(a, tuple) and isinstance(b, tuple)
        return tuple(x or y for x, y in zip(a, b))
    return a or b
