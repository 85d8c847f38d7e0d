"""Random programs, control flow in control flow: plain eager, captured, and the Python loops of the docstrings must
agree.

A program is a tuple of statements over a state ``{"x": float64[2], "s": float64[], "n": int64[]}``. Bodies read their
own state, the weights, and the states of all enclosing bodies, so every nesting closes over values at several depths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import optree
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from reference import Reference

State = dict[str, Tensor]
Statement = tuple[Any, ...]
Program = tuple[Statement, ...]
F64 = torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# programs

_numbers = st.sampled_from([-1.3, -0.4, 0.35, 0.8, 1.6])
_depths = st.integers(0, 3)
_simple = st.one_of(
    st.tuples(st.just("mix"), _depths, _numbers),
    st.tuples(st.just("turn"), _depths),
    st.tuples(st.just("weigh"), _numbers),
    st.tuples(st.just("write"), _depths),
    st.tuples(st.just("look up"), _depths),
    st.tuples(st.just("count")),
    st.tuples(st.just("detach")),
    st.tuples(st.just("return outer"), _depths),
)


def _programs(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    compound = st.one_of(
        st.tuples(st.just("cond"), _depths, _numbers, inner, inner),
        st.tuples(st.just("root")),
        st.tuples(st.just("switch"), st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.tuples(
            st.just("while"), _depths, _numbers, st.sampled_from([None, 2]), st.sampled_from([None, 1, 2]), inner
        ),
        st.tuples(st.just("fori"), st.booleans(), st.integers(0, 3), inner),
        st.tuples(st.just("scan"), st.booleans(), st.sampled_from([1, 2]), inner),
        st.tuples(st.just("map"), st.sampled_from([None, 2]), inner),
        st.tuples(st.just("checkpoint"), inner),
    )
    return st.tuples(compound, _simple) | st.tuples(_simple, compound) | st.tuples(compound)


_level0 = st.lists(_simple, min_size=1, max_size=2).map(tuple)
_level1 = _programs(_level0)
PROGRAMS = _programs(_level0 | _level1) | _programs(_level1 | _programs(_level0))


class Interpreter:
    """Runs a program with the operations of ``ops``; ``w`` are weights that every body may close over."""

    def __init__(self, ops: Any, w: Tensor) -> None:
        self.ops, self.w = ops, w

    def run(self, program: Program, state: State, outer: tuple[State, ...]) -> State:
        for kind, *arguments in program:
            state = getattr(self, "_" + kind.replace(" ", "_"))(state, (*outer, state), *arguments)
        return state

    def _body(self, program: Program, outer: tuple[State, ...]) -> Callable[[State], State]:
        return lambda state: self.run(program, state, outer)

    @staticmethod
    def _seen(outer: tuple[State, ...], depth: int) -> State:
        return outer[-1 - min(depth, len(outer) - 1)]

    # -- statements without control flow

    def _mix(self, s: State, outer: tuple[State, ...], depth: int, k: float) -> State:
        other = self._seen(outer, depth)
        return {
            **s,
            "x": torch.tanh(k * s["x"] + other["x"].flip(0) * self.w),
            "s": s["s"] * 0.5 + other["x"].sum() * k,
        }

    def _turn(self, s: State, outer: tuple[State, ...], depth: int) -> State:
        other = self._seen(outer, depth)
        return {**s, "x": torch.stack([torch.sin(s["x"][1]), other["s"] * s["x"][0].cos()])}

    def _weigh(self, s: State, outer: tuple[State, ...], k: float) -> State:
        return {**s, "s": torch.sin(self.w @ s["x"]) + k * s["s"].tanh()}

    def _write(self, s: State, outer: tuple[State, ...], depth: int) -> State:
        x = s["x"] * 0.9
        i = self._seen(outer, depth)["n"] % 2
        x = x.index_copy(0, i.reshape(1), s["s"].cos().reshape(1))
        x += 0.1
        return {**s, "x": x}

    def _look_up(self, s: State, outer: tuple[State, ...], depth: int) -> State:
        other = self._seen(outer, depth)
        return {**s, "s": torch.sin(s["s"] + _at(other["x"], s["n"] % 2)) + _at(self.w, other["n"] % 2)}

    def _count(self, s: State, outer: tuple[State, ...]) -> State:
        return {**s, "n": s["n"] * 2 + 1}

    def _detach(self, s: State, outer: tuple[State, ...]) -> State:
        return {**s, "x": s["x"] * s["s"].detach().cos()}

    def _return_outer(self, s: State, outer: tuple[State, ...], depth: int) -> State:
        other = self._seen(outer, depth)
        return {"x": other["x"], "s": s["s"], "n": other["n"]}

    # -- control flow

    def _cond(self, s: State, outer: tuple[State, ...], depth: int, k: float, yes: Program, no: Program) -> State:
        pred = self._seen(outer, depth)["s"] + s["x"][0] > k * 0.3
        result: State = self.ops.cond(pred, self._body(yes, outer), self._body(no, outer), s)
        return result

    def _root(self, s: State, outer: tuple[State, ...]) -> State:
        """Each branch is NaN, in value or gradient, where the other one is taken."""
        root = self.ops.cond(
            s["s"] > 0,
            lambda v: torch.sqrt(v) * torch.log(v + 1),
            lambda v: torch.sqrt(-v + 1) * self.w[0],
            s["s"],
        )
        return {**s, "s": root}

    def _switch(self, s: State, outer: tuple[State, ...], branches: tuple[Program, ...]) -> State:
        index = (s["s"] * 2).floor().to(torch.int64) + s["n"]
        result: State = self.ops.switch(index, [self._body(b, outer) for b in branches], s)
        return result

    def _while(
        self,
        s: State,
        outer: tuple[State, ...],
        depth: int,
        k: float,
        most: int | None,
        checkpoints: int | None,
        body: Program,
    ) -> State:
        bound = self._seen(outer, depth)["s"] * 0.2 + k + 1.5
        inner = self._body(body, outer)

        def step(carry: Any) -> Any:
            count, state = carry
            state = inner(state)
            return count + 1, {**state, "s": state["s"] + 0.3}

        go_on = lambda carry: (carry[0] < 3) & (carry[1]["s"] < bound)
        loop = self.ops.while_loop(go_on, step, (torch.tensor(0), s), max_steps=most, checkpoints=checkpoints)
        result: State = loop[1]
        return result

    def _fori(self, s: State, outer: tuple[State, ...], is_tensor: bool, upper: int, body: Program) -> State:
        inner = self._body(body, outer)

        def step(i: Tensor, state: State) -> State:
            state = inner({**state, "n": state["n"] + i})
            return {**state, "s": state["s"] * 0.5 + self.w[i % 2]}

        bound = (s["n"] % 3 + (s["s"] > 0)) if is_tensor else upper
        result: State = self.ops.fori_loop(0, bound, step, s)
        return result

    def _scan(self, s: State, outer: tuple[State, ...], reverse: bool, unroll: int, body: Program) -> State:
        inner = self._body(body, outer)
        xs = {"a": torch.stack([s["x"], self.w, s["x"].sin()]), "i": torch.arange(3)}

        def step(state: State, e: Any) -> Any:
            state = inner({**state, "x": state["x"] * 0.5 + e["a"], "n": state["n"] + e["i"]})
            return state, (state["s"], e["a"])

        state, ys = self.ops.scan(step, s, xs, reverse=reverse, unroll=unroll)
        return {**state, "s": state["s"] + ys[0][0] * ys[1][2, 0].sin()}

    def _map(self, s: State, outer: tuple[State, ...], batch_size: int | None, body: Program) -> State:
        inner = self._body(body, outer)

        def one(e: Any) -> Any:
            state = inner({**s, "x": e["a"], "s": e["b"]})
            return state["x"] * 0.5, state["s"].tanh()

        x, t = self.ops.map(
            one,
            {"a": torch.stack([s["x"], self.w, -s["x"]]), "b": s["s"] * torch.arange(3)},
            batch_size=batch_size,
        )
        return {**s, "x": x.sum(0), "s": t[1] + t[2]}

    def _checkpoint(self, s: State, outer: tuple[State, ...], body: Program) -> State:
        result: State = self.ops.checkpoint(self._body(body, outer))(s)
        return result


# ---------------------------------------------------------------------------------------------------------------------
# contexts

LANES = torch.tensor([[0.7, -0.2], [-0.5, 0.9], [1.2, 0.4]], dtype=F64)
WEIGHTS = torch.tensor([0.6, -0.8], dtype=F64)


def _function(ops: Any, program: Program) -> Callable[[Tensor, Tensor], State]:
    def f(w: Tensor, x: Tensor) -> State:
        state = {"x": x, "s": x.sum() * 0.7 - 0.1, "n": torch.tensor(1)}
        return Interpreter(ops, w).run(program, state, ())

    return f


def _loss(f: Callable[[Tensor, Tensor], State]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(w: Tensor, x: Tensor) -> Tensor:
        out = f(w, x)
        return out["x"] @ out["x"] + 1.7 * out["s"]

    return loss


def _by_lanes(f: Callable[[Tensor, Tensor], Any]) -> Any:
    outs = [f(WEIGHTS, x) for x in LANES]
    return optree.tree_map(lambda *rows: torch.stack(rows), *outs)


def _backward(loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    w, x = WEIGHTS.clone().requires_grad_(), LANES[0].clone().requires_grad_()
    out = loss(w, x)
    if not out.requires_grad:
        return torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
    return torch.autograd.grad(out, (w, x), materialize_grads=True)


def _at(table: Tensor, i: Tensor) -> Tensor:
    """``table[i]``, in a way that torch's vmap can do in plain eager."""
    return table.index_select(0, i.reshape(1)).squeeze(0)


