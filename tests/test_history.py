"""What a captured function learns of a tensor's gradient history, and what it does to it beside operators."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import captured, every_mode, gradients, jitted, plain, same, while_capturing

F64 = torch.float64
W = nn.Parameter(torch.tensor([1.5, -0.5], dtype=F64))


def tensor(*values, requires_grad=False):
    return torch.tensor(values, dtype=F64, requires_grad=requires_grad)


def in_a_row(f):
    """``f`` of the rows of a scan."""
    return lambda x: fh.scan(lambda c, row: (c, f(row)), 0, x[None])[1][0]


def in_a_carry(f):
    return lambda x: fh.scan(lambda c, _: (f(c), None), x, length=1)[0]


def in_a_branch(f):
    return lambda x: fh.cond(x.sum() > -100, f, f, x)


def in_a_checkpoint(f):
    return lambda x: fh.checkpoint(f)(x)


def closed_over(f):
    return lambda x: fh.scan(lambda c, _: (c, f(x)), 0, length=1)[1][0]


PLACES = [lambda f: f, in_a_row, in_a_carry, in_a_branch, in_a_checkpoint, closed_over]

QUESTIONS = {
    "argument": lambda x: x.requires_grad,
    "intermediate": lambda x: (x * 1).requires_grad,
    "parameter": lambda x: W.requires_grad and W.is_leaf,
    "of_parameter": lambda x: (x * W).requires_grad,
    "of_view": lambda x: x[:1].reshape(1, 1).requires_grad,
    "leaf": lambda x: (x * 1).is_leaf,
    "integer": lambda x: (x.long() + 1).requires_grad,
    "detached": lambda x: (x.detach() * 1).requires_grad,
    "no_grad": lambda x: torch.no_grad()(lambda: x * 1)().requires_grad,
    "written_into": lambda x: torch.zeros(2, dtype=F64).add_(x).requires_grad,
    "view_written_into": lambda x: (z := torch.zeros(2, dtype=F64), z[:1].add_(x[:1]))[0].requires_grad,
    "result_of_loop": lambda x: fh.fori_loop(0, 2, lambda i, c: c * x, torch.ones_like(x)).requires_grad,
    "made_like": lambda x: torch.ones_like(x).requires_grad or x.new_zeros(2).mul(2).requires_grad,
    "made_inside": lambda x: x.detach().clone().requires_grad_().requires_grad,
    "in_gradient": lambda x: (fh.grad(lambda v: (v * (2.0 if (v * 1).requires_grad else 3.0)).sum())(x) == 2).all(),
}


@every_mode
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("asked", ["requires_grad", "no_grad", "without"])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question(run, place, question, asked):
    def f(x):
        answer = question(x)
        return x * torch.where(answer, 2.0, 3.0) if isinstance(answer, torch.Tensor) else x * (2 if answer else 3)

    x = tensor(0.3, -0.7, requires_grad=asked != "without")
    if asked == "no_grad" and place is in_a_carry and question in (QUESTIONS["argument"], QUESTIONS["of_view"]):
        return  # the initial carry requires a gradient, and no other: refused
    with torch.set_grad_enabled(asked != "no_grad"):
        same(run(place(f), x), f(x))


@every_mode
@pytest.mark.parametrize("read", [lambda x: x[0], lambda x: x.view(1, 3), lambda x: x.detach()[0]])
def test_a_body_asks_an_outer_view_of_what_was_written_to(run, read):
    """Autograd takes such a view again when it is asked, in the levels that are there."""

    def f(x):
        x = x * 1
        v = read(x)
        x[x > 0] = 1.0
        return fh.map(lambda _: v * (2 if v.requires_grad and not v.is_leaf else 3) * W.sum(), x).sum() + (x * x).sum()

    x = tensor(0.5, -2.0, 3.0)
    same(run(f, x), f(x))
    same(run(fh.grad(f), x), torch.func.grad(f)(x))


@while_capturing
def test_a_carry_that_begins_without_history(run):
    """One capture can't answer differently in the first step and later; what has a history anyway is no question."""
    asks = lambda about: lambda x: fh.scan(lambda c, _: (c * W if about(c) else c + W, None), x, length=2)[0]
    with pytest.raises(fh.CaptureError, match="asks whether a carry requires a gradient, and the answer changes"):
        run(asks(lambda c: c.requires_grad), torch.ones(2, dtype=F64))
    f = asks(lambda c: (c * W).requires_grad)
    same(run(f, torch.ones(2, dtype=F64)), W * W)
    loop = lambda x: fh.while_loop(lambda c: c.sum() < (9 if c.requires_grad else 3), lambda c: c * W.abs() + 1, x)
    with pytest.raises(fh.CaptureError, match="the answer changes"):
        run(loop, torch.ones(2, dtype=F64))


