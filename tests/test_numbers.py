"""Python numbers that bodies return, and those that a loop begins with: the same tensors in every mode."""

import decimal

import numpy as np
import pytest
import torch

import functorch_hops as fh
from modes import captured, every_mode, jitted, plain, same, while_capturing

F64 = torch.float64
NUMBERS = [
    (True, torch.bool),
    (3, torch.int64),
    (0.5, torch.float32),
    (1j, torch.complex64),
    (float("nan"), torch.float32),
    (np.float64(0.5), torch.float32),
    (np.int8(3), torch.int64),
]
numbers = pytest.mark.parametrize(("number", "dtype"), NUMBERS)


def agree(f, *args):
    """The result, which is the same in every mode, dtypes included."""
    result = plain(f, *args)
    for run in (captured, jitted):
        torch.testing.assert_close(run(f, *args), result, equal_nan=True)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# numbers that a body returns


@every_mode
@numbers
def test_a_branch_returns_a_number(run, number, dtype):
    def f(x):
        branch = lambda: {"y": (number, "tag")}
        return [
            fh.cond(x > 0, branch, branch),
            fh.cond(True, branch, branch),
            fh.switch(x.long(), [branch, branch]),
            fh.switch(1, [branch, branch]),
        ]

    for out in run(f, torch.tensor(1.0)):
        y, tag = out["y"]
        same(y, torch.tensor(number, dtype=dtype), equal_nan=True)
        assert tag == "tag"


@every_mode
@numbers
def test_a_step_returns_a_number_as_output(run, number, dtype):
    def f(xs):
        _, (ys, tag) = fh.scan(lambda c, x: (c, (number, "tag")), xs[0], xs, reverse=True)
        assert tag == "tag"
        return ys, fh.map(lambda x: number, xs), fh.map(lambda x: number, xs, batch_size=2)

    for ys in run(f, torch.arange(3.0)):
        same(ys, torch.full((3,), number, dtype=dtype), equal_nan=True)


@every_mode
def test_numbers_and_tensors_from_two_branches(run):
    f = lambda x: fh.cond(x > 0, lambda: x * 2, lambda: 0.0)
    same(run(f, torch.tensor(1.5)), torch.tensor(3.0))
    same(run(f, torch.tensor(-1.5)), torch.tensor(0.0))
    same(run(fh.vmap(f), torch.tensor([1.5, -1.5])), torch.tensor([3.0, 0.0]))
    same(run(fh.vmap(fh.grad(f)), torch.tensor([1.5, -1.5])), torch.tensor([2.0, 0.0]))


@every_mode
def test_numbers_under_vmap(run):
    f = lambda x: fh.cond(x > 0, lambda: 1, lambda: 2)
    same(run(fh.vmap(f), torch.tensor([1.0, -1.0])), torch.tensor([1, 2]))
    ys = run(fh.vmap(lambda x: fh.scan(lambda c, _: (c + x, 1.0), 0, length=2)), torch.ones(3))
    same(ys, (torch.full((3,), 2.0), torch.ones(3, 2)))


@every_mode
def test_a_traced_float_from_a_branch(run):
    f = lambda x, s: fh.cond(x > 0, lambda: s * 2, lambda: 1.0)
    same(run(f, torch.tensor(1.0), 0.25), torch.tensor(0.5))


@every_mode
def test_what_is_no_number_stays_a_constant(run):
    def f(x):
        make = lambda: {"name": "a", "none": None, "nan": decimal.Decimal("nan"), "array": np.ones(2)}
        _, ys = fh.scan(lambda c, _: (c, make()), x, length=2)
        return fh.cond(x > 0, make, make), ys

    for out in run(f, torch.tensor(1.0)):
        assert out["name"] == "a"
        assert out["none"] is None
        assert out["nan"].is_nan()
        assert (out["array"] == 1).all()


def test_numbers_that_are_no_bodys_stay_numbers():
    x = torch.ones(2)
    f = lambda x: (x * 2, 3, 0.5)
    assert jitted(f, x)[1:] == (3, 0.5)
    assert fh.checkpoint(f)(x)[1:] == (3, 0.5)
    assert jitted(fh.checkpoint(f), x)[1:] == (3, 0.5)
    assert fh.grad(lambda x: (x.sum(), 3), has_aux=True)(x)[1] == 3
    assert jitted(fh.grad(lambda x: (x.sum(), 3), has_aux=True), x)[1] == 3


