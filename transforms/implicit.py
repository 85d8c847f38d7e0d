"""custom_root and custom_linear_solve: derivatives of what an equation defines, not of the steps of its solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functorch_hops import _torch, pytree
from functorch_hops.capture.derive import joint, rewritten, with_tangents
from functorch_hops.capture.output import OutputSpec, numbers_as_tensors
from functorch_hops.capture.speculate import speculate_subgraph
from functorch_hops.capture.subgraph import Mask, Subgraph, TensorMeta, is_differentiable
from functorch_hops.capture.traces import kept_trace
from functorch_hops.capture.validate import check_agreement, check_callable, check_tensor_leaves
from functorch_hops.errors import ArgumentTypeError, ArgumentValueError, message
from functorch_hops.ops.custom_rule.call import FlatRule, as_python_or_graph, call_custom_rule
from functorch_hops.ops.mode import is_capturing
from functorch_hops.transforms.flat import Function

__all__ = ["custom_linear_solve", "custom_root"]

Tensors = Sequence[Tensor]


def custom_root(f: Function, init: Any, solve: Function, tangent_solve: Function) -> Any:
    """A root of a function, differentiated by the implicit function theorem.

    ::

        custom_root : ((a -> a), a, ((a -> a), a) -> a, ((a -> a), a) -> a) -> a

    Equivalent, in value, to ``solve(f, init)``. With ``f(x, p) = 0`` for what `f` closes over, ``dx = -(df/dx)^-1
    (df/dp) dp``: derivatives of any order flow to everything that `f` closes over, and none to `init`, nor to what
    only `solve` closes over.

    Arguments:
        f: takes and returns trees like `init`; it may close over anything.
        init: where the search begins: floating-point or complex tensors.
        solve: ``solve(f, init)`` returns ``x``, like `init`, with ``f(x) = 0``. Its steps are not differentiated.
        tangent_solve: ``tangent_solve(g, y)`` returns the ``x`` with ``g(x) = y``, where ``g`` is `f` linearised at
            the root. It must be linear in ``y``, and is differentiated as any code: for a scalar ``lambda g, y: y /
            g(1.0)``, for a vector ``lambda g, y: torch.linalg.inv(fh.jacfwd(g)(y)) @ y``, for anything iterative
            ``custom_linear_solve``.

    Raises:
        TreeMismatchError, MetadataMismatchError: the results of `f`, `solve` or `tangent_solve` are not like `init`.
        ArgumentTypeError: something is not callable, or a leaf of `init` is an integer.
        ArgumentValueError: `solve` did not converge. Without capture, and outside vmap, the root is looked at: it
            must be finite, and better than `init` (half its residual, or a Newton step of less than 1 % of its size).

    Cost: of `solve`; a derivative costs one `tangent_solve`, whatever the number of steps, and no memory for them. `f`
    is traced once where derivatives may be asked for.

    Source: ``jax.lax.custom_root``; Blondel et al. 2022, "Efficient and modular implicit differentiation"; the
    Jacobians of implicit roots in metaopt/torchopt 223.

    >>> import torch, functorch_hops as fh
    >>> def sqrt(a):
    ...     newton = lambda f, x: fh.fori_loop(0, 20, lambda i, x: (x + a.detach() / x) / 2, x)
    ...     return fh.custom_root(lambda x: x * x - a, torch.ones(()), newton, lambda g, y: y / g(1.0))
    >>> fh.grad(sqrt)(torch.tensor(4.0))
    tensor(0.2500)
    """
    for parameter, value in (("f", f), ("solve", solve), ("tangent_solve", tangent_solve)):
        check_callable("custom_root", parameter, value)
    init = numbers_as_tensors(init)
    _check_unknowns("custom_root", "init", init)
    functions = f, solve, tangent_solve
    root = as_python_or_graph("custom_root", _root, functions, (init,))
    _check_convergence(functions, init, root)
    return root


def _root(functions: Sequence[Function], operands: tuple[Any]) -> Any:
    f, solve, tangent_solve = functions
    equation, parameters = _Equation.capture("custom_root", "f", f, operands[0])
    rule = _Root(equation, solve, tangent_solve)
    return equation.tree.unflatten(call_custom_rule(rule, [*parameters, *pytree.flatten(operands[0])[0]]))


def custom_linear_solve(
    matvec: Function,
    b: Any,
    solve: Function,
    transpose_solve: Function | None = None,
    symmetric: bool = False,
) -> Any:
    """The solution of a linear system, differentiated as such.

    ::

        custom_linear_solve : ((a -> a), a, ((a -> a), a) -> a, ((a -> a), a) -> a) -> a

    Equivalent, in value, to ``solve(matvec, b)``. With ``A(p) x = b``, ``A dx = db - (dA/dp dp) x``: derivatives of any
    order flow to `b` and to everything that `matvec` closes over, and none to what only `solve` closes over.

    Arguments:
        matvec: a linear function of trees like `b`; it may close over anything.
        b: floating-point or complex tensors.
        solve: ``solve(matvec, b)`` returns ``x``, like `b`, with ``matvec(x) = b``. Its steps are not differentiated.
        transpose_solve: ``transpose_solve(vecmat, ct)`` solves the transposed system; reverse mode calls it.
        symmetric: the system is its own transpose, and `solve` is its `transpose_solve`.

    Raises:
        TreeMismatchError, MetadataMismatchError: the results of `matvec` or a solver are not like `b`.
        ArgumentTypeError: something is not callable, or a leaf of `b` is an integer; reverse mode is asked for without
            `transpose_solve`, and the system is not `symmetric`.

    Cost: of `solve`; a derivative costs one more solution of the system, or of its transpose, and no memory for their
    steps. `matvec` is traced once where derivatives may be asked for.

    Source: ``jax.lax.custom_linear_solve``.

    >>> import torch, functorch_hops as fh
    >>> def solution(a, b):
    ...     return fh.custom_linear_solve(lambda x: a * x, b, lambda matvec, b: b / matvec(1.0), symmetric=True)
    >>> fh.grad(solution, argnums=(0, 1))(torch.tensor(2.0), torch.tensor(3.0))
    (tensor(-0.7500), tensor(0.5000))
    """
    back = solve if symmetric and transpose_solve is None else transpose_solve
    functions = [matvec, solve, *([] if back is None else [back])]
    for parameter, value in zip(("matvec", "solve", "transpose_solve"), functions):
        check_callable("custom_linear_solve", parameter, value)
    b = numbers_as_tensors(b)
    _check_unknowns("custom_linear_solve", "b", b)
    return as_python_or_graph("custom_linear_solve", _solution, functions, (b,), symmetric)


def _solution(functions: Sequence[Function], operands: tuple[Any], symmetric: bool) -> Any:
    matvec, solve, *back = functions
    equation, parameters = _Equation.capture("custom_linear_solve", "matvec", matvec, operands[0])
    names = ("solve", "transpose_solve")
    rule = _LinearSolve(equation, solve, back[0] if back else None, symmetric, names)
    return equation.tree.unflatten(call_custom_rule(rule, [*parameters, *pytree.flatten(operands[0])[0]]))


def _check_unknowns(operation: str, parameter: str, value: Any) -> None:
    leaves, spec = check_tensor_leaves(operation, parameter, value)
    for i, leaf in enumerate(leaves):
        if not is_differentiable(leaf.dtype):
            raise ArgumentTypeError(
                message(
                    operation,
                    "an unknown must be continuous",
                    path=pytree.leaf_paths(spec, parameter)[i],
                    expected="a floating-point or complex tensor",
                    got=TensorMeta.of(leaf),
                )
            )


class _Equation:
    """A function of the unknowns as a graph of these and of its parameters: what the user's function closes over."""

    def __init__(self, operation: str, tree: OutputSpec, body: Subgraph) -> None:
        self.operation, self.tree, self.body = operation, tree, body
        self.n = len(tree.metas)
        self.moving = tuple(is_differentiable(m.dtype) for m in body.inputs[self.n :])
        self.in_unknowns = (*(True,) * self.n, *(False,) * len(self.moving))
        self.in_parameters = (*(False,) * self.n, *self.moving)

    @classmethod
    def capture(cls, operation: str, parameter: str, function: Function, unknowns: Any) -> tuple[_Equation, Tensors]:
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

    def transposed(self) -> _Equation:
        """The equation of the transposed matrix (of its adjoint, if complex); its own transpose is this equation."""

        def run(*args: Tensor) -> Sequence[Tensor]:
            y, parameters = args[: self.n], args[self.n :]
            return self.pulled([torch.zeros_like(v) for v in y], parameters, y, self.in_unknowns)

        inputs = self.body.inputs
        graph = self.body.derive("transposed", lambda: rewritten(run, inputs, self.operation))
        other = _Equation(self.operation, self.tree, graph)
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
        return lambda x: self.tree.unflatten(self.body(*self.arguments(x), *parameters))

    def linearized(self, x: Tensors, parameters: Tensors) -> Function:
        """The derivative in the unknowns at ``x``."""
        return lambda v: self.tree.unflatten(self.pushed(x, parameters, self.arguments(v), self.in_unknowns))

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
    tensors, spec = OutputSpec.flatten(numbers_as_tensors(value))
    name = "b" if operation == "custom_linear_solve" else "init"
    check_agreement(operation, "the unknowns and a result", (name, tree), (producer, spec), path=name)
    return tensors


