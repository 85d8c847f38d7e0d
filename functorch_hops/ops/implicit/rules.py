"""The solution of an equation as a function of its parameters, with its derivatives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...calls.arguments import Function
from ..custom_rule.call import call_custom_rule
from ..custom_rule.flat_rule import FlatRule
from .equation import Equation

__all__ = ["LinearSolve", "Root"]

Tensors = Sequence[Tensor]


class _Implicit(FlatRule):
    """The solution as a function of the parameters of an equation, and of ``init`` or ``b``, in this order."""

    has_tangent = True
    constant_closure = True

    def __init__(self, equation: Equation, solve: Function) -> None:
        self.equation, self.solve, self.name = equation, solve, equation.operation

    def split(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        n = len(self.equation.differentiable)
        return inputs[:n], inputs[n:]

    def split_tangents(self, tangents: Tensors) -> tuple[Tensors, Tensors]:
        n = sum(self.equation.differentiable)
        return tangents[:n], tangents[n:]


class Root(_Implicit):
    untransposable = (
        "tangent_solve compares what depends on y, as a residual, and goes on by the outcome: it has no transpose",
        "write tangent_solve=lambda g, y: fh.custom_linear_solve(g, y, solver, solver), which runs solver once more",
    )

    def __init__(self, equation: Equation, solve: Function, tangent_solve: Function) -> None:
        super().__init__(equation, solve)
        self.tangent_solve = tangent_solve
        self.identity = ("custom_root", equation.body, id(solve), id(tangent_solve))

    def primal(self, *inputs: Tensor) -> Tensors:
        equation, (parameters, init) = self.equation, self.split(inputs)
        return equation.flat(self.solve(equation.at(parameters), equation.tree.unflatten(init)), "solve")

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        equation, (parameters, _) = self.equation, self.split(inputs)
        root = call_custom_rule(self, inputs)
        moved = equation.pushed(root, parameters, self.split_tangents(tangents)[0], equation.in_parameters)
        return root, self.step(root, parameters, [-t for t in moved])

    def step(self, root: Tensors, parameters: Tensors, rhs: Tensors) -> Tensors:
        """The solution of the equation linearised at the root."""
        equation = self.equation
        linear = equation.linearized(root, parameters)
        return equation.flat(self.tangent_solve(linear, equation.tree.unflatten(rhs)), "tangent_solve")


class LinearSolve(_Implicit):
    """``solve`` solves the equation, ``back`` the transposed one; their names are those of the user's parameters."""

    reverse_remedy = "pass transpose_solve, or symmetric=True"

    def __init__(
        self, equation: Equation, solve: Function, back: Function | None, symmetric: bool, names: tuple[str, str]
    ) -> None:
        super().__init__(equation, solve)
        self.back, self.symmetric, self.names = back, symmetric, names
        self.has_backward = back is not None
        self.transposes_tangent = False
        self.identity = ("custom_linear_solve", equation.body, id(solve), id(back), names)

    def transposed(self) -> LinearSolve:
        assert self.back is not None
        equation = self.equation if self.symmetric else self.equation.transposed()
        return LinearSolve(equation, self.back, self.solve, self.symmetric, self.names[::-1])

    def primal(self, *inputs: Tensor) -> Tensors:
        equation, (parameters, b) = self.equation, self.split(inputs)
        return equation.flat(self.solve(equation.at(parameters), equation.tree.unflatten(b)), self.names[0])

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        equation, (parameters, _) = self.equation, self.split(inputs)
        x = call_custom_rule(self, inputs)
        tangents, db = self.split_tangents(tangents)
        moved = equation.pushed(x, parameters, tangents, equation.in_parameters)
        return x, call_custom_rule(self, [*parameters, *(d - m for d, m in zip(db, moved))])

    def forward(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        x = call_custom_rule(self, inputs)
        return x, [*self.split(inputs)[0], *x]

    def backward(self, residuals: Tensors, cotangents: Tensors) -> Tensors:
        parameters, x = self.split(residuals)
        of_b = call_custom_rule(self.transposed(), [*parameters, *cotangents])
        of_parameters = self.equation.pulled(x, parameters, [-g for g in of_b], self.equation.in_parameters)
        return [*of_parameters, *of_b]