# ---------------------------------------------------------------------------------------------------------------------
# numbers that a loop begins with


def loops(step, number, n):
    """All loops of ``n`` steps that begin with a number; ``step`` takes the carry alone."""
    return {
        "scan": lambda: fh.scan(lambda c, _: (step(c), c * 2), number, length=n),
        "while": lambda: fh.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, step(s[1])), (0, number)),
        "bounded": lambda: fh.while_loop(lambda c: True, step, number, max_steps=n),
        "fori": lambda: fh.fori_loop(0, n, lambda i, c: step(c), number),
        "fori of tensors": lambda: fh.fori_loop(torch.tensor(0), n, lambda i, c: step(c), number),
        "unrolled": lambda: fh.scan(lambda c, _: (step(c), c), number, length=n, unroll=2),
        "nested": lambda: fh.scan(
            lambda c, _: (fh.fori_loop(0, 1, lambda i, v: step(v), c), fh.fori_loop(0, 1, lambda i, v: v + c, 0)),
            number,
            length=n,
        ),
    }


PROMOTIONS = [
    (0, torch.tensor(1.5, dtype=F64), F64),
    (True, torch.tensor(2), torch.int64),
    (0.25, torch.tensor(1.5, dtype=F64), F64),
    (1, torch.tensor(1j), torch.complex64),
    (0.5, torch.tensor(2), torch.float32),
]


@pytest.mark.parametrize("loop", loops(None, 0, 0))
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize(("number", "x", "dtype"), PROMOTIONS)
def test_a_number_takes_the_dtype_of_what_is_returned(loop, n, number, x, dtype):
    result = agree(lambda x: loops(lambda c: c + x, number, n)[loop](), x)
    carry = result[-1] if loop == "while" else result[0] if isinstance(result, tuple) else result
    same(carry, number + n * x.to(dtype))
    if loop == "scan":
        expected = [2 * (number + k * x.to(dtype)) for k in range(n)]
        same(result[1], torch.stack(expected) if n else torch.zeros(0, dtype=dtype))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_a_narrower_dtype(n):
    for number, dtype in ((1, torch.int8), (0.5, torch.float16), (0.5, torch.bfloat16)):
        carry = agree(lambda: fh.fori_loop(0, n, lambda i, c: c.to(dtype), number))
        same(carry, torch.tensor(number, dtype=dtype))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_numbers_that_depend_on_one_another(n):
    """The dtypes are a fixed point, which one step does not show."""

    def f(xs):
        fibonacci = fh.scan(lambda c, x: ((c[1], c[0] + c[1] * x), c[0]), (0, 1), xs)
        queue = fh.scan(lambda c, x: ((x, *c[:-1]), c[-1]), (0,) * 6, xs)
        swap = fh.scan(lambda c, _: (c[::-1], c), (0, 0.5), length=n)
        late = fh.scan(lambda c, x: ((c[1] + 0, c[2] + 0, x), c[0] * 1), (0, 0, 0), xs)
        return fibonacci, queue, swap, late

    for result in agree(f, torch.linspace(0.5, 1.5, n)):
        for leaf in torch.utils._pytree.tree_leaves(result):
            assert leaf.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.* does what no graph does:RuntimeWarning")
def test_the_body_is_called_as_often_as_the_dtypes_take():
    calls = []

    def step(c, x):
        calls.append(c[0].dtype)
        return (c[1] + 0, c[2] + 0, c[2] + x), None

    for init, expected in (((0, 0, 0), 4), ((0.0, 0.0, 0.0), 1), ((torch.tensor(0.0),) * 3, 1)):
        calls.clear()
        jitted(lambda xs: fh.scan(step, init, xs), torch.ones(3))
        assert len(calls) == expected


def test_a_plain_loop_runs_each_step_once():
    calls = []

    def step(c, x):
        calls.append(c.dtype)
        return c + x, c

    fh.scan(step, 0, torch.ones(3))
    assert calls == [torch.int64, torch.float32, torch.float32]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_plain_loop_over_a_body_that_only_python_can_run(n):
    x, log = torch.tensor(2.0), torch.zeros(())

    def step(state):
        i, total = state
        log.add_(float(total))
        return i + 1, total + x.item()

    i, total = fh.while_loop(lambda state: state[0] < n, step, (0, 0))
    assert (int(i), float(total), float(log)) == (n, 2.0 * n, sum(2.0 * k for k in range(n)))


