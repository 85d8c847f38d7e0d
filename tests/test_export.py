"""export: native operators, saved and loaded, from any function that can be captured."""

import io

import pytest
import torch
from torch import nn

import functorch_hops as fh
from reference import Reference

WEIGHT = torch.tensor([0.5, -1.0, 2.0])


def scan(x):
    return fh.scan(lambda c, a: (torch.tanh(c * WEIGHT + a), c.sum()), x, torch.ones(4, 3))


def while_loop(x):
    return fh.while_loop(lambda v: v.sum() < 20, lambda v: v * 1.5 + 1, x.abs())


def branch_in_scan(x):
    return fh.scan(lambda c, a: (fh.cond(c.sum() > 0, torch.sin, torch.cos, c) + a, None), x, torch.ones(4, 3))[0]


FUNCTIONS = {
    "cond in scan": (branch_in_scan, "scan"),
    "cond": (lambda x: fh.cond(x.sum() > 0, torch.sin, lambda x: x * WEIGHT, x), "cond"),
    "switch": (lambda x: fh.switch((x > 0).sum(), [torch.sin, torch.cos, torch.exp], x), "cond"),
    "scan": (scan, "scan"),
    "map": (lambda x: fh.map(lambda a: (a * x).sin(), torch.ones(4, 3)), "map_impl"),
    "fori_loop": (lambda x: fh.fori_loop(0, 4, lambda i, v: v * i + 1, x), "scan"),
    "while_loop": (while_loop, "while_loop"),
    "associative_scan": (lambda x: fh.associative_scan(torch.mul, x), "associative_scan"),
    "vmap": (lambda x: fh.vmap(while_loop)(torch.stack([x, x + 1])), "while_loop"),
    "grad": (fh.grad(lambda x: scan(x)[0].sum()), "scan"),
    "grad of while": (fh.grad(lambda x: while_loop(x).sum()), "while_loop_stack_output"),
    "jit": (fh.jit(scan, backend="eager"), "scan"),
}


def saved_and_loaded(program):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_export_saves_loads_and_agrees(name):
    function, operator = FUNCTIONS[name]
    program = saved_and_loaded(fh.export(function, (torch.ones(3),)))
    x = torch.tensor([0.3, -0.2, 0.9])
    torch.testing.assert_close(program.module()(x), function(x))
    assert operator in {str(node.target).split(".")[-1] for node in program.graph.nodes}


