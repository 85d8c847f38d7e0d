"""What a program means: the operations in plain Python, and transforms that loop over lanes and directions where
``torch.func`` can't run a loop that looks at its data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from reference import Reference

Function = Callable[..., Any]


def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Written out: torch (2.13) differentiates its own wrongly, where a tangent is differentiated again."""
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _tensors(tree: Any) -> Any:
    return optree.tree_map(lambda x: x if isinstance(x, Tensor) else torch.tensor(x), tree)


def _rows(xs: Any, length: int | None) -> list[Any]:
    leaves = optree.tree_leaves(xs)
    size = leaves[0].shape[0] if leaves else length
    return [optree.tree_map(lambda leaf: leaf[t], xs) for t in range(size or 0)]


def _stacked(ys: list[Any]) -> Any:
    return optree.tree_map(lambda *column: torch.stack(column), *ys)


def _none_of(y: Any) -> Any:
    """What zero results like ``y`` are stacked to."""
    return optree.tree_map(lambda leaf: leaf.new_zeros((0, *leaf.shape)), y)


def _zero_row(xs: Any) -> Any:
    return optree.tree_map(lambda leaf: leaf.new_zeros(leaf.shape[1:]), xs)


class Oracle(Reference):
    """The namespace of programs in plain Python."""

    grad = staticmethod(torch.func.grad)
    jvp = staticmethod(torch.func.jvp)
    vjp = staticmethod(torch.func.vjp)

    @staticmethod
    def jit(f: Any, **options: Any) -> Any:
        return f

    @staticmethod
    def checkpoint(f: Any) -> Any:
        """Its results are memory of their own."""
        return lambda *args: optree.tree_map(torch.clone, f(*args))

    class _Rule:
        """A function with a derivative by hand, which is its own."""

        def __init__(self, f: Function) -> None:
            self.f = f

        def defvjp(self, *rules: Function) -> None: ...
        def defjvp(self, rule: Function) -> None: ...

        def __call__(self, *args: Any) -> Any:
            return self.f(*args)

    custom_vjp = custom_jvp = _Rule

    @staticmethod
    def while_loop(cond_fn: Any, body_fn: Any, value: Any, **options: Any) -> Any:
        return Reference.while_loop(cond_fn, body_fn, _tensors(value), **options)

    @staticmethod
    def fori_loop(lower: Any, upper: Any, body_fn: Any, value: Any, *, unroll: int = 1) -> Any:
        return Reference.fori_loop(lower, upper, body_fn, _tensors(value))

    @staticmethod
    def scan(
        f: Any,
        carry: Any,
        xs: Any = None,
        length: int | None = None,
        *,
        reverse: bool = False,
        unroll: int = 1,
        remat: Any = None,
    ) -> Any:
        rows, ys, carry = _rows(xs, length), [], _tensors(carry)
        if not rows:
            return carry, _none_of(f(carry, _zero_row(xs))[1])
        for row in reversed(rows) if reverse else rows:
            carry, y = f(carry, row)
            ys.append(y)
        return carry, _stacked(ys[::-1] if reverse else ys)

    @staticmethod
    def map(f: Any, xs: Any, *, batch_size: int | None = None) -> Any:
        rows = _rows(xs, None)
        return _stacked([f(row) for row in rows]) if rows else _none_of(f(_zero_row(xs)))

    @staticmethod
    def associative_scan(fn: Any, elems: Any, *, dim: int = 0, reverse: bool = False) -> Any:
        turned = optree.tree_map(lambda leaf: leaf.movedim(dim, 0), elems)
        turned = optree.tree_map(lambda leaf: leaf.flip(0), turned) if reverse else turned
        rows = _rows(turned, None)
        if not rows:
            return elems
        results = rows[:1]
        for row in rows[1:]:
            results.append(fn(results[-1], row))
        stacked = _stacked(results[::-1] if reverse else results)
        return optree.tree_map(lambda leaf: leaf.movedim(0, dim), stacked)

    @staticmethod
    def vmap(f: Function, in_dims: Any = 0, out_dims: int = 0) -> Function:
        def lanes(*args: Any) -> Any:
            dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
            size = next(a.shape[d] for a, d in zip(args, dims) if d is not None)
            pick = lambda i: [a if d is None else a.select(d, i) for a, d in zip(args, dims)]
            outs = [f(*pick(i)) for i in range(size)]
            return optree.tree_map(lambda *rows: torch.stack(rows, out_dims), *outs)

        return lanes

    @staticmethod
    def jacfwd(f: Function, argnums: int = 0) -> Function:
        def columns(*args: Any) -> Any:
            point = args[argnums]
            at = lambda v: f(*args[:argnums], v, *args[argnums + 1 :])
            tangents = [torch.func.jvp(at, (point,), (e,))[1] for e in _basis(point)]
            return optree.tree_map(lambda *c: torch.stack(c, -1).reshape(*c[0].shape, *point.shape), *tangents)

        return columns

    @staticmethod
    def jacrev(f: Function, argnums: int = 0) -> Function:
        """Of a function to one tensor."""

        def rows(*args: Any) -> Any:
            out, pull = torch.func.vjp(lambda v: f(*args[:argnums], v, *args[argnums + 1 :]), args[argnums])
            return torch.stack([pull(e)[0] for e in _basis(out)]).reshape(*out.shape, *args[argnums].shape)

        return rows

    @staticmethod
    def hessian(f: Function, argnums: int = 0) -> Function:
        return Oracle.jacfwd(Oracle.jacrev(f, argnums), argnums)