class _Implicit(FlatRule):
    """The solution as a function of the parameters of an equation, and of ``init`` or ``b``, in this order."""

    has_tangent = True
    constant_closure = True

    def __init__(self, equation: _Equation, solve: Function) -> None:
        self.equation, self.solve, self.name = equation, solve, equation.operation

    def split(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        n = len(self.equation.moving)
        return inputs[:n], inputs[n:]

    def split_tangents(self, tangents: Tensors) -> tuple[Tensors, Tensors]:
        n = sum(self.equation.moving)
        return tangents[:n], tangents[n:]


class _Root(_Implicit):
    def __init__(self, equation: _Equation, solve: Function, tangent_solve: Function) -> None:
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


class _LinearSolve(_Implicit):
    """``solve`` solves the equation, ``back`` the transposed one; their names are those of the user's parameters."""

    reverse_remedy = "pass transpose_solve, or symmetric=True"

    def __init__(
        self, equation: _Equation, solve: Function, back: Function | None, symmetric: bool, names: tuple[str, str]
    ) -> None:
        super().__init__(equation, solve)
        self.back, self.symmetric, self.names = back, symmetric, names
        self.has_backward = back is not None
        self.transposes_tangent = False
        self.identity = ("custom_linear_solve", equation.body, id(solve), id(back), names)

    def transposed(self) -> _LinearSolve:
        assert self.back is not None
        equation = self.equation if self.symmetric else self.equation.transposed()
        return _LinearSolve(equation, self.back, self.solve, self.symmetric, self.names[::-1])

    def primal(self, *inputs: Tensor) -> Tensors:
        equation, (parameters, b) = self.equation, self.split(inputs)
        return equation.flat(self.solve(equation.at(parameters), equation.tree.unflatten(b)), self.names[0])

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        equation, (parameters, _) = self.equation, self.split(inputs)
        x = call_custom_rule(self, inputs)
        moving, db = self.split_tangents(tangents)
        moved = equation.pushed(x, parameters, moving, equation.in_parameters)
        return x, call_custom_rule(self, [*parameters, *(d - m for d, m in zip(db, moved))])

    def forward(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        x = call_custom_rule(self, inputs)
        return x, [*self.split(inputs)[0], *x]

    def backward(self, residuals: Tensors, cotangents: Tensors) -> Tensors:
        parameters, x = self.split(residuals)
        of_b = call_custom_rule(self.transposed(), [*parameters, *cotangents])
        of_parameters = self.equation.pulled(x, parameters, [-g for g in of_b], self.equation.in_parameters)
        return [*of_parameters, *of_b]


# ---------------------------------------------------------------------------------------------------------------------
# convergence


def _check_convergence(functions: Sequence[Function], unknowns: Any, solution: Any) -> None:
    """Look at a root whose values are at hand: nothing is captured, and no lane of a vmap is hidden in them."""
    if is_capturing():
        return
    f, solve, tangent_solve = functions
    equation, parameters = _Equation.capture("custom_root", "f", f, unknowns)
    rule = _Root(equation, solve, tangent_solve)
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


def _size(tensors: Tensors) -> float:
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
