"""Numbers that steps return of all lanes: NOTE [Late reductions]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from loop_plans import Program, check, normal, taken


def chain(x: Tensor, noise: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Metropolis steps, and the mean of the places."""

    def step(x: Tensor, row: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        proposed = x + 0.5 * row[0]
        density = lambda x: -(x * x).sum(1) / 2
        accepted = row[1] < (density(proposed) - density(x)).exp()
        x = torch.where(accepted[:, None], proposed, x)
        return x, x.mean()

    return fh.scan(step, x, (noise, draws))


def scan_with(number: Callable[[Tensor, Tensor, Tensor], Any], **options: bool) -> Callable[..., Any]:
    """A loop over lanes that returns besides what ``number`` makes of the carry, a number of the row and another."""

    def f(c: Tensor, xs: Tensor, scale: Tensor) -> Any:
        def step(c: Tensor, x: Tensor) -> tuple[Tensor, Any]:
            c = torch.tanh(0.9 * c + x)
            return c, number(c, x, scale)

        return fh.scan(step, c, xs, **options)

    return f


VALUES = normal(20), normal(9, seed=1), torch.tensor(0.5)
LATE: dict[str, Program] = {
    "a chain": (chain, (normal(24, 3), normal(7, 24, 3, seed=1), torch.rand(7, 24))),
    "sum": (scan_with(lambda c, x, scale: c.sum()), VALUES),
    "backwards": (scan_with(lambda c, x, scale: c.sum(), reverse=True), VALUES),
    "no step": (scan_with(lambda c, x, scale: c.sum()), (normal(20), normal(0), torch.tensor(0.5))),
    "dims": (scan_with(lambda c, x, scale: (c * c).reshape(4, 5).mean((0, 1))), VALUES),
    "largest and smallest": (scan_with(lambda c, x, scale: (c.amax(), c.amin())), VALUES),
    "of numbers": (scan_with(lambda c, x, scale: torch.sqrt(c.sum() ** 2 + scale) + x * (c * c).mean()), VALUES),
    "beside lanes": (scan_with(lambda c, x, scale: (c * scale, c.mean(), c)), VALUES),
    "integers": (scan_with(lambda c, x, scale: (c > 0).long().sum()), VALUES),
}
NOT_LATE: dict[str, Program] = {
    "read by the next step": (
        lambda c, xs: fh.scan(lambda c, x: ((c[0] + x, (s := c[0].mean() + c[1])), s), (c, xs[0]), xs),
        (normal(20), normal(9)),
    ),
    "in two precisions": (scan_with(lambda c, x, scale: c.sum().double() * scale), VALUES),
    "many bytes": (scan_with(lambda c, x, scale: c.sum()), (normal(4096), normal(100), torch.tensor(0.5))),
    "of other lanes": (scan_with(lambda c, x, scale: c.flip(0).cumsum(0).sum()), VALUES),
}


@pytest.mark.parametrize("name", LATE)
def test_loops_over_lanes(name: str) -> None:
    f, args = LATE[name]
    expected = ["lanes"] if name != "no step" else ["native"]
    assert taken(check(f, *args, rtol=1e-5, atol=1e-5)) == expected


@pytest.mark.parametrize("name", NOT_LATE)
def test_reductions_in_steps(name: str) -> None:
    f, args = NOT_LATE[name]
    assert taken(check(f, *args, rtol=1e-5, atol=1e-5)) == ["steps"]


@pytest.mark.slow
def test_gradient() -> None:
    f, args = LATE["of numbers"]
    both = fh.value_and_grad(lambda *args: f(*args)[1].square().sum(), argnums=(0, 1, 2))
    assert "lanes" in taken(check(both, *args, rtol=1e-4, atol=1e-4))


@pytest.mark.slow
def test_inside_another_loop() -> None:
    inner = scan_with(lambda c, x, scale: c.mean())

    def f(c: Tensor, xs: Tensor, scale: Tensor) -> Any:
        return fh.scan(lambda c, _: inner(c, xs, scale), c, None, length=3)

    check(f, *VALUES, rtol=1e-5, atol=1e-5)
