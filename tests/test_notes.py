"""An exception of the user's code in a body says in which operation and step it was raised, and what may be meant."""

from __future__ import annotations

import inspect

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, plain, while_capturing

X = torch.arange(4.0)


class UserError(Exception):
    pass


def fails_at(number):
    def fail(c, i):
        if int(i) == number:
            raise UserError("mine")
        return c

    return fail


def fails(*_):
    raise UserError("mine")


LOOPS = {
    "scan": lambda f: fh.scan(lambda c, x: (f(c, x), None), 0.0, X),
    "map": lambda f: fh.map(lambda x: f(x, x), X),
    "fori_loop": lambda f: fh.fori_loop(0, 4, lambda i, c: f(c, i), 0.0),
    "while_loop": lambda f: fh.while_loop(lambda s: s[1] < 4, lambda s: (f(s[0], s[1]), s[1] + 1), (0.0, 0))[0],
}


def notes_of(call) -> list[str]:
    with pytest.raises(Exception) as caught:
        call()
    return getattr(caught.value, "__notes__", [])


def line_of(function) -> int:
    return inspect.getsourcelines(function)[1]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_step_of_a_plain_loop(loop) -> None:
    function = LOOPS[loop]
    place = f"{__file__}:{line_of(function)}"
    assert notes_of(lambda: function(fails_at(2))) == [f"in step 2 of {loop}, called at {place}"]


@while_capturing
@pytest.mark.parametrize("loop", LOOPS)
def test_a_captured_loop(loop, run) -> None:
    function = LOOPS[loop]
    assert notes_of(lambda: run(lambda: function(fails))) == [f"in {loop}, called at {__file__}:{line_of(function)}"]


@every_mode
def test_the_nesting(run) -> None:
    def f(xs):
        branch = lambda: fh.cond(torch.tensor(True), fails, fails)
        return fh.scan(lambda c, x: (fh.fori_loop(0, 2, lambda i, c: branch(), c), None), 0.0, xs)

    words = [note.partition(",")[0] for note in notes_of(lambda: run(f, X))]
    steps = ["in cond", "in step 0 of fori_loop", "in step 0 of scan"]
    assert words == (steps if run is plain else ["in cond", "in fori_loop", "in scan"])


@every_mode
def test_operands_in_a_tuple_as_for_torch_cond(run) -> None:
    calls = (
        lambda: fh.cond(torch.tensor(True), lambda x: x.sin(), lambda x: x.cos(), (X,)),
        lambda: fh.cond(torch.tensor(True), lambda x, y: x + y, lambda x, y: x - y, (X, X)),
        lambda: fh.cond(torch.tensor(True), torch.sin, torch.cos, (X,)),
    )
    for call in calls:
        assert any("takes operands one by one" in note for note in notes_of(lambda call=call: run(call)))


@every_mode
def test_a_carry_in_parts_as_for_torch_while_loop(run) -> None:
    call = lambda: fh.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (torch.tensor(0), X))
    assert any("as one argument, a tuple" in note for note in notes_of(lambda: run(call)))


@every_mode
def test_our_own_errors_and_interrupts_get_none(run) -> None:
    assert notes_of(lambda: run(lambda: fh.scan(lambda c, x: (c, x, c), 0.0, X))) == []

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(lambda: fh.scan(interrupted, 0.0, X))
    assert not hasattr(caught.value, "__notes__")
