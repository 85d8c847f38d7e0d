"""Where a program can see how a tensor lies in memory, it sees what eager Python sees.

Operands are contiguous in a trace, whatever they are in a call. Operators that read the layout (``as_strided``, views
as another dtype) find the one that the trace had; questions (``stride()``) are answered for the tensor of the call.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import functorch_hops as fh
from modes import every_mode, plain, same

F64 = torch.float64
STRIDED = torch.arange(12.0, dtype=F64).reshape(3, 4)[:, ::2]

READERS = {
    "as_strided": lambda x: torch.as_strided(x.contiguous(), (4,), (1,)) * 1,
    "of a result": lambda x: torch.as_strided((x * 2).contiguous(), (4,), (1,)) * 1,
    "of a part of a result": lambda x: torch.as_strided((x * 2).contiguous()[1:], (3,), (1,)) * 1,
    "of a transposed view": lambda x: torch.as_strided(x.contiguous().T, (4,), (1,)) * 1,
    "of a transposed copy": lambda x: torch.as_strided(x.T.contiguous(), (4,), (1,)) * 1,
    "complex numbers": lambda x: torch.view_as_complex(x.contiguous()),
    "another dtype": lambda x: x.contiguous().view(torch.int64),
    "a smaller dtype": lambda x: x.contiguous().view(torch.float32),
}


@every_mode
@pytest.mark.parametrize("operand", [STRIDED, STRIDED.contiguous(), torch.ones(2, 3, dtype=F64).cumsum(1).T])
@pytest.mark.parametrize("name", READERS)
def test_of_a_strided_operand(name, operand, run):
    f = READERS[name]
    same(run(lambda x: fh.cond(x.sum() > -99, f, lambda x: f(x) * 0, x), operand), f(operand))


@pytest.mark.parametrize("name", READERS)
def test_of_lanes_and_under_derivatives(name):
    f = READERS[name]
    lanes = torch.stack([STRIDED, STRIDED + 1], -1)
    if "dtype" in name and torch.__version__ < (2, 13):  # torch.func.vmap had no rule for it
        with pytest.raises(RuntimeError, match=r"Batching rule not implemented for aten::view.dtype"):
            fh.jit(fh.vmap(f, in_dims=-1), backend="eager")(lanes)
        return
    same(fh.jit(fh.vmap(f, in_dims=-1), backend="eager")(lanes), torch.stack([f(x) for x in lanes.unbind(-1)]))
    if f(STRIDED).dtype in (F64, torch.complex128):
        loss = lambda x: (f(x) * f(x).conj()).real.sin().sum()
        same(fh.jit(fh.grad(loss), backend="eager")(STRIDED), torch.func.grad(loss)(STRIDED))


def test_a_view_as_another_dtype_that_is_none_raises_as_in_eager():
    for run in (lambda f: f, lambda f: fh.jit(f, backend="eager")):
        with pytest.raises(RuntimeError, match=r"to view|view.dtype"):
            run(fh.vmap(lambda x: x.T.view(torch.float32)))(torch.ones(2, 4, 3, dtype=F64))


@every_mode
def test_of_a_carry_that_a_body_turns(run):
    def step(c):
        return (torch.as_strided(c.contiguous(), (4,), (1,)).reshape(2, 2) * 0.5).T

    x = torch.arange(8.0, dtype=F64).reshape(2, 4)[:, ::2]
    same(run(lambda x: fh.fori_loop(0, 3, lambda i, c: step(c), x), x), step(step(step(x))))


def chosen(question):
    return lambda x: x * (2 if question(x) else 3)


QUESTIONS = {
    "stride": chosen(lambda x: x.stride() == (2, 1)),
    "stride of a dimension": chosen(lambda x: x.stride(-1) == 1),
    "contiguous": chosen(lambda x: x.is_contiguous()),
    "offset": chosen(lambda x: x.storage_offset() > 0),
    "order of dimensions": chosen(lambda x: x.dim_order() == (1, 0)),
    "made contiguous": chosen(lambda x: x.contiguous().is_contiguous()),
    "of a copy": chosen(lambda x: (x.contiguous() * 2).stride() == (2, 1)),
}
OPERANDS = {
    "strided": STRIDED,
    "plain": STRIDED.contiguous(),
    "transposed": STRIDED.contiguous().T,
    "offset": torch.ones(3, 2, dtype=F64)[1:],
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_of_an_argument_and_a_closed_over_tensor(name):
    f = QUESTIONS[name]
    compiled = fh.jit(f, backend="eager")
    for x in (*OPERANDS.values(), *OPERANDS.values()):
        same(compiled(x), f(x))
        same(fh.jit(lambda y, x=x: f(x) + y, backend="eager")(x), f(x) + x)


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("operand", OPERANDS.values(), ids=OPERANDS)
def test_a_question_of_a_carry_and_a_lane(name, operand):
    """The initial carry and the one that a step returns are asked the same: they agree, or it is refused."""
    f = QUESTIONS[name]
    loop = lambda x: fh.fori_loop(0, 1, lambda i, c: f(c), x)
    lanes = fh.vmap(lambda x: fh.cond(x.sum() > -99, f, f, x))
    stacked = torch.stack([operand, operand + 1], -1).movedim(-1, 0)
    is_plain = operand.is_contiguous() and operand.storage_offset() == 0
    for program, x, expected in ((loop, operand, f(operand)), (lanes, stacked, fh.vmap(f)(stacked))):
        with contextlib.nullcontext() if is_plain and x is operand else contextlib.suppress(fh.CaptureError):
            same(fh.jit(program, backend="eager")(x), expected)


@pytest.mark.parametrize(
    "f", [chosen(lambda x: (x * 1).is_contiguous()), lambda x: torch.as_strided(x, (2,), (1,)) * 1]
)
def test_what_depends_on_the_layout_of_an_argument_is_right_or_refused(f):
    compiled = fh.jit(f, backend="eager")
    for _ in range(2):
        same(compiled(OPERANDS["plain"]), f(OPERANDS["plain"]))
        for name in ("strided", "transposed"):
            with pytest.raises(fh.CaptureError, match="the layout of a value depends on that of inputs"):
                compiled(OPERANDS[name])


def test_a_write_to_what_was_made_contiguous():
    def f(x):
        y = x.contiguous()
        y.add_(1)
        return y

    for name in ("strided", "transposed"):
        before = OPERANDS[name].clone()
        same(fh.jit(f, backend="eager")(OPERANDS[name]), before + 1)
        same(OPERANDS[name], before)
    with pytest.raises(fh.InputMutationError):
        fh.jit(f, backend="eager")(OPERANDS["plain"].clone())


def test_contiguous_alone_costs_no_capture():
    f = fh.jit(lambda x: x.contiguous() * 2, backend="eager")
    for x in (STRIDED.contiguous(), STRIDED, STRIDED.contiguous().T.contiguous().T):
        same(f(x), x * 2)
    assert f.cache_info().misses == 1


WRITES = {
    "a cotangent that is a part": lambda w: torch.cat([w.flatten(), _added_through_a_view(w).flatten()]),
    "a masked cotangent that is a part": lambda w: torch.stack([w, _masked(w)]),
    "a tangent that another value has": lambda w: (_written(w + 0 * w.detach().sum()), w)[1],
    "a clone": lambda w: w.clone().zero_() + w,
    "a product by a number": lambda w: (w * 2.0).add_(w.sum()),
    "a copy of windows": lambda w: _written(w.flatten().unfold(0, 2, 1).clone()),
}


def _added_through_a_view(w):
    v = w.clone()
    v.mT.add_(w.sum())
    return v


def _masked(w):
    v = w.clone()
    v[v > 0.1] = 0.5
    return v


def _written(v):
    v[0] = 0.3
    return v


@pytest.mark.parametrize("name", WRITES)
def test_writes_go_to_memory_of_their_own(name):
    """Forward and reverse mode write in place to tangents and cotangents, of which parts and copies are taken."""
    f = WRITES[name]
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
    weights = torch.linspace(0.5, 2, f(x).numel(), dtype=F64)
    loss = lambda x: (f(x).flatten() * weights).sin().sum()

    def every(tools):
        gradient = tools.grad(loss)
        tangents = (x.sin(),)
        return lambda x: [f(x), gradient(x), tools.jvp(f, (x,), tangents)[1], tools.jvp(gradient, (x,), tangents)[1]]

    same(fh.jit(every(fh), backend="eager")(x), every(torch.func)(x))
    if "masked" not in name:  # torch's vmap knows no write by a mask
        lanes = lambda tools: tools.vmap(lambda r: tools.jvp(f, (r,), (torch.ones_like(x),))[1])
        xs = torch.stack([x, x.cos()])
        same(fh.jit(lanes(fh), backend="eager")(xs), lanes(torch.func)(xs))


def test_derivatives_of_a_product_with_a_complex_number():
    for f in (lambda x: (x * (0.5 + 0.5j)).real.sum(), lambda x: torch.exp(1j * x).real.sum()):
        x = torch.linspace(-1, 1, 3, dtype=F64)
        for transform in ("grad", "hessian"):
            same(fh.jit(getattr(fh, transform)(f), backend="eager")(x), getattr(torch.func, transform)(f)(x))


PARTS = {
    "all": lambda y: y,
    "transposed": lambda y: y.t(),
    "slice": lambda y: y[1:],
    "columns": lambda y: y[:, 1:],
    "row": lambda y: y[2],
}


@pytest.mark.parametrize("window", [(0, 2, 2), (0, 2, 3), (-1, 1, 2), (0, 2, 4)])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_writes_to_windows_keep_what_no_window_covers(part, window):
    def f(x):
        y = x * 1
        part(y).unfold(*window).mul_(3)
        return y * x

    jit = lambda f: fh.jit(f, backend="eager")
    loss = lambda x: f(x).sin().sum()
    x = torch.randn(6, 5, dtype=F64)
    same(jit(f)(x), f(x))
    same(jit(fh.vmap(f))(x[None]), f(x)[None])
    same(fh.grad(lambda x: jit(loss)(x))(x), torch.func.grad(loss)(x))
    same(jit(fh.grad(loss))(x), torch.func.grad(loss)(x))


def test_writes_to_windows_of_a_detached_alias():
    def f(x):
        y = x * 1
        y.detach().unfold(0, 2, 3).mul_(3)
        return y

    x = torch.ones(6, dtype=F64)
    same(fh.jit(f, backend="eager")(x), f(x))
    with pytest.raises(fh.CaptureError, match="of a detached part of a value"):
        fh.jit(lambda x: f(x)[::2].detach().unfold(0, 2, 3).mul_(3), backend="eager")(x)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_by_strided_weights(training):
    """torch's backward pass (2.13) reads weights as if they were contiguous, which a clone() in a graph is not."""
    x, (weight, bias, mean, var) = torch.randn(4, 3, dtype=F64), torch.rand(3, 4, dtype=F64).T

    def loss(weight, x):
        normalised = torch.nn.functional.batch_norm(
            x, mean.clone(), var.clone(), weight.clone(), bias.clone(), training=training, momentum=0.0
        )
        return normalised.sin().sum()

    same(fh.jit(fh.grad(loss, (0, 1)), backend="eager")(weight, x), fh.grad(loss, (0, 1))(weight.clone(), x))


