"""``custom_root`` and ``custom_linear_solve``: solutions that are differentiated by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import pytree
from ...calls.arguments import Function
from ...calls.leaf import one_node
from ...calls.numbers import numbers_as_tensors
from ...calls.spelling import spelled
from ...calls.validate import check_callable, check_tensor_leaves
from ...errors import ArgumentTypeError, message
from ...ir.meta import TensorMeta, is_differentiable
from ..custom_rule.call import as_python_or_graph, call_custom_rule
from .convergence import check_convergence
from .equation import Equation
from .rules import LinearSolve, Root

__all__ = ["custom_linear_solve", "custom_root"]

_of_solution = spelled(
    has_aux="leave it out: solve returns the solution alone; what else it finds can be returned by a call of its own"
)


@_of_solution
@one_node
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
            g(1.0)``, for a vector ``lambda g, y: torch.linalg.inv(fh.jacfwd(g)(y)) @ y``. A solver that iterates
            until its residual is small has no transpose as code, which reverse mode needs: there write ``lambda g, y:
            fh.custom_linear_solve(g, y, solver, solver)``, whose transpose is another run of the solver.

    Returns:
        The root, a tree like `init`.

    Raises:
        TreeMismatchError, MetadataMismatchError: the results of `f`, `solve` or `tangent_solve` are not like `init`.
        ArgumentTypeError: something is not callable, or a leaf of `init` is an integer; reverse mode is asked for, and
            `tangent_solve` compares what depends on ``y`` and goes on by the outcome.
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
    check_convergence(functions, init, root)
    return root


def _root(functions: Sequence[Function], operands: tuple[Any]) -> Any:
    f, solve, tangent_solve = functions
    equation, parameters = Equation.capture("custom_root", "f", f, operands[0])
    rule = Root(equation, solve, tangent_solve)
    return equation.tree.unflatten(call_custom_rule(rule, [*parameters, *pytree.flatten(operands[0])[0]]))


@_of_solution
@one_node
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

    Returns:
        The solution ``x``, a tree like `b`.

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
    equation, parameters = Equation.capture("custom_linear_solve", "matvec", matvec, operands[0])
    names = ("solve", "transpose_solve")
    rule = LinearSolve(equation, solve, back[0] if back else None, symmetric, names)
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
                    remedy="convert it with .float() or .double()",
                )
            )