class Strict(Oracle):
    """Also runs what is not taken, and raises if that does not fit. Results that programs write to are contiguous, as
    captured ones are: what depends on that has no one answer.
    """

    @staticmethod
    def checkpoint(f: Any) -> Any:
        own = lambda x: x.clone(memory_format=torch.contiguous_format)
        return lambda *args: optree.tree_map(own, f(*args))

    @staticmethod
    def cond(pred: Any, true_fn: Function, false_fn: Function, *operands: Any) -> Any:
        return Strict.switch(0 if pred else 1, [true_fn, false_fn], *operands)

    @staticmethod
    def switch(index: Any, branches: list[Function], *operands: Any) -> Any:
        outs = [branch(*operands) for branch in branches]
        for out in outs:
            _check_like(out, outs[0])
        return outs[min(max(int(index), 0), len(outs) - 1)]

    @staticmethod
    def while_loop(cond_fn: Any, body_fn: Any, value: Any, **options: Any) -> Any:
        value = _tensors(value)
        _check_like(body_fn(value), value)
        return Reference.while_loop(cond_fn, body_fn, value, **options)

    @staticmethod
    def fori_loop(lower: Any, upper: Any, body_fn: Any, value: Any, *, unroll: int = 1) -> Any:
        value = _tensors(value)
        _check_like(body_fn(torch.tensor(0), value), value)
        return Reference.fori_loop(lower, upper, body_fn, value)

    @staticmethod
    def scan(f: Any, carry: Any, xs: Any = None, length: int | None = None, **options: Any) -> Any:
        carry = _tensors(carry)
        rows = _rows(xs, length)
        _check_like(f(carry, rows[0] if rows else _zero_row(xs))[0], carry)
        return Oracle.scan(f, carry, xs, length, **options)


def _check_like(got: Any, expected: Any) -> None:
    described = lambda tree: optree.tree_map(lambda x: (x.shape, x.dtype) if isinstance(x, Tensor) else x, tree)
    if described(got) != described(expected):
        raise TypeError(f"{described(got)} for {described(expected)}")


def _basis(x: Tensor) -> list[Tensor]:
    return [row.reshape(x.shape) for row in torch.eye(x.numel(), dtype=x.dtype)]
