"""Results of a jitted function that are operands, views of them, or of one another: objects and memory of eager.

The oracle is the function itself: which of its results and arguments are one object, which share memory, how they lie
in it, and which have a gradient history.
"""

from __future__ import annotations

import optree
import pytest
import torch
from torch import Tensor, nn

import functorch_hops as fh
from modes import same

F64 = torch.float64
W = torch.arange(6.0, dtype=F64).reshape(2, 3)


def jit(f, **options):
    return fh.jit(f, backend="eager", **options)


def sharing(results, *args):
    """What a program can see of how results and arguments belong together."""
    tensors = [*results, *args]
    memory = [t.untyped_storage().data_ptr() for t in tensors]
    given = memory[len(results) :]
    places = [(t.stride(), t.storage_offset()) if m in given else None for t, m in zip(tensors, memory)]
    objects = [next(i for i, other in enumerate(tensors) if other is t) for t in tensors]
    return objects, [memory.index(m) for m in memory], places, [(t.requires_grad, t.is_leaf) for t in tensors]


def agrees(f, jitted, *args):
    """Called as often as it takes for a quick call, and once more."""
    for _ in range(4):
        got, expected = jitted(*args), f(*args)
        same(got, expected)
        assert sharing(got, *args) == sharing(expected, *args)


def without_gradients(x):
    with torch.no_grad():
        return x[0], x, x.mT * 2


def written(x):
    y = x * 2
    row, again = y[0], y
    y.add_(1)
    row.mul_(3)
    return row, y, again, y[1:]


PROGRAMS = {
    "itself": lambda x: (x,),
    "twice": lambda x: (x, x + 1, x),
    "views": lambda x: (x.view(-1) if x.is_contiguous() else x.mT, x[0], x.mT, *x.unbind(1), x.chunk(2)[1][0]),
    "reshaped": lambda x: (x.reshape(-1), x.flatten(), x[0].flatten()),
    "contiguous": lambda x: (x.contiguous(), x.contiguous()[0]),
    "raveled": lambda x: (x[0].ravel(), x.ravel()),
    "expanded": lambda x: (x[:1].expand(4, x.shape[1]), x.unsqueeze(0), x.diagonal()),
    "einsum": lambda x: (torch.einsum("ij->ji", x), x.unfold(1, 2, 1)),
    "detached": lambda x: (x.detach(), x.detach()[0], (x * 2).detach()),
    "closed over": lambda x: (W, W[0], x + W.sum()),
    "of a result": lambda x: (lambda y: (y[0], y, y.mT, y.detach(), y))(x * 2),
    "written": written,
    "no_grad": without_gradients,
}
LAYOUTS = {
    "plain": lambda: torch.randn(4, 3, dtype=F64),
    "turned": lambda: torch.randn(3, 4, dtype=F64).mT,
    "apart": lambda: torch.randn(4, 6, dtype=F64)[:, ::2],
}


