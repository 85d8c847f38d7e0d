"""The one validator: do two trees of leaves agree, and if not, where."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import pytree
from ..errors import ArgumentTypeError, MetadataMismatchError, TreeMismatchError, message
from .output import Constant, OutputSpec
from .subgraph import TensorMeta

__all__ = ["check_agreement", "check_callable", "check_carry", "check_tensor_leaves"]


def check_callable(operation: str, parameter: str, value: Any) -> None:
    if not callable(value):
        raise ArgumentTypeError(
            message(operation, "not callable", parameter=parameter, expected="a function", got=_kind(value))
        )


def check_tensor_leaves(operation: str, parameter: str, tree: Any) -> tuple[list[Tensor], pytree.Spec]:
    """The leaves of a tree that may hold tensors only (numbers were converted before)."""
    leaves, spec = pytree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise ArgumentTypeError(
                message(
                    operation,
                    "a leaf is no tensor",
                    path=pytree.leaf_paths(spec, parameter)[i],
                    expected="a tensor or a number",
                    got=_kind(leaf),
                    remedy="close over static values instead of passing them",
                )
            )
    return leaves, spec


def check_agreement(
    operation: str, what: str, expected: tuple[str, OutputSpec], got: tuple[str, OutputSpec], *, path: str
) -> None:
    """Raise unless both sides (each a name and its outputs) agree in tree, constants and metadata."""
    (name, left), (other_name, right) = expected, got
    found = pytree.difference(left.spec, right.spec, path)
    if found is not None:
        where, expected_tree, got_tree = found
        raise TreeMismatchError(
            message(
                operation,
                f"{what} differ in their trees",
                path=where,
                expected=f"{expected_tree} from {name}",
                got=f"{got_tree} from {other_name}",
                remedy="return the same tree from both",
            )
        )
    for i, (a, b) in enumerate(zip(left.leaves, right.leaves)):
        both = isinstance(a, TensorMeta) and isinstance(b, TensorMeta)
        if _agree(a, b):
            continue
        error = MetadataMismatchError if both else TreeMismatchError
        raise error(
            message(
                operation,
                f"{what} differ in {_aspect(a, b) if both else 'a leaf that is no tensor'}",
                path=left.paths(path)[i],
                expected=f"{a} from {name}",
                got=f"{b} from {other_name}",
                remedy=_remedy(a, b) if both else "return tensors, or the same constant from both",
            )
        )


def _agree(a: TensorMeta | Constant, b: TensorMeta | Constant) -> bool:
    return a.agrees(b) if isinstance(a, TensorMeta) and isinstance(b, TensorMeta) else a == b


def check_carry(operation: str, parameter: str, carry: OutputSpec, returned: OutputSpec) -> None:
    """A body must return a carry like the one that it was given."""
    check_agreement(
        operation,
        "the carry and what the body returns",
        ("the carry", carry),
        (parameter, returned),
        path="carry",
    )


def _aspect(a: Any, b: Any) -> str:
    if a.shape != b.shape:
        return "shape"
    return "dtype" if a.dtype != b.dtype else "device"


def _remedy(a: Any, b: Any) -> str:
    if a.shape != b.shape:
        return "make both shapes equal (expand the initial value, or reduce the result)"
    if a.dtype != b.dtype:
        return f"convert one of them, for example with .to({a.dtype})"
    return f"move one of them, for example with .to({str(a.device)!r})"


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
