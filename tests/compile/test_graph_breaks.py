"""What Dynamo can't trace: refused in the library's words, or a graph break around the whole call."""

from __future__ import annotations

import pytest
import torch
from compiled_models import asserted, asserted_in_a_region
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import flex_attention

import functorch_hops as fh


def x() -> torch.Tensor:
    return torch.tensor([0.3, -0.2, 0.9])


def branches(x):
    return fh.scan(lambda c, _: (c + 1 if c.sum() > 0 else c, None), x, length=3)


def reads(x):
    return fh.cond(x.sum() > 0, lambda x: x * x.sum().item(), lambda x: x, x)


def masks(x):
    return fh.cond(x.sum() > 0, lambda x: x[x[0] > 0], lambda x: x[None], x)


def appends(x):
    log = []
    return fh.cond(x.sum() > 0, lambda x: (log.append(1), x)[1], lambda x: x, x), log


def prints(x):
    return fh.scan(lambda c, _: (print(end=""), (c + 1, None))[1], x, length=2)


def writes(x):
    return fh.cond(x.sum() > 0, lambda x: x.add_(1), lambda x: x, x)


def unlike(x):
    return fh.cond(x.sum() < 0, lambda x: (x, x), lambda x: x, x)


def grows(x):
    return fh.scan(lambda c, _: (torch.cat([c, c]), None), x, length=2)


def uncallable(x):
    return fh.cond(x.sum() > 0, 3, lambda x: x, x)


def of_integers(x):
    return fh.grad(lambda x: x.sum())(x.long())


def of_floats(x):
    return fh.grad(lambda x: x.sum() * x.sum().item())(x)


def in_a_rule(x):
    rule = fh.custom_vjp(lambda x: x.sin())
    rule.defvjp(lambda x: (x.sin(), x), lambda r, ct: (ct if r.sum() > 0 else r,))
    return fh.grad(lambda x: rule(x).sum())(x)


def raises(x):
    def step(c, _):
        raise ValueError("mine")

    return fh.scan(step, x, length=2)