def test_an_answer_is_an_assumption_of_the_trace():
    f = fh.jit(lambda x: x * 2 if x.requires_grad else x * 3, backend="eager")
    x, y = tensor(1.0), tensor(1.0, requires_grad=True)
    for _ in range(2):
        same((f(x), f(y)), (x * 3, y * 2))
    assert f.cache_info()[:2] == (2, 2)
    same(fh.grad(lambda x: f(x).sum())(x), tensor(2.0))
    same(fh.vmap(f)(y), tensor(3.0) * y)  # as in eager: what vmap maps over says no

    unasked = fh.jit(lambda x: x * 2, backend="eager")
    unasked(x), unasked(y)
    assert unasked.cache_info().misses == 1


def test_an_answer_of_a_parameter():
    w = tensor(1.0)
    f = fh.jit(lambda x: x * w * (2 if w.requires_grad else 3), backend="eager")
    inner = fh.jit(lambda x: f(x) + x, backend="eager")
    for _ in range(2):
        for value in (False, True):
            w.requires_grad_(value)
            same((f(tensor(1.0)), inner(tensor(1.0))), (w * (2 if value else 3), w * (2 if value else 3) + 1))


def test_a_question_in_plain_eager_that_needs_a_graph():
    x = torch.ones(2, 2, dtype=F64)
    f = lambda x, w: fh.cond(x.sum() > 2, lambda x: x * (2 if w.requires_grad else 3), lambda x: x, x)
    for w in (tensor(1.0), tensor(1.0, requires_grad=True), tensor(1.0)):
        same(fh.vmap(f, in_dims=(0, None))(x, w), torch.stack([f(x[0], w), f(x[1], w)]))


@every_mode
@pytest.mark.parametrize("inside", [True, False])
def test_gradient_mode_of_a_body(run, inside):
    """A body runs in the gradient mode that was set around the loop, or that it sets."""

    def f(x):
        def body(c, _):
            with torch.set_grad_enabled(not inside and torch.is_grad_enabled()):
                return c * (x if torch.is_grad_enabled() else 2 * x), None

        with torch.set_grad_enabled(inside):
            y = fh.scan(body, x, length=2)[0]
        return x * y

    x = tensor(0.3, -0.7)
    same(run(f, x), 4 * x**4)
    same(gradients(run, f, x), (4 * x**3,))


# ---------------------------------------------------------------------------------------------------------------------
# hooks


def clipped(g):
    return g.clamp(-0.1, 0.1)


@every_mode
@pytest.mark.parametrize("hook", [clipped, lambda g: None, lambda g: g * W.detach()])
def test_a_hook_on_a_value(run, hook):
    def step(c, x):
        c = c * x
        if c.requires_grad:
            c.register_hook(hook)
        return c.sin(), c

    def f(c, xs):
        c, ys = fh.scan(step, c, xs)
        return c + ys.square().sum(0)

    def oracle(c, xs):
        ys = []
        for x in xs:
            c, y = step(c, x)
            ys.append(y)
        return c + torch.stack(ys).square().sum(0)

    c, xs = tensor(0.4, 2.0), tensor([0.5, 1.5], [2.0, -1.0])
    same(run(f, c, xs), oracle(c, xs))
    same(gradients(run, f, c, xs), gradients(plain, oracle, c, xs))