TURNED = torch.arange(6.0, dtype=F64).reshape(2, 3).mT


STACKS = {
    "scan": lambda x: fh.scan(lambda c, r: (c + r, c * r), x[0], x)[1],
    "map": lambda x: fh.map(torch.sin, x),
    "associative_scan": lambda x: fh.associative_scan(torch.mul, x),
}


@every_mode
@pytest.mark.parametrize("in_dim", [0, 1])
@pytest.mark.parametrize("name", STACKS)
def test_a_view_of_stacked_results_of_lanes(name, in_dim, run):
    f, x = STACKS[name], torch.arange(24.0, dtype=F64).reshape(3, 2, 4)
    expected = torch.stack([f(lane).view(-1) for lane in x.unbind(in_dim)])
    same(run(fh.vmap(lambda x: f(x).view(-1), in_dims=in_dim), x), expected)


@every_mode
def test_a_view_of_what_lies_otherwise_in_the_trace(run):
    f = lambda x: fh.cond(x.sum() > -99, lambda x: (x * 2).mT.view(-1).sin(), lambda x: x.reshape(-1), x)
    same(run(f, TURNED), (TURNED * 2).mT.reshape(-1).sin())
    same(run(lambda x: (x * 2).mT.view(2, 3), TURNED), (TURNED * 2).mT)


