"""The columns of the matrix: what is done to a program ``f(weights, x)``, with the library's tools or the oracle's.

Derivatives are those of the weights, which the bodies close over, and of ``x``; they take the program's
floating-point outputs, and for a scalar a fixed linear form of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor

import functorch_hops as fh

Function = Callable[..., Any]


class LibraryTools:
    """The transforms under test."""

    vmap = staticmethod(fh.vmap)
    grad = staticmethod(fh.grad)
    jvp = staticmethod(fh.jvp)
    vjp = staticmethod(fh.vjp)
    jacfwd = staticmethod(fh.jacfwd)
    jacrev = staticmethod(fh.jacrev)
    hessian = staticmethod(fh.hessian)


class OracleTools:
    """``torch.func`` where it can run a Python loop that looks at its data, and loops over lanes and directions where
    not. Only backward passes are batched: they look at no data.
    """

    grad = staticmethod(torch.func.grad)
    jvp = staticmethod(torch.func.jvp)
    vjp = staticmethod(torch.func.vjp)
    jacrev = staticmethod(torch.func.jacrev)

    @staticmethod
    def vmap(f: Function, in_dims: tuple[int | None, ...]) -> Function:
        def lanes(*args: Any) -> Any:
            size = next(optree.tree_leaves(a)[0].shape[0] for a, d in zip(args, in_dims) if d == 0)
            pick = lambda i: [a if d is None else optree.tree_map(lambda t: t[i], a) for a, d in zip(args, in_dims)]
            outs = [f(*pick(i)) for i in range(size)]
            return optree.tree_map(lambda *rows: torch.stack(rows), *outs)

        return lanes

    @staticmethod
    def jacfwd(f: Function, argnums: int) -> Function:
        def columns(*args: Any) -> Any:
            point = args[argnums]
            at = lambda v: f(*args[:argnums], v, *args[argnums + 1 :])
            tangents = [torch.func.jvp(at, (point,), (e,))[1] for e in _basis(point)]
            return optree.tree_map(lambda *c: torch.stack(c, -1).reshape(*c[0].shape, *point.shape), *tangents)

        return columns

    @staticmethod
    def hessian(f: Function, argnums: int) -> Function:
        # The program runs once, not once for each column.
        return torch.func.jacrev(torch.func.jacrev(f, argnums), argnums)


def _basis(x: Tensor) -> list[Tensor]:
    n = x.numel()
    return [torch.eye(n, dtype=torch.float64, device=x.device)[i].reshape(x.shape) for i in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# functions of a program


def differentiable(tree: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in optree.tree_leaves(tree) if leaf.is_floating_point())


def scalar(tree: Any) -> Tensor:
    """A linear form of all floating-point leaves, with unlike coefficients."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in differentiable(tree):
        coefficients = torch.linspace(0.5, 1.7, leaf.numel(), dtype=torch.float64, device=leaf.device)
        total = total + (leaf.reshape(-1) * coefficients).sum()
    return total


def _loss(f: Function) -> Function:
    return lambda p, x: scalar(f(p, x))


def _floats(f: Function) -> Function:
    return lambda p, x: differentiable(f(p, x))


def _tangents(p: Any, x: Tensor) -> Any:
    """A direction in the space of weights and x."""
    direction = lambda t: torch.cos(torch.arange(t.numel(), dtype=torch.float64, device=t.device)).reshape(t.shape)
    return optree.tree_map(direction, p), direction(x)


# ---------------------------------------------------------------------------------------------------------------------
# contexts


@dataclass(frozen=True)
class Context:
    """One column.

    ``transform(tools, f)`` is what is applied to the program, a function of weights and x; ``autograd`` is the order of
    derivative that plain autograd then takes of its (scalar) result. ``batched`` says whether it takes all lanes of
    the example, or the weights, or one of each.
    """

    name: str
    transform: Callable[[Any, Function], Function]
    autograd: int = 0
    batched: tuple[str, ...] = ()

    def __call__(self, tools: Any, f: Function, p: Any, x: Tensor, compile: Function = lambda g: g) -> Any:
        """``compile`` is applied to the transformed program."""
        if self.autograd:
            p = optree.tree_map(lambda t: t.detach().clone().requires_grad_(), p)
            x = x.detach().clone().requires_grad_()
        out = compile(self.transform(tools, f))(p, x)
        for order in range(self.autograd):
            inputs = [*optree.tree_leaves(p), x]
            out = torch.autograd.grad(
                scalar(out), inputs, create_graph=order + 1 < self.autograd, materialize_grads=True
            )
        return out


