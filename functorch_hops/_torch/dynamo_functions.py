"""``torch.autograd.Function`` as Dynamo traces it, for a capture of the library (torch 2.13.0).

NOTE [Backward passes are traced with gradients] Dynamo writes that a ``backward`` runs without gradients, as it does in
a first derivative. A capture records it once for derivatives of every order, and those of such a graph would be zero.
So it is traced with gradients; what says itself that it is differentiated once is marked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._dynamo.variables import higher_order_ops
from torch._dynamo.variables.functions import UserFunctionVariable
from torch.autograd.function import once_differentiable

from .autograd import is_once_differentiable

__all__ = ["apply_function", "backward_with_gradients"]

_MARK = "functorch_hops"

_REPLACED = "speculate_subgraph_with_auto_output_flattening"


class _Backward(NamedTuple):
    """What a graph of a backward pass does not say: whose it is, and whether it may be differentiated."""

    name: str
    is_once: bool


@contextlib.contextmanager
def backward_with_gradients() -> Iterator[None]:
    """See NOTE [Backward passes are traced with gradients]."""
    speculate: Any = getattr(higher_order_ops, _REPLACED, None)
    if speculate is None:
        yield
        return

    def speculated(tx: Any, function: Any, *args: Any, enable_grad: bool | None = None, **options: Any) -> Any:
        if enable_grad is not False:
            return speculate(tx, function, *args, enable_grad=enable_grad, **options)
        backward = function.get_function()
        is_once = is_once_differentiable(backward)
        if is_once:
            function = UserFunctionVariable(backward.__wrapped__)
        made = speculate(tx, function, *args, enable_grad=True, **options)
        owner = backward.__qualname__.rpartition(".")[0].rpartition(".")[2]
        for node in made[1].find_nodes(op="placeholder"):
            node.meta[_MARK] = _Backward(owner, is_once)
        return made

    setattr(higher_order_ops, _REPLACED, speculated)
    try:
        yield
    finally:
        setattr(higher_order_ops, _REPLACED, speculate)


def apply_function(fwd: fx.GraphModule, bwd: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
    """What torch's ``autograd_function_apply`` does, with what is saved in the context and not in a variable around it:
    forward and backward run in captures of their own. What is saved of operands and results is saved as such, so that
    it has derivatives.
    """
    marks: Iterator[_Backward | None] = (node.meta.get(_MARK) for node in bwd.graph.find_nodes(op="placeholder"))
    made_of = next(filter(None, marks), None)
    if made_of is None:  # traced without gradients: another version of torch has no such function to replace
        made_of = _Backward("Function", is_once=True)
        for node in bwd.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled):
            bwd.graph.erase_node(node)
        bwd.recompile()

    def forward(ctx: Any, *args: Any) -> Any:
        output, saved = fwd(*args)
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in saved))
        ctx.numbers = tuple(None if isinstance(x, Tensor) else x for x in saved)
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        ctx.mark_dirty(*(outputs[i] for i in kwargs.get("dirty_idx", ())))
        ctx.mark_non_differentiable(*(outputs[i] for i in kwargs.get("non_differentiable_idx", ())))
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        saved = (number if x is None else x for x, number in zip(ctx.saved_tensors, ctx.numbers, strict=True))
        return bwd(*grads, *saved)

    rules = {"forward": forward, "backward": once_differentiable(backward) if made_of.is_once else backward}
    applied: Any = type(made_of.name, (torch.autograd.Function,), {k: staticmethod(f) for k, f in rules.items()})
    return applied.apply(*args)