def test_a_write_through_such_a_view_is_refused():
    def f(x):
        y = (x * 2).mT
        y.view(-1)[1:].tanh_()
        return y

    with pytest.raises(fh.InputMutationError, match=r"or to a view\(\) or reshape\(\) of it, whose layout"):
        fh.jit(f, backend="eager")(TURNED)


def test_products_of_lanes_that_lie_otherwise_without_gradients():
    """To take a lane's result apart functorch asks no layout, hence none is unknown."""
    w, xs = torch.rand(3, 3, dtype=F64), torch.rand(2, 3, dtype=F64).expand(4, -1, -1)
    f = lambda xs: fh.map(fh.vmap(lambda x: torch.tanh(w @ x)), xs)
    with torch.no_grad():
        same(fh.jit(f, backend="eager")(xs), f(xs))


def test_a_view_of_lanes_that_lie_otherwise_in_the_trace():
    """The rows that a loop stacks for all lanes lie between one another."""
    f = lambda x: (fh.map(lambda row: row * 2, x) + 1).view(-1).sin()
    x = torch.arange(12.0, dtype=F64).reshape(2, 3, 2)
    same(fh.jit(fh.vmap(f), backend="eager")(x), (x * 2 + 1).reshape(2, -1).sin())


def detached_part(x):
    y = (x * 2)[::2]
    y.detach().as_strided((2,), (2,)).add_(1)
    return y


