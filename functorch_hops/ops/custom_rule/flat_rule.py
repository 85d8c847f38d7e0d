"""A function of tensors with derivatives of its own, before it is captured."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.meta import Mask, is_differentiable

__all__ = ["FlatRule", "Tensors", "differentiable_inputs"]

Tensors = Sequence[Tensor]


class FlatRule:
    """A function of tensors with its derivatives, as Python functions; trees are the business of subclasses.

    ``identity``: a tuple that tells this function from others where its derivatives call it again. It begins with the
    function, whatever its arguments; the metadata of the inputs are no part of it. ``transposes_tangent``: without a
    ``backward``, reverse mode is the transpose of ``tangent``. ``constant_closure``: what the
    function closes over counts as constant; else it is an error to differentiate it. ``knows_absence``: ``backward``
    would be told which cotangents are there, and make no gradient of others; asked after ``backward``. ``vmap``: a
    batching rule, ``(operands, mapped, size, randomness) -> (outputs, mapped outputs)``.
    """

    name: str
    identity: tuple[Hashable, ...]
    has_backward = False
    has_tangent = False
    transposes_tangent = True
    constant_closure = False
    knows_absence = False
    reverse_remedy = "use forward mode"
    forward_remedy = "use reverse mode"
    untransposable = (
        "its rule compares what depends on the tangents, and goes on by the outcome: it has no transpose",
        "let the rule decide by primals alone, and solve a linear system by fh.custom_linear_solve",
    )
    """The problem and the remedy where ``tangent`` can't be transposed."""
    vmap: Callable[..., Any] | None = None
    learned: Any = None
    """What ``primal`` found out; a call inside the derivatives gets it without a run of ``primal``."""

    def primal(self, *inputs: Tensor) -> Tensors:
        """The outputs."""
        raise NotImplementedError

    def is_differentiable(self, i: int, dtype: torch.dtype) -> bool:
        """Whether the i-th output has tangents; asked after ``primal``."""
        return is_differentiable(dtype)

    def forward(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        """The outputs, and the residuals for ``backward``."""
        raise NotImplementedError

    def backward(self, residuals: Tensors, cotangents: Tensors) -> Sequence[Tensor | None]:
        """One gradient for each differentiable input, from the cotangents of the differentiable outputs."""
        raise NotImplementedError

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        """The outputs, and the tangents of the differentiable ones, from those of the differentiable inputs."""
        raise NotImplementedError


def differentiable_inputs(inputs: Tensors) -> Mask:
    return tuple(is_differentiable(x.dtype) for x in inputs)