CONTEXTS: dict[str, Context] = {}


def _context(name: str, *, autograd: int = 0, batched: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    def register(transform: Any) -> Any:
        CONTEXTS[name] = Context(name, transform, autograd, batched)
        return transform

    return register


@_context("value")
def _value(tools: Any, f: Function) -> Function:
    return f


@_context("backward", autograd=1)
def _backward(tools: Any, f: Function) -> Function:
    return _loss(f)


@_context("double backward", autograd=2)
def _double_backward(tools: Any, f: Function) -> Function:
    return _loss(f)


@_context("vmap", batched=("x",))
def _vmap(tools: Any, f: Function) -> Function:
    return tools.vmap(f, in_dims=(None, 0))


@_context("vmap of vmap", batched=("p", "x"))
def _vmap_vmap(tools: Any, f: Function) -> Function:
    return tools.vmap(tools.vmap(f, in_dims=(None, 0)), in_dims=(0, None))


@_context("grad")
def _grad(tools: Any, f: Function) -> Function:
    return tools.grad(_loss(f), argnums=(0, 1))


@_context("jvp")
def _jvp(tools: Any, f: Function) -> Function:
    return lambda p, x: tools.jvp(_floats(f), (p, x), _tangents(p, x))


@_context("vjp")
def _vjp(tools: Any, f: Function) -> Function:
    def pulled(p: Any, x: Tensor) -> Any:
        outs, pull = tools.vjp(_floats(f), p, x)
        return outs, pull(tuple(torch.full_like(o, 0.3 + i) for i, o in enumerate(outs)))

    return pulled


@_context("jacfwd")
def _jacfwd(tools: Any, f: Function) -> Function:
    return tools.jacfwd(_floats(f), argnums=1)


@_context("jacrev")
def _jacrev(tools: Any, f: Function) -> Function:
    return tools.jacrev(_floats(f), argnums=1)


@_context("hessian")
def _hessian(tools: Any, f: Function) -> Function:
    return tools.hessian(_loss(f), argnums=1)


@_context("vmap(grad)", batched=("x",))
def _vmap_grad(tools: Any, f: Function) -> Function:
    return tools.vmap(tools.grad(_loss(f), argnums=(0, 1)), in_dims=(None, 0))


@_context("grad(vmap)", batched=("x",))
def _grad_vmap(tools: Any, f: Function) -> Function:
    return tools.grad(_loss(tools.vmap(f, in_dims=(None, 0))), argnums=(0, 1))


@_context("grad(grad)")
def _grad_grad(tools: Any, f: Function) -> Function:
    return tools.grad(_loss(tools.grad(_loss(f), argnums=(0, 1))), argnums=(0, 1))


@_context("jvp(grad)")
def _jvp_grad(tools: Any, f: Function) -> Function:
    return lambda p, x: tools.jvp(tools.grad(_loss(f), argnums=(0, 1)), (p, x), _tangents(p, x))


@_context("vmap(hessian)", batched=("x",))
def _vmap_hessian(tools: Any, f: Function) -> Function:
    return tools.vmap(tools.hessian(_loss(f), argnums=1), in_dims=(None, 0))


@_context("hessian(vmap)", batched=("x",))
def _hessian_vmap(tools: Any, f: Function) -> Function:
    return tools.hessian(_loss(tools.vmap(f, in_dims=(None, 0))), argnums=1)


@_context("jvp(vmap)", batched=("x",))
def _jvp_vmap(tools: Any, f: Function) -> Function:
    return lambda p, x: tools.jvp(_floats(tools.vmap(f, in_dims=(None, 0))), (p, x), _tangents(p, x))


@_context("grad(jvp)")
def _grad_jvp(tools: Any, f: Function) -> Function:
    def slope(p: Any, x: Tensor) -> Tensor:
        return scalar(tools.jvp(_floats(f), (p, x), _tangents(p, x))[1])

    return tools.grad(slope, argnums=(0, 1))


@_context("jacfwd(jacrev)")
def _jacfwd_jacrev(tools: Any, f: Function) -> Function:
    return tools.jacfwd(tools.jacrev(_floats(f), argnums=1), argnums=1)
