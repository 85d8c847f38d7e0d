"""Pull functions as data: what ``vjp`` and ``linearize`` return where another tracer goes on with it.

In plain Python a pull function holds what autograd saved. Dynamo can't see that, so there it is a tree: the tensors
that the backward pass reads, and a graph of that pass. Calling it is a call like any other of this library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from functorch_hops import pytree
from functorch_hops.calls.leaf import one_node
from functorch_hops.calls.validate import kind_of
from functorch_hops.errors import ArgumentTypeError, MetadataMismatchError, TreeMismatchError, message
from functorch_hops.ir.meta import Mask, TensorMeta
from functorch_hops.lowering.backends import Backend, Options
from functorch_hops.ops.closed_call.op import ClosedCallParams, closed_call_op
from functorch_hops.trace.speculate import speculate_subgraph
from functorch_hops.transforms.flat import is_inexact, leaf_path

__all__ = ["PullData", "Pullback", "PushData", "Signature", "check_one_tree", "matching", "pullback_of"]


@dataclass(frozen=True, eq=False)
class _Graphs:
    """The call of a function as an operator, of which the marked operands are differentiated."""

    __fh_own__ = True
    __fh_leaf__ = True

    params: ClosedCallParams
    active: Mask


@dataclass(frozen=True, eq=False)
class Pullback:
    """From cotangents of the outputs to gradients of the inputs, both flat."""

    graphs: _Graphs
    operands: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]

    def __call__(self, *cotangents: Tensor | None) -> list[Tensor]:
        return _pulled(self.graphs, self.operands, self.residuals, cotangents)


@one_node
def _pulled(
    graphs: _Graphs, operands: Sequence[Tensor], residuals: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor]:
    params, active = graphs.params, graphs.active
    absent = [None] * (params.n_outputs - len(cotangents))  # of auxiliary outputs
    rules = closed_call_op.rules
    grads = rules.vjp_backward(params, active, operands, residuals, [*cotangents, *absent])
    return [torch.zeros_like(x) if g is None else g for x, g, a in zip(operands, grads, active) if a]


def pullback_of(
    operation: str, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Pullback]:
    """The outputs of a function of tensors, and its pullback."""
    metas = [TensorMeta.of(x) for x in inputs]
    body, lifted = speculate_subgraph(function, metas, operation=operation, parameter="func")
    params = ClosedCallParams.of(body, Backend("eager", Options({})))
    active = (*(True,) * len(inputs), *(False,) * len(lifted))
    operands = (*inputs, *lifted)
    outs = closed_call_op(closed_call_op.rules.vjp_forward(params, active), *operands)  # type: ignore[arg-type]
    n = params.n_outputs
    return outs[:n], Pullback(_Graphs(params, active), operands, tuple(outs[n:]))


@dataclass(frozen=True, eq=False)
class Signature:
    """What a linear function takes and returns, as trees."""

    __fh_own__ = True
    __fh_leaf__ = True

    operation: str
    root: str
    spec: pytree.Spec
    metas: tuple[TensorMeta, ...]
    result: pytree.Spec

    @classmethod
    def of(cls, operation: str, root: str, spec: pytree.Spec, like: Sequence[Tensor], result: pytree.Spec) -> Signature:
        return cls(operation, root, spec, tuple(map(TensorMeta.of, like)), result)


@dataclass(frozen=True, eq=False)
class PullData:
    """The pull function that ``vjp`` returns under Dynamo."""

    signature: Signature
    pullback: Pullback

    def __call__(self, cotangents: Any, *more: Any, **options: Any) -> tuple[Any, ...]:
        check_one_tree(more, options)
        result: tuple[Any, ...] = _applied(self.signature, self.pullback, cotangents)
        return result


@dataclass(frozen=True, eq=False)
class PushData:
    """The push function that ``linearize`` returns under Dynamo."""

    signature: Signature
    pullback: Pullback

    def __call__(self, *tangents: Any) -> Any:
        return _applied(self.signature, self.pullback, tangents)


@one_node
def _applied(signature: Signature, pullback: Pullback, tree: Any) -> Any:
    leaves = matching(signature.operation, tree, signature.metas, signature.spec, signature.root)
    return signature.result.unflatten(pullback(*leaves))


def check_one_tree(more: Sequence[Any], options: Collection[str]) -> None:
    """Of the arguments of a pull function, behind the first."""
    if more or options:
        text = message(
            "vjp",
            "a pull function takes one tree of cotangents",
            got=f"{1 + len(more) + len(options)} arguments",
            remedy="those of several outputs are one tree, like the output; it may be called again without options",
        )
        raise ArgumentTypeError(text)


def matching(
    operation: str, tree: Any, like: Sequence[Tensor | TensorMeta], spec: pytree.Spec, root: str
) -> tuple[Tensor, ...]:
    """The leaves of a tree of tangents or cotangents, after a check that it fits what it belongs to."""
    leaves, tree_spec = pytree.flatten(tree)
    found = pytree.difference(spec, tree_spec, root)
    if found is not None:
        path, expected, got = found
        problem, remedy = (
            f"the tree of {root} does not fit",
            f"pass one for each tensor of {_belonging(root)}, in its tree",
        )
        raise TreeMismatchError(message(operation, problem, path=path, expected=expected, got=got, remedy=remedy))
    for index, (leaf, other) in enumerate(zip(leaves, like, strict=True)):
        if isinstance(leaf, float | int):
            leaves[index] = leaf = torch.as_tensor(leaf, dtype=other.dtype, device=other.device)
        if isinstance(leaf, (torch.SymFloat, torch.SymInt)):
            leaves[index] = leaf = torch.scalar_tensor(leaf, dtype=other.dtype, device=other.device)  # type: ignore[arg-type]
        if not is_inexact(leaf) or leaf.shape != other.shape:
            text = message(
                operation,
                f"one of the {root} does not fit",
                path=leaf_path(spec, index, root),
                expected=kind_of(other),
                got=kind_of(leaf),
                remedy=f"make it like {_belonging(root)}, as torch.ones_like does",
            )
            raise MetadataMismatchError(text)
    return tuple(leaves)


def _belonging(root: str) -> str:
    return "the output" if root == "cotangents" else "its argument"
