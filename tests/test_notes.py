"""An exception of the user's code in a body says in which operation and step it was raised, and what may be meant."""

from __future__ import annotations

import inspect

import numpy as np
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


WRONG_BODIES = {
    "scan calls f(carry, x)": lambda: fh.scan(lambda c: (c, c), 0.0, X),
    "map calls f(x)": lambda: fh.map(lambda x, y: x + y, (X, X)),
    "fori_loop calls body_fn(i, carry)": lambda: fh.fori_loop(0, 3, lambda x: x, X),
    "while_loop calls cond_fn(carry)": lambda: fh.while_loop(lambda: False, lambda x: x, X),
    "cond calls true_fn(*operands)": lambda: fh.cond(torch.tensor(True), lambda x: x, lambda x: x),
    "associative_scan calls fn(left, right)": lambda: fh.associative_scan(torch.sin, X),
}


@every_mode
@pytest.mark.parametrize("words", WRONG_BODIES)
def test_a_body_that_takes_other_arguments(words, run) -> None:
    assert any(words in note for note in notes_of(lambda: run(WRONG_BODIES[words])))


@every_mode
def test_a_type_error_of_the_body_says_nothing_of_its_arguments(run) -> None:
    calls = (lambda c, x: (len(3), x), lambda c, x: (torch.sin(None), x))
    for body in calls:
        notes = notes_of(lambda body=body: run(lambda: fh.scan(body, 0.0, X)))
        assert notes and not any("help" in note for note in notes)


def test_a_call_that_does_not_fit_the_parameters() -> None:
    calls = {
        "while_loop(cond_fn, body_fn, init_val": lambda: fh.while_loop(lambda i: i < 3, lambda i: i, 0, X),
        "scan(f, init, xs": lambda: fh.scan(lambda c, x: (c, x), X, lenght=3),
        "check(pred, text": lambda: fh.debug.check(X.sum() > 0),
    }
    for words, call in calls.items():
        assert any(words in note for note in notes_of(call))


@every_mode
def test_an_attribute_of_arrays(run) -> None:
    bodies = {"x.clone()": lambda x: x.at[0].set(1.0), "x.to(dtype)": lambda x: x.astype(int)}
    for words, body in bodies.items():
        assert any(words in note for note in notes_of(lambda body=body: run(lambda: fh.map(body, X))))
        assert any(words in note for note in notes_of(lambda body=body: fh.jit(body)(X)))


@every_mode
def test_our_own_errors_and_interrupts_get_none(run) -> None:
    assert notes_of(lambda: run(lambda: fh.scan(lambda c, x: (c, x, c), 0.0, X))) == []

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(lambda: fh.scan(interrupted, 0.0, X))
    assert not hasattr(caught.value, "__notes__")


@every_mode
def test_python_that_a_graph_calls(run) -> None:
    def seen(c):
        if c > 1:
            raise UserError("mine")

    ways = {
        "debug.callback": lambda c: fh.debug.callback(seen, c),
        "debug.print": lambda c: fh.debug.print("{:d}", c),  # of a float
        "debug.check": lambda c: fh.debug.check(c < 2, "{:d}", c),
    }
    steps = {"debug.callback": 2, "debug.print": 0, "debug.check": 2}
    for name, way in ways.items():
        step = lambda c, _, way=way: (way(c), (c + 1, None))[1]
        notes = notes_of(lambda step=step: run(lambda x: fh.scan(step, x, length=4)[0], torch.tensor(0.0)))
        assert notes[0] == f"in {name}, iteration {steps[name]}, called at {__file__}:{line_of(way)}"
    notes = notes_of(lambda: run(fh.vmap(lambda x: fh.debug.callback(seen, x)), torch.tensor([0.0, 2.0])))
    assert notes[0].startswith("in debug.callback, lane 1, called at ")


@every_mode
def test_a_callback_without_its_result_shape(run) -> None:
    in_place, hint = notes_of(lambda: run(lambda x: fh.pure_callback(np.sin, x), X))
    assert in_place.startswith(f"in pure_callback, called at {__file__}:")
    assert hint == "help: pure_callback calls f with the arguments behind result_shape"
