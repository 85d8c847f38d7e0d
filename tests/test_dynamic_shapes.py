"""Open sizes: one trace of ``jit(dynamic=True)`` and one exported program serve tensors of many sizes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import functorch_hops as fh

F64 = torch.float64
WEIGHT = torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.4, -0.6], [-0.1, 0.2, 0.3]], dtype=F64)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape)))


def cumulative(xs: Tensor) -> Any:
    return fh.scan(lambda c, x: (torch.tanh(c + x @ WEIGHT), c.sum()), torch.zeros(3, dtype=F64), xs)


def rnn(xs: Tensor, h: Tensor) -> Any:
    """Time and batch are both open."""
    return fh.scan(lambda h, x: (torch.tanh(h @ WEIGHT + x), h.sum(-1)), h, xs)


def doubled_until(x: Tensor) -> Tensor:
    return fh.while_loop(lambda v: v.sum() < 20, lambda v: v * 1.5 + 0.1 * x.shape[0], x.abs() + 0.1)


def branch(x: Tensor) -> Tensor:
    return fh.cond(x.sum() > 0, lambda x: x.exp() * x.shape[0], lambda x: x.flip(0).sin(), x)


def size_as_number(xs: Tensor) -> Tensor:
    return fh.scan(lambda c, x: (c + x / xs.shape[0], None), torch.zeros(3, dtype=F64), xs)[0]


def size_as_shape(xs: Tensor) -> Any:
    """The body makes a tensor of a size that none of its own operands has."""
    n = xs.shape[0]
    return fh.scan(lambda c, x: (c + torch.ones(n, dtype=F64).sum() * x, torch.arange(n)), WEIGHT[0], xs[:, :3])


def size_as_product(xs: Tensor) -> Any:
    """The bodies of bodies close over powers of sizes, and over products of three, that were computed around."""
    n, m = xs.shape[0] ** 2, (xs.shape[0] + 1) * (xs.shape[1] + 2) * 2
    ones = lambda: torch.ones(n, dtype=F64).sum()
    return fh.scan(lambda c, x: (fh.cond(x.sum() > 0, lambda: c / n + ones(), lambda: c * 2 - m), None), xs.sum(), xs)


def indexed(xs: Tensor) -> Tensor:
    return fh.fori_loop(0, xs.shape[0], lambda i, c: c * 0.5 + xs[i], torch.zeros(3, dtype=F64))


def recomputing(remat: Any, unroll: int = 1) -> Any:
    """The gradient of a loop that recomputes."""

    def loss(xs: Tensor) -> Tensor:
        step = lambda c, x: (torch.tanh(c + x @ WEIGHT), c.sum())
        return fh.scan(step, torch.zeros(3, dtype=F64), xs, remat=remat, unroll=unroll)[1].sum()

    return fh.grad(loss)


def written(x: Tensor) -> Tensor:
    y, z = torch.zeros_like(x), torch.empty_like(x).copy_(x[0])
    y[1:] = x[:1] * 2
    y[0].add_(z[0])
    return y * z


def attended(x: Tensor) -> Any:
    mask = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).triu()
    bias = mask.expand(x.shape[0], -1, -1)
    return fh.scan(lambda c, _: (c + torch.baddbmm(bias, c, c.mT).softmax(-1) @ c, c.sum()), x, length=2)


def solved(xs: Tensor) -> Any:
    def step(c: Tensor, x: Tensor) -> Any:
        factor = torch.linalg.cholesky(c + torch.outer(x, x))
        return factor @ factor.mT, torch.cholesky_solve(x[:, None], factor)

    return fh.scan(step, torch.eye(xs.shape[1], dtype=xs.dtype), xs)


def resized(x: Tensor) -> Any:
    def step(c: Tensor, _: None) -> Any:
        half = c[..., ::2, ::2]
        return F.interpolate(half, size=c.shape[-2:]), half.sum()

    return fh.scan(step, x, length=2)


CASES: dict[str, tuple[Any, list[tuple[Tensor, ...]]]] = {
    "pointwise": (torch.sin, [(random(4, 3),), (random(7, 5),)]),
    "scan": (cumulative, [(random(4, 3),), (random(9, 3),)]),
    "scan over time and batch": (rnn, [(random(4, 5, 3), random(5, 3)), (random(9, 2, 3), random(2, 3))]),
    "while_loop": (doubled_until, [(random(4),), (random(7),)]),
    "cond": (branch, [(random(4),), (random(7),), (-random(5).abs(),), (random(6).abs(),)]),
    "size as a number": (size_as_number, [(random(4, 3),), (random(9, 3),)]),
    "size as a shape": (size_as_shape, [(random(4, 5),), (random(9, 5),)]),
    "products of sizes": (size_as_product, [(random(4, 3),), (random(9, 5),)]),
    "fori_loop": (indexed, [(random(4, 3),), (random(9, 3),)]),
    "map": (lambda xs: fh.map(torch.sin, xs), [(random(4, 3),), (random(9, 2),)]),
    "vmap(scan)": (fh.vmap(cumulative), [(random(2, 4, 3),), (random(5, 9, 3),)]),
    "vmap(while_loop)": (fh.vmap(doubled_until), [(random(4, 3),), (random(7, 5),)]),
    "vmap(cond)": (fh.vmap(branch), [(random(4, 3),), (random(7, 5),)]),
    "grad(scan)": (fh.grad(lambda xs, h: rnn(xs, h)[1].sum(), (0, 1)), [
        (random(4, 5, 3), random(5, 3)), (random(9, 2, 3), random(2, 3)),
    ]),
    "grad(vmap(while_loop))": (fh.grad(lambda x: fh.vmap(doubled_until)(x).sum()), [(random(4, 3),), (random(7, 5),)]),
    "grad(vmap(cond))": (fh.grad(lambda x: fh.vmap(branch)(x).sum()), [(random(4, 3),), (random(7, 5),)]),
    "vmap(grad(scan))": (fh.vmap(fh.grad(lambda xs: cumulative(xs)[1].sum())), [
        (random(2, 4, 3),), (random(5, 9, 3),),
    ]),
    "hessian(scan)": (fh.hessian(lambda x: fh.scan(lambda c, v: (c * v.sin(), None), x.sum(), x)[0]), [
        (random(4),), (random(7),),
    ]),
    "remat by steps, unrolled": (recomputing("step", 3), [(random(4, 3),), (random(9, 3),)]),
    "vmap of a size beside a scalar": (lambda x: fh.vmap(lambda v: v.sum() / x.shape[0] + v.shape[0] / v.mean())(x), [
        (random(4, 3),), (random(7, 5),),
    ]),
    "jacfwd of a column": (lambda x: fh.jacfwd(lambda v: v.sin() * v.sum())(x[:, 1]), [
        (random(4, 3),), (random(7, 5),),
    ]),
    "hessian of a mean": (lambda xs: fh.hessian(lambda w: ((xs @ w - xs[:, 0]).square() * 0.5).mean())(WEIGHT[0]), [
        (random(4, 3),), (random(9, 3),),
    ]),
    "jvp of products with constants": (lambda x: fh.jvp(lambda v: 2 * v * x.exp() / 3 - v.sum() + 1, (x,), (x,)), [
        (random(4, 3),), (random(7, 5),),
    ]),
    "jvp at infinity": (lambda x: fh.jvp(lambda v: v * 2 * x + 1, (x.abs() / 0,), (x,)), [(random(4),), (random(7),)]),
    "written in place": (written, [(random(4, 3),), (random(7, 5),)]),
    "product and sum in a scan": (attended, [(random(2, 4, 3),), (random(5, 7, 3),)]),
    "solve in a scan": (solved, [(random(4, 3),), (random(7, 5),)]),
    "resized to a size": (resized, [(random(2, 3, 4, 6),), (random(3, 2, 9, 5),)]),
    "jvp(scan)": (lambda x, t: fh.jvp(cumulative, (x,), (t,)), [(random(4, 3),) * 2, (random(9, 3),) * 2]),
}  # fmt: skip

# Before, vmap of a product asks for the number of elements.
FROM_2_13 = {"vmap(scan)", "vmap(grad(scan))", "hessian of a mean"}


@pytest.mark.parametrize("name", [name for name in CASES if torch.__version__ >= (2, 13) or name not in FROM_2_13])
def test_one_trace_for_all_sizes(name: str) -> None:
    f, calls = CASES[name]
    jitted = fh.jit(f, backend="eager", dynamic=True)
    for arguments in calls:
        torch.testing.assert_close(jitted(*arguments), f(*arguments))
    assert jitted.cache_info().misses == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["scan over time and batch", "size as a shape", "vmap(while_loop)", "grad(vmap(cond))"]
)
def test_one_compiled_program_for_all_sizes(name: str) -> None:
    f, calls = CASES[name]
    jitted = fh.jit(f, dynamic=True)
    for arguments in calls:
        torch.testing.assert_close(jitted(*arguments), f(*arguments))
    assert jitted.cache_info().misses == 1


def test_what_depends_on_a_size_is_captured_again() -> None:
    """A decision by a size, and an operator that only works for some, are facts that a trace is bound to."""
    f = fh.jit(lambda x: x.sum() if x.shape[0] > 5 else x.mean(), backend="eager", dynamic=True)
    for n in (4, 7, 3, 9):
        x = random(n)
        torch.testing.assert_close(f(x), x.sum() if n > 5 else x.mean())
    assert f.cache_info().misses == 2
    added = fh.jit(lambda x: x + WEIGHT[0], backend="eager", dynamic=True)
    torch.testing.assert_close(added(random(3)), random(3) + WEIGHT[0])
    with pytest.raises(RuntimeError, match="size of tensor"):
        added(random(4))


@pytest.mark.parametrize("remat", ["sqrt", 3])
def test_segments_are_those_of_a_known_length(remat: Any) -> None:
    gradient = fh.jit(recomputing(remat), backend="eager", dynamic=True)
    for n in (4, 9, 4):
        torch.testing.assert_close(gradient(random(n, 3)), recomputing(remat)(random(n, 3)))
    assert gradient.cache_info().misses == 2


def test_sizes_zero_and_one() -> None:
    f = fh.jit(
        lambda x: fh.scan(lambda c, v: (c + v, v * 2), torch.zeros((), dtype=F64), x), backend="eager", dynamic=True
    )
    for n in (4, 1, 0, 6):
        x = random(n)
        torch.testing.assert_close(f(x), (x.sum(), x * 2))
    assert f.cache_info().misses == 3


def test_sizes_that_torch_reads_of_a_wrapper() -> None:
    """What a transform wraps is asked for its size while its level is there, and must not be kept beyond it."""
    gradient = fh.grad(lambda w, x: fh.vmap(lambda v: torch.cat([(w[:2] * v).tanh(), w[2:] * v]))(x).sum())
    jitted = fh.jit(gradient, backend="eager", dynamic=True)
    for w, x in ((random(4, 3), random(5, 3)), (random(9, 2), random(7, 2))):
        torch.testing.assert_close(jitted(w, x), gradient(w, x))


@pytest.mark.parametrize("n", [4, 9])
def test_transforms_of_a_dynamic_function(n: int) -> None:
    """Derivatives and batches of one trace, at sizes that it was not made for."""
    f = lambda x: cumulative(x)[1]
    jitted = fh.jit(f, backend="eager", dynamic=True)
    jitted(random(6, 3))
    x, t = random(n, 3), random(n, 3).cos()
    loss = lambda g: lambda x: (g(x) ** 2).sum()
    torch.testing.assert_close(fh.grad(loss(jitted))(x), fh.grad(loss(f))(x))
    torch.testing.assert_close(
        fh.grad(lambda x: fh.grad(loss(jitted))(x).sum())(x), fh.grad(lambda x: fh.grad(loss(f))(x).sum())(x)
    )
    torch.testing.assert_close(fh.jvp(jitted, (x,), (t,)), fh.jvp(f, (x,), (t,)))
    torch.testing.assert_close(fh.vmap(jitted)(torch.stack([x, t])), fh.vmap(f)(torch.stack([x, t])))
    assert jitted.cache_info().misses == 1


def test_backward_at_the_sizes_of_each_call() -> None:
    """A pull of an earlier call runs at that call's sizes, unused outputs included."""
    jitted = fh.jit(cumulative, backend="eager", dynamic=True)
    inputs = [random(n, 3).requires_grad_() for n in (4, 9, 5)]
    outputs = [jitted(x)[1] for x in inputs]
    for x, ys in zip(inputs, outputs):
        (gradient,) = torch.autograd.grad(ys.sum(), x)
        torch.testing.assert_close(gradient, torch.func.grad(lambda x: cumulative(x)[1].sum())(x.detach()))
    assert jitted.cache_info().misses == 1