@every_mode
def test_a_number_takes_the_device_too(run):
    for n in (0, 1, 3):
        c, ys = run(lambda xs: fh.scan(lambda c, x: (c + x, c), 0, xs), torch.ones(n, device="meta"))
        assert (c.device.type, ys.device.type, ys.shape) == ("meta", "meta", (n,))


@every_mode
def test_a_traced_float_begins_a_loop(run):
    f = lambda c, xs: fh.scan(lambda c, x: (c + x, c), c, xs)
    same(run(f, 0.5, torch.ones(2, dtype=F64)), (torch.tensor(2.5, dtype=F64), torch.tensor([0.5, 1.5], dtype=F64)))


@every_mode
def test_derivatives_and_lanes_of_loops_that_begin_with_a_number(run):
    def f(x):
        c, ys = fh.scan(lambda c, y: (c * x + y, c * x), 0, torch.arange(3, dtype=F64))
        return c + ys.sum() + fh.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, 1))[1]

    def oracle(x):
        c, total = 0, 0
        for y in range(3):
            c, total = c * x + y, total + c * x
        return c + total + x**3

    x = torch.tensor([0.5, 2.0], dtype=F64)
    same(run(fh.vmap(f), x), oracle(x))
    same(run(fh.vmap(fh.grad(f)), x), torch.func.vmap(torch.func.grad(oracle))(x))
    same(run(fh.vmap(fh.hessian(f)), x), torch.func.vmap(torch.func.hessian(oracle))(x))
    same(run(lambda x: fh.jvp(f, (x,), (x,)), x[0]), torch.func.jvp(oracle, (x[0],), (x[0],)))
    for remat in ("step", "sqrt"):
        g = lambda x: fh.scan(lambda c, y: (c * x + y, c), 0, torch.arange(3.0, dtype=F64), remat=remat)[0]
        same(run(fh.grad(g), x[0]), torch.tensor(1.0, dtype=F64))


@every_mode
def test_a_number_begins_a_loop_in_the_body_of_its_loop(run):
    """There it is still a number."""
    rows = torch.arange(6.0).reshape(2, 3)
    total = lambda xs, c: fh.scan(lambda c, x: (c + x, None), c, xs)[0]
    f = lambda rows: fh.scan(lambda c, row: (total(row, c), c), 0, rows)
    same(run(f, rows), (rows.sum(), torch.tensor([0.0, 3.0])))
    g = lambda rows: fh.scan(lambda c, row: (fh.cond(c > 0, lambda: total(row, c), lambda: total(row, c)), c), 0, rows)
    same(run(g, rows), (rows.sum(), torch.tensor([0.0, 3.0])))


@every_mode
def test_lanes_that_differ_in_their_steps_begin_with_a_number(run):
    f = lambda x: fh.while_loop(lambda c: c < 3 * x, lambda c: c + x, 0)
    same(run(fh.vmap(f), torch.tensor([1.0, 0.0, 2.0])), torch.tensor([3.0, 0.0, 6.0]))


@while_capturing
def test_a_loop_whose_condition_is_false_begins_with_a_number(run):
    same(run(lambda x: fh.while_loop(lambda c: False, lambda c: c + x, 1), torch.tensor(2.0)), torch.tensor(1.0))


def test_an_exported_loop_begins_with_a_number():
    f = lambda xs: fh.scan(lambda c, x: (c + x, c), 0, xs)
    xs = torch.arange(3.0)
    same(fh.export(f, (xs,)).module()(xs), f(xs))


def test_tangents_have_the_dtype_of_their_values():
    """torch (2.13) makes float64 tangents of 0-d float32 values that are multiplied with a number: a native loop, whose
    carry is one or the other, did not compile.
    """
    f = lambda c: fh.scan(lambda c, _: ((c * 2.0).sin(), c * 3.0), c, length=3)
    slope = lambda c: fh.jvp(f, (c * 2.0,), (c * 3.0,))[1]
    c = torch.tensor(0.3)
    got = fh.jit(lambda c: (slope(c), fh.grad(lambda c: slope(c)[0])(c)), backend="aot_eager")(c)
    assert {x.dtype for x in (*got[0], got[1])} == {torch.float32}
    want = lambda c: 3 * c * torch.func.jacfwd(lambda c: f(c)[0])(2 * c)
    same(got[0][0].double(), want(c.double()))
    same(got[1].double(), torch.func.grad(want)(c.double()), rtol=1e-4, atol=1e-4)
