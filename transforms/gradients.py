"""Derivatives: grad, value_and_grad, vjp, jvp and linearize, over trees.

Each is ``torch.func``'s function of the same name on the leaves. What is differentiated must be
floating-point or complex; an integer there is an error, never a zero gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from functorch_hops import _torch
from functorch_hops.calls.arguments import Function, P, R
from functorch_hops.calls.leaf import left_to_python, one_node, traced_through
from functorch_hops.calls.leaving import leaving
from functorch_hops.calls.spelling import derivative, spelled
from functorch_hops.calls.validate import kind_of
from functorch_hops.errors import ArgumentTypeError, message
from functorch_hops.trace.hooks import handlers, is_symbolic
from functorch_hops.transforms.flat import (
    Auxiliary,
    DifferentiableArguments,
    FlatFunction,
    Recipe,
    is_inexact,
    is_tensor,
    refuse_under_torchs_tracer,
    require_argnums,
    require_callable,
    split_pair,
    traced_as_one_graph,
    transformed,
    under_torchs_tracer,
)
from functorch_hops.transforms.pullbacks import PullData, PushData, Signature, check_one_tree, matching, pullback_of

__all__ = ["grad", "jvp", "linearize", "value_and_grad", "vjp"]

Pull: TypeAlias = Callable[[R], tuple[Any, ...]]


@overload
def grad(func: Callable[P, Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[P, Any]: ...
@overload
def grad(
    func: None = None, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@derivative()
def grad(func: Any = None, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """The gradient of a scalar function, by reverse mode.

    ::

        grad : ((a, ...) -> Scalar) -> ((a, ...) -> a)

    Equivalent to ``lambda *args: value_and_grad(func, argnums)(*args)[1]``.

    Arguments:
        func: returns a real tensor of shape ``()``; with `has_aux` a pair of it and any tree.
        argnums: which positional arguments to differentiate, an integer or several; negative ones count from
            the right. Their leaves are floating-point or complex tensors; a Python float counts as a 0-d
            tensor.
        has_aux: whether `func` returns ``(output, aux)``.

    Without `func` it is a decorator: ``@grad(argnums=1)``. So are the other transforms that have options.

    Returns:
        A function of the arguments of `func`, that returns the gradient: a tree like the differentiated
        argument, or a tuple of trees if `argnums` has several. With `has_aux` it returns ``(gradient, aux)``.

    Raises:
        ArgumentTypeError: a differentiated leaf is an integer, or no number; the output is no real scalar.
        ArgumentValueError: `argnums` names no positional argument, or names one twice.
        TreeMismatchError: `has_aux`, and `func` returns no pair.

    Cost: a small multiple of the cost of `func`; memory for its intermediate results.

    Source: ``torch.func.grad``.

    >>> x = {"w": torch.tensor([1.0, 2.0]), "b": None}
    >>> grad(lambda p: (p["w"] ** 3).sum())(x)
    {'w': tensor([ 3., 12.]), 'b': None}
    """
    if func is None:
        return functools.partial(grad, argnums=argnums, has_aux=has_aux)
    require_callable("grad", func)
    require_argnums("grad", argnums)

    @transformed(Recipe(grad, func, {"argnums": argnums, "has_aux": has_aux}))
    def gradient_of(*args: Any, **kwargs: Any) -> Any:
        _, gradient, *aux = _value_and_grad("grad", func, argnums, has_aux, args, kwargs)
        return (gradient, *aux) if has_aux else gradient

    return gradient_of


@overload
def value_and_grad(
    func: Callable[P, R], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[P, tuple[R, Any]]: ...
@overload
def value_and_grad(
    func: None = None, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[[Callable[P, R]], Callable[P, tuple[R, Any]]]: ...
@derivative()
def value_and_grad(func: Any = None, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """The value of a scalar function and its gradient, by reverse mode.

    ::

        value_and_grad : ((a, ...) -> Scalar) -> ((a, ...) -> (Scalar, a))

    Equivalent, for one tensor argument, to::

        def value_and_gradient_of(x):
            x = x.detach().requires_grad_()
            value = func(x)
            return value.detach(), torch.autograd.grad(value, x)[0]

    Arguments:
        func: as for ``grad``.
        argnums: as for ``grad``.
        has_aux: whether `func` returns ``(output, aux)``.

    Returns:
        A function of the arguments of `func`, that returns ``(value, gradient)``, or ``((value, aux),
        gradient)`` with `has_aux`. (``torch.func.grad_and_value`` has them the other way round.)

    Raises: as ``grad``.

    Cost: as ``grad``.

    Source: ``torch.func.grad_and_value``; the order of the results is that of ``jax.value_and_grad``.

    >>> value_and_grad(lambda x, y: x * y, argnums=(0, 1))(torch.tensor(2.0), 5.0)
    (tensor(10.), (tensor(5.), tensor(2.)))
    """
    if func is None:
        return functools.partial(value_and_grad, argnums=argnums, has_aux=has_aux)
    require_callable("value_and_grad", func)
    require_argnums("value_and_grad", argnums)

    @transformed(Recipe(value_and_grad, func, {"argnums": argnums, "has_aux": has_aux}))
    def value_and_gradient_of(*args: Any, **kwargs: Any) -> Any:
        value, gradient, *aux = _value_and_grad("value_and_grad", func, argnums, has_aux, args, kwargs)
        return ((value, *aux), gradient) if has_aux else (value, gradient)

    return value_and_gradient_of


def _value_and_grad(
    operation: str,
    func: Function,
    argnums: int | Sequence[int],
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, ...]:
    """The value, the gradient, and the auxiliary output if there is one."""
    arguments = DifferentiableArguments(operation, args, kwargs, argnums)
    companions: list[Auxiliary] = []

    def flat(*tensors: Tensor) -> Any:
        value = arguments.call(func, tensors)
        if not has_aux:
            return _checked_scalar(operation, value)
        value, aux = split_pair(operation, value)
        companions.append(Auxiliary(aux))
        return _checked_scalar(operation, value), companions[0].tensors

    # torch.func.grad runs the backward pass while its level is active, where every operator is prepared for a second
    # derivative that nobody takes. That of a vjp runs when the level has ended.
    value, pull, *tensors = _torch.vjp(flat, arguments.tensors, arguments.indices, has_aux)
    gradients = arguments.tree(pull(torch.ones_like(value)))
    return (value, gradients, companions[0].tree(*tensors)) if has_aux else (value, gradients)


def _checked_scalar(operation: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 0:
        return value
    text = message(
        operation,
        "only the gradient of a real scalar is defined",
        parameter="func",
        expected="an output of shape [] with a floating-point dtype",
        got=kind_of(value),
        remedy="return the scalar alone, or (scalar, anything) with has_aux=True"
        if isinstance(value, (tuple, list))
        else "reduce the output, or use vjp or jacrev",
    )
    raise ArgumentTypeError(text)


@overload
def vjp(func: Callable[..., R], *primals: Any, has_aux: Literal[False] = False) -> tuple[R, Pull[R]]: ...
@overload
def vjp(func: Function, *primals: Any, has_aux: bool) -> Any: ...
@spelled()
def vjp(func: Function, *primals: Any, has_aux: bool = False) -> Any:
    """The value of a function, and the product of any vector with its Jacobian, by reverse mode.

    ::

        vjp : ((a, ...) -> b) -> (a, ...) -> (b, b -> (a, ...))

    Equivalent, for one tensor argument, to ``func(x), lambda ct: (torch.autograd.grad(func(x), x, ct)[0],)``.

    Arguments:
        func: returns a tree of floating-point or complex tensors; with `has_aux` a pair of it and any tree.
        primals: the arguments of `func`, all of which are differentiated.
        has_aux: whether `func` returns ``(output, aux)``.

    Returns:
        ``(out, pull)``, or ``(out, pull, aux)`` with `has_aux`. ``pull(ct)`` takes a tree like `out` and
        returns a tuple with a tree for each primal. It may be called several times, also under other
        transforms.

    Raises:
        ArgumentTypeError: a leaf of a primal or an output is an integer, or no number.
        TreeMismatchError, MetadataMismatchError: raised by `pull`, when `ct` does not fit `out`.

    Cost: of `func`, and of its backward pass in each `pull`; memory for its intermediate results as long as
    `pull` lives.

    Source: ``torch.func.vjp``.

    >>> out, pull = vjp(lambda x, y: {"product": x * y}, torch.tensor(2.0), torch.tensor(5.0))
    >>> pull({"product": torch.tensor(1.0)})
    (tensor(5.), tensor(2.))
    """
    require_callable("vjp", func)
    if torch.compiler.is_dynamo_compiling():
        return _vjp_as_data("vjp", func, primals, has_aux)
    if is_symbolic():
        return handlers.symbolic.operation(vjp, (func, *primals), {"has_aux": has_aux})
    return _vjp_as_python(func, primals, has_aux)


@leaving
def _vjp_as_python(func: Function, primals: tuple[Any, ...], has_aux: bool) -> Any:
    refuse_under_torchs_tracer("vjp", "pull functions")
    arguments = DifferentiableArguments("vjp", primals, {}, range(len(primals)), root="primals")
    flat = FlatFunction("vjp", func, arguments, has_aux, is_inexact)
    with _torch.differentiated_again():
        outputs, pull_flat, *aux = _torch.vjp(flat, arguments.tensors, None, has_aux)
    pull_tree = functools.partial(pull, pull_flat, outputs, flat.spec, arguments)
    out = flat.spec.unflatten(outputs)
    return (out, pull_tree, flat.aux.tree(*aux)) if has_aux else (out, pull_tree)


@left_to_python
def pull(
    pull_flat: Function,
    outputs: Sequence[Tensor],
    spec: Any,
    arguments: DifferentiableArguments,
    /,
    cotangents: Any,
    *more: Any,
    **options: Any,
) -> tuple[Any, ...]:
    """What ``vjp`` returns, of one code: Dynamo compiles again for each other."""
    check_one_tree(more, options)
    leaves = matching("vjp", cotangents, outputs, spec, "cotangents")
    return arguments.tree(pull_flat(leaves))


@overload
def jvp(
    func: Callable[..., R], primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: Literal[False] = False
) -> tuple[R, R]: ...
@overload
def jvp(func: Function, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool) -> Any: ...
@one_node
def jvp(func: Function, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool = False) -> Any:
    """The value of a function, and the product of its Jacobian with a vector, by forward mode.

    ::

        jvp : ((a, ...) -> b, (a, ...), (a, ...)) -> (b, b)

    Equivalent, up to rounding, to ``func(x), (func(x + h * t) - func(x - h * t)) / (2 * h)`` for small ``h``.

    Arguments:
        func: returns a tree of tensors; with `has_aux` a pair of it and any tree. The tangent of an output
            with integer dtype is zero.
        primals: a tuple with the arguments of `func`, all of which are differentiated.
        tangents: a tuple like `primals`.
        has_aux: whether `func` returns ``(output, aux)``.

    Returns:
        ``(out, tangent_out)``, or ``(out, tangent_out, aux)`` with `has_aux`; the tangent is a tree like
        `out`.

    Raises:
        ArgumentTypeError: a leaf of a primal is an integer, or no number.
        TreeMismatchError, MetadataMismatchError: `tangents` does not fit `primals`.

    Cost: about twice that of `func`, in time; no intermediate result is kept.

    Source: ``torch.func.jvp``.

    >>> jvp(lambda x: x**2, (torch.tensor(3.0),), (torch.tensor(1.0),))
    (tensor(9.), tensor(6.))
    """
    require_callable("jvp", func)
    for parameter, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, tuple | list):
            text = message(
                "jvp",
                f"{parameter} must have one entry per argument of the function",
                parameter=parameter,
                expected="a tuple",
                got=kind_of(value),
                remedy="write (x,) for a function of one argument",
            )
            raise ArgumentTypeError(text)
    if under_torchs_tracer():
        run = functools.partial(jvp, func, has_aux=has_aux)
        return traced_as_one_graph("jvp", run, (tuple(primals), tuple(tangents)), {})
    arguments = DifferentiableArguments("jvp", primals, {}, range(len(primals)), root="primals")
    leaves = matching("jvp", tuple(tangents), arguments.inputs, arguments.spec, "tangents")
    flat = FlatFunction("jvp", func, arguments, has_aux, is_tensor)
    directions = leaves or tuple(torch.zeros_like(t) for t in arguments.differentiated)
    outputs, tangents_out, *aux = _torch.jvp(flat, arguments.tensors, directions, has_aux=has_aux)
    result = flat.spec.unflatten(outputs), flat.spec.unflatten(tangents_out)
    return (*result, flat.aux.tree(*aux)) if has_aux else result


@spelled(has_aux="write fh.jvp or fh.vjp, which have it")
@traced_through
def linearize(func: Callable[..., R], *primals: Any) -> tuple[R, Callable[..., R]]:
    """The value of a function, and its linear approximation there.

    ::

        linearize : ((a, ...) -> b) -> (a, ...) -> (b, (a, ...) -> b)

    Equivalent to ``func(*primals), lambda *tangents: jvp(func, primals, tangents)[1]``, except that `func` is
    only called once.

    Arguments:
        func: returns a tree of floating-point or complex tensors.
        primals: the arguments of `func`, all of which are differentiated.

    Returns:
        ``(out, push)``; ``push(*tangents)`` takes trees like the primals and returns a tree like `out`. It
        may be called several times, also under other transforms.

    Raises:
        ArgumentTypeError: a leaf of a primal or an output is an integer, or no number.
        TreeMismatchError, MetadataMismatchError: raised by `push`, when the tangents do not fit the primals.

    Cost: of `func` and two backward passes at once, and of one backward pass in each `push`; memory for the
    intermediate results as long as `push` lives. For a single tangent ``jvp`` is cheaper.

    Source: the meaning is that of ``torch.func.linearize``; the method is in the code.

    >>> out, push = linearize(lambda x, y: x * y, torch.tensor(2.0), torch.tensor(5.0))
    >>> push(torch.tensor(1.0), torch.tensor(10.0))
    tensor(25.)
    """
    require_callable("linearize", func)
    if torch.compiler.is_dynamo_compiling():
        return _linearize_as_data("linearize", func, primals)
    if is_symbolic():
        return handlers.symbolic.operation(linearize, (func, *primals), {})
    return _linearize_as_python(func, primals)


@leaving
def _linearize_as_python(func: Callable[..., R], primals: tuple[Any, ...]) -> tuple[R, Callable[..., R]]:
    # `pull_flat`, which takes ct to ct^T J, is linear. So is its own vjp, which is the transpose, t to J t,
    # wherever it is taken: at zero here. The alternatives lose something: torch.func.linearize calls `func`
    # twice, once under make_fx, where data-dependent Python control flow fails; a jvp in each push calls
    # `func` again, which repeats its side effects, draws other random numbers than `out` has seen, and costs
    # more after about three of them. (J. Townsend, "A new trick for calculating Jacobian vector products",
    # 2017.)
    refuse_under_torchs_tracer("linearize", "push functions")
    arguments = DifferentiableArguments("linearize", primals, {}, range(len(primals)), root="primals")
    flat = FlatFunction("linearize", func, arguments, False, is_inexact)
    with _torch.differentiated_again():
        outputs, pull_flat, *_ = _torch.vjp(flat, arguments.tensors, None, False)
    zeros = [torch.zeros_like(out) for out in outputs]
    _, transposed, *_ = _torch.vjp(lambda *cotangents: pull_flat(cotangents), zeros, None, False)
    out: Any = flat.spec.unflatten(outputs)
    return out, functools.partial(push, transposed, flat.spec, arguments)


@left_to_python
def push(transposed: Function, spec: Any, arguments: DifferentiableArguments, /, *tangents: Any) -> Any:
    """What ``linearize`` returns, as :func:`pull`."""
    leaves = matching("linearize", tangents, arguments.inputs, arguments.spec, "tangents")
    return spec.unflatten(transposed(leaves or arguments.differentiated))


@one_node
def _vjp_as_data(operation: str, func: Function, primals: tuple[Any, ...], has_aux: bool) -> Any:
    """``vjp`` under Dynamo, which goes on with what it returns."""
    arguments = DifferentiableArguments(operation, primals, {}, range(len(primals)), root="primals")
    flat = FlatFunction(operation, func, arguments, has_aux, is_inexact)
    outputs, pullback = pullback_of(operation, lambda *xs: _joined(flat(*xs), has_aux), arguments.tensors)
    n = flat.spec.num_leaves
    aux = (flat.aux.tree(outputs[n:]),) if has_aux else ()
    signature = Signature.of(operation, "cotangents", flat.spec, outputs[:n], arguments.spec)
    return flat.spec.unflatten(outputs[:n]), PullData(signature, pullback), *aux


@one_node
def _linearize_as_data(operation: str, func: Function, primals: tuple[Any, ...]) -> Any:
    """``linearize`` under Dynamo; the method is the one in plain eager."""
    arguments = DifferentiableArguments(operation, primals, {}, range(len(primals)), root="primals")
    flat = FlatFunction(operation, func, arguments, False, is_inexact)
    outputs, pullback = pullback_of(operation, flat, arguments.tensors)
    zeros = [torch.zeros_like(out) for out in outputs]
    _, transposed = pullback_of(operation, pullback, zeros)
    signature = Signature.of(operation, "tangents", arguments.spec, arguments.inputs, flat.spec)
    return flat.spec.unflatten(outputs), PushData(signature, transposed)


def _joined(outputs: Any, has_aux: bool) -> Sequence[Tensor]:
    return (*outputs[0], *outputs[1]) if has_aux else outputs
