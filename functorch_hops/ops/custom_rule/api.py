"""custom_vjp and custom_jvp: functions of trees with derivatives of the user's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import torch

from ... import pytree
from ...calls.arguments import Function, P, R, one_or_several, signature_of
from ...calls.leaf import one_node, traced_through
from ...calls.recording import in_mode_of_program
from ...calls.spelling import spelled
from ...calls.validate import check_callable, kind_of
from ...errors import ArgumentTypeError, ArgumentValueError, message
from ...trace.hooks import handlers, is_symbolic
from .call import as_python_or_graph
from .tree_call import JvpCall, TreeCall, VjpCall

__all__ = ["custom_jvp", "custom_vjp"]

Rule = TypeVar("Rule", bound=Function)


class _Identity:
    """What tells one function with rules from others, in what Dynamo makes of it too."""

    __fh_own__ = True
    __fh_leaf__ = True


def _has_defaults(fun: Callable[..., Any]) -> bool:
    """Whether a positional argument may be left out of a call."""
    if torch.compiler.is_dynamo_compiling():  # which traces no signature; a call is made anew outside of its reach
        return False
    try:
        parameters = signature_of(fun).parameters.values()
    except ValueError:  # torch's functions in C++ have no signature
        return False
    return any(p.default is not p.empty and p.kind is not p.KEYWORD_ONLY for p in parameters)


class _CustomFunction(Generic[P, R]):
    """What both decorators share: the function, and how a call is taken apart."""

    operation: str
    rules: tuple[str, ...]
    """The names of the attributes that hold the rules."""

    def __init__(self, fun: Callable[P, R], nondiff_argnums: int | Sequence[int] = ()) -> None:
        check_callable(self.operation, "fun", fun)
        functools.update_wrapper(cast(Any, self), fun, updated=())
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)  # a module or a functools.partial has none
        self.fun = fun
        self.identity = _Identity()
        self.nondiff_argnums = frozenset(_argnums(self.operation, nondiff_argnums))
        self._has_defaults = _has_defaults(fun)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments by position, those with their default included: the rules take them so."""
        if not (kwargs or self._has_defaults):
            return args
        bound = signature_of(self.fun).bind(*args, **kwargs)
        parameters = bound.signature.parameters
        only = inspect.Parameter.KEYWORD_ONLY
        if by_name := [k for k in kwargs if k not in parameters or parameters[k].kind is only]:
            raise ArgumentTypeError(
                message(
                    self.operation,
                    "a keyword-only argument can't be passed on to the rule",
                    parameter=self.__name__,
                    got=", ".join(by_name),
                    remedy="make the argument positional, or close over it",
                )
            )
        bound.apply_defaults()
        return bound.args

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            functions = {name: getattr(self, name) for name in ("fun", *self.rules)}
            made: R = _made_anew(self.operation, self.identity, functions, self.nondiff_argnums, args, kwargs)
            return made
        if is_symbolic():
            parts = [getattr(self, name) for name in ("fun", *self.rules)]
            held: R = handlers.symbolic.held(self.operation, self, parts, args, kwargs)
            return held
        return self._call(args, kwargs)

    @traced_through
    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        self._require_rule()
        positional = self._positional(args, kwargs)
        with in_mode_of_program():
            result: R = as_python_or_graph(self.operation, _call_with_rule, (self,), positional)
        return result

    def _require_rule(self) -> None:
        raise NotImplementedError

    def _bind(self, args: tuple[Any, ...]) -> TreeCall:
        raise NotImplementedError

    def _split(self, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The arguments without derivatives, and the others."""
        nondiff = [a for i, a in enumerate(args) if i in self.nondiff_argnums]
        return nondiff, [a for i, a in enumerate(args) if i not in self.nondiff_argnums]

    def _merged(self, nondiff: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        some, rest = iter(nondiff), iter(others)
        return [next(some if i in self.nondiff_argnums else rest) for i in range(len(nondiff) + len(others))]

    __name__: str


class custom_vjp(_CustomFunction[P, R]):
    """A function with a reverse-mode derivative of its own.

    ::

        custom_vjp : ((a, ...) -> b) -> ((a, ...) -> b)
        fwd : (a, ...) -> (b, residuals)
        bwd : (residuals, b) -> (a, ...)

    Equivalent, for one tensor argument, to::

        class F(torch.autograd.Function):
            forward = staticmethod(fun)
            backward = staticmethod(lambda ctx, ct: bwd(ctx.residuals, ct))

    except that residuals are differentiated as `fwd` computes them, and with everything that ``F`` lacks: trees,
    closures, every transform. The rule holds for derivatives of any order; the second one differentiates `fwd` (its
    residuals) and `bwd`, which should therefore call `fun` for its value.

    Arguments:
        fun: any function of trees. It may close over anything that is not differentiated. Leaves that are no tensors
            pass through unchanged.
        nondiff_argnums: positions of arguments without derivatives, such as functions. `bwd` gets them first:
            ``bwd(*nondiff, residuals, ct)``.

    Returns:
        A function like `fun`, with the method ``defvjp(fwd, bwd)``, which sets the rule.

    Raises:
        ArgumentTypeError: `fun` is not callable; there is no rule; forward mode is asked for.
        TreeMismatchError, MetadataMismatchError: the results of `fwd` or `bwd` do not fit output or arguments.
        ArgumentValueError: a derivative with respect to a closed-over value is asked for.

    Cost: as the rule. In plain eager it runs as Python; under a transform, or captured, `fun`, `fwd` and `bwd` are
    traced once, and again when something that they read has changed. ``create_graph`` in plain eager runs `fwd` a
    second time.

    Source: ``jax.custom_vjp``; asked for in pytorch/pytorch 87222.

    >>> import torch, functorch_hops as fh
    >>> @fh.custom_vjp
    ... def clip_gradient(x):
    ...     return x
    >>> clip_gradient.defvjp(lambda x: (x, None), lambda _, ct: (ct.clamp(-1, 1),))
    >>> fh.grad(lambda x: 10 * clip_gradient(x))(torch.tensor(2.0))
    tensor(1.)
    """

    operation = "custom_vjp"
    rules = ("fwd", "bwd")
    __environment__ = ("fun", "fwd", "bwd", "nondiff_argnums")

    @spelled()
    def __init__(self, fun: Callable[P, R], nondiff_argnums: int | Sequence[int] = ()) -> None:
        super().__init__(fun, nondiff_argnums)
        self.fwd: Function | None = None
        self.bwd: Function | None = None

    @spelled(
        symbolic_zeros="leave it out: where an output has no cotangent, bwd gets zeros",
        optimize_remat="leave it out: in a captured function nothing is computed that nobody reads",
    )
    def defvjp(self, fwd: Function, bwd: Function) -> None:
        """Set the rule for reverse mode.

        ::

            defvjp : ((a, ...) -> (b, residuals), (residuals, b) -> (a, ...)) -> None

        Equivalent, for one tensor argument, to writing `fwd` and `bwd` as the staticmethods of a
        ``torch.autograd.Function``: see :class:`custom_vjp`.

        Arguments:
            fwd: takes the arguments of ``fun``, defaults included, and returns ``(out, residuals)``: its output, and
                any tree that `bwd` needs.
            bwd: takes the residuals and a cotangent, a tree like ``out`` (zeros for an integer leaf). It returns a
                tuple with one entry for each differentiable argument: a tree like that argument, in which None, as a
                whole or in the place of a subtree, stands for zero. Arguments without derivatives
                (``nondiff_argnums``) come before the residuals.

        Returns:
            None. The rule belongs to the function from then on; a later call replaces it.

        Raises:
            ArgumentTypeError: `fwd` or `bwd` is not callable. What they return is checked when they run.

        Cost: none; the rule runs where a gradient is taken.

        Source: ``jax.custom_vjp.defvjp``.

        >>> import torch, functorch_hops as fh
        >>> @fh.custom_vjp
        ... def square_root(x):
        ...     return x.sqrt()
        >>> def fwd(x):
        ...     root = square_root(x)
        ...     return root, root
        >>> square_root.defvjp(fwd, lambda root, ct: (ct / (2 * root),))
        >>> fh.grad(fh.grad(square_root))(torch.tensor(4.0))
        tensor(-0.0312)
        """
        check_callable("custom_vjp", "fwd", fwd)
        check_callable("custom_vjp", "bwd", bwd)
        self.fwd, self.bwd = fwd, bwd

    def _require_rule(self) -> None:
        if self.fwd is None:
            raise _without_rule("custom_vjp", self.__name__, "defvjp(fwd, bwd)")

    def _bind(self, args: tuple[Any, ...]) -> TreeCall:
        return VjpCall(self, args)


class custom_jvp(_CustomFunction[P, R]):
    """A function with a forward-mode derivative of its own, from which reverse mode follows.

    ::

        custom_jvp : ((a, ...) -> b) -> ((a, ...) -> b)
        rule : ((a, ...), (a, ...)) -> (b, b)

    Equivalent, in value, to `fun`; its ``jvp`` is ``rule(primals, tangents)``, and its ``vjp`` the transpose of that,
    which is linear in the tangents: a rule that decides something by them (a branch, a loop that stops) has none.

    Arguments:
        fun: any function of trees. It may close over anything that is not differentiated. Leaves that are no tensors
            pass through unchanged.
        nondiff_argnums: positions of arguments without derivatives, such as functions. The rule gets them first:
            ``rule(*nondiff, primals, tangents)``.

    Returns:
        A function like `fun`, with the methods ``defjvp(rule)``, which sets the rule, and ``defjvps(*rules)``, which
        sets it as a sum over the arguments.

    Raises:
        ArgumentTypeError: `fun` is not callable; there is no rule; reverse mode is asked for, and the rule decides
            something by the tangents.
        TreeMismatchError, MetadataMismatchError: the result of the rule does not fit.
        ArgumentValueError: a derivative with respect to a closed-over value is asked for.

    Cost: as the rule. In plain eager it runs as Python; under a transform, or captured, `fun` and the rule are traced
    once, and again when something that they read has changed. ``create_graph`` in plain eager runs the rule a second
    time.

    Source: ``jax.custom_jvp``; asked for in pytorch/pytorch 87222.

    >>> import torch, functorch_hops as fh
    >>> @fh.custom_jvp
    ... def log1pexp(x):
    ...     return torch.log1p(torch.exp(x))
    >>> @log1pexp.defjvp
    ... def _(primals, tangents):
    ...     (x,), (t,) = primals, tangents
    ...     return log1pexp(x), t * torch.sigmoid(x)
    >>> fh.grad(log1pexp)(torch.tensor(100.0))
    tensor(1.)
    """

    operation = "custom_jvp"
    rules = ("rule",)
    __environment__ = ("fun", "rule", "nondiff_argnums")

    @spelled()
    def __init__(self, fun: Callable[P, R], nondiff_argnums: int | Sequence[int] = ()) -> None:
        super().__init__(fun, nondiff_argnums)
        self.rule: Function | None = None

    @spelled(symbolic_zeros="leave it out: where an argument has no tangent, the rule gets zeros")
    def defjvp(self, rule: Rule) -> Rule:
        """Set the rule for forward mode, from which reverse mode follows.

        ::

            defjvp : (((a, ...), (a, ...)) -> (b, b)) -> the same

        Equivalent to making ``jvp(fun, primals, tangents)`` mean ``rule(primals, tangents)``.

        Arguments:
            rule: takes two tuples, the differentiable arguments and their tangents, and returns ``(out,
                tangent_out)``: the output and its tangent, two trees of one structure, in which None stands for a zero
                tangent. It is linear in the tangents, and calls the function itself for the output, so that higher
                derivatives are those of the rule too. An integer tensor has a tangent of zeros. Arguments without
                derivatives (``nondiff_argnums``) come before the two tuples.

        Returns:
            The rule: ``defjvp`` is a decorator.

        Raises:
            ArgumentTypeError: `rule` is not callable. What it returns is checked when it runs.

        Cost: none; the rule runs where a derivative is taken.

        Source: ``jax.custom_jvp.defjvp``.

        >>> import torch, functorch_hops as fh
        >>> @fh.custom_jvp
        ... def product(x, y):
        ...     return x * y
        >>> @product.defjvp
        ... def _(primals, tangents):
        ...     (x, y), (t, s) = primals, tangents
        ...     return product(x, y), t * y + x * s
        >>> fh.grad(product, argnums=(0, 1))(torch.tensor(2.0), torch.tensor(5.0))
        (tensor(5.), tensor(2.))
        """
        check_callable("custom_jvp", "rule", rule)
        self.rule = rule
        return rule

    def defjvps(self, *rules: Function | None) -> None:
        """Set the rule for forward mode as a sum over the arguments.

        ::

            defjvps : ((b, b, a, ...) -> b, ...) -> None

        Equivalent, for two arguments, to::

            @f.defjvp
            def rule(primals, tangents):
                out = f(*primals)
                return out, rules[0](tangents[0], out, *primals) + rules[1](tangents[1], out, *primals)

        Arguments:
            rules: one for each differentiable argument: a function ``(tangent, out, *primals) -> tangent_out``, or None
                for an argument on which the output does not depend.

        Returns:
            None.

        Raises:
            ArgumentTypeError: a rule is neither callable nor None.
            ValueError: when the rule runs, there are more or fewer rules than differentiable arguments.

        Cost: none; the rules run where a derivative is taken.

        Source: ``jax.custom_jvp.defjvps``.

        >>> import torch, functorch_hops as fh
        >>> product = fh.custom_jvp(lambda x, y: x * y)
        >>> product.defjvps(lambda t, out, x, y: t * y, lambda s, out, x, y: x * s)
        >>> fh.grad(product, argnums=(0, 1))(torch.tensor(2.0), torch.tensor(5.0))
        (tensor(5.), tensor(2.))
        """
        for rule in rules:
            if rule is not None:
                check_callable("custom_jvp", "rules", rule)

        call: Function = self

        def summed(*args: Any) -> tuple[Any, Any]:
            *nondiff, primals, tangents = args
            out = call(*self._merged(nondiff, primals))
            terms = [rule(t, out, *primals) for rule, t in zip(rules, tangents, strict=True) if rule is not None]
            return out, functools.reduce(lambda a, b: pytree.map(torch.add, a, b), terms) if terms else None

        self.rule = summed

    def _require_rule(self) -> None:
        if self.rule is None:
            raise _without_rule("custom_jvp", self.__name__, "defjvp(rule)")

    def _bind(self, args: tuple[Any, ...]) -> TreeCall:
        return JvpCall(self, args)


def _argnums(operation: str, nondiff_argnums: Any) -> tuple[int, ...]:
    numbers = one_or_several(nondiff_argnums)
    wrong = [n for n in numbers if isinstance(n, bool) or not isinstance(n, int) or n < 0]
    if wrong:
        expected = "positions of arguments, counted from 0"
        remedy = "count the arguments from the left: nondiff_argnums=(0,) is the first"
        parameter, got = "nondiff_argnums", kind_of(wrong[0])
        raise ArgumentValueError(
            message(operation, "no position", parameter=parameter, expected=expected, got=got, remedy=remedy)
        )
    return numbers


def _without_rule(operation: str, name: str, method: str) -> ArgumentTypeError:
    text = message(operation, f"{name} has no derivative rule yet", remedy=f"call {name}.{method} first")
    return ArgumentTypeError(text)


def _call_with_rule(functions: Sequence[Any], args: tuple[Any, ...]) -> Any:
    return functions[0]._bind(args).result()


@one_node
def _made_anew(
    operation: str,
    identity: _Identity,
    functions: dict[str, Function],
    nondiff_argnums: frozenset[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A call under Dynamo: of the same function, with rules that Dynamo traces."""
    fun, *rules = functions.values()
    made: Any = _KINDS[operation](fun, tuple(nondiff_argnums))
    made.identity = identity
    for name, rule in zip(made.rules, rules):
        setattr(made, name, rule)
    return made(*args, **kwargs)


_KINDS: dict[str, Any] = {"custom_vjp": custom_vjp, "custom_jvp": custom_jvp}