def test_jit_in_a_dynamic_jit() -> None:
    inner = fh.jit(lambda x, n: x * n + x.shape[0], backend="eager")
    outer = fh.jit(lambda x: fh.map(lambda v: inner(v, x.shape[0]), x), backend="eager", dynamic=True)
    for x in (random(4, 3), random(7, 2)):
        torch.testing.assert_close(outer(x), x * x.shape[0] + x.shape[1])
    assert outer.cache_info().misses == 1


@pytest.mark.parametrize("bounds", [lambda n: (0, n - 5), lambda n: (-n, n // 4 - 3), lambda n: (n, 3)])
def test_as_many_steps_as_sizes_say(bounds: Any) -> None:
    f = lambda x: fh.fori_loop(*bounds(x.shape[0]), lambda i, c: (c * 0.5 + i).sin(), x).sum()
    jitted = fh.jit(fh.value_and_grad(f), backend="eager", dynamic=True)
    for n in (9, 2, 5, 6, 7, 20):
        torch.testing.assert_close(jitted(random(n, 3)), fh.value_and_grad(f)(random(n, 3)))
    assert jitted.cache_info().misses == 1


def test_a_predicate_by_size_is_static() -> None:
    f = fh.jit(lambda x: fh.cond(x.shape[0] > 5, torch.sin, torch.cos, x), backend="eager", dynamic=True)
    for n in (4, 9):
        torch.testing.assert_close(f(random(n)), random(n).sin() if n > 5 else random(n).cos())


# ---------------------------------------------------------------------------------------------------------------------
# export

B, T = Dim("B", min=2), Dim("T", min=2)
EXPORTS: dict[str, tuple[Any, Any, list[tuple[Tensor, ...]]]] = {
    "scan": (rnn, ({0: T, 1: B}, {0: B}), CASES["scan over time and batch"][1]),
    "by name": (rnn, {"xs": {0: T, 1: B}, "h": {0: B}}, CASES["scan over time and batch"][1]),
    "vmap(scan)": (fh.vmap(cumulative), ({0: B, 1: T},), CASES["vmap(scan)"][1]),
    "grad(scan)": (fh.grad(lambda xs, h: rnn(xs, h)[1].sum()), ({0: T, 1: B}, {0: B}), CASES["grad(scan)"][1]),
    "vmap(while_loop)": (fh.vmap(doubled_until), ({0: B},), [(random(4, 3),), (random(7, 3),)]),
    "cond": (branch, ({0: B},), CASES["cond"][1]),
    "fori_loop": (indexed, ({0: B},), CASES["fori_loop"][1]),
    "products of sizes": (size_as_product, ({0: B, 1: T},), CASES["products of sizes"][1]),
    "products of one size": (size_as_product, ({0: B, 1: B},), [(random(4, 4),), (random(7, 7),)]),
    "associative_scan": (lambda x: fh.associative_scan(torch.add, x), ({0: B},), [(random(4, 3),), (random(9, 3),)]),
    "jit": (fh.jit(cumulative, backend="eager"), ({0: B},), CASES["scan"][1]),
    "remat": (recomputing("sqrt", 2), ({0: B},), CASES["scan"][1]),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_export_with_dims(name: str) -> None:
    f, shapes, (example, *others) = EXPORTS[name]
    buffer = io.BytesIO()
    torch.export.save(fh.export(f, example, dynamic_shapes=shapes), buffer)
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    for arguments in (example, *others):
        torch.testing.assert_close(program(*arguments), f(*arguments))


def test_exported_parameters_keep_their_names() -> None:
    linear = torch.nn.Linear(3, 2)

    class Mapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return fh.map(self.linear, x)

    program = fh.export(Mapped(), (torch.ones(4, 3),), dynamic_shapes=({0: B},))
    assert list(program.state_dict) == ["linear.weight", "linear.bias"]
    torch.testing.assert_close(program.module()(torch.ones(7, 3)), linear(torch.ones(7, 3)))


def test_pt_147991_a_fact_of_one_branch_stays_there() -> None:
    """A branch that slices and pads to a fixed size says nothing about the sizes that the other may have."""

    def f(x: Tensor) -> Tensor:
        head = lambda x: torch.cat((x, x))[:2].sum() + x.sum()
        return fh.cond(x.sum() > 0, head, lambda x: x.prod(), x)

    program = fh.export(f, (random(4),), dynamic_shapes=({0: B},)).module()
    jitted = fh.jit(f, backend="eager", dynamic=True)
    for x in (random(4), -random(7).abs(), random(3).abs()):
        torch.testing.assert_close(program(x), f(x))
        torch.testing.assert_close(jitted(x), f(x))
    assert jitted.cache_info().misses == 1


def test_writes_into_open_sizes_are_differentiated() -> None:
    f = fh.jit(written, dynamic=True, backend="eager")
    for x in (random(4, 3), random(7, 5)):
        loss, expected = (lambda x, g=g: (g(x) ** 2).sum() for g in (f, written))
        torch.testing.assert_close(fh.grad(loss)(x), fh.grad(expected)(x))
        torch.testing.assert_close(fh.jacfwd(fh.grad(loss))(x), fh.jacfwd(fh.grad(expected))(x))


class Scaled(torch.nn.Module):
    def forward(self, x: Tensor, *rest: Tensor, scale: Any = 1.0, **others: Tensor) -> Tensor:
        return sum(rest, x) * scale + sum(others.values())


@pytest.mark.parametrize("wrapped", [lambda m: m, lambda m: fh.jit(m, backend="eager"), fh.checkpoint])
@pytest.mark.parametrize("shapes", [
    {"x": {0: B}, "rest": ({0: B},), "scale": {0: B}, "y": {0: B}},
    {"x": {0: B}, "rest": ({0: B},), "scale": {0: B}, "others": {"y": {0: B}}},
    ({0: B}, {0: B}, {0: B}, {0: B}),
])  # fmt: skip
def test_dynamic_shapes_by_the_names_of_a_module(wrapped: Any, shapes: Any) -> None:
    f = wrapped(Scaled())
    args, kwargs = (random(4), random(4) + 1), {"scale": random(4) + 2, "y": random(4) + 3}
    program = fh.export(f, args, kwargs, dynamic_shapes=shapes)
    args, kwargs = (random(7), random(7) + 1), {"y": random(7), "scale": random(7) + 2}
    torch.testing.assert_close(program.module()(*args, **kwargs), f(*args, **kwargs))


def test_dynamic_shapes_of_keywords_alone() -> None:
    program = fh.export(lambda args: args * 2, (), {"args": random(4)}, dynamic_shapes={"args": {0: B}})
    torch.testing.assert_close(program.module()(args=random(7)), random(7) * 2)


@pytest.mark.parametrize("shapes", [3, ({0: B}, None), {"x": {0: B}, "other": None}])
def test_dynamic_shapes_that_do_not_fit(shapes: Any) -> None:
    with pytest.raises((fh.ArgumentTypeError, fh.ArgumentValueError), match="dynamic_shapes"):
        fh.export(lambda x: x, (random(4),), dynamic_shapes=shapes)


CELLS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "gru without biases": lambda *sizes: nn.GRUCell(*sizes, bias=False)}


class Recurrent(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.cell = CELLS[name](3, 4)
        self.n_states = 2 if name == "lstm" else 1

    def forward(self, xs, loop=fh.scan):
        zeros = xs.new_zeros(xs.shape[1], 4)

        def step(states, x):
            new = self.cell(x, states if self.n_states == 2 else states[0])
            return (new if self.n_states == 2 else (new,)), None

        return torch.cat(loop(step, (zeros,) * self.n_states, xs)[0], 1)


def python_loop(step, carry, xs):
    for x in xs:
        carry, _ = step(carry, x)
    return carry, None


@pytest.mark.parametrize("name", CELLS)
def test_recurrent_cells_keep_their_batch_open(name):
    """torch's own operators make a number of it."""
    model = Recurrent(name)
    parameters = list(model.parameters())
    run = fh.jit(model, dynamic=True, backend="eager")
    for batch in (5, 6, 9):
        xs = torch.randn(7, batch, 3)
        expected, value = model(xs, python_loop), run(xs)
        torch.testing.assert_close(value, expected)
        gradients = [torch.autograd.grad(y.square().sum(), parameters) for y in (value, expected)]
        torch.testing.assert_close(*gradients)
    assert run.cache_info().misses == 1


def test_a_recurrent_cell_refuses_states_of_another_batch():
    cell = nn.GRUCell(3, 4)
    run = fh.jit(lambda x, h: cell(x, h), dynamic=True, backend="eager")
    for h in (torch.zeros(5, 4), torch.zeros(1, 4), torch.zeros(6, 4)):
        if len(h) == 5:
            run(torch.zeros(5, 3), h)
        else:
            with pytest.raises(RuntimeError, match="batch size"):
                run(torch.zeros(5, 3), h)


def zeroed(x: Tensor) -> Tensor:
    y = x * 2
    y[y > 0] = 0.0
    return y.sin()


def shifted(x: Tensor) -> Tensor:
    y = x * 2
    y[1:] = x[:-1]
    y[::2].mul_(x[0])
    y[0] = x.sum()
    return y.sin()


WRITES = {
    "by a mask": (zeroed, lambda x: torch.where(x > 0, 0.0, x * 2).sin()),
    "to parts": (shifted, shifted),
    "of lanes to what all share": (
        lambda x: torch.slice_scatter(torch.zeros(3, dtype=F64), x[:1], 0, 1, 2),
        lambda x: torch.cat((x[:1] * 0, x[:1], x[:1] * 0)),
    ),
}


@pytest.mark.parametrize(("f", "oracle"), WRITES.values(), ids=WRITES)
def test_writes_in_lanes_of_open_sizes(f, oracle):
    jitted = fh.jit(f, dynamic=True, backend="eager")
    for x in (random(4, 3), random(2, 5)):
        torch.testing.assert_close(torch.func.vmap(jitted)(x), torch.func.vmap(oracle)(x))
        torch.testing.assert_close(torch.func.vmap(torch.func.vmap(jitted))(x[None]), torch.func.vmap(oracle)(x)[None])
        torch.testing.assert_close(
            torch.func.vmap(torch.func.jacfwd(jitted))(x), torch.func.vmap(torch.func.jacfwd(oracle))(x)
        )


def test_slices_put_into_lanes_of_open_sizes():
    f = lambda x: torch.slice_scatter(torch.select_scatter(x, x[1], 0, 0), src=x[:1].cos(), dim=0, start=1, end=2)
    jitted = fh.jit(fh.vmap(f), dynamic=True, backend="eager")
    for x in (random(4, 3), random(2, 5)):
        torch.testing.assert_close(jitted(x), torch.stack([f(row) for row in x]))


def squared_windows(x: Tensor) -> Tensor:
    y = x.clone()
    y.unfold(0, 2, 2).square_()
    return y


STRIDED = {
    "a strided view": lambda x: x.as_strided((2, 3), (1, 2), 1).sin(),
    "windows that are written to": squared_windows,
}


@pytest.mark.parametrize("name", STRIDED)
def test_gradients_of_strided_views_with_open_sizes(name):
    slope = fh.grad(lambda x: STRIDED[name](x).square().sum())
    run = fh.jit(slope, dynamic=True, backend="eager")
    for x in (random(9, 2), random(6, 3)):
        torch.testing.assert_close(run(x), slope(x))
    assert run.cache_info().misses == 1


def test_gradients_of_writes_to_parts_of_lanes_of_open_sizes():
    slope = fh.grad(lambda x: shifted(x).sum())
    run = fh.jit(fh.vmap(slope), dynamic=True, backend="eager")
    for x in (random(4, 3), random(2, 5)):
        torch.testing.assert_close(run(x), torch.stack([slope(row) for row in x]))
    assert run.cache_info().misses == 1


def test_what_torch_composes_by_known_sizes_is_refused_in_words():
    f = lambda x: torch.gradient(x)[0]
    x = random(4, 3)
    with pytest.raises(fh.CaptureError, match=r"(?s)can't run with open sizes.*fh.vmap.fh.jit"):
        fh.jit(fh.vmap(f), dynamic=True, backend="eager")(x)
    mapped = fh.vmap(fh.jit(f, dynamic=True, backend="eager"))(x)
    torch.testing.assert_close(mapped, torch.stack([f(row) for row in x]))


def test_gradients_of_masks_in_lanes_of_open_sizes():
    derivatives = (lambda f: torch.func.grad(lambda x: f(x).sum()), torch.func.jacfwd, torch.func.hessian)
    for derivative in derivatives:
        jitted = fh.jit(torch.func.vmap(derivative(zeroed)), dynamic=True, backend="eager")
        expected = torch.func.vmap(derivative(lambda x: torch.where(x > 0, 0.0, x * 2).sin()))
        for x in (random(4, 3), random(2, 5)):
            torch.testing.assert_close(jitted(x), expected(x))
        assert jitted.cache_info().misses == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_recurrent_network_takes_any_batch(strict):
    model, xs = Recurrent("gru"), torch.randn(7, 5, 3)
    sizes = ({0: torch.export.Dim("T", min=2, max=64), 1: torch.export.Dim("B", min=2, max=64)},)
    program = torch.export.export(model, (xs,), dynamic_shapes=sizes, strict=strict)
    for given in (xs, torch.randn(3, 8, 3)):
        torch.testing.assert_close(program.module()(given), model(given))


def test_open_prefixes_of_half_precision_are_rounded_as_in_a_tree() -> None:
    """One after the other, a sum of ones would not grow beyond 256."""
    ones = torch.ones(1000, dtype=torch.bfloat16)
    total = fh.jit(lambda xs: fh.associative_scan(torch.add, xs), dynamic=True, backend="aot_eager")(ones)
    assert total[-1] == 1000