def view_without_gradients(x):
    y = (x * 2).reshape(2, 3).mT
    with torch.no_grad():
        part = y[1:]
    y.mul_(2)
    return part.as_strided((2,), (1,))


@pytest.mark.parametrize("f", [detached_part, view_without_gradients])
def test_places_in_the_memory_of_a_detached_part_are_refused(f):
    """It has memory of its own in the graph, with its elements side by side."""
    with pytest.raises(fh.CaptureError, match="of a detached part of a value"):
        fh.jit(f, backend="eager")(torch.arange(6.0))


def test_places_in_the_memory_of_a_detached_alias():
    def f(x):
        y = (x * 2).reshape(2, 3).mT
        y.detach().as_strided((2,), (1,)).add_(1)
        return y

    x = torch.arange(6.0)
    same(fh.jit(f, backend="eager")(x), f(x))


@pytest.mark.parametrize("transforms", ["vmap hessian", "vmap grad", "hessian vmap"])
def test_gradients_through_writes_to_parts_of_lanes(transforms):
    """autograd writes to the gradient of a part by as_strided of what lies between lanes."""

    def f(x):
        y = x[..., -1].expand(2, 2) * x.sum()
        z = y.flatten()
        y[::2] *= 1.2
        return (y.sum() * z).sum()

    x = torch.arange(8.0, dtype=F64).reshape(4, 1, 2).mT
    outer, inner = transforms.split()
    if outer == "vmap":
        derived = lambda fh: fh.vmap(getattr(fh, inner)(f))
    else:
        derived = lambda fh: fh.hessian(lambda x: fh.vmap(f)(x).sum())
    same(fh.jit(derived(fh), backend="eager")(x), derived(torch.func)(x))


# ---------------------------------------------------------------------------------------------------------------------
# what is a view in one layout and a copy in another: NOTE [A view or a copy]


def raveled_and_written(x):
    y = x + 1
    y.ravel()[0] = 9
    return y


def written_and_raveled(x):
    y = x + 1
    flat = y.reshape(-1)
    y.mul_(2)
    return y, flat


def raveled_in_a_loop(x):
    def step(c, _):
        c = c * 1
        torch.flatten(c).mul_(2)
        return c, None

    return fh.scan(step, x, length=2)[0]


HIDDEN_COPIES = [raveled_and_written, written_and_raveled, raveled_in_a_loop]


