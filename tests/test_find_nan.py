"""``fh.debug.find_nan``: which operation made the first NaN or infinity, at which line, in which step and lane."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import functorch_hops as fh

find = fh.debug.find_nan


def line_of(function, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def loops(x):
    def outer(c, a):
        def inner(i, v):
            return (v - i).log() + a  # HERE

        return fh.fori_loop(0, 3, inner, c), c

    return fh.scan(outer, x, torch.ones(2))[0]


def first_bad(x: float) -> tuple[tuple[int, int], float] | None:
    """The oracle: the same loop over Python's floats."""
    for t in range(2):
        for i in range(3):
            if x - i <= 0:
                return (t, i), x - i
            x = math.log(x - i) + 1
    return None


@pytest.mark.parametrize("around", [lambda f: f, fh.jit, fh.checkpoint, lambda f: fh.jit(f, backend="eager")])
def test_the_line_the_steps_and_the_operands_in_nested_loops(around) -> None:
    for x in (3.0, 30.0, 300.0):
        report = find(around(loops))(torch.tensor(x))
        iteration, operand = first_bad(x)
        found = report.value
        assert report and report.in_value
        assert (found.found, found.operation, found.is_made, found.node) == ("nan", "torch.Tensor.log", True, None)
        assert (found.file, found.line) == (__file__, line_of(loops, "HERE")) and "# HERE" in found.source
        assert (found.loops, found.iteration, found.lane) == (("scan", "fori_loop"), iteration, None)
        torch.testing.assert_close(found.operands, (torch.tensor(operand),))
        assert f"iteration: {iteration} of fori_loop of scan" in str(report)


@pytest.mark.parametrize("vmap", [fh.vmap, torch.func.vmap, lambda f: fh.jit(fh.vmap(f))])
def test_the_first_lane_is_the_one_that_makes_it(vmap) -> None:
    def halved(x):
        x = fh.while_loop(lambda v: v > 1, lambda v: v / 2, x)
        return fh.cond(x > 0, lambda v: v.log(), lambda v: v, x)

    assert not find(vmap(halved))(torch.tensor([-1.0, 8.0, 3.0]))

    def inverse(x):
        steps = lambda v: fh.while_loop(lambda v: v > 1, lambda v: v - 1, v)
        return fh.cond(x > 0, lambda v: 1 / steps(v), lambda v: v, x)

    found = find(vmap(inverse))(torch.tensor([-1.0, 0.5, 0.25])).value
    assert found is None
    found = find(vmap(vmap(lambda x: fh.cond(x > 0, lambda v: 1 / (v - 2), lambda v: v, x))))(
        torch.tensor([[-2.0, 1.0], [-1.0, 2.0]])
    ).value
    assert (found.found, found.lane, found.operands) == ("inf", (1, 1), (torch.tensor(0.0), 1))


def test_a_gradient_knows_the_line_of_its_operation() -> None:
    def masked(x):
        y = x.sqrt()  # HERE
        return torch.where(x > 0, y, 0.0).sum()

    report = find(masked)(torch.tensor([4.0, 0.0]))
    assert (report.value, report.in_value, report.in_gradient) == (None, False, True)
    found = report.gradient
    assert (found.found, found.node, found.operation) == ("nan", "SqrtBackward0", "torch.Tensor.sqrt")
    assert found.line == line_of(masked, "HERE")
    assert "the gradient holds NaN" in str(report) and "no NaN and no infinity on the way to the result" in str(report)


def test_a_gradient_in_a_loop_under_vmap_knows_its_step_and_lane() -> None:
    def f(x):
        step = lambda c, a: (torch.where(c > a, (c - a).abs().sqrt(), 1.0), None)
        return fh.scan(step, x, torch.tensor([2.0, 0.25, 0.5]))[0]

    assert not find(f)(torch.tensor(11.0))
    report = find(fh.vmap(f))(torch.tensor([11.0, 2.0]))
    assert report.value is None and report.in_gradient
    assert (report.gradient.node, report.gradient.iteration, report.gradient.lane) == ("SqrtBackward0", 0, 1)