REFUSED = {
    branches: fh.DataDependentError,
    reads: fh.DataDependentError,
    masks: fh.CaptureError if torch.__version__ < (2, 12) else fh.DataDependentError,
    appends: fh.CaptureError,
    prints: fh.CaptureError,
    writes: fh.InputMutationError,
    unlike: fh.TreeMismatchError,
    grows: fh.MetadataMismatchError,
    uncallable: fh.ArgumentTypeError,
    raises: fh.CaptureError,
    of_integers: fh.ArgumentTypeError,
    in_a_rule: fh.DataDependentError,
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_a_refusal_is_the_librarys_and_dynamos(function) -> None:
    with pytest.raises(REFUSED[function]) as caught:
        torch.compile(function, fullgraph=True, backend="eager")(x())
    assert isinstance(caught.value, Unsupported)
    text = str(caught.value)
    line = next(line for line in text.splitlines() if line.startswith("  at "))
    assert __file__ in line, "the user's line"
    assert text.split(":")[0] in fh.__all__, "the operation"


def test_a_reason_that_dynamo_does_not_explain_is_named() -> None:
    linear = torch.nn.Linear(3, 3)
    linear.register_full_backward_hook(lambda module, given, got: given)
    run = lambda x: fh.scan(lambda c, _: (linear(c), None), x, length=2)[0]
    with pytest.raises(fh.CaptureError, match="got: Module-level backwards hooks"):
        torch.compile(run, fullgraph=True, backend="eager")(x())


@pytest.mark.parametrize("function", [branches, reads, masks, appends, prints, unlike], ids=lambda f: f.__name__)
def test_without_fullgraph_the_call_runs_as_python(function) -> None:
    torch.testing.assert_close(torch.compile(function, backend="eager")(x()), function(x()))


@pytest.mark.parametrize("function", [branches, reads, appends, of_floats], ids=lambda f: f.__name__)
def test_under_a_default_device_it_runs_as_python_too(function) -> None:
    with torch.device("cpu"):
        torch.testing.assert_close(torch.compile(function, backend="eager")(x()), function(x()))


def test_a_break_is_around_the_call() -> None:
    """The graphs are of the user's code before and after it; nothing of the library is compiled."""

    def run(x):
        y = x.sin()
        y = fh.scan(lambda c, _: (c + 1 if c.sum() > -100 else c, None), y, length=3)[0].cos()
        y = fh.grad(lambda v: (v**2).sum() if v.sum() > -100 else v.sum())(y).sin()
        return fh.jit(lambda v: v + 1, backend="eager")(y)

    counter = CompileCounter()
    compiled = torch.compile(run, backend=counter)
    for _ in range(3):
        torch.testing.assert_close(compiled(x()), run(x()))
    assert counter.frame_count == 3


@pytest.mark.parametrize(
    "call",
    {
        "make_graph": lambda y: fh.make_graph(lambda v: v + 1)(y)(y),
        "eval_shape": lambda y: y.reshape(fh.eval_shape(lambda v: v + 1, y).shape) + 1,
        "export": lambda y: fh.export(lambda v: v + 1, (y,)).module()(y),
    }.values(),
)
def test_what_makes_a_graph_runs_as_python(call) -> None:
    """Dynamo compiles the user's code around it, and nothing of the library."""
    counter = CompileCounter()
    torch.testing.assert_close(
        torch.compile(lambda x: call(x.sin()).cos(), backend=counter)(x()), (x().sin() + 1).cos()
    )
    assert counter.op_count <= 4
    with pytest.raises(Unsupported, match=r"torch\.compile has no node for .* of functorch_hops"):
        torch.compile(lambda x: call(x.sin()), fullgraph=True, backend="eager")(x())


@torch.no_grad()
def test_hooks_of_a_jitted_module_run_as_python() -> None:
    module = fh.jit(torch.nn.Linear(3, 3), backend="eager")
    compiled = torch.compile(lambda x: 2 * module(x), backend="eager")
    torch.testing.assert_close(compiled(x()), 2 * module(x()))
    handle = module.register_forward_hook(lambda module, args, out: out + 1)
    torch.testing.assert_close(compiled(x()), 2 * module(x()))
    handle.remove()
    torch.testing.assert_close(compiled(x()), 2 * module(x()))


@pytest.mark.parametrize(
    "make",
    {
        "grad": lambda: fh.grad(lambda x: x.sin().sum()),
        "vmap of grad": lambda: fh.vmap(fh.grad(lambda x: x.sin())),
        "builtin": lambda: fh.vmap(torch.sin),
        "jit": lambda: fh.jit(torch.sin, backend="eager"),
        "checkpoint": lambda: fh.checkpoint(lambda x: x.sin()),
        "vjp": lambda: lambda x: fh.vjp(torch.sin, x)[1](x)[0],
        "pull": lambda: fh.vjp(torch.sin, x())[1],
    }.values(),
)
def test_functions_that_python_makes_anew_are_compiled_once(make) -> None:
    counter = CompileCounter()
    compiled = torch.compile(lambda function, x: function(x.cos()), backend=counter)
    for _ in range(3):
        torch.testing.assert_close(compiled(make(), x()), make()(x().cos()))
    assert counter.frame_count == 1


@pytest.mark.parametrize("transform", [fh.vjp, fh.linearize])
def test_a_function_that_python_made_runs_as_python(transform) -> None:
    """Dynamo goes on behind a break with what ``vjp`` returned there, and does not compile that."""

    def run(x):
        out, linear = transform(lambda x: (print(end=""), x.sin())[1], x.cos())
        return out, linear(out * 2)

    counter = CompileCounter()
    torch.testing.assert_close(torch.compile(run, backend=counter)(x()), run(x()))
    assert counter.op_count == 2, "cos and the product"
    linear = transform(torch.sin, x())[1]
    with pytest.raises(Unsupported, match=r"has no node for pu\w+ of functorch_hops"):
        torch.compile(lambda x: linear(x), fullgraph=True, backend="eager")(x())


def test_a_failure_leaves_nothing_behind() -> None:
    def run(x):
        return torch.func.jvp(branches, (x,), (x,))

    for f in (run, branches, in_a_rule):
        with pytest.raises(Unsupported):
            torch.compile(f, fullgraph=True, backend="eager")(x())
        assert forward_ad._current_level == -1
        assert torch._C._functorch.peek_interpreter_stack() is None
        assert torch._C._len_torch_function_stack() == torch._C._len_torch_dispatch_stack() == 0
        good = lambda x: fh.jvp(lambda x: fh.scan(lambda c, _: (c.sin(), None), x, length=2)[0], (x,), (x,))
        torch.testing.assert_close(torch.compile(good, fullgraph=True, backend="eager")(x()), good(x()))


def test_a_callback_is_refused_in_our_words() -> None:
    """It may read what Dynamo only traces."""

    def step(c, row):
        doubled = row * 2
        fh.debug.callback(lambda c: c + doubled, c)
        return c + row, None

    for run in (lambda x: step(x, x)[0], lambda x: fh.scan(step, x, length=None, xs=x[None])[0]):
        with pytest.raises(
            fh.CaptureError, match=r"^debug.callback: torch.compile has no node for debug.callback"
        ) as e:
            torch.compile(run, fullgraph=True, backend="eager")(x())
        assert "help: call it outside of what is compiled" in str(e.value)
        assert "fh.debug.callback(lambda c: c + doubled, c)" in str(e.value)
        assert isinstance(e.value, Unsupported)
        torch.testing.assert_close(torch.compile(run, backend="eager")(x()), run(x()))


@pytest.mark.parametrize("kind", [fh.custom_vjp, fh.custom_jvp])
def test_a_function_without_a_rule_is_refused_in_our_words(kind) -> None:
    made_outside = kind(torch.sin)
    for call in (made_outside, lambda x: kind(lambda x: x.sin())(x)):
        with pytest.raises(fh.ArgumentTypeError, match="has no derivative rule yet"):
            torch.compile(lambda x: call(x), fullgraph=True, backend="eager")(x())


def logs(x):
    with fh.log_captures(quiet=True):
        return fh.jit(torch.sin, backend="eager")(x)


def explains(x):
    fh.explain(fh.jit(lambda x: x.sin(), backend="eager"))(x)
    return x.sin()


@pytest.mark.parametrize("function", [logs, explains], ids=lambda f: f.__name__)
def test_tools_run_as_python(function) -> None:
    with pytest.raises(Unsupported, match=r"has no node for \w+ of functorch_hops"):
        torch.compile(function, fullgraph=True, backend="eager")(x())
    torch.testing.assert_close(torch.compile(function, backend="eager")(x()), x().sin())


@pytest.mark.parametrize("fullgraph", [False, True])
def test_jit_is_disabled_in_a_traced_function(fullgraph: bool) -> None:
    def run(x):
        with fh.disable_jit():
            return fh.jit(torch.sin)(x)

    torch.testing.assert_close(torch.compile(run, fullgraph=fullgraph, backend="eager")(x()), x().sin())


def fails(x):
    raise ValueError("mine")


def test_errors_of_the_users_own() -> None:
    """Python raises them where it may run, and Dynamo goes on where the user's code catches them."""
    run = lambda x: fh.cond(x.sum() > 0, fails, torch.sin, x)
    with pytest.raises(ValueError, match="mine"):
        torch.compile(run, backend="eager")(x())

    def caught(x):
        try:
            return run(x)
        except ValueError:
            return x.cos()

    torch.testing.assert_close(torch.compile(caught, fullgraph=True, backend="eager")(x()), x().cos())


def multiplies(c, r):
    return torch.ones(3) @ torch.ones(7) + c, r


@pytest.mark.parametrize("body", [asserted, asserted_in_a_region, multiplies], ids=lambda body: body.__name__)
def test_checks_of_shapes_that_fail_in_a_body(body) -> None:
    """Dynamo has errors of its own for them, and none that is readable where the body has no operation before."""
    run = lambda x: fh.scan(body, x[0], x)
    xs = torch.ones(4, 3)
    with pytest.raises(fh.CaptureError, match="scan: a function that it is given raises") as caught:
        torch.compile(run, fullgraph=True, backend="eager")(xs)
    assert isinstance(caught.value, Unsupported) and f"at {body.__code__.co_filename}" in str(caught.value)
    with pytest.raises((AssertionError, RuntimeError)) as plain:
        run(xs)
    torch.compiler.reset()
    with pytest.raises(plain.type) as of_python:
        torch.compile(run, backend="eager")(xs)
    assert str(of_python.value) == str(plain.value)


MISCALLED = {
    "a keyword": (
        lambda x: fh.while_loop(lambda v: v.sum() < 3, torch.exp, x, max_step=3),
        r"while_loop\(cond_fn, body_fn",
    ),
    "too few": (lambda x: fh.scan(lambda c, r: (c, r)), r"scan\(f, init"),
    "one of a transform": (lambda x: fh.vmap(torch.sin, in_dim=0)(x), r"vmap\(func=None, in_dims"),
    "too many of a transform": (lambda x: fh.grad(torch.sum, 0, False, 1)(x), r"grad\(func=None, argnums"),
    "one of a function that calls": (lambda x: fh.vjp(torch.sin, x, aux=True)[0], r"vjp\(func, \*primals"),
    "one of a decorator": (lambda x: fh.annotate(label="a")(torch.sin)(x), r"annotate\(func=None, /, \*, name"),
    "one of a decorator that is a class": (lambda x: fh.custom_vjp(torch.sin, aux=1)(x), r"custom_vjp\(fun, nondiff"),
}


@pytest.mark.parametrize("name", MISCALLED)
def test_arguments_that_no_parameter_takes(name: str) -> None:
    run, expected = MISCALLED[name]
    with pytest.raises(fh.ArgumentTypeError, match=expected) as caught:
        torch.compile(run, fullgraph=True, backend="eager")(x())
    assert isinstance(caught.value, Unsupported) and __file__ in str(caught.value)
    torch.compiler.reset()
    with pytest.raises(TypeError) as of_python:
        torch.compile(run, backend="eager")(x())
    with pytest.raises(TypeError) as plain:
        run(x())
    assert str(of_python.value) == str(plain.value)


REFUSED_WHEN_MADE = {
    "JAX's name": lambda x: fh.vmap(torch.sin, in_axes=0)(x),
    "JAX's name for a loop's": lambda x: fh.scan(lambda c, r: (c, r), x[0], x, axis=1),
    "a word": lambda x: fh.vmap(torch.sin, randomness="any")(x),
    "a number": lambda x: fh.vmap(torch.sin, chunk_size=0)(x),
    "an object": lambda x: fh.checkpoint(torch.sin, policy="all")(x),
    "what it returns is called with": lambda x: fh.checkpoint(torch.sin, x),
    "a number for the function": lambda x: fh.grad(3)(x),
    "a number for the function of a class": lambda x: fh.custom_jvp(3)(x),
    "a word for positions": lambda x: fh.custom_vjp(torch.sin, nondiff_argnums="x")(x),
}


@pytest.mark.parametrize("name", REFUSED_WHEN_MADE)
def test_what_a_transform_refuses_is_said_in_the_same_words(name: str) -> None:
    run = REFUSED_WHEN_MADE[name]
    with pytest.raises((fh.ArgumentTypeError, fh.ArgumentValueError)) as plain:
        run(x())
    with pytest.raises(plain.type) as caught:
        torch.compile(run, fullgraph=True, backend="eager")(x())
    assert isinstance(caught.value, Unsupported)
    assert str(caught.value).startswith(str(plain.value))


def test_torch_loses_what_is_written_to_a_number_of_another_graph() -> None:
    """AOTAutograd (up to torch 2.13) forgets writes to 0-d inputs of float64: no operation of the library is here."""

    def written(x):
        y = x * 1.0
        torch._dynamo.graph_break()
        y.mul_(0.7)
        return y

    x = torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(written, backend="eager")(x), x * 0.7)
    torch.compiler.reset()
    factor = 1.0 if torch.__version__ < (2, 14) else 0.7
    torch.testing.assert_close(torch.compile(written, backend="aot_eager")(x), x * factor)


