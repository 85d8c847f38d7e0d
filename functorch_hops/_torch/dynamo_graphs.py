"""Graphs that Dynamo made: of a user's function, made ready to run in a capture of the library, and of all that is
traced (torch 2.13.0 to 2.15.0).

NOTE [Inputs that are written to are copied] AOTAutograd (torch 2.13) hands a tensor that a graph takes to the backward
pass as it is, also where the graph reads it and then writes to it. What the backward pass reads of it, or computes of
it once more, is then of the next step: wrong gradients by a running mean, without a word. So a graph that is
differentiated works on a copy of such a tensor, and writes its last value back, as ``fh.jit`` does. The copy is an
operator of its own, which AOTAutograd does not compute again.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.autograd_function import autograd_function_apply
from torch._subclasses.fake_tensor import FakeTensor

from .dynamo_functions import apply_function
from .tensors import storage_key

__all__ = ["copy_written_inputs", "is_open", "made_to_run"]


def made_to_run(module: fx.GraphModule, outer: int) -> fx.GraphModule:
    """The graph, for a capture; ``outer`` levels of functorch were around when Dynamo traced it.

    No fake of Dynamo's is left in it: torch prints graphs for its log, and a capture would take what it reads there for
    values that the user's function closes over. Graphs inside are copies: Dynamo keeps that of a region that is
    compiled once (``nested_compile_region``), and reads its fakes at the next call.
    """
    _number_levels(module.graph, outer)
    return _without_fakes(module)


def _without_fakes(module: fx.GraphModule) -> fx.GraphModule:
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        node.meta.pop("example_value", None)
        if node.target is autograd_function_apply:
            node.target = apply_function
    made = fx.GraphModule(module, graph)
    for name, part in list(made._modules.items()):
        if isinstance(part, fx.GraphModule):
            setattr(made, name, _without_fakes(part))
    return made


def copy_written_inputs(module: fx.GraphModule, copied: Any) -> bool:
    """See NOTE [Inputs that are written to are copied]. False if an input stays that is written to before the end."""
    inputs = {node: value for node in module.graph.find_nodes(op="placeholder") if (value := _tensor(node)) is not None}
    written = [node for node, value in inputs.items() if not value.is_inference() and value._version]
    if written and not (torch.is_grad_enabled() and any(value.requires_grad for value in inputs.values())):
        return False
    are_copied = [_copy_written(module.graph, node, list(inputs), copied) for node in written]
    module.recompile()
    return all(are_copied)


def _copy_written(graph: fx.Graph, node: fx.Node, inputs: list[fx.Node], copied: Any) -> bool:
    output, value = graph.output_node(), _tensor(node)
    if type(value) is not FakeTensor or value.requires_grad:
        return False
    results = [x for x in output.all_input_nodes if x is not node]
    itself = [x for x in results if _tensor(x) is value]  # what a method that writes in place returns
    others = [_tensor(x) for x in (*inputs, *results) if x not in (node, *itself)]
    if any(type(x) is not FakeTensor or storage_key(x) == storage_key(value) for x in others if x is not None):
        return False
    with graph.inserting_after(inputs[-1]):
        copy_of = graph.call_function(copied, (node,))
    node.replace_all_uses_with(copy_of, lambda user: user not in (copy_of, output))
    for x in itself:
        output.replace_input_with(x, node)
    with graph.inserting_before(output):
        graph.call_method("copy_", (node, copy_of))
    return True


def _tensor(node: fx.Node) -> Any:
    value = node.meta.get("example_value")
    return value if isinstance(value, Tensor) else None


_ARITHMETIC = {
    *("add", "sub", "mul", "div", "true_divide", "neg", "float"),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.neg, torch.scalar_tensor),
}
"""Operators, functions and methods that ask nothing of a number among their positional arguments."""


def is_open(number: fx.Node) -> bool:
    """Whether a float of a graph may be left open: it, and what is computed from it, meets nothing but arithmetic. All
    else asks for its value, derivatives that are taken much later included. What is no float is open anyway.
    """
    if not isinstance(number.meta["example_value"], torch.SymFloat):
        return True
    users = [user for user in number.users if user.op != "output"]
    return all(user.target in _ARITHMETIC and number not in user.kwargs.values() and is_open(user) for user in users)


_ENTERED = {"_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting"}
_LEFT = {"_vmap_decrement_nesting", "_grad_decrement_nesting", "_jvp_decrement_nesting"}
_PLACES_OF_LEVELS = {"_add_batch_dim": 2, "_remove_batch_dim": 1, "_wrap_for_grad": 1, "_unwrap_for_grad": 1}


def _number_levels(graph: fx.Graph, outer: int) -> None:
    """Let the calls that torch's transforms consist of name levels by the results of those that enter them. Dynamo
    writes the numbers that they had while it traced, with ``outer`` levels around; where the graph runs, there are
    others around it.
    """
    entered: list[fx.Node] = []
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name in _ENTERED:
            entered.append(node)
        elif name in _LEFT:
            entered.pop()
        elif name in _PLACES_OF_LEVELS:
            level = node.args[_PLACES_OF_LEVELS[name]]
            if isinstance(level, int) and outer < level <= outer + len(entered):
                node.update_arg(_PLACES_OF_LEVELS[name], entered[level - outer - 1])