@pytest.mark.parametrize("remat", [None, "step", 2])
def test_recomputation_changes_nothing(remat) -> None:
    f = lambda x: fh.scan(lambda c, a: ((c - a).sqrt(), None), x, torch.tensor([1.0, 2.0, 0.0]), remat=remat)[0]
    for g in (f, fh.grad(f), fh.checkpoint(f)):
        found = find(g)(torch.tensor(2.0)).value
        assert (found.found, found.iteration) == ("nan", 1)


@pytest.mark.parametrize(
    "take", [fh.grad, lambda f: lambda x: fh.vjp(f, x)[1](torch.ones(()))[0], fh.jacrev, lambda f: fh.jit(fh.grad(f))]
)
def test_derivatives_that_the_function_takes(take) -> None:
    found = find(take(lambda x: x.sqrt()))(torch.tensor(0.0)).value
    assert (found.found, found.node, found.operation) == ("inf", "SqrtBackward0", "torch.Tensor.sqrt")


def test_tangents_and_second_derivatives() -> None:
    root = lambda x: x.sqrt()
    found = find(lambda x: fh.jvp(root, (x,), (x + 1,)))(torch.tensor(0.0)).value
    assert (found.found, found.node, found.operation) == ("inf", "tangent", "torch.Tensor.sqrt")
    power = lambda x: (x**1.5).sum()
    for second in (fh.grad(fh.grad(power)), fh.jacrev(fh.jacrev(power)), fh.hessian(power)):
        found = find(second)(torch.tensor(0.0)).value
        assert found.operation == "torch.Tensor.__pow__" and "Pow" in found.node


def test_a_step_of_training() -> None:
    weight = torch.zeros(3, requires_grad=True)

    def train(x):
        loss = (weight * x).norm().sqrt()  # HERE
        loss.backward()
        return loss

    report = find(train)(torch.ones(3))
    found = report.value
    assert (found.node, found.line) == ("SqrtBackward0", line_of(train, "HERE"))
    assert report.in_gradient is None


def test_closed_over_tensors_have_gradients_too() -> None:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    report = find(lambda x: layer(x).norm().sqrt())(torch.ones(2))
    assert report.in_gradient and report.gradient is not None
    assert layer.weight.grad is None


@fh.custom_vjp
def with_vjp(x, k):
    return (x - 1).log() + k  # VALUE


def pulled(k, ct):
    return ct / k, None  # VJP


with_vjp.defvjp(lambda x, k: (with_vjp(x, k), k), pulled)


@fh.custom_jvp
def with_jvp(x, k):
    return (x - 1).log() + k


@with_jvp.defjvp
def pushed(primals, tangents):
    return with_jvp(*primals), tangents[0] / primals[1]  # JVP


class WithBackward(torch.autograd.Function):
    @staticmethod
    def forward(x, k):
        return x + k

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, ct):
        (k,) = ctx.saved_tensors
        return ct / k, None  # BACKWARD


class OfNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.k = k.item()
        return torch.tensor(x.detach().numpy() + ctx.k)

    @staticmethod
    def backward(ctx, ct):
        return torch.tensor(math.inf if ctx.k == 0 else ct.item() / ctx.k), None


RULES = {
    "custom_vjp": (with_vjp, pulled, "# VJP"),
    "custom_jvp": (with_jvp, pushed, "# JVP"),
    "Function": (WithBackward.apply, WithBackward.backward, "# BACKWARD"),
}


def steps_with(rule, init, divisors=(1.0, 0.0, 1.0)):
    return fh.scan(lambda c, k: (rule(c, k), None), init, torch.tensor(divisors))[0]