def test_torch_loses_the_steps_of_a_compiled_optimizer_for_a_number() -> None:
    """The same where a compiled optimizer updates a 0-d parameter of float64."""
    number, row = (torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True) for shape in ((), (1,)))
    optimizer = torch.optim.SGD([number, row], lr=0.5)
    number.grad, row.grad = torch.ones_like(number), torch.ones_like(row)
    torch.compile(optimizer.step, backend="aot_eager")()
    assert row.item() == 1.5
    assert number.item() == (2 if torch.__version__ < (2, 14) else 1.5)


def test_torch_does_not_notice_a_new_hook_or_method() -> None:
    class Scaling(torch.nn.Module):
        def scaled(self, x):
            return 2 * x

        def forward(self, x):
            return self.scaled(x)

    module = Scaling()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    compiled(x())
    Scaling.scaled = lambda self, x: 3 * x
    torch.testing.assert_close(compiled(x()), 2 * x())
    inner = torch.nn.Sequential(Scaling())
    compiled = torch.compile(inner, fullgraph=True, backend="eager")
    compiled(x())
    inner[0].register_forward_hook(lambda module, args, result: -result)
    torch.testing.assert_close((compiled(x()), inner(x())), (3 * x(), -3 * x()))


def test_torch_has_no_gradient_of_flex_attention_on_a_cpu() -> None:
    q = torch.ones(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(Unsupported, match="FlexAttention does not support backward on CPU"):
        torch.compile(flex_attention, fullgraph=True, backend="aot_eager")(q, q, q)
