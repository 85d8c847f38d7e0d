"""Graphs that are one kernel, loops and what is around them: which are, and that they compute what eager does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from loop_plans import normal
from modes import same

C, XS = normal(40), normal(7, 40, seed=1)


def decaying(c: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda c, x: (c * 0.9 + torch.tanh(x), c), c, xs)


WHOLE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "work before and behind": (lambda c, xs: decaying(c.exp() + 1, xs * 2)[1].sum(0).softmax(0), (C, XS)),
    "a gradient": (lambda c, xs: fh.grad(lambda c: decaying(c, xs)[1].square().mean())(c), (C, XS)),
    "a while and its gradient": (
        lambda c, xs: fh.grad(
            lambda c: fh.while_loop(lambda y: y.abs().max() > 0.1, lambda y: torch.sin(y) * 0.8 + xs[0] * 0, c).sum()
        )(c),
        (C, XS),
    ),
    "two loops": (lambda c, xs: decaying(decaying(c, xs)[0], xs.flip(0)), (C, XS)),
    "lanes that end at different steps": (
        fh.vmap(lambda a: fh.while_loop(lambda y: abs(y**3 - a) > 1e-3, lambda y: y - (y**3 - a) / (3 * y**2), a)),
        (torch.linspace(0.2, 90, 133),),
    ),
    "a branch": (
        lambda c, xs: fh.cond(c.sum() > 0, lambda c: decaying(c, xs)[0], torch.sin, c) + decaying(c, xs)[0],
        (C, XS),
    ),
    "operands that are not dense": (lambda c, xs: decaying(c[::2], xs[:, 1::2]), (C, XS)),
    "an operand as it is": (lambda c, xs: (c, decaying(c, xs)[0], xs[2:], c), (C, XS)),
    "a result of another layout": (lambda c, xs: decaying(c, xs)[1].t(), (C, XS)),
    "numbers and masks": (lambda c, xs: (decaying(c, xs)[0].sum(), c > 0, (c * 3).long()), (C, XS)),
    "a tensor without elements": (lambda c, xs: (decaying(c, xs)[0], c[:0], c[:0].sum()), (C, XS)),
    "a product outside": (lambda c, xs: decaying(c, xs)[1] @ xs.t(), (C, XS)),
}


@pytest.mark.usefixtures("no_graph_around")
@pytest.mark.parametrize("name", WHOLE)
def test_one_kernel_computes_all(name: str) -> None:
    f, args = WHOLE[name]
    same(fh.jit(f)(*args), f(*args))


@pytest.mark.usefixtures("no_graph_around")
def test_results_have_memory_of_their_own() -> None:
    def ends(c: Tensor) -> Any:
        return c, decaying(c, XS)[0], decaying(c, XS[:0])[0]

    c, f = C.clone(), fh.jit(ends)
    same_c, end, no_step = f(c)
    assert same_c is c
    end.zero_()
    no_step.zero_()
    same(f(c), ends(C))


def test_an_operand_without_memory() -> None:
    """Such as tangents that are zero, of which compiled code would read at address 0."""
    f = fh.jit(lambda c: decaying(c, XS)[0])
    for c in (C, torch._efficientzerotensor(C.shape)):
        same(f(c), decaying(torch.zeros_like(C) + c, XS)[0])


DIVISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": lambda n: 6 // n,
    "remainder": lambda n: 6 % n,
    "truncated": lambda n: torch.div(6, n, rounding_mode="trunc"),
}


@pytest.mark.usefixtures("no_graph_around")
@pytest.mark.parametrize("name", DIVISIONS)
def test_what_fails_outside_of_the_loops_raises(name: str) -> None:
    divided = DIVISIONS[name]
    f = fh.jit(lambda c, n: (decaying(c, XS)[0], divided(n)))
    n = torch.tensor([2, -4])
    same(f(C, n)[1], divided(n))
    if torch.__version__ >= (2, 13):  # before, Inductor's integer division by zero ends the process
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            f(C, torch.tensor([2, 0]))


LEFT_TO_INDUCTOR: dict[str, Callable[..., Any]] = {
    "much work": lambda c, xs: (decaying(c, xs)[0], torch.outer(c.repeat(200), c.repeat(200)).sin().mean()),
    "no loop": lambda c, xs: c + xs,
    "an operator of a library": lambda c, xs: (decaying(c, xs)[0], torch.geqrf(xs)[1]),
}


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("no_graph_around", "threads")
@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("name", LEFT_TO_INDUCTOR)
def test_what_is_left_to_inductor(name: str) -> None:
    with pytest.raises(AssertionError, match="asked for a graph"):
        fh.jit(LEFT_TO_INDUCTOR[name])(C, XS)


@pytest.mark.usefixtures("no_graph_around", "threads")
@pytest.mark.parametrize("threads", [1], indirect=True)
def test_one_thread_has_no_use_for_kernels_apart() -> None:
    f = LEFT_TO_INDUCTOR["much work"]
    same(fh.jit(f)(C, XS), f(C, XS))