@pytest.mark.parametrize("rule", ["custom_vjp", "Function"])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_the_line_in_a_rule_and_the_step_of_its_call(rule, zero) -> None:
    apply, backward, text = RULES[rule]
    divisors = [0.0 if i == zero else 1.0 for i in range(3)]
    for around in (lambda f: f, fh.checkpoint, lambda f: fh.jit(f, backend="eager")):
        report = find(around(lambda x: steps_with(apply, x, divisors)))(torch.tensor(30.0))
        assert report.value is None and report.in_gradient
        found = report.gradient
        assert (found.found, found.operation, found.node) == ("inf", "torch.Tensor.div", None)
        assert (found.line, found.iteration) == (line_of(backward, text), zero) and text in found.source
        assert found.operands == (torch.tensor(found.operands[0].item()), torch.tensor(0.0))
    assert find(fh.vmap(lambda x: steps_with(apply, x, divisors)))(torch.full((2,), 30.0)).gradient.lane == 1


def test_what_a_forward_mode_rule_makes() -> None:
    found = find(lambda x: steps_with(with_jvp, x))(torch.tensor(30.0)).value
    assert (found.operation, found.line, found.iteration) == ("torch.Tensor.div", line_of(pushed, "# JVP"), 1)


@pytest.mark.parametrize("rule", ["custom_vjp", "custom_jvp", "Function"])
@pytest.mark.parametrize("grad", [fh.grad, torch.func.grad])
def test_a_rule_under_a_transform(rule, grad) -> None:
    apply, backward, text = RULES[rule]

    def step(c, k):
        return c + grad(apply)(c, k), None  # CALL

    found = find(lambda x: fh.scan(step, x, torch.tensor([1.0, 0.0]))[0])(torch.tensor(30.0)).value
    assert (found.found, found.iteration, found.operands) == ("inf", 1, (torch.tensor(1.0), torch.tensor(0.0)))
    if rule == "Function":
        assert (found.operation, found.node, found.line) == ("torch.Tensor.div", None, line_of(backward, text))
    else:  # a graph: its operator, and the line of the call
        assert (found.operation, found.node) == (f"{rule} {apply.__name__}", "aten.div.Tensor in the backward pass")
        assert found.line == line_of(step, "# CALL")


@fh.custom_jvp
def with_pole(x):
    return x * 2


with_pole.defjvp(lambda primals, tangents: (with_pole(*primals), tangents[0] * (primals[0] - 2) ** -1))


def test_a_rule_in_forward_mode_is_named_with_the_operator_in_its_graph() -> None:
    def step(c, _):
        return with_pole(c - 1), None  # CALL

    report = find(lambda x: fh.jvp(lambda x: fh.scan(step, x, length=3)[0], (x,), (x,)))(torch.tensor(2.5))
    named = ("custom_jvp with_pole", "aten.pow.Tensor_Scalar in the graph", 1, line_of(step, "# CALL"))
    assert (report.value.operation, report.value.node, report.value.iteration, report.value.line) == named
    assert (report.gradient.operation, report.gradient.line) == (named[0], named[3])


def test_the_line_of_a_call_whose_rule_autograd_transposes() -> None:
    def f(x):
        return with_pole(x)  # CALL

    found = find(f)(torch.tensor(2.0)).gradient
    assert (found.operation, found.node, found.line) == (
        "custom_jvp with_pole",
        "backward pass",
        line_of(f, "# CALL"),
    )


def test_a_loop_in_a_rule_is_in_the_loop_of_its_call() -> None:
    @fh.custom_vjp
    def looped(x):
        return x.sin()

    def bwd(_, ct):
        return (fh.scan(lambda c, k: (c / k, None), ct, torch.tensor([2.0, 0.0]))[0],)  # HERE

    looped.defvjp(lambda x: (x.sin(), None), bwd)
    found = find(lambda x: fh.scan(lambda c, _: (looped(c), None), x, length=3)[0])(torch.tensor(1.0)).gradient
    assert (found.loops, found.iteration, found.line) == (("scan", "scan"), (2, 1), line_of(bwd, "HERE"))


