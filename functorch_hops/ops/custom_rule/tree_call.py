"""One call of a function with a rule of the user's own: its trees flattened, what the rule returns checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from ... import pytree
from ...calls.arguments import is_operand
from ...calls.output import Constant, OutputSpec
from ...calls.static_values import static_key
from ...calls.validate import check_agreement, kind_of
from ...errors import MetadataMismatchError, TreeMismatchError, message
from ...ir.meta import TensorMeta, is_differentiable
from .call import call_custom_rule
from .flat_rule import FlatRule

__all__ = ["JvpCall", "TreeCall", "VjpCall"]

Tensors = Sequence[Tensor]


class TreeCall(FlatRule):
    """A call with its arguments flattened; outputs are compared with those of `fun`, once these are known."""

    def __init__(self, function: Any, args: tuple[Any, ...]) -> None:
        self.function = function
        self.name = f"{function.operation} {function.__name__}"
        self.nondiff, others = function._split(args)
        self.leaves, self.spec = pytree.flatten(tuple(others))
        self.places = [i for i, leaf in enumerate(self.leaves) if is_operand(leaf)]
        self.tensors = [self.leaves[i] for i in self.places]
        self.metas = [TensorMeta.of(x) for x in self.tensors]
        self.differentiable_inputs = [is_differentiable(m.dtype) for m in self.metas]
        constants = (None if is_operand(leaf) else static_key(leaf) for leaf in self.leaves)
        self.identity = (function.identity, self.spec, *constants, *map(static_key, pytree.flatten(self.nondiff)[0]))

    def result(self) -> Any:
        outs = call_custom_rule(self, self.tensors)
        return self.output.unflatten(outs)

    @property
    def output(self) -> OutputSpec:
        assert isinstance(self.learned, OutputSpec)
        return self.learned

    def others(self, tensors: Tensors) -> tuple[Any, ...]:
        """The differentiable arguments with these tensors in them."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return pytree.unflatten(self.spec, leaves)

    def arguments(self, tensors: Tensors) -> list[Any]:
        merged: list[Any] = self.function._merged(self.nondiff, self.others(tensors))
        return merged

    def flat_output(self, out: Any, producer: str) -> list[Tensor]:
        tensors, spec = OutputSpec.flatten(out)
        if self.learned is not None:
            name = self.function.__name__
            check_agreement(self.name, "the outputs", (name, self.output), (producer, spec), path="out")
        self.learned = spec
        return tensors

    def primal(self, *inputs: Tensor) -> Tensors:
        return self.flat_output(self.function.fun(*self.arguments(inputs)), self.function.__name__)

    def fitting(self, value: Any, meta: TensorMeta, path: str) -> Tensor | None:
        """A tangent or gradient, None for zero, after a check that it fits what it belongs to."""
        if isinstance(value, (int, float)) and not meta.shape:
            value = torch.full((), value, dtype=meta.dtype, device=meta.device)
        if value is None or (isinstance(value, Tensor) and TensorMeta.of(value).agrees(meta)):
            return value
        got = kind_of(value) if not isinstance(value, Tensor) else TensorMeta.of(value)
        remedy = "return it in shape, dtype and device of its value: sum over what was broadcast"
        text = message(self.name, "a derivative does not fit", path=path, expected=meta, got=got, remedy=remedy)
        raise MetadataMismatchError(text)


