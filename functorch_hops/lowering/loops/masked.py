"""While loops under vmap: a mask in carry 0 says which lanes run, and every lane may end by itself.

NOTE [Lanes end by themselves] Such a loop runs until no lane does, and a lane that has finished keeps its carry. So a
block of lanes can leave as soon as none of its own runs. Where every operator computes lane by lane and none can fail,
what a finished lane computes meanwhile does not matter either: it needs no operands of a lane that runs
(NOTE [Representative lanes]), which would be a look at other lanes.

Under several vmaps a mask of rows, those with a lane that runs, is around the mask of lanes (NOTE [One mask]). What it
chooses is the same: a lane that runs is in such a row, and one that has finished keeps its carry in any.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from ..._torch import is_pointwise
from ...ir.build import copy_of
from ...ir.nodes import meta_of
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


def _source(node: object, through: Sequence[object] = _SAME_VALUES) -> object:
    """The node whose values these are, in another shape or dtype."""
    while isinstance(node, fx.Node) and node.target in through:
        node = node.args[0]
    return node


def is_masked(form: While) -> bool:
    """Whether the loop runs while any lane of carry 0 does, and keeps what the others carry."""
    (test,) = form.cond.output_nodes()
    if test.target is not aten.any.default or test.args[0] is not form.cond.input_nodes()[0]:
        return False
    body = _for_each_lane(form.body)
    inputs, outputs = body.input_nodes(), body.output_nodes()
    running = inputs[0]
    return outputs[0] is not running and all(_keeps(out, carry, running) for out, carry in zip(outputs, inputs))


def without_representatives(body: Subgraph) -> Subgraph:
    """The body of a masked loop, in which a finished lane computes with what it carries. That lanes don't read one
    another is proved later, of the code.
    """
    body = _for_each_lane(body)
    _check_total(body.module)
    return body


def _for_each_lane(body: Subgraph) -> Subgraph:
    """The body without what is chosen by a mask that is true wherever a lane runs."""

    def make() -> Subgraph:
        module = copy_of(body)
        running = module.graph.find_nodes(op="placeholder")[0]
        for node in module.graph.find_nodes(op="call_function", target=aten.where.self):
            mask, own, other = node.args
            is_kept = _source(mask) is not running and _keeps(own, other, running)
            if _is_true_where_it_runs(node, running) and (is_kept or _is_borrowed(node)):
                node.replace_all_uses_with(_expanded(own, node))
        clean(module)
        return Subgraph.intern(module, body.inputs, body.outputs)

    return body.derive("for each lane", make)


def _keeps(out: fx.Node, carry: fx.Node, running: fx.Node) -> bool:
    """Whether an output is the carry, wherever a lane has finished."""
    if carry is running and out.target in (aten.bitwise_and.Tensor, aten.logical_and.default):
        return running in out.args
    if out is carry or out.target is not aten.where.self:
        return out is carry
    mask, _, old = out.args
    return old is carry and _source(mask) is running and _is_aligned(mask, running, out)


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


def _is_borrowed(node: fx.Node) -> bool:
    """Whether a node is the value of ``ops.lanes.borrow_operands``."""
    _, own, other = node.args
    if not isinstance(other, fx.Node) or other.target not in (aten.index_select.default, aten.gather.default):
        return False
    return _source(other.args[0], (*_SAME_VALUES, aten.expand.default)) is _source(own)


def _expanded(own: fx.Node, choice: fx.Node) -> fx.Node:
    """The first operand of a choice, which lanes may share, in the shape of its value."""
    if _shape(own) == _shape(choice):
        return own
    with choice.graph.inserting_before(choice):
        value = choice.graph.call_function(aten.expand.default, (own, list(_shape(choice))))
    value.meta["val"] = choice.meta["val"]
    return value


def _is_true_where_it_runs(choice: fx.Node, running: fx.Node) -> bool:
    """Whether a choice takes its first operand in each lane that runs."""
    mask, own, _ = cast("tuple[fx.Node, ...]", choice.args)
    of = _source(mask)
    if of is not running and not _is_any_of_row(of, running):
        return False
    is_known = _shape(own) == _shape(choice) or all(isinstance(size, int) for size in _shape(choice))
    return _is_aligned(mask, of, choice) and is_known and meta_of(own).dtype == meta_of(choice).dtype


def _is_aligned(mask: object, of: object, choice: fx.Node) -> bool:
    """Whether a mask, ``of`` the first dimensions of a choice, lies at them."""
    shape, lead = _shape(choice), _shape(of)
    return shape[: len(lead)] == lead and _shape(mask) == (*lead, *(1,) * (len(shape) - len(lead)))


def _is_any_of_row(node: object, running: fx.Node) -> bool:
    """Whether a node says of each row, at the first dimensions of ``running``, if a lane runs there."""
    if not isinstance(node, fx.Node) or node.target is not aten.any.dim or _source(node.args[0]) is not running:
        return False
    lead = _shape(node)
    return _shape(running)[: len(lead)] == lead == _shape(node.args[0])[:-1] and node.args[1] in (len(lead), -1)


def _shape(node: Any) -> tuple[Any, ...]:
    return tuple(meta_of(node).shape)


def is_total(node: fx.Node) -> bool:
    """Whether an operator computes each element by itself and never fails."""
    if node.target in _SHAPES_ONLY or node.target is operator.getitem:
        return True
    if not is_pointwise(node.target):
        return False
    if node.target.overloadpacket.__name__ not in _MAY_FAIL or node.meta["val"].dtype.is_floating_point:
        return True
    second = node.args[1]
    return type(second) is int and second > 0