@while_capturing
def test_derivatives_through_a_hook(run):
    def f(x):
        y = x * x
        if y.requires_grad:
            y.register_hook(lambda g: g * g)
        return y.sin()

    x = tensor(0.4, 2.0, requires_grad=True)
    (expected,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (got,) = torch.autograd.grad(run(f, x).sum(), x, create_graph=True)
    same(got, expected)
    same(torch.autograd.grad(got.sum(), x), torch.autograd.grad(expected.sum(), x))
    same(fh.jvp(lambda x: run(f, x), (x.detach(),), (x.detach(),))[1], (2 * x * x * (x * x).cos()).detach())


@while_capturing
def test_a_hook_on_what_has_no_history_is_torchs_error(run):
    def f(x):
        (x * 2).register_hook(clipped)
        return x

    with pytest.raises(RuntimeError, match="cannot register a hook"):
        run(f if run is jitted else in_a_carry(f), tensor(1.0))


@every_mode
def test_a_hook_within_a_transform(run):
    def loss(x):
        y = x * 2
        y.register_hook(lambda g: g * 5)
        return y.sum()

    same(run(in_a_branch(fh.grad(loss)), tensor(1.0, 2.0)), tensor(10.0, 10.0))


# ---------------------------------------------------------------------------------------------------------------------
# writes that leave a history as it is


def data_assigned(c):
    y = c * 2
    y.data = c * 3
    return y * c


def data_assigned_and_written(c):
    y = c * 2
    y.data = c.clamp(max=0.5)
    y.mul_(c)
    return y * c


def data_written(c):
    y = c * 2
    y.data.mul_(3)
    y.detach()[0].fill_(4)
    return y * c


def written_without_grad(c):
    y = c * 2
    with torch.no_grad():
        y.clamp_(0, 1)
        y[0] = 7
        torch._foreach_add_([y[:1], y[1:]], 1.0)
    return y * c


def detached_written(c):
    y = c * 2
    d = y.detach()
    d.mul_(3)
    return y * d * c


def written_behind_detached(c):
    y = c * 2
    d = y[:1].detach()
    y.mul_(c)
    d.add_(c[1])
    y[1] = c[0]
    return y * c + d


def part_of_detached_written(c):
    d = (c * 2).detach()
    d[0] = c[1]
    return d * c


def siblings(c):
    y = c * 2
    a, b = y.detach(), y[1:].detach()
    a.mul_(c)
    b.add_(1)
    return y * a * b


def data_shared(c):
    """What has the memory of another value is written to with it, and both ways."""
    y, z = c * 2, c * 3
    y.data = z
    y.add_(1)
    z.mul_(c)
    return y + z.square()


def data_shared_and_written_without_grad(c):
    y, z = c.sin(), c * 3
    y.data = z
    with torch.no_grad():
        z[0] = 5
        y[1:].mul_(2)
    return y * z * c


def data_shared_with_a_part(c):
    y, z = torch.zeros(()), c * 3
    y.data = z[0]
    y.add_(1)
    return y + z


def data_shared_one_after_the_other(c):
    y, z, w = c * 1, c.sin(), c.cos()
    y.data = z
    z.add_(1)
    y.data = w
    w.mul_(2)
    z.sub_(3)
    return y * z + w


WRITES = [
    data_assigned,
    data_shared,
    data_shared_and_written_without_grad,
    data_shared_with_a_part,
    data_shared_one_after_the_other,
    data_assigned_and_written,
    data_written,
    written_without_grad,
    detached_written,
    written_behind_detached,
    part_of_detached_written,
    siblings,
]


@every_mode
@pytest.mark.parametrize("place", [lambda f: f, in_a_carry, closed_over])
@pytest.mark.parametrize("f", WRITES)
def test_a_write_beside_a_history(run, place, f):
    x = tensor(0.3, -0.7)
    same(run(place(f), x), f(x))
    same(gradients(run, place(f), x), gradients(plain, f, x))


@while_capturing
def test_a_write_beside_a_history_of_second_order(run):
    x = tensor(0.3, -0.7, requires_grad=True)
    f = lambda c: data_assigned_and_written(c) * detached_written(c)
    for g in (f, in_a_row(f)):
        (expected,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        (got,) = torch.autograd.grad(run(g, x).sum(), x, create_graph=True)
        same(torch.autograd.grad(got.sum(), x), torch.autograd.grad(expected.sum(), x))


@while_capturing
def test_weights_clamped_in_a_loop(run):
    def step(c, _):
        c = c.clone()
        c.data = c.data.clamp(max=1.5)
        return c * 2, None

    same(run(lambda x: fh.scan(step, x, length=2)[0], tensor(1.1, 2.0)), tensor(3.0, 3.0))


@while_capturing
@pytest.mark.parametrize(
    ("question", "name"),
    [
        (lambda x: x.retains_grad, ".retains_grad"),
        (lambda x: x.is_set_to(x), "is_set_to()"),
        (lambda x: x.is_inference(), "is_inference()"),
        (lambda x: torch.is_inference(x), "is_inference()"),
        (lambda x: x.untyped_storage().nbytes() > 99, "the memory of a tensor"),
        (lambda x: x.storage().data_ptr() == W.storage().data_ptr(), "the memory of a tensor"),
    ],
)
def test_what_a_traced_value_does_not_know(run, question, name):
    """The fake's answer would be wrong for the tensor that it stands for."""
    for f in (lambda x: x * (2 if question(x) else 3), lambda x: x * (2 if question(x * W) else 3)):
        with pytest.raises(fh.CaptureError, match=re.escape(name)):
            run(lambda x: fh.map(f, x), torch.ones(2, 2, dtype=F64))


@while_capturing
@pytest.mark.parametrize(
    ("question", "name"),
    [
        (lambda x: x._version, "._version"),
        (lambda x: x._is_view(), "_is_view()"),
        (lambda x: x._base is not None, "._base"),
        (lambda x: x.output_nr, ".output_nr"),
        (lambda x: x.is_shared(), "is_shared()"),
    ],
)
def test_what_an_input_does_not_know(run, question, name):
    """Nor does a view of one. A value that the function made does."""
    for part in (lambda x: x, lambda x: x[1:]):
        with pytest.raises(fh.CaptureError, match=re.escape(f"{name} of an input")):
            run(
                lambda x, part=part: fh.map(lambda x: x * (2 if question(part(x)) else 3), x),
                torch.ones(2, 2, dtype=F64),
            )
    of_its_own = lambda x: x * (2 if question((x * 1).add_(1)) else 3)
    same(run(in_a_checkpoint(of_its_own), tensor(0.5, 1.0)), of_its_own(tensor(0.5, 1.0)))


@while_capturing
def test_requires_grad_of_an_input_that_requires_it(run):
    """A force: the leaf is the argument itself."""

    def force(x):
        x.requires_grad_()
        return torch.autograd.grad((W * x.square()).sum(), x, create_graph=True)[0]

    x = tensor(0.3, -0.7, requires_grad=True)
    f = force if run is jitted else in_a_branch(force)
    same(run(f, x), 2 * W * x)
    same(torch.autograd.grad(run(f, x).sum(), (x, W)), (2 * W, 2 * x))


def test_questions_leave_nothing_behind():
    x = tensor(1.0, requires_grad=True)
    captured(in_a_carry(lambda c: c * (1 if c.requires_grad else 2)), x)
    assert x.requires_grad and x.is_leaf and x.grad is None and x._backward_hooks is None


@pytest.mark.parametrize(
    "f",
    [torch.zeros_like, lambda x: torch.rand_like(x) * 2, lambda x: x.new_ones(3), lambda x: torch.histc(x, 3)],
)
def test_what_has_only_the_shape_of_an_operand_has_none_of_its_history(f):
    x = tensor(0.3, -0.7, requires_grad=True)
    f = in_a_branch(f)
    assert not f(x).requires_grad
    assert not fh.jit(f, backend="eager")(x).requires_grad
    step = lambda c, row: (c + torch.ones_like(row), row * 2)
    carry, rows = fh.jit(lambda x: fh.scan(step, torch.zeros((), dtype=F64), x), backend="eager")(x)
    assert (carry.requires_grad, rows.requires_grad) == (False, True)


def test_a_gradient_that_depends_on_no_parameter_has_no_history():
    """That of a linear function is its input, times the ones that the cotangent is."""
    w, x = tensor(0.3, -0.7, requires_grad=True), tensor(2.0, 3.0)
    gradient = fh.jit(fh.grad(lambda w: (w * x).sum()), backend="eager")(w)
    assert not gradient.requires_grad
    same(gradient, x)


def test_a_value_that_requires_a_gradient_may_be_asked_to():
    """Nothing happens, so the value can be written as before, and its history leads on."""

    def f(x):
        y = x * 2
        y.requires_grad_(x.requires_grad)
        y[0] = 1.0
        return y.mul_(x)

    x = torch.arange(3.0).requires_grad_()
    gradient = lambda f: torch.autograd.grad(f(x).sum(), x)
    torch.testing.assert_close(gradient(fh.jit(f, backend="eager")), gradient(f))
