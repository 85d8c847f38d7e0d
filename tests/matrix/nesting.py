"""Every operation inside every other.

Each operation here is a combinator: it takes a step, a function of a vector, and makes a function of a vector that runs
the step inside its body, between work of its own that closes over the weights. So any operations nest in any depth. The
combinators are written over a namespace: the library's functions, or ``Reference``, the loops of their docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import functorch_hops as fh

from .operations import Weights

Step = Callable[[Tensor], Tensor]


class Library:
    """The functions under test."""

    cond, switch, while_loop, fori_loop, scan = fh.cond, fh.switch, fh.while_loop, fh.fori_loop, fh.scan
    associative_scan, map, checkpoint = fh.associative_scan, fh.map, fh.checkpoint

    @staticmethod
    def jit(f: Any) -> Any:
        return fh.jit(f, backend="eager")


# ---------------------------------------------------------------------------------------------------------------------
# combinators: (namespace, weights, step) -> step


def _cond(ns: Any, p: Weights, step: Step) -> Step:
    return lambda v: ns.cond(v[0] + v[1] > 0.1, lambda u: step(u) * p["b"], lambda u: torch.sin(u) + p["b"], v)


def _switch(ns: Any, p: Weights, step: Step) -> Step:
    index = lambda v: (v.sum() * 2).floor().to(torch.int64) + 1
    return lambda v: ns.switch(index(v), [lambda u: u * p["b"], lambda u: p["b"] - step(u), step], v)


def _while_loop(ns: Any, p: Weights, step: Step) -> Step:
    def body(state: Any) -> Any:
        n, u = state
        return n + 1, u * 1.4 + 0.2 * torch.tanh(step(u)) + 0.1 * p["b"]

    small = lambda state: (state[0] < 3) & ((state[1] ** 2).sum() < 6)
    return lambda v: ns.while_loop(small, body, (torch.tensor(0), v))[1]


def _fori_loop(ns: Any, p: Weights, step: Step) -> Step:
    return lambda v: ns.fori_loop(0, 2, lambda i, u: torch.tanh(step(u) * (i + 1)) + p["b"][i] * u, v)


def _scan(ns: Any, p: Weights, step: Step) -> Step:
    def body(u: Tensor, row: Tensor) -> Any:
        new = torch.tanh(row * u + step(u))
        return new, new.sum() * u

    def run(v: Tensor) -> Tensor:
        carry, ys = ns.scan(body, v, p["w"][:2])
        return carry + ys.sum(0)

    return run


def _associative_scan(ns: Any, p: Weights, step: Step) -> Step:
    """``a + b + s a b`` is associative for any ``s`` that does not depend on the elements."""

    def run(v: Tensor) -> Tensor:
        s = torch.tanh(step(v))
        return ns.associative_scan(lambda a, b: a + b + s * a * b * p["b"], torch.stack([v, v.sin(), v * 0.5]))[-1]

    return run


def _map(ns: Any, p: Weights, step: Step) -> Step:
    return lambda v: ns.map(lambda row: step(row * v + p["b"]), p["w"]).mean(0)


def _checkpoint(ns: Any, p: Weights, step: Step) -> Step:
    return ns.checkpoint(lambda v: torch.sin(step(v.cos()) * p["b"]) + v)


def _jit(ns: Any, p: Weights, step: Step) -> Step:
    return ns.jit(lambda v: torch.tanh(step(v) + p["b"]) * v)


COMBINATORS: dict[str, Callable[[Any, Weights, Step], Step]] = {
    "cond": _cond,
    "switch": _switch,
    "while_loop": _while_loop,
    "fori_loop": _fori_loop,
    "scan": _scan,
    "associative_scan": _associative_scan,
    "map": _map,
    "checkpoint": _checkpoint,
    "jit": _jit,
}


def nested(namespace: Any, names: tuple[str, ...]) -> Callable[[Weights, Tensor], Tensor]:
    """The program in which each operation runs inside the one before it, around a small step."""

    def program(p: Weights, x: Tensor) -> Tensor:
        step: Step = lambda v: torch.tanh(p["w"] @ v)
        for name in reversed(names):
            step = COMBINATORS[name](namespace, p, step)
        return step(x)

    return program
