"""While loops under vmap: a mask in carry 0 says which lanes run, and every lane may end by itself.

NOTE [Lanes end by themselves] Such a loop runs until no lane does, and a lane that has finished keeps its carry. So a
block of lanes can leave as soon as none of its own runs. Where every operator computes lane by lane and none can fail,
what a finished lane computes meanwhile does not matter either: it needs no operands of a lane that runs
(NOTE [Representative lanes]), which would be a look at other lanes.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from ..._torch import OpOverload
from ...ir.build import copy_of
from ...ir.subgraph import Subgraph, params_of
from ...passes.cleaning import clean
from .forms import Refused, Scan, While

__all__ = ["is_masked", "is_total", "without_representatives"]

aten = torch.ops.aten

_SAME_VALUES = (
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.reshape.default,
    aten._to_copy.default,
    aten.view.default,
)
_SHAPES_ONLY = (
    *_SAME_VALUES,
    aten.arange.default,
    aten.arange.start,
    aten.expand.default,
    aten.full.default,
    aten.permute.default,
    aten.scalar_tensor.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
)
_NUMBERS_OF_A_LANE = (
    aten.addmm.default,
    aten.amax.default,
    aten.amin.default,
    aten.any.dim,
    aten.argmax.default,
    aten.argmin.default,
    aten.baddbmm.default,
    aten.bmm.default,
    aten.cat.default,
    aten.constant_pad_nd.default,
    aten.cumsum.default,
    aten.flip.default,
    aten.linalg_vector_norm.default,
    aten.mean.dim,
    aten.mm.default,
    aten.prod.dim_int,
    aten.roll.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.stack.default,
    aten.sum.dim_IntList,
    aten.var.correction,
)
"""Never fail, but may read other lanes."""
_MAY_FAIL = ("div", "floor_divide", "fmod", "pow", "remainder")
"""Of integers, unless the second one is a positive number."""


def _source(node: object) -> object:
    """The node whose values these are, in another shape or dtype."""
    while isinstance(node, fx.Node) and node.target in _SAME_VALUES:
        node = node.args[0]
    return node


def is_masked(form: While) -> bool:
    """Whether the loop runs while any lane of carry 0 does, and keeps what the others carry."""
    inputs, outputs = form.body.input_nodes(), form.body.output_nodes()
    (test,), running = form.cond.output_nodes(), inputs[0]
    if test.target is not aten.any.default or test.args[0] is not form.cond.input_nodes()[0]:
        return False
    if outputs[0].target not in (aten.bitwise_and.Tensor, aten.logical_and.default):
        return False
    return running in outputs[0].args and all(
        out is carry or (out.target is aten.where.self and _source(out.args[0]) is running and out.args[2] is carry)
        for out, carry in zip(outputs[1:], inputs[1:])
    )


def without_representatives(body: Subgraph) -> Subgraph:
    """The body of a masked loop, in which a finished lane computes with what it carries. That lanes don't read one
    another is proved later, of the code.
    """
    module = copy_of(body)
    running = module.graph.find_nodes(op="placeholder")[0]
    for node in list(module.graph.nodes):
        if node.target is aten.where.self and _is_borrowed(node, running):
            node.replace_all_uses_with(node.args[1])
    clean(module)
    _check_total(module)
    return Subgraph.intern(module, body.inputs, body.outputs)


def _check_total(module: fx.GraphModule) -> None:
    """Refuse what may fail, or never end: a loop in the body whose steps are not counted."""
    for node in module.graph.nodes:
        params = params_of(node, module)
        if params is not None:
            form = params.operator.rules.form(
                params, [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
            )
            if not isinstance(form, Scan):
                raise Refused(f"lanes that have finished must not run {params.operator.label}")
            _check_total(form.body.module)
            continue
        is_size = isinstance(node.meta.get("val"), int | torch.SymInt)
        may_fail = node.target not in _NUMBERS_OF_A_LANE and not is_total(node)
        if node.op == "call_function" and not is_size and may_fail:
            raise Refused(f"lanes that have finished must not run {node.target}")


def _is_borrowed(node: fx.Node, running: fx.Node) -> bool:
    """Whether a node is the value of ``ops.lanes.borrow_operands``."""
    mask, own, other = node.args
    if _source(mask) is not running or not isinstance(other, fx.Node) or other.target is not aten.index_select.default:
        return False
    first = _source(other.args[2])
    is_first = isinstance(first, fx.Node) and first.target is aten.argmax.default and _source(first.args[0]) is running
    return is_first and _source(other.args[0]) is _source(own)


def is_total(node: fx.Node) -> bool:
    """Whether an operator computes each element by itself and never fails."""
    if node.target in _SHAPES_ONLY or node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or torch.Tag.pointwise not in node.target.tags:
        return False
    if node.target.overloadpacket.__name__ not in _MAY_FAIL or node.meta["val"].dtype.is_floating_point:
        return True
    second = node.args[1]
    return type(second) is int and second > 0
