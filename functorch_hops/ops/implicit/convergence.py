"""Whether a solver has found a root."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch, pytree
from ...calls.arguments import Function
from ...errors import ArgumentValueError, message
from ..mode import is_capturing
from .equation import Equation
from .rules import Root

__all__ = ["check_convergence"]


def check_convergence(functions: Sequence[Function], unknowns: Any, solution: Any) -> None:
    """Look at a root whose values are at hand: nothing is captured, and no lane of a vmap is hidden in them."""
    if is_capturing():
        return
    f, solve, tangent_solve = functions
    equation, parameters = Equation.capture("custom_root", "f", f, unknowns)
    rule = Root(equation, solve, tangent_solve)
    init, root = pytree.flatten(unknowns)[0], pytree.flatten(solution)[0]
    tensors = (*parameters, *init, *root)
    if any(map(_torch.is_batched, tensors)):
        return
    n, m = len(parameters), len(init)
    with _torch.below_transforms(), torch.no_grad():
        values = [_torch.base_tensor(t).detach() for t in tensors]
        parameters, init, root = values[:n], values[n : n + m], values[n + m :]
        left = _size(rule.equation.body(*root, *parameters))
        if not (math.isfinite(left) and math.isfinite(_size(root))):
            raise _not_converged("the root, or f at the root, is not finite", "finite numbers", left)
        if left <= 0.5 * _size(rule.equation.body(*init, *parameters)):
            return
        step = _size(rule.step(root, parameters, rule.equation.body(*root, *parameters)))
        eps = max(torch.finfo(x.dtype).eps for x in root)
        if not step <= max(0.01 * max(_size(root), _size(init)), math.sqrt(eps)):
            expected = "a residual of less than half of that at init, or a Newton step of at most 1 %"
            raise _not_converged(
                "the residual is no smaller than at init", expected, f"{left:.3g}, a step of {step:.3g}"
            )


def _size(tensors: Sequence[Tensor]) -> float:
    return max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)


def _not_converged(problem: str, expected: str, got: object) -> ArgumentValueError:
    remedy = "let solve take more steps, begin nearer to the root, or see whether f has one"
    text = message(
        "custom_root",
        f"solve did not converge: {problem}",
        parameter="solve",
        expected=expected,
        got=got,
        remedy=remedy,
    )
    return ArgumentValueError(text)
