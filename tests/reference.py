"""The operations as their docstrings define them, in plain Python: the oracle of programs that are written once over a
namespace, ``functorch_hops`` or ``Reference``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch


class Reference:
    """What each operation means, in Python."""

    @staticmethod
    def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
        return true_fn(*operands) if pred else false_fn(*operands)

    @staticmethod
    def switch(index: Any, branches: list[Callable[..., Any]], *operands: Any) -> Any:
        return branches[min(max(int(index), 0), len(branches) - 1)](*operands)

    @staticmethod
    def while_loop(cond_fn: Any, body_fn: Any, value: Any, *, max_steps: int | None = None) -> Any:
        steps = 0
        while (max_steps is None or steps < max_steps) and cond_fn(value):
            value, steps = body_fn(value), steps + 1
        return value

    @staticmethod
    def fori_loop(lower: Any, upper: Any, body_fn: Any, value: Any, *, unroll: int = 1) -> Any:
        for i in range(int(lower), int(upper)):
            value = body_fn(torch.tensor(i), value)
        return value

    @staticmethod
    def scan(f: Any, carry: Any, xs: Any, *, reverse: bool = False, unroll: int = 1) -> Any:
        rows = [optree.tree_map(lambda leaf, t=t: leaf[t], xs) for t in range(optree.tree_leaves(xs)[0].shape[0])]
        ys = []
        for row in reversed(rows) if reverse else rows:
            carry, y = f(carry, row)
            ys.append(y)
        return carry, optree.tree_map(lambda *c: torch.stack(c), *(reversed(ys) if reverse else ys))

    @staticmethod
    def map(f: Any, xs: Any, *, batch_size: int | None = None) -> Any:
        size = optree.tree_leaves(xs)[0].shape[0]
        outs = [f(optree.tree_map(lambda leaf, t=t: leaf[t], xs)) for t in range(size)]
        return optree.tree_map(lambda *c: torch.stack(c), *outs)

    @staticmethod
    def associative_scan(fn: Any, elems: Any) -> Any:
        size = optree.tree_leaves(elems)[0].shape[0]
        rows = [optree.tree_map(lambda leaf, t=t: leaf[t], elems) for t in range(size)]
        results = rows[:1]
        for row in rows[1:]:
            results.append(fn(results[-1], row))
        return optree.tree_map(lambda *c: torch.stack(c), *results)

    @staticmethod
    def checkpoint(f: Any) -> Any:
        return f

    @staticmethod
    def jit(f: Any) -> Any:
        return f