@pytest.mark.parametrize("f", HIDDEN_COPIES)
def test_a_write_to_a_view_that_may_be_a_copy(f):
    x, jitted = torch.arange(6.0).reshape(2, 3), fh.jit(f, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(jitted(x), f(x))
        with pytest.raises(fh.InputMutationError, match="not contiguous"):
            jitted(x.mT)


def test_a_reshape_of_nothing():
    f = lambda x: (x.reshape(2, 0, 3) + 1, (x + 1).view(3, 0).mul_(2))
    torch.testing.assert_close(fh.jit(f, backend="eager")(torch.zeros(6, 0)), f(torch.zeros(6, 0)))


USES_OF_ONE = {
    "activation": lambda x: torch.relu_(torch.flatten(x - 2)),
    "read before": lambda x: (y := x + 1)[y.reshape(-1)[0].long() % 2].add_(1) * y,
    "split": lambda x: (y := x + 1, y.reshape(3, 1, 2).mul_(2))[0],
    "unsafe": lambda x: (y := x + 1, y.unsafe_split(1)[0].mul_(2), torch.unsafe_chunk(y, 2, dim=1)[1].add_(3))[0],
}


@pytest.mark.parametrize("name", USES_OF_ONE)
def test_a_write_that_nobody_could_miss(name):
    f = USES_OF_ONE[name]
    x = torch.arange(6.0).reshape(2, 3).mT
    torch.testing.assert_close(fh.jit(f, backend="eager")(x), f(x))


@pytest.mark.parametrize("dim", [(), (1,)])
def test_a_write_of_all_that_is_read_in_part(dim):
    """Its bounds are left out."""
    x, y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
    f = lambda x, y: (torch.slice_scatter(torch.slice_scatter(x, y, *dim), 2 * y, *dim)[0:1] * x).sum()
    torch.testing.assert_close(fh.jit(f, backend="eager")(x, y), f(x, y))
    torch.testing.assert_close(fh.jit(fh.grad(f), backend="eager")(x, y), torch.func.grad(f)(x, y))


@pytest.mark.parametrize(
    "split",
    [
        lambda y: torch.unsafe_split(y, split_size=3),
        lambda y: torch.ops.aten.unsafe_split.Tensor(y, 3),
        lambda y: y.unsafe_split_with_sizes(split_sizes=[2, 4]),
        lambda y: torch.ops.aten.unsafe_split_with_sizes(y, [2, 4]),
    ],
)
def test_a_write_to_a_part_of_an_unsafe_split(split):
    def f(x):
        y = x + 1
        split(y)[0].mul_(2)
        return y

    x = torch.arange(6.0)
    torch.testing.assert_close(fh.jit(f, backend="eager")(x), f(x))


BITS = {
    "conjugated": lambda z: z.is_conj(),
    "function": torch.is_conj,
    "computed": lambda z: (z * 2).is_conj(),
    "conjugated inside": lambda z: (z * 2).conj().is_conj(),
    "twice": lambda z: (z * 2).conj().conj().is_conj(),
    "resolved": lambda z: z.resolve_conj().is_conj(),
    "the object": lambda z: z.resolve_conj() is z,
    "a part resolved": lambda z: z[:1].resolve_conj().resolve_neg().sum().is_conj(),
    "real part": lambda z: (z * 1).imag.is_neg(),
    "imaginary part": lambda z: (z * 1).conj().imag.is_neg(),
    "negated": lambda z: z.is_neg(),
}


@every_mode
@pytest.mark.parametrize("ask", BITS.values(), ids=BITS)
def test_lazily_conjugated_and_negated_operands(run, ask):
    """A trace is for operands that answer alike; values are right anyway."""
    z = torch.tensor([1 + 2j, 3 - 1j])
    f = lambda z: fh.checkpoint(lambda z: z * 3 if ask(z) else z)(z)
    for operand in (z, z.conj(), z, z.conj(), z.conj().conj()):
        same(run(f, operand), f(operand))
    of_number = lambda x: x * 3 if x.is_neg() else x.resolve_neg() * 2
    for part in (z.conj().imag, z.imag, z.real):
        same(run(of_number, part), of_number(part))


def test_quick_calls_compare_lazy_bits():
    z = torch.tensor([1 + 2j, 3 - 1j])
    asked = fh.jit(lambda z: z * 3 if z.is_conj() else z * 2, backend="eager")
    for _ in range(3):
        for operand in (z, z, z, z.conj(), z.conj(), z.conj()):
            same(asked(operand), operand * (3 if operand.is_conj() else 2))
    assert asked.cache_info().misses == 2


@every_mode
def test_a_row_and_a_carry_answer_for_all_steps(run):
    z = torch.tensor([[1 + 2j, 3 - 1j], [2j, 1j]]).conj()
    rows = lambda z: fh.map(lambda row: row * (3 if row.is_conj() else 1), z)
    same(run(rows, z), rows(z))
    if run is not plain:
        with pytest.raises(fh.CaptureError, match="whether a carry is lazily conjugated"):
            run(lambda z: fh.fori_loop(0, 2, lambda i, c: c * (3 if c.is_conj() else 1), z), z)
        with pytest.raises(fh.CaptureError, match=r"is_conj\(\) or is_neg\(\) of a view"):
            run(lambda z: fh.scan(lambda c, _: (c, z[0].is_conj()), 0, length=2)[0], z)


BY_KEYWORD = {
    "reshape": lambda x: torch.reshape(input=x, shape=(4, 3)),
    "ravel": lambda x: torch.ravel(input=x),
    "detach": lambda x: torch.detach(input=x),
    "narrow": lambda x: torch.narrow(input=x, dim=0, start=1, length=1),
    "as_strided": lambda x: torch.as_strided(input=x * 1, size=(2,), stride=(1,)),
    "asked": chosen(lambda x: torch.is_conj(input=x)),
    "taken": lambda x: torch.as_tensor(data=x) * torch.asarray(obj=[2.0]),
}


@every_mode
@pytest.mark.parametrize("f", BY_KEYWORD.values(), ids=BY_KEYWORD)
def test_an_operand_that_is_given_by_keyword(f, run):
    x = torch.arange(12.0, dtype=F64).reshape(3, 4)
    same(run(f, x), f(x))
