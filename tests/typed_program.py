"""A program of a user who checks types: `make release-check` checks and runs it with the wheel alone."""

# pyright: strict

from typing import assert_type

import torch
from torch import Tensor

import functorch_hops as fh


def energy(x: Tensor, stiffness: float = 1.0) -> Tensor:
    def step(state: Tensor, _: None) -> tuple[Tensor, None]:
        return state - 0.1 * stiffness * state, None

    state, _ = fh.scan(fh.annotate(step, name="relaxed"), x, length=3)
    return torch.as_tensor(state).square().sum()


compiled = fh.jit(energy, backend="eager")
assert_type(compiled(torch.ones(2), 2.0), Tensor)
assert_type(compiled.cache_info().misses, int)
assert_type(fh.jit(fh.vmap(energy), backend="eager")(torch.ones(3, 2)), Tensor)


def misuse() -> None:
    compiled("no tensor")  # type: ignore[arg-type]