@pytest.mark.parametrize("f", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize("options", [{}, {"dynamic": True}], ids=["fixed", "dynamic"])
def test_results_share_what_they_share_in_eager(f, options):
    jitted = jit(f, **options)
    for make in LAYOUTS.values():
        agrees(f, jitted, make())
        agrees(f, jitted, make().requires_grad_())


def test_one_trace_serves_contiguous_and_other_arguments():
    """It was made for a contiguous one, of which ``contiguous()`` is the tensor itself; of the other it is a copy."""
    jitted, x = jit(lambda x: (x.contiguous(), x.ravel())), torch.randn(4, 3, dtype=F64)
    agrees(lambda x: (x.contiguous(), x.ravel()), jitted, x)
    got = jitted(x.mT)
    assert jitted.cache_info().misses == 2  # a shape of its own
    same(got, (x.mT.contiguous(), x.mT.ravel()))
    got = jitted(torch.randn(3, 4, dtype=F64).mT)
    assert jitted.cache_info().misses == 2
    assert all(t.is_contiguous() for t in got)
    assert got[0].data_ptr() != got[1].data_ptr()


def test_copies_of_an_operand_are_apart_in_captures_too():
    """What the inner function takes for ``contiguous()`` of its operand is none of the outer function's argument."""
    inner, x = jit(lambda x: x.contiguous()), torch.randn(3, 3, dtype=F64)
    assert inner(x) is x
    outer = jit(lambda x: inner(x))
    for value in (x, x.mT):
        result = outer(value)
        same(result, value)
        assert result.data_ptr() != value.data_ptr()


def test_dynamic_sizes_of_a_view():
    f = lambda x: (x.view(-1, 2), x.view(-1))
    jitted = jit(f, dynamic=True)
    for n in (4, 6, 10):
        agrees(f, jitted, torch.randn(3, n, dtype=F64))
    assert jitted.cache_info().misses == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_modes_of_gradients(mode):
    def f(x):
        with torch.enable_grad():
            return x.view(-1), x[0].detach(), x

    with mode():
        for x in (W.clone(), W.clone().requires_grad_()):
            agrees(f, jit(f), x)
            agrees(PROGRAMS["views"], jit(PROGRAMS["views"]), x)


def test_work_in_place_on_results_is_that_of_eager():
    def in_place(f, x):
        row, doubled, of_doubled = f(x)
        of_doubled.mul_(3)
        doubled.add_(1)
        gradient = torch.autograd.grad((doubled**2).sum(), x)[0]
        with torch.no_grad():
            row.detach().zero_()
        return gradient, x, doubled, of_doubled

    f = lambda x: (lambda y: (x[0], y, y[1]))(x * 2)
    same(*(in_place(g, W.clone().requires_grad_()) for g in (jit(f), f)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_part_of_what_is_not_returned_can_be_written(backend, requires_grad):
    """Torch refuses writes to views that were taken where nothing was recorded, as inside of an autograd node."""
    f = lambda x: (x * 2)[0]
    scale = torch.arange(3.0, dtype=F64, requires_grad=True)

    def written(f):
        x = W.clone().requires_grad_(requires_grad)
        y = f(x).mul_(scale)
        return y, torch.autograd.grad(y.sum(), [x, scale] if requires_grad else scale)

    same(written(fh.jit(f, backend=backend)), written(f))


def test_an_alias_with_a_history_of_its_own_is_a_copy():
    """What is written through ``d`` has a gradient that no view of ``y`` has."""

    def f(x, w):
        y = x * 2
        d = y.detach()
        d.mul_(w)
        return y, d

    x, w = (torch.randn(3, dtype=F64, requires_grad=True) for _ in range(2))
    same(torch.autograd.grad(jit(f)(x, w)[1].sum(), w), torch.autograd.grad(f(x, w)[1].sum(), w))


@pytest.mark.parametrize("view", [lambda z: z.conj(), lambda z: z.resolve_conj(), lambda z: z.imag, lambda z: z])
def test_lazily_conjugated(view):
    z, jitted = torch.randn(3, dtype=torch.complex128), jit(view)
    for value in (z, z.conj(), z):
        got = jitted(value)
        same(got.resolve_conj().resolve_neg(), view(value).resolve_conj().resolve_neg())
    before = z.clone()
    jit(lambda z: z.resolve_conj())(z.conj()).zero_()
    same(z, before)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x):
        before = self.count
        self.count.add_(1)
        return before, self.count[0], self.weight, self.weight[None], self.scale, x * self.scale


def test_parameters_and_buffers():
    ours, theirs, x = Counting(), Counting(), torch.ones(2)
    jitted = jit(ours)
    for _ in range(4):
        got, expected = jitted(x), theirs(x)
        same(got, expected)
        assert sharing(got, *ours.state_dict(keep_vars=True).values(), x) == sharing(
            expected, *theirs.state_dict(keep_vars=True).values(), x
        )


def parts(x: Tensor) -> tuple[Tensor, ...]:
    return x, x.view(-1), x.mT[0], x * x


TRANSFORMS = {
    "vmap": fh.vmap,
    "grad": lambda f: lambda xs: fh.grad(lambda xs: sum((part**3).sum() for part in f(xs[0])))(xs),
    "jvp": lambda f: lambda xs: fh.jvp(f, (xs[0],), (xs[1],)),
    "hessian": lambda f: lambda xs: fh.hessian(f)(xs[0]),
    "vmap of grad": lambda f: fh.vmap(fh.grad(lambda x: sum((part**2).sum() for part in f(x)))),
    "jit": lambda f: lambda xs: jit(lambda xs: f(xs[0]))(xs),
    "scan": lambda f: lambda xs: fh.scan(lambda c, x: (c + f(x)[0], f(x)), torch.zeros_like(xs[0]), xs),
    "captured scan": lambda f: jit(lambda xs: fh.scan(lambda c, x: (f(c)[0], f(x)), torch.zeros_like(xs[0]), xs)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_inside_transforms_and_captures(transform):
    xs = torch.randn(2, 2, 3, dtype=F64)
    same(transform(jit(parts))(xs), transform(parts)(xs))


def test_through_another_jitted_function():
    x, inner = W.clone(), jit(parts)
    agrees(lambda x: inner(x)[:3], jit(lambda x: inner(x)[:3]), x)


@pytest.mark.slow
def test_under_inductor():
    f = lambda x: (x, x[0], *(lambda y: (y, y.mT))(x.sin() + 1))
    for x in (W.clone(), W.clone().requires_grad_()):
        agrees(f, fh.jit(f), x)


def test_a_graph_holds_what_is_computed():
    lowered = jit(lambda x: (x, x * 2, x[0])).lower(W)
    same(lowered.graph(W), (W * 2,))
    same(lowered.compile()(W), (W, W * 2, W[0]))


# ---------------------------------------------------------------------------------------------------------------------
# results at which a gradient history begins

LEAVES = {
    "of a detached value": lambda x: (x.detach().requires_grad_(), x * 2),
    "made inside": lambda x: {"p": torch.ones(2, requires_grad=True), "y": x.sum()},
    "twice": lambda x: (x.detach().clone().requires_grad_(),) * 2,
    "a parameter": lambda x: nn.Parameter(x * 2),
    "with its gradient": lambda x: _force(x.detach().requires_grad_()),
}


def _force(x):
    return x, torch.autograd.grad(x.square().sum(), x)[0]


@pytest.mark.parametrize("name", LEAVES)
def test_a_result_begins_a_history(name):
    f = LEAVES[name]
    jitted = jit(f)
    for x in (W.clone(), W.clone().requires_grad_()):
        for got, expected in zip(optree.tree_leaves(jitted(x)), optree.tree_leaves(f(x)), strict=True):
            same(got, expected)
            assert (got.requires_grad, got.is_leaf) == (expected.requires_grad, expected.is_leaf)


def test_what_is_computed_from_such_a_result_outside_is_differentiated():
    x = W.clone().requires_grad_()
    y, z = jit(LEAVES["of a detached value"])(x)
    (y.square().sum() + z.sum()).backward()
    same(y.grad, 2 * y.detach())
    same(x.grad, torch.full_like(W, 2))


def test_the_shapes_of_parameters_are_no_question_of_history():
    shapes = fh.eval_shape(lambda: dict(nn.Linear(2, 3).named_parameters()))
    assert [tuple(s.shape) for s in shapes.values()] == [(3, 2), (3,)]
