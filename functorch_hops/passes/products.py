"""Products that need not be taken step by step are taken for all steps at once.

A product of matrices with a few rows runs at the speed of memory: each step reads the whole weight for them. What does
not wait for the carry - ``x_t @ U`` before the loop, the sum of ``h_t^T @ g_t`` after it, which is the gradient of a
weight - is one product with the rows of all steps (as in the cuDNN recurrent layers: Appleyard, Kocisky and Blunsom,
"Optimizing performance of recurrent neural networks on GPUs", 2016). It takes memory for all steps, hence it is done
where a graph is compiled: behind ``remat``, whose loops over a part of the steps stay loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..ir.build import add_params, copy_of, replace_call
from ..ir.origin import made_for
from ..ir.subgraph import Params, Subgraph, params_of
from .cleaning import clean

__all__ = ["batch_products", "is_product", "no_products"]

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.mv.default)


def is_product(node: fx.Node) -> bool:
    return node.target in _PRODUCTS


def no_products(params: Params, operands: Sequence[Any]) -> None:
    """The fission rule of an operator that has no steps, or as many as only a run knows."""


def batch_products(body: Subgraph) -> Subgraph:
    """The graph with the products of its loops before and after them, from the innermost loop outwards."""
    return body.derive("batched products", lambda: _batch_products(body))


def _batch_products(body: Subgraph) -> Subgraph:
    module = copy_of(body)
    for node in [n for n in module.graph.nodes if params_of(n, module) is not None]:
        params = params_of(node, module)
        assert params is not None
        params = params.with_bodies(batch_products)
        with made_for(params.origin):
            replacement: Subgraph | None = node.target.rules.products(params, node.args[1:])
        if replacement is not None:
            replace_call(node, replacement, module)
            continue
        with module.graph.inserting_before(node):
            node.args = (add_params(module, module.graph, params), *node.args[1:])
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)
