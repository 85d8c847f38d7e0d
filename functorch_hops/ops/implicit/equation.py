"""An equation as a graph of its unknowns and its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import pytree
from ...calls.arguments import Function
from ...calls.leaf import one_node
from ...calls.output import OutputSpec
from ...calls.trace_cache import kept_trace
from ...calls.validate import check_agreement
from ...derive.joint import joint
from ...derive.rewrite import rewritten
from ...derive.tangent import with_tangents
from ...ir.meta import Mask, is_differentiable
from ...ir.subgraph import Subgraph
from ...trace.speculate import speculate_subgraph

__all__ = ["Equation"]

Tensors = Sequence[Tensor]


class Equation:
    """A function of the unknowns as a graph of these and of its parameters: what the user's function closes over."""

    __fh_own__ = True

    def __init__(self, operation: str, tree: OutputSpec, body: Subgraph) -> None:
        self.operation, self.tree, self.body = operation, tree, body
        self.n = len(tree.metas)
        self.differentiable = tuple(is_differentiable(m.dtype) for m in body.inputs[self.n :])
        self.in_unknowns = (*(True,) * self.n, *(False,) * len(self.differentiable))
        self.in_parameters = (*(False,) * self.n, *self.differentiable)

    @classmethod
    def capture(cls, operation: str, parameter: str, function: Function, unknowns: Any) -> tuple[Equation, Tensors]:
        """The equation, and its parameters; in plain eager from a trace that is kept."""
        leaves, tree = OutputSpec.flatten(unknowns)

        def value(functions: Sequence[Function], x: tuple[Any], parameter: str) -> list[Tensor]:
            return _flat(operation, tree, functions[0](*x), parameter)

        kept = kept_trace(operation, value, (function,), (unknowns,), parameter)
        if kept is not None:
            trace, flat = kept
            return cls(operation, tree, trace.body), flat[len(leaves) :]
        run = lambda *x: value((function,), (tree.unflatten(x),), parameter)
        body, parameters = speculate_subgraph(run, tree.metas, operation=operation, parameter=parameter)
        return cls(operation, tree, body), parameters

    def transposed(self) -> Equation:
        """The equation of the transposed matrix (of its adjoint, if complex); its own transpose is this equation."""

        def run(*args: Tensor) -> Sequence[Tensor]:
            y, parameters = args[: self.n], args[self.n :]
            return self.pulled([torch.zeros_like(v) for v in y], parameters, y, self.in_unknowns)

        inputs = self.body.inputs
        graph = self.body.derive("transposed", lambda: rewritten(run, inputs, self.operation))
        other = Equation(self.operation, self.tree, graph)
        other.transposed = lambda: self  # type: ignore[method-assign]
        return other

    def flat(self, value: Any, producer: str) -> list[Tensor]:
        return _flat(self.operation, self.tree, value, producer)

    def arguments(self, value: Any) -> list[Tensor]:
        """What a solver passes to a function: a tree like the unknowns, in which numbers count as tensors of their
        kind.
        """
        leaves, spec = pytree.flatten(value)
        metas = self.tree.metas
        if spec == self.tree.spec:
            leaves = [
                torch.full(m.shape, x, dtype=m.dtype, device=m.device) if isinstance(x, (int, float, complex)) else x
                for x, m in zip(leaves, metas)
            ]
        return self.flat(pytree.unflatten(spec, leaves), "its caller")

    def at(self, parameters: Tensors) -> Function:
        """The function of the unknowns, for these parameters."""
        return _At(self, tuple(parameters))

    def linearized(self, x: Tensors, parameters: Tensors) -> Function:
        """The derivative in the unknowns at ``x``."""
        return _Linearized(self, tuple(x), tuple(parameters))

    def pushed(self, x: Tensors, parameters: Tensors, tangents: Tensors, by: Mask) -> list[Tensor]:
        """The derivative in the unknowns or in the parameters, whose tangents these are."""
        graph, reached = with_tangents(self.body, by)
        found = iter(graph(*x, *parameters, *tangents)[self.n :])
        return [next(found) if r else torch.zeros_like(u) for u, r in zip(x, reached)]

    def pulled(self, x: Tensors, parameters: Tensors, cotangents: Tensors, by: Mask) -> Tensors:
        """The gradients in the unknowns or in the parameters."""
        graph = self.body.derive(("pulled", by), lambda: joint(self.body, by, (True,) * self.n))
        return graph(*x, *parameters, *cotangents)[self.n :]


def _flat(operation: str, tree: OutputSpec, value: Any, producer: str) -> list[Tensor]:
    """The leaves of a result, which must be like the unknowns."""
    tensors, spec = OutputSpec.of_body(value)
    name = "b" if operation == "custom_linear_solve" else "init"
    check_agreement(operation, "the unknowns and a result", (name, tree), (producer, spec), path=name)
    return tensors


@dataclass(frozen=True, eq=False)
class _At:
    """A function that a solver gets: a tree, so that what it closes over is an argument of the solver."""

    equation: Equation
    parameters: Tensors

    def __call__(self, x: Any) -> Any:
        return _value(self.equation, self.parameters, x)


@dataclass(frozen=True, eq=False)
class _Linearized:
    """As :class:`_At`, the derivative at ``point``."""

    equation: Equation
    point: Tensors
    parameters: Tensors

    def __call__(self, v: Any) -> Any:
        return _pushed(self.equation, self.point, self.parameters, v)


@one_node
def _value(equation: Equation, parameters: Tensors, x: Any) -> Any:
    return equation.tree.unflatten(equation.body(*equation.arguments(x), *parameters))


@one_node
def _pushed(equation: Equation, point: Tensors, parameters: Tensors, v: Any) -> Any:
    tangents = equation.arguments(v)
    return equation.tree.unflatten(equation.pushed(point, parameters, tangents, equation.in_unknowns))
