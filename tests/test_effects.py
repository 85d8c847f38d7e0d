"""Operators that check something, and whose results nobody reads, stay in every graph and raise as in eager Python.

``torch.linalg.inv`` is ``linalg_inv_ex``, whose result comes with an error code, and a check of that code.
"""

from __future__ import annotations

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, same

EYE = 2 * torch.eye(2, dtype=torch.float64)
SINGULAR = torch.zeros(2, 2, dtype=torch.float64)
START = torch.ones(2, dtype=torch.float64)


def solved(rows):
    return fh.scan(lambda c, a: (torch.linalg.solve(a, c), None), START, rows)[0]


def grown(x):
    return fh.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, torch.linalg.inv(s[1])), (0, x))[1]


def in_a_branch(x):
    return fh.cond(x.sum() < 9, lambda x: (torch.linalg.inv(x), x)[1], lambda x: x, x)


def rows(x):
    return torch.stack([EYE, x, EYE])


PROGRAMS = {
    "a result nobody reads": lambda x: (torch.linalg.inv(x), x * 1)[1],
    "cholesky": torch.linalg.cholesky,
    "scan": lambda x: solved(rows(x)),
    "map": lambda x: fh.map(torch.linalg.inv, rows(x)),
    "while_loop": grown,
    "cond that only checks": in_a_branch,
    "switch that only checks": lambda x: fh.switch(x.sum().long() * 0, [in_a_branch, lambda x: x, lambda x: x], x),
    "checkpoint": fh.checkpoint(torch.linalg.inv),
    "associative_scan": lambda x: fh.associative_scan(lambda a, b: torch.linalg.inv(a) @ b, rows(x)),
    "a value that is the same in all steps": lambda x: fh.fori_loop(0, 2, lambda i, c: c + torch.linalg.inv(x), x),
}

TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: fh.grad(lambda x: f(x).sum()),
    "jvp": lambda f: lambda x: fh.jvp(f, (x,), (x,)),
    "hessian": lambda f: fh.hessian(lambda x: f(x).sum()),
    "vmap": lambda f: lambda x: fh.vmap(f)(torch.stack([EYE, x])),
}


@every_mode
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_check_that_fails_raises(name, transform, run):
    f = TRANSFORMS[transform](PROGRAMS[name])
    run(f, EYE)
    with pytest.raises(torch.linalg.LinAlgError):
        run(f, SINGULAR if name != "cholesky" else -EYE)


@every_mode
def test_an_assertion_is_kept(run):
    def running(xs):
        def step(c, x):
            torch._assert_async(c < 2.5, "the sum is too large")
            return c + x, None

        return fh.scan(step, torch.tensor(0.0), xs)[0]

    same(run(running, torch.ones(3)), torch.tensor(3.0))
    for f in (running, fh.grad(running)):
        with pytest.raises(RuntimeError, match="the sum is too large"):
            run(f, torch.ones(5))


@every_mode
def test_what_a_lane_does_not_take_is_not_checked(run):
    f = fh.vmap(lambda x: fh.cond(x.sum() > 0, torch.linalg.inv, lambda x: x * 1, x))
    same(run(f, torch.stack([EYE, SINGULAR])), torch.stack([EYE / 4, SINGULAR]))
    same(run(f, torch.stack([SINGULAR, SINGULAR])), torch.stack([SINGULAR, SINGULAR]))


@every_mode
def test_a_loop_of_no_step_checks_nothing(run):
    f = lambda x: fh.fori_loop(0, x.sum().long() * 0, lambda i, c: c + torch.linalg.inv(x), x * 1)
    same(run(f, SINGULAR), SINGULAR)


@every_mode
def test_recomputation_and_the_backward_pass_leave_a_good_value_alone(run):
    f = lambda x: fh.checkpoint(lambda x: torch.linalg.inv(x).sin())(x).sum()
    same(run(fh.grad(f), EYE), torch.func.grad(lambda x: torch.linalg.inv(x).sin().sum())(EYE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scan", "while_loop", "cond that only checks", "switch that only checks", "map"])
def test_compiled(name):
    for f in (PROGRAMS[name], TRANSFORMS["grad"](PROGRAMS[name])):
        compiled = fh.jit(f)
        same(compiled(EYE), f(EYE))
        with pytest.raises(torch.linalg.LinAlgError):
            compiled(SINGULAR)
