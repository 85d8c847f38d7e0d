"""Tracebacks hold the user's frames, and at most one of the library between two of them."""

from __future__ import annotations

import os
import traceback

import pytest
import torch

import functorch_hops as fh

HERE = os.path.basename(__file__)
XS = torch.ones(2)


def fails(c, x):
    raise KeyError("mine")


def fails_on_shapes(c, x):
    return torch.nn.functional.linear(c, torch.ones(3, 3)), None


WAYS = {
    "plain": lambda f: f,
    "jit": lambda f: fh.jit(f, backend="eager"),
    "vmap": lambda f: lambda xs: fh.vmap(f)(xs[None]),
    "grad": lambda f: fh.grad(lambda xs: f(xs).sum()),
    "jitted grad": lambda f: fh.jit(fh.grad(lambda xs: f(xs).sum()), backend="eager"),
    "checkpoint": fh.checkpoint,
    "jvp": lambda f: lambda xs: fh.jvp(f, (xs,), (xs,)),
    "vjp": lambda f: lambda xs: fh.vjp(f, xs),
    "linearize": lambda f: lambda xs: fh.linearize(f, xs),
    "hessian": lambda f: fh.hessian(lambda xs: f(xs).sum()),
    "lower": lambda f: fh.jit(f).lower,
    "make_graph": fh.make_graph,
    "explain": fh.explain,
    "find_nan": fh.debug.find_nan,
    "jitted module": lambda f: fh.jit(Calling(f), backend="eager"),
}


class Calling(torch.nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, xs):
        return self.f(xs)


def nested(body):
    return lambda xs: fh.map(lambda x: fh.scan(body, torch.zeros(2), xs)[0], xs)


def caught(f, *args) -> BaseException:
    with pytest.raises(Exception) as error:
        f(*args)
    return error.value


def files(error: BaseException) -> list[str]:
    return [os.path.basename(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]


def most_between(names: list[str]) -> int:
    """The longest run of other files' frames between two of this file."""
    last = len(names) - names[::-1].index(HERE)
    runs = "".join("u" if name == HERE else "l" for name in names[names.index(HERE) : last])
    return max(map(len, runs.split("u")))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", [fails, fails_on_shapes])
def test_at_most_three_frames_between_call_and_body(way, body) -> None:
    f = WAYS[way](nested(body))
    names = files(caught(f, XS))
    assert most_between(names) <= 3
    assert names.count(HERE) >= 4
    with fh.full_tracebacks():
        assert most_between(files(caught(f, XS))) > 3
    assert most_between(files(caught(f, XS))) <= 3


def test_what_was_raised_where_stays() -> None:
    assert files(caught(nested(fails), XS))[-1] == HERE
    assert (
        files(caught(nested(fails_on_shapes), XS))[-1] == HERE
        or "functional" in files(caught(nested(fails_on_shapes), XS))[-1]
    )
    mistake = caught(fh.scan, lambda c, x: c, torch.zeros(2), XS)
    assert isinstance(mistake, fh.TreeMismatchError) and len(files(mistake)) <= 3


def test_causes_contexts_and_groups_are_shortened_and_kept() -> None:
    def body(c, x):
        try:
            fh.scan(fails, c, XS)
        except KeyError as error:
            try:
                fh.map(lambda x: 1 / 0, XS)
            except ZeroDivisionError as second:
                group = ExceptionGroup("both", [error, second])
                raise RuntimeError("outer") from group
        return c, x

    error = caught(fh.scan, body, torch.zeros(2), XS)
    group = error.__cause__
    assert isinstance(error, RuntimeError) and isinstance(group, ExceptionGroup)
    assert isinstance(error.__context__, ZeroDivisionError) and error.__suppress_context__
    assert [type(part) for part in group.exceptions] == [KeyError, ZeroDivisionError]
    assert isinstance(group.exceptions[1].__context__, KeyError)
    for part in (error, *group.exceptions):
        assert most_between(files(part)) <= 3 and files(part)[-1] == HERE
    assert "in step 0 of scan" in "".join(error.__notes__)