class VjpCall(TreeCall):
    has_backward = True
    forward_remedy = "use reverse mode, or write a custom_jvp, which has both"

    def forward(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        result = self.function.fwd(*self.arguments(inputs))
        out, residuals = _rule_pair(self.name, "fwd", result, "(out, residuals)")
        outs = self.flat_output(out, "fwd")
        tensors, self.residuals = OutputSpec.flatten(residuals)
        return outs, tensors

    def backward(self, residuals: Tensors, cotangents: Tensors) -> Sequence[Tensor | None]:
        given = iter(cotangents)
        leaves = [_cotangent(leaf, given) for leaf in self.output.leaves]
        ct = pytree.unflatten(self.output.spec, leaves)
        grads = self.function.bwd(*self.nondiff, self.residuals.unflatten(residuals), ct)
        return self.gradients(grads)

    def gradients(self, grads: Any) -> Sequence[Tensor | None]:
        args = self.others(self.tensors)
        if not isinstance(grads, (tuple, list)) or len(grads) != len(args):
            got = f"a {type(grads).__name__} of {len(grads)}" if isinstance(grads, (tuple, list)) else kind_of(grads)
            text = message(
                self.name,
                "bwd must return one gradient for each argument",
                parameter="bwd",
                expected=f"a tuple of {len(args)}",
                got=got,
                remedy="return (gradient,) for a single argument, and None for an argument without gradient",
            )
            raise TreeMismatchError(text)
        found: list[Any] = []
        for i, (grad, spec) in enumerate(zip(grads, self.spec.children(), strict=True)):
            found += _spread(self.name, "bwd", grad, spec, f"bwd(...)[{i}]")
        paths = pytree.leaf_paths(self.spec, "bwd(...)")
        rows = zip(self.places, self.metas, self.differentiable_inputs, strict=True)
        return [self.fitting(found[i], meta, paths[i]) for i, meta, m in rows if m]


class JvpCall(TreeCall):
    has_tangent = True

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        given = iter(tangents)
        filled = [
            next(given) if m else torch.zeros_like(x) for x, m in zip(inputs, self.differentiable_inputs, strict=True)
        ]
        leaves = [_no_tangent(leaf) for leaf in self.leaves]
        for place, t in zip(self.places, filled, strict=True):
            leaves[place] = t
        result = self.function.rule(*self.nondiff, self.others(inputs), pytree.unflatten(self.spec, leaves))
        out, tangent_out = _rule_pair(self.name, "rule", result, "(out, tangent_out)")
        outs = self.flat_output(out, "rule")
        return outs, self.flat_tangents(tangent_out)

    def flat_tangents(self, tangent_out: Any) -> list[Tensor]:
        found = _spread(self.name, "rule", tangent_out, self.output.spec, "tangent_out")
        paths = self.output.paths("tangent_out")
        flat = []
        for value, leaf, path in zip(found, self.output.leaves, paths, strict=True):
            if isinstance(leaf, TensorMeta) and is_differentiable(leaf.dtype):
                fitting = self.fitting(value, leaf, path)
                flat.append(leaf.zeros() if fitting is None else fitting)
        return flat


def _rule_pair(operation: str, parameter: str, result: Any, expected: str) -> tuple[Any, Any]:
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return result[0], result[1]
    got = f"a {type(result).__name__} of {len(result)}" if isinstance(result, (tuple, list)) else kind_of(result)
    remedy = f"return the tuple {expected} from {parameter}"
    text = message(operation, "no pair", parameter=parameter, expected=expected, got=got, remedy=remedy)
    raise TreeMismatchError(text)


def _cotangent(leaf: TensorMeta | Constant, given: Any) -> Any:
    if isinstance(leaf, Constant):
        return leaf.value
    return next(given) if is_differentiable(leaf.dtype) else leaf.zeros()


def _no_tangent(leaf: Any) -> Any:
    """The tangent of an argument's leaf that is no tensor."""
    if isinstance(leaf, (torch.SymInt, torch.SymFloat)):
        return 0 if isinstance(leaf, torch.SymInt) else 0.0
    return type(leaf)(0) if isinstance(leaf, (int, float, complex)) else leaf


def _spread(operation: str, parameter: str, tree: Any, spec: pytree.Spec, path: str) -> list[Any]:
    """The leaves of a tree of derivatives like ``spec``, in which None may stand for a subtree of zeros."""
    if tree is None:
        return [None] * spec.num_leaves
    found = pytree.flatten(tree)[1]
    if spec.is_leaf() and found.is_leaf():
        return [tree]
    same = found.type is spec.type and found.entries() == spec.entries()
    if not same or found.is_leaf() != spec.is_leaf():
        text = message(
            operation,
            "the tree of derivatives does not fit",
            parameter=parameter,
            path=path,
            expected=pytree.describe(spec),
            got=pytree.describe(found),
            remedy="return it in the tree of what it is the derivative of; None stands for zeros",
        )
        raise TreeMismatchError(text)
    children = optree.tree_flatten_one_level(tree, namespace=pytree.NAMESPACE)[0]
    one_level = spec.one_level()
    paths = pytree.leaf_paths(one_level, path) if one_level is not None else []
    rows = zip(children, spec.children(), paths, strict=True)
    return [leaf for child, below, place in rows for leaf in _spread(operation, parameter, child, below, place)]
