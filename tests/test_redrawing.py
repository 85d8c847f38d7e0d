"""Random numbers in loops of any length whose steps run again for reverse mode: the same numbers, from one stream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from modes import every_mode, jitted, plain, same

F64 = torch.float64
X = torch.tensor(2.0, dtype=F64)


def noisy(x: Tensor, n: int = 3, checkpoints: int | None = None) -> Tensor:
    """Linear in x, with numbers that nobody reads."""

    def step(state):
        i, v = state
        torch.rand(2)
        return i + 1, v * (1 + torch.rand((), dtype=F64)) * (0.5 + torch.dropout(torch.ones_like(v), 0.5, True))

    return fh.while_loop(lambda s: s[0] < n, step, (0, x), checkpoints=checkpoints)[1]


def noisy_condition(x: Tensor, checkpoints: int | None = None) -> Tensor:
    """How many steps it takes is drawn too."""
    return fh.while_loop(
        lambda v: torch.rand(()) < 0.9, lambda v: v * (1 + torch.rand((), dtype=F64)), x, checkpoints=checkpoints
    )


LOOPS = {
    **{f"checkpoints={k}": lambda x, k=k: noisy(x, 7, k) for k in (1, 2, 3, 9)},
    "no step": lambda x: noisy(x, 0, 2),
    "a drawn condition": noisy_condition,
    "a drawn condition, checkpoints=2": lambda x: noisy_condition(x, 2),
    "in scan": lambda x: fh.scan(lambda c, _: (noisy(c), None), x, length=2)[0],
    "in while": lambda x: fh.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, noisy(s[1])), (0, x))[1],
    "in cond": lambda x: fh.cond(x > 0, noisy, torch.sin, x),
    "in checkpoint": fh.checkpoint(noisy),
    "in jit": lambda x: fh.jit(noisy, backend="eager")(x),
    "checkpoints in scan": lambda x: fh.scan(lambda c, _: (noisy(c, 3, 1), None), x, length=2)[0],
    "between others": lambda x: noisy(noisy(x * torch.rand((), dtype=F64), 2) * torch.rand((), dtype=F64), 3, 1),
}
each_loop = pytest.mark.parametrize("f", LOOPS.values(), ids=LOOPS)


def drawn(run, f, *args):
    """The result, and the next number of the stream."""
    torch.manual_seed(5)
    return run(f, *args), torch.rand(1)


@every_mode
@each_loop
def test_the_gradient_sees_the_numbers_of_the_value(run, f):
    """From the stream that the loop without gradients draws from, in plain eager."""
    expected = drawn(plain, f, X)
    (value, slope), following = drawn(run, fh.value_and_grad(f), X)
    same((value, following), expected)
    same(slope * X, value)


@pytest.mark.parametrize("name", ["checkpoints=2", "a drawn condition, checkpoints=2", "in scan", "in jit"])
def test_second_derivatives(name):
    f = LOOPS[name]
    expected, _ = drawn(plain, f, X)
    slope = fh.grad(lambda x: f(x).square())
    for twice in (lambda x: fh.jvp(slope, (x,), (x,))[1], lambda x: fh.grad(slope)(x) * x):
        with fh.eager_capture():
            got, _ = drawn(plain, twice, X)
        same(got * X, 2 * expected.square())


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("name", ["checkpoints=2", "in scan", "in jit", "checkpoints in scan"])
def test_lanes(name, randomness):
    """Lanes that take the same steps."""
    xs = torch.tensor([1.0, 2.0, 1.0], dtype=F64)
    for run in (plain, jitted):
        (values, slopes), _ = drawn(run, fh.vmap(fh.value_and_grad(LOOPS[name]), randomness=randomness), xs)
        same(slopes * xs, values)
        assert torch.equal(values[0], values[2]) == (randomness == "same")


def test_lanes_that_take_different_steps_are_refused():
    """Their numbers come from one generator, which is in one state at a time."""
    f = lambda x: fh.while_loop(lambda v: v < 9, lambda v: v * (1 + torch.rand((), dtype=F64)), x, checkpoints=2)
    xs = torch.tensor([1.0, 8.0], dtype=F64)
    fh.vmap(f, randomness="different")(xs)
    with pytest.raises(fh.CaptureError, match=r"(?s)vmap: random numbers.*lanes that take different steps.*help: draw"):
        fh.vmap(fh.grad(f), randomness="different")(xs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoints=2", "a drawn condition, checkpoints=2", "in scan"])
def test_compiled_loops_draw_again_what_they_drew(name):
    """By count, from the seed of the call: other numbers than eager's, and as many."""
    jitted = fh.jit(fh.value_and_grad(LOOPS[name]))
    (value, slope), following = drawn(plain, jitted, X)
    same(slope * X, value)
    same(((value, slope), following), drawn(plain, jitted, X))
    assert jitted(X)[0] != value


def test_what_a_compiler_can_not_draw_again_is_refused():
    loop = lambda x: fh.while_loop(lambda v: v < 9, lambda v: v * (1 + torch.poisson(v.abs())), x, checkpoints=2)
    with pytest.raises(Exception, match=r"(?s)drawn again by a compiler.*help: draw them before the loop"):
        fh.jit(fh.grad(loop))(X)


def test_numbers_of_another_device_are_refused():
    draw = lambda v: v * (1 + torch.rand(2, device="meta").sum().to("cpu", F64))
    loop = lambda x: fh.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, draw(s[1])), (0, x))[1]
    with fh.eager_capture(), pytest.raises(fh.CaptureError, match=r"(?s)drawn in a while_loop.*help: draw them before"):
        fh.grad(lambda x: fh.scan(lambda c, _: (loop(c), None), x, length=2)[0])(X)


@every_mode
def test_plain_backward(run):
    x = X.clone().requires_grad_()
    for f in (LOOPS["checkpoints=2"], LOOPS["a drawn condition, checkpoints=2"]):
        out = run(f, x)
        same(torch.autograd.grad(out, x)[0] * x, out)


def test_attention_without_dropout_draws_nothing() -> None:
    """torch marks it as random; autograd records the gradient of a loop over it, which closes over a parameter."""
    w = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64).reshape(3, 3).requires_grad_()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    attention = lambda x: torch.nn.functional.scaled_dot_product_attention(*[(x @ w)[None, None]] * 3)[0, 0]
    looped = lambda x: fh.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, attention(c[1])), (torch.tensor(0), x))
    gradient = fh.jit(fh.grad(lambda x: looped(x)[1].sin().sum()), backend="eager")(x)
    y = x.clone().requires_grad_()
    same(gradient.detach(), *torch.autograd.grad(attention(attention(y)).sin().sum(), y))