def test_a_rule_that_calls_nothing_of_torchs() -> None:
    found = find(lambda x: steps_with(OfNumPy.apply, x))(torch.tensor(1.0)).gradient
    assert (found.operation, found.node, found.iteration) == ("OfNumPy", "backward pass", 1)
    assert find(lambda x: OfNumPy.apply(x, torch.tensor(0.0)))(torch.tensor(1.0)).gradient.operation == "OfNumPy"


def test_a_rule_whose_result_no_call_reads_before_its_gradient() -> None:
    def f(x):
        weight = torch.ones((), requires_grad=True)
        return x + torch.autograd.grad(WithBackward.apply(weight, x - x), weight)[0]

    found = find(f)(torch.tensor(1.0)).value
    assert (found.operation, found.line) == ("torch.Tensor.div", line_of(WithBackward.backward, "# BACKWARD"))


def test_a_rule_that_raises_leaves_nothing_behind() -> None:
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 1

        @staticmethod
        def backward(ctx, ct):
            raise ZeroDivisionError

    def f(x):
        with pytest.raises(ZeroDivisionError):
            torch.autograd.grad(Raises.apply(x), x)
        return (x - x).log()  # HERE

    found = find(f)(torch.tensor(1.0)).value
    assert (found.operation, found.node, found.line) == ("torch.Tensor.log", None, line_of(f, "HERE"))


def test_a_gradient_that_is_refused_hides_no_value() -> None:
    report = find(lambda x: x.log() * fh.pure_callback(lambda v: v, x, x))(torch.tensor(0.0))
    assert (report.value.operation, report.in_gradient) == ("torch.Tensor.log", None)
    assert isinstance(report.refused, fh.ArgumentTypeError)
    assert "no gradient of the result was taken; ArgumentTypeError: pure_callback" in str(report)
    assert not torch.overrides._get_current_function_mode_stack()


def test_what_is_given_is_not_made() -> None:
    mask = torch.full((3, 3), -math.inf).triu(1)
    f = lambda x: torch.softmax(x @ x.T + mask, -1) @ x
    report = find(f)(torch.randn(3, 2))
    assert not report and str(report).count("no NaN") == 2
    found = find(lambda x: x.exp() + 1)(torch.tensor([0.0, math.nan])).value
    assert (found.found, found.is_made, found.operation) == ("nan", False, "torch.Tensor.exp")
    assert "was given the first NaN" in str(found)
    assert find(lambda x: torch.full((2,), math.inf) - torch.full((2,), math.inf))(torch.ones(())).value.is_made
    assert not find(lambda x: torch.empty(3).fill_(1.0) * x)(torch.ones(()))


def test_writes_show_what_was_there_before() -> None:
    def f(x):
        y = x.clone()
        y.log_()
        return y

    found = find(f)(torch.zeros(2)).value
    assert found.operation == "torch.Tensor.log_" and torch.equal(found.operands[0], torch.zeros(2))


def test_the_function_is_left_as_it_was() -> None:
    x, seen = torch.zeros(2), []

    def f(x):
        x.add_(1)
        seen.append(torch.rand(()).item())
        return fh.vmap(lambda v: v + torch.rand(()), randomness="same")(x)

    report = find(f)(x)
    assert not report and torch.equal(x, torch.zeros(2)) and len(seen) == 1
    batched = []
    fh.vmap(lambda v: batched.append(torch._C._functorch.is_batchedtensor(v)) or v)(x)
    assert batched == [True], "outside, all lanes run at once"
    with fh.eager_capture():
        assert find(loops)(torch.tensor(3.0)).value.iteration == (0, 2)


def test_without_a_gradient() -> None:
    report = find(lambda x: x + 1)(torch.tensor(1))
    assert report.in_gradient is None and "no gradient of the result" in str(report)
