"""Loops of a program that AOTInductor packages, as kernels (torch 2.13).

NOTE [Kernels in packages] An exported program holds loops of torch's own, with their bodies as graphs. Where
AOTInductor is about to compile such a graph, each loop is captured once more, as a call of ours: torch's operators in
a captured body become ours, those inside of the loop too. So passes, decision and code are those of ``jit``, and the
kernel's source becomes a part of the package, which needs this library no more. The loop is captured for the
program's own symbols, of which nothing new is assumed. What can't be had so stays as it is, and the loops in its body
are asked by themselves; which became what is logged, with the reason.
"""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import _torch
from ..derive.numbers import without_numbers
from ..ir.meta import TensorMeta
from ..ir.sizes import shape_env_of
from ..ir.subgraph import Subgraph
from ..passes.hoisting import hoist_loops
from ..passes.products import batch_products
from ..trace.speculate import speculate_subgraph
from .decompositions import decompositions
from .loops.forms import Refused
from .loops.planning import planned
from .loops.plans import Plan
from .loops.sizes import OpenSize, size_of, symbols
from .real_parts import in_real_parts

__all__ = ["put_kernels"]

_log = logging.getLogger("functorch_hops")

_LOOPS = {
    torch.ops.higher_order.associative_scan,
    torch.ops.higher_order.map_impl,
    torch.ops.higher_order.scan,
    torch.ops.higher_order.while_loop,
}


def put_kernels(module: fx.GraphModule) -> None:
    """Put kernels in the place of loops, where they can be, in a graph of ATen operators and in those inside of it."""
    graphs: dict[fx.GraphModule, Any] = {}
    for node in list(module.graph.nodes):
        if node.target in _LOOPS:
            try:
                _put_kernel(node, module)
            except Refused as why:
                _log.info("%s stays torch's own: %s", _described(node), why)
            else:
                _log.info("%s is a kernel", _described(node))
                continue
        graphs |= dict.fromkeys(_parts(node, module))
    for part in graphs:
        put_kernels(part)
    _forget_unused(module)
    module.recompile()


def _forget_unused(module: fx.GraphModule) -> None:
    """Drop the bodies that no node runs any more: who looks at the loops of a program finds them by their modules."""
    names = [node for node in module.graph.nodes if node.op == "get_attr"]
    for node in names:
        if not node.users:
            module.graph.erase_node(node)
    used = {str(node.target) for node in names if node.users}
    for name, part in list(module.named_children()):
        if isinstance(part, fx.GraphModule) and name not in used:
            delattr(module, name)


def _described(node: fx.Node) -> str:
    """The call and the user's line."""
    frames = str(node.meta.get("stack_trace") or "").strip().splitlines()
    return f"{node.target} ({frames[-2].strip() if len(frames) > 1 else node.name})"


def _parts(node: fx.Node, module: fx.GraphModule) -> list[fx.GraphModule]:
    """The graphs that a node runs."""
    inputs = (_held(x, module) for x in node.all_input_nodes if x.op == "get_attr")
    return [part for part in inputs if isinstance(part, fx.GraphModule)]


def _held(x: fx.Node, module: fx.GraphModule) -> Any:
    """What a node reads of its module; the parameters of a linear layer are in modules inside of it."""
    return operator.attrgetter(str(x.target))(module)