def test_a_module_keeps_the_names_of_its_parameters():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    program = fh.export(fh.vmap(module), (torch.randn(5, 3),))
    assert set(fh.export(module, (torch.randn(3),)).state_dict) == set(module.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(program.module()(x), module(x))


def test_torch_export_of_a_module_that_uses_the_library():
    class Model(nn.Module):
        def forward(self, x):
            return scan(x)[0], while_loop(x)

    program = torch.export.export(Model(), (torch.ones(3),))
    x = torch.tensor([0.3, -0.2, 0.9])
    torch.testing.assert_close(program.module()(x), Model()(x))


def without_gradient(x):
    with torch.no_grad():
        return x * 2


REGIONS = {
    "plain": lambda x: without_gradient(x) * x.detach() * x,
    "all of it": lambda x: fh.scan(lambda c, _: (c * x, None), without_gradient(x), length=2)[0],
    "scan": lambda x: fh.scan(lambda c, _: (without_gradient(c) * c * x, None), x, length=2)[0],
    "cond": lambda x: fh.cond(x.sum() > 0, lambda x: without_gradient(x) * x, torch.sin, x),
    "checkpoint": lambda x: fh.checkpoint(lambda x: without_gradient(x).sin() * x)(x),
    "vmap": fh.vmap(lambda x: without_gradient(x) * x),
    "jit": fh.jit(lambda x: without_gradient(x) * x, backend="eager"),
    "grad": lambda x: fh.grad(lambda y: (without_gradient(y) * y).sum())(x) * x,
}


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("name", REGIONS)
def test_regions_without_gradients_are_kept(name, is_open):
    f, x = REGIONS[name], torch.ones(3, requires_grad=True)
    shapes = ({0: torch.export.Dim("n", min=2)},) if is_open else None
    program = fh.export(f, (x,), dynamic_shapes=shapes).module()
    torch.testing.assert_close(torch.autograd.grad(program(x).sum(), x), torch.autograd.grad(f(x).sum(), x))


@pytest.mark.parametrize("f", [lambda z: z.real * 1, lambda z: fh.map(lambda r: r.imag * r.real, z)])
@pytest.mark.parametrize("example", [torch.Tensor.conj, torch.clone], ids=["conjugated example", "plain example"])
def test_lazily_conjugated_tensors(f, example):
    z = torch.tensor([1 + 2j, 3 - 1j])
    program = fh.export(f, (example(z),)).module()
    for given in (z, z.conj()):
        torch.testing.assert_close(program(given), f(given))
    closed = z.conj()
    torch.testing.assert_close(
        fh.export(lambda x: f(closed) + x, (torch.ones(2),)).module()(torch.ones(2)), f(closed) + 1
    )


def normalised(a, b):
    product = a * b
    return product / product.sum()


def after(first, then):
    return first[0] * then[0], first[1] * then[0] + then[1]


COMBINED = {
    "pointwise": (torch.mul, lambda x: x),
    "over the whole element": (normalised, torch.exp),
    "a product": (torch.matmul, lambda x: x[:, :, None] * x[:, None, :]),
    "two tensors": (after, lambda x: (x, x.sin())),
    "of two shapes": (after, lambda x: (x[:, 0], x.sin())),
    "a constant": (lambda a, b: a + b + WEIGHT * a * b, lambda x: x),
    "complex": (lambda a, b: a * b, lambda x: torch.complex(x, x.cos())),
}


@pytest.mark.parametrize(
    ("name", "is_open"),
    [
        *((name, False) for name in COMBINED),
        ("a product", True),
        ("complex", True),
        pytest.param("two tensors", True, marks=pytest.mark.slow),
    ],
)
def test_prefixes_and_their_gradients(name, is_open):
    """torch's operator is right for pointwise functions of one tensor; every other function is exported otherwise."""
    combine, elements = COMBINED[name]

    def prefixes(x, tools=fh):
        last = tools.associative_scan(combine, elements(x))
        return sum(y.abs().sin().sum() for y in (last if isinstance(last, tuple) else (last,)))

    # torch (2.13) takes no gradient of a scan over complex numbers.
    is_differentiable = not (is_open and name == "complex")
    x = torch.linspace(0.4, 1.6, 15, dtype=torch.float64).reshape(5, 3).requires_grad_(is_differentiable)
    shapes = ({0: torch.export.Dim("n", min=2)},) if is_open else None
    program = saved_and_loaded(fh.export(prefixes, (x,), dynamic_shapes=shapes))
    operators = {str(node.target).split(".")[-1] for node in program.graph.nodes}
    assert ("associative_scan" in operators) == (name == "pointwise")
    for given in (x, x[:2], x.tile(2, 1)) if is_open else (x,):
        value, expected = program.module()(given), prefixes(given, Reference)
        torch.testing.assert_close(value, expected)
        if is_differentiable:
            torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("name", ["pointwise", "two tensors"])
def test_the_gradient_of_prefixes_over_an_open_length(name):
    combine, elements = COMBINED[name]

    def gradient(x, tools=fh):
        def prefixes(x):
            last = tools.associative_scan(combine, elements(x))
            return sum(y.abs().sin().sum() for y in (last if isinstance(last, tuple) else (last,)))

        return fh.grad(prefixes)(x)

    x = torch.linspace(0.4, 1.6, 15, dtype=torch.float64).reshape(5, 3)
    program = fh.export(gradient, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)).module()
    for given in (x, x[:2], x.tile(2, 1)):
        torch.testing.assert_close(program(given), gradient(given, Reference))


def test_torch_differentiates_its_associative_scan_leaf_by_leaf():
    """torch (2.13): what one tensor does to another is missing. If this fails, see where torch's operator is kept."""
    from torch._higher_order_ops.associative_scan import associative_scan_op

    a, b = (torch.linspace(0.4, 1.6, 5).requires_grad_() for _ in range(2))
    last = associative_scan_op(lambda *xs: after(xs[:2], xs[2:]), [a, b], ())[1][-1]
    expected = Reference.associative_scan(after, (a, b))[1][-1]
    torch.testing.assert_close(last, expected)
    got, want = (torch.autograd.grad(y, a)[0] for y in (last, expected))
    assert not torch.allclose(got, want)


def test_misuse():
    with pytest.raises(fh.ArgumentTypeError, match="not a tuple"):
        fh.export(scan, torch.ones(3))
    with pytest.raises(fh.ArgumentTypeError, match="not callable"):
        fh.export(3, ())
