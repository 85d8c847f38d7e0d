"""Operators inside a captured body that torch can't differentiate as part of functorch's dispatch.

Those that have no derivative at all say so where it is computed (NOTE [Absent derivatives raise when they run]).
Others are of ``torch.library``, with a derivative written in Python.

Their kernel for autograd calls an autograd.Function, which functorch refuses in the midst of its dispatch. So where a
level differentiates, the kernel runs in a capture of its own, below every level; what it applies becomes a custom rule
there (see autograd_function.py), and the graph is called in place of the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _torch
from ..ir.meta import TensorMeta, is_differentiable
from ..ops.custom_rule.call import call_custom_rule
from ..ops.custom_rule.flat_rule import FlatRule
from ..trace.capture import current_capture
from ..trace.mutating import Functional, functional_form, write_back
from ..trace.speculate import speculate_subgraph

__all__ = ["call_library_operator"]


class _OperatorCall:
    """A call of an operator as a function of the tensors among its arguments, in lists too."""

    def __init__(self, operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.operator = operator
        self.leaves, self.spec = _torch.tree_flatten((tuple(args), kwargs))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.tensors = [self.leaves[i] for i in self.places]

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors):
            leaves[place] = tensor
        args, kwargs = _torch.tree_unflatten(leaves, self.spec)
        outs, self.result = _torch.tree_flatten(self.operator(*args, **kwargs))
        return outs

    def with_kernel(self, *tensors: Tensor) -> Sequence[Tensor]:
        """In a capture of its own, where the kernel for autograd looks for gradients to record."""
        capture = current_capture()
        assert capture is not None
        capture.is_kernel = True
        with _torch.without_torch_function():  # the user did not ask
            for tensor in tensors:
                tensor.requires_grad_(is_differentiable(tensor.dtype))
        return self(*tensors)

    def restored(self, outs: Sequence[Tensor]) -> Any:
        return _torch.tree_unflatten(list(outs), self.result)


class _NoFormula(FlatRule):
    """An operator without a formula for its derivative."""

    reverse_remedy = forward_remedy = "detach() what it gets, compute it by other functions, or register_autograd"

    def __init__(self, call: _OperatorCall) -> None:
        self.name, self.primal = str(call.operator), call  # type: ignore[method-assign]
        self.identity = (call.operator,)


def _of_form(form: Functional, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Tensor]:
    """torch knows no formula for the derivative of an operator that writes. What the node saves is written to next."""
    call = _OperatorCall(form, *form.with_copies(args, kwargs))
    return call.restored(call_custom_rule(_NoFormula(call), call.tensors))


def call_library_operator(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The call where a level of functorch differentiates."""
    form = functional_form(operator)
    if form is not None:
        return write_back(form, _of_form(form, args, kwargs), args, kwargs)
    call = _OperatorCall(operator, args, kwargs)
    if not any(is_differentiable(x.dtype) for x in call.tensors):
        return operator(*args, **kwargs)
    if not _torch.has_formula(operator):
        return call.restored(call_custom_rule(_NoFormula(call), call.tensors))
    metas = [TensorMeta(tuple(x.shape), x.dtype, x.device) for x in call.tensors]
    body, lifted = speculate_subgraph(call.with_kernel, metas, operation=str(operator), parameter="its kernel")
    if any(node.target is operator for node in body.module.graph.nodes):
        return operator(*args, **kwargs)  # the kernel applies no Function
    return call.restored(body(*call.tensors, *lifted))