def _put_kernel(node: fx.Node, module: fx.GraphModule) -> None:
    if not all(isinstance(x, Tensor) for x in node.meta["val"]):
        raise Refused("it carries numbers that are no tensors")
    operands = [x for x in node.all_input_nodes if isinstance(x.meta.get("val"), Tensor)]
    operands += _holders(node, operands)
    values = [x.meta["val"] for x in operands]
    with _torch.no_new_facts(shape_env_of(x.shape for x in values)):
        try:
            kernel = _traced(_planned(_captured(node, module, operands)), values)
            if not all(map(_is_like, _results(kernel), node.meta["val"])):
                raise Refused("its results lie in memory in an order of their own")
        except _torch.NewFactError as fact:
            raise Refused(f"its code would hold for some sizes only: {fact}") from fact
    with node.graph.inserting_before(node):
        new = dict(zip(kernel.graph.find_nodes(op="placeholder"), operands, strict=True))
        outputs: Any = node.graph.graph_copy(kernel.graph, new)
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _results(module: fx.GraphModule) -> list[Tensor]:
    (nodes,) = module.graph.output_node().args
    return [x.meta["val"] for x in nodes]  # type: ignore[union-attr]


def _holders(node: fx.Node, operands: Sequence[fx.Node]) -> list[fx.Node]:
    """Values before a call of which the open sizes are that its operands have no dimension of: a loop over ``T - 1``
    rows needs one of size ``T``.
    """
    missing = {size.expression for x in node.all_input_nodes for size in symbols(_sizes(x))}
    missing -= _open_dims(operands)
    holders = []
    for x in itertools.takewhile(lambda x: x is not node, node.graph.nodes):
        found = missing & _open_dims([x])
        if found:
            holders.append(x)
            missing -= found
    return holders


def _sizes(x: fx.Node) -> Sequence[Any]:
    value = x.meta.get("val")
    return value.shape if isinstance(value, Tensor) else [value] if isinstance(value, torch.SymInt) else ()


def _open_dims(nodes: Sequence[fx.Node]) -> set[Any]:
    """The open sizes that are a dimension of one of these values."""
    tensors = (x for x in nodes if isinstance(x.meta.get("val"), Tensor))
    sizes = (size_of(size) for x in tensors for size in _sizes(x))
    return {size.expression for size in sizes if isinstance(size, OpenSize) and size.expression.is_Symbol}


def _captured(node: fx.Node, module: fx.GraphModule, operands: Sequence[fx.Node]) -> Subgraph:
    """The call as one of ours, with the values of these nodes as inputs."""

    def call(*inputs: Tensor) -> list[Tensor]:
        given: dict[Any, Any] = dict(zip(operands, inputs, strict=True))

        def value(x: fx.Node) -> Any:
            if x in given:
                return given[x]
            return _held(x, module) if x.op == "get_attr" else x.meta["val"]

        return list(node.target(*fx.map_arg(node.args, value)))  # type: ignore[operator]

    metas = [TensorMeta.of(x.meta["val"]) for x in operands]
    try:
        body, lifted = speculate_subgraph(call, metas, operation="aot_inductor", parameter="program")
    except _torch.NewFactError:
        raise
    except Exception as error:  # whatever the capture of a foreign graph raises
        raise Refused(f"it can't be captured: {error}") from error
    if lifted:
        raise Refused("its body holds a tensor")
    if body.draws or body.has_effects:
        raise Refused("it draws random numbers, checks something, or has effects")
    return body


def _planned(body: Subgraph) -> Plan:
    plan = planned(in_real_parts(without_numbers(batch_products(hoist_loops(body)))), {})
    for loop in plan.loops:
        if loop.depth == 0 and loop.taken == "native":
            raise Refused(loop.reason or "")
    return plan


def _traced(plan: Plan, values: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a plan over these fakes, in the operators that Inductor lowers."""
    from torch.fx.experimental.proxy_tensor import make_fx

    run = plan.body.module
    mode: Any = values[0].fake_mode  # type: ignore[attr-defined]
    with mode:
        return make_fx(lambda *args: list(run(*args)), decomposition_table=decompositions())(*values)


def _is_like(x: Tensor, y: Tensor) -> bool:
    """Whether two values are the same for the graph around them; the stride of a size of 1 is nothing."""
    strides = zip(x.shape, x.stride(), y.stride())
    return x.dtype == y.dtype and x.shape == y.shape and all(size == 1 or a == b for size, a, b in strides)