_both = (0, 1)
CONTEXTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    # the library's way and the oracle's
    "value": (lambda f: f(WEIGHTS, LANES[0]), lambda f: f(WEIGHTS, LANES[0])),
    "backward": (lambda f: _backward(_loss(f)), lambda f: _backward(_loss(f))),
    "grad": (
        lambda f: fh.grad(_loss(f), _both)(WEIGHTS, LANES[1]),
        lambda f: torch.func.grad(_loss(f), _both)(WEIGHTS, LANES[1]),
    ),
    "jvp": (
        lambda f: fh.jvp(_loss(f), (WEIGHTS, LANES[2]), (WEIGHTS, LANES[0])),
        lambda f: torch.func.jvp(_loss(f), (WEIGHTS, LANES[2]), (WEIGHTS, LANES[0])),
    ),
    "vmap": (lambda f: fh.vmap(f, in_dims=(None, 0))(WEIGHTS, LANES), _by_lanes),
    "vmap(grad)": (
        lambda f: fh.vmap(fh.grad(_loss(f), _both), in_dims=(None, 0))(WEIGHTS, LANES),
        lambda f: _by_lanes(torch.func.grad(_loss(f), _both)),
    ),
    "grad(vmap)": (
        lambda f: fh.grad(lambda w: fh.vmap(_loss(f), in_dims=(None, 0))(w, LANES).sum())(WEIGHTS),
        lambda f: _by_lanes(torch.func.grad(_loss(f))).sum(0),
    ),
    "hessian": (
        lambda f: fh.hessian(_loss(f))(WEIGHTS, LANES[0]),
        lambda f: _hessian(lambda w: _loss(f)(w, LANES[0])),
    ),
}


def _hessian(loss: Callable[[Tensor], Tensor]) -> Tensor:
    directions = torch.eye(2, dtype=F64)
    return torch.stack([torch.func.jvp(torch.func.grad(loss), (WEIGHTS,), (d,))[1] for d in directions], -1)


def _check(program: Program, context: str) -> None:
    by_library, by_oracle = CONTEXTS[context]
    expected = by_oracle(_function(Reference, program))
    f = _function(fh, program)
    torch.testing.assert_close(by_library(f), expected, rtol=1e-8, atol=1e-10)
    with fh.eager_capture():
        got = by_library(f)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("context", CONTEXTS)
@hypothesis.settings(max_examples=10)
@hypothesis.given(program=PROGRAMS)
def test_programs(program: Program, context: str) -> None:
    _check(program, context)
