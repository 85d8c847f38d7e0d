"""Forward mode where torch's own rules are wrong, and which of them are: NOTE [Right rules for forward mode].

The oracle is torch's reverse mode at two points nearby, in float64: tangents, their gradients and their tangents are
right if they agree with differences of it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

import functorch_hops as fh
from functorch_hops import pytree
from leftovers import nothing_left_behind

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce")

torch.manual_seed(0)
A = torch.randn(3, 3, dtype=torch.float64) + 3 * torch.eye(3, dtype=torch.float64)
B = torch.randn(3, 2, dtype=torch.float64)
MEAN, VAR = torch.linspace(0, 1, 3, dtype=torch.float64), torch.linspace(1, 2, 3, dtype=torch.float64)
PLACES = torch.tensor([[0, 1, 2], [1, 1, 1], [0, 0, 2]])


def logabsdet(a: Tensor) -> Tensor:
    return torch.linalg.slogdet(a).logabsdet


def complex_logdet(a: Tensor) -> Tensor:
    return torch.logdet(torch.complex(a, a.sin())).real


# By what is wrong: the tangent itself, a derivative of it, or that there is none.
WRONG: dict[str, Callable[..., Tensor]] = {
    "cholesky_inverse": lambda a: torch.cholesky_inverse(a.tril()),
    "triangular_solve": lambda a, b: torch.triangular_solve(b, a.triu(), transpose=True).solution,
    "triangular_solve, ones": lambda a, b: b.triangular_solve(a.tril(), upper=False, unitriangular=True)[0],
    "product by scatter_reduce": lambda a: a.scatter_reduce(0, PLACES, a.sin(), "prod"),
    "product without self": lambda a: torch.scatter_reduce(a, 1, PLACES, a.sin(), "prod", include_self=False),
}
WRONG_TWICE: dict[str, Callable[..., Tensor]] = {
    "solve": lambda a, b: torch.linalg.solve(a, b),
    "solve from the right": lambda a, b: torch.linalg.solve(a, b.mT, left=False),
    "solve of a vector": lambda a, b: torch.linalg.solve(a, b[:, 0]),
    "solve of a batch": lambda a, b: torch.linalg.solve(torch.stack([a, a.sin() + a]), b),
    "solve_ex": lambda a, b: torch.linalg.solve_ex(a, b).result,
    "tensorsolve": lambda a, b: torch.linalg.tensorsolve(a.reshape(3, 1, 3), b[:, :1]),
    "det": lambda a: torch.linalg.det(a),
    "det of a batch": lambda a: torch.stack([a, a.sin()]).det(),
    "slogdet": logabsdet,
    "logdet": lambda a: torch.logdet(a @ a.mT),
    "complex logdet": complex_logdet,
    "householder_product": lambda a, b: torch.linalg.householder_product(a, b[:, 0]),
    "layer_norm": lambda a, b: F.layer_norm(a, (3,), b[:, 0], b[:, 1]),
    "batch_norm": lambda a, b: F.batch_norm(a, None, None, b[:, 0].clone(), b[:, 1].clone(), training=True),
    "batch_norm, updating": lambda a: F.batch_norm(a, MEAN.clone(), VAR.clone(), training=True),
    "instance_norm": lambda a: F.instance_norm(a[None], MEAN.clone(), VAR.clone()),
}
SYSTEMS = "solve", "tensorsolve", "det", "slogdet", "logdet", "complex logdet"
ABSENT: dict[str, Callable[..., Tensor]] = {
    "glu": lambda b: F.glu(b * b),
    "product by index_reduce": lambda a: a.index_reduce(0, PLACES[0], a.sin(), "prod"),
    "mean by index_reduce": lambda a: a.index_reduce(1, PLACES[1], a.sin(), "mean", include_self=False),
}
RIGHT: dict[str, Callable[..., Tensor]] = {
    "batch_norm, evaluated": lambda a, b: F.batch_norm(a, MEAN, VAR, b[:, 0].clone(), b[:, 1].clone()),
    "layer_norm in a loop": lambda a: fh.scan(lambda c, x: (F.layer_norm(c * x, (3,)), None), a[0], a)[0],
    "solve in a graph": lambda a, b: fh.jit(torch.linalg.solve, backend="eager")(a, b),
    "solve of lanes": lambda a, b: fh.vmap(lambda s: torch.linalg.solve(a * s, b))(MEAN + 1),
    "det of lanes": lambda a: fh.vmap(lambda s: torch.linalg.det(a * s))(MEAN + 1),
    "quantile in a loop": lambda a: fh.scan(lambda c, x: (c * 0.5 + x, (c + x).quantile(0.3)), a[0], a)[1],
    "gradient of solve": lambda a, b: fh.grad(lambda a: torch.linalg.solve(a, b).sin().sum())(a),
    "gradient of layer_norm": lambda a: fh.grad(lambda a: F.layer_norm(a, (3,)).sin().sum())(a),
    "gradient of batch_norm": lambda a: fh.grad(lambda a: F.batch_norm(a, None, None, training=True).sin().sum())(a),
}
"""As they are, or because of what they are made of."""


class Case:
    """A function, a direction at a point, and the vector that its outputs are multiplied by."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f = f
        self.point = tuple({"A": A, "a": A, "B": B, "b": B}[name] for name in inspect.signature(f).parameters)
        torch.manual_seed(1)
        self.along = tuple(torch.randn_like(x) for x in self.point)
        self.weight = torch.randn_like(f(*self.point))

    def tangent(self, tools: Any, *point: Tensor) -> Tensor:
        return (tools.jvp(self.f, point, self.along)[1] * self.weight).sum()

    def gradients(self, *point: Tensor) -> tuple[Tensor, ...]:
        xs = [x.clone().requires_grad_() for x in point]
        return torch.autograd.grad((self.f(*xs) * self.weight).sum(), xs)

    def expected(self) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """The tangent, its gradients and its own tangent, from gradients here and nearby."""
        h = 1e-5
        sides = [self.gradients(*(x + s * h * v for x, v in zip(self.point, self.along))) for s in (1, -1)]
        second = tuple((a - b) / (2 * h) for a, b in zip(*sides))
        dot = lambda xs: torch.stack([(x * v).sum() for x, v in zip(xs, self.along)]).sum()
        return dot(self.gradients(*self.point)), second, dot(second)

    def computed(self, tools: Any, wrap: Any = lambda f: f) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        tangent = lambda *point: self.tangent(tools, *point)
        places = tuple(range(len(self.point)))
        return (
            wrap(tangent)(*self.point),
            wrap(tools.grad(tangent, places))(*self.point),
            wrap(lambda *point: tools.jvp(tangent, point, self.along)[1])(*self.point),
        )


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("name", [*WRONG, *WRONG_TWICE, *ABSENT, *RIGHT])
def test_tangents_and_their_derivatives(name: str) -> None:
    case = Case((WRONG | WRONG_TWICE | ABSENT | RIGHT)[name])
    torch.testing.assert_close(case.computed(fh), case.expected(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["cholesky_inverse", "solve", "det", "layer_norm", "batch_norm", "glu"])
def test_tangents_of_graphs(name: str) -> None:
    """Graphs hold ATen operators, which are replaced as well."""
    f = (WRONG | WRONG_TWICE | ABSENT)[name]
    for case in (Case(f), Case(fh.jit(f, backend="eager"))):
        got = case.computed(fh, lambda f: fh.jit(f, backend="eager"))
        torch.testing.assert_close(got, case.expected(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("name", ["scatter_reduce", "index_reduce"])
def test_captured_gradients_of_products(name: str, include_self: bool) -> None:
    """torch's own look at the data: at how many factors are zero."""
    zeros = torch.where(torch.eye(3, dtype=torch.bool), 0.0, A.sin())
    zeros[:, 2] = 0
    places = PLACES if name == "scatter_reduce" else PLACES[0]
    for a, b, index in ((A, zeros, places), (A[0, 0], zeros[0, 1], PLACES[0, :1])):

        def f(a: Tensor, b: Tensor, index: Tensor = index) -> Tensor:
            return (getattr(a, name)(0, index, b, "prod", include_self=include_self) * a.cos()).sum()

        got = fh.jit(fh.grad(f, (0, 1)), backend="eager")(a, b)
        torch.testing.assert_close(got, torch.func.grad(f, (0, 1))(a, b))


@pytest.mark.parametrize("f", [lambda a: a.quantile(0.3, 0), lambda a: a.sin().lerp_(a, a.cos())])
def test_tangents_inside_of_graphs(f: Callable[..., Tensor]) -> None:
    """Of an operator of which torch looks up the overload by its operands."""
    case = Case(f)
    with nothing_left_behind():
        got = case.computed(fh, lambda f: fh.jit(f, backend="eager"))
    torch.testing.assert_close(got, case.expected(), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("name", WRONG)
def test_torchs_tangents_are_wrong(name: str) -> None:
    """torch (2.13). If this fails, torch was mended: the form may go."""
    case = Case(WRONG[name])
    assert not torch.allclose(case.tangent(torch.func, *case.point), case.expected()[0])


@pytest.mark.parametrize("name", WRONG_TWICE)
def test_torchs_derivatives_of_tangents_are_wrong(name: str) -> None:
    """torch (2.13), as above. Those of linear systems and determinants are right in torch 2.15."""
    case = Case(WRONG_TWICE[name])
    (tangent, gradients, second), expected = case.computed(torch.func), case.expected()
    torch.testing.assert_close(tangent, expected[0])
    is_right = name.startswith(SYSTEMS) and TorchVersion(torch.__version__) >= "2.15"
    assert torch.allclose(second, expected[2]) == is_right
    assert all(map(torch.allclose, gradients, expected[1])) == is_right


@pytest.mark.parametrize("name", ABSENT)
def test_torch_has_no_derivative_of_tangents(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"not (been )?implemented"):
        Case(ABSENT[name]).computed(torch.func)


X = torch.randn(4, 3, dtype=torch.float64)
W = torch.randn(4, 3, dtype=torch.float64)
NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda w: (F.layer_norm(w * X, (3,), w, w * 2).sin() * W).sum(),
    "batch_norm": lambda w: (F.batch_norm(w.exp() * X + 1, None, None, w.sin(), w * 2, training=True) * W).sum(),
}
"""Each with a weight that depends on what is normalised does."""


def differences(gradient: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    h = 1e-5
    return torch.stack(
        [(gradient(x + h * e) - gradient(x - h * e)) / (2 * h) for e in torch.eye(len(x), dtype=x.dtype)]
    )


def plain_gradient(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x), x, create_graph=True)[0]

    return gradient


SECOND: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "hessian": fh.hessian,
    "jacrev(jacrev)": lambda f: fh.jacrev(fh.jacrev(f)),
    "jacrev(grad)": lambda f: fh.jacrev(fh.grad(f)),
    "jacrev(jacfwd)": lambda f: fh.jacrev(fh.jacfwd(f)),
    "jacfwd(jacfwd)": lambda f: fh.jacfwd(fh.jacfwd(f)),
    "rows of a pull": lambda f: fh.jacrev(lambda w: fh.vmap(fh.vjp(f, w)[1])(torch.ones(2, dtype=w.dtype))[0][1]),
}
WAYS: dict[str, Callable[[Any, Any], Callable[[Tensor], Tensor]]] = {
    "plain": lambda derivative, f: derivative(f),
    "jit inside": lambda derivative, f: derivative(fh.jit(f, backend="eager")),
    "jit outside": lambda derivative, f: fh.jit(derivative(f), backend="eager"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NORMALISED)
def test_second_derivatives_of_normalisations(name: str, way: str) -> None:
    """Mean and deviation, to vmap constants of the backward pass, depend on what is normalised."""
    f, w = NORMALISED[name], torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
    expected = differences(plain_gradient(f), w)
    for derivative in SECOND.values():
        torch.testing.assert_close(WAYS[way](derivative, f)(w), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NORMALISED)
def test_third_derivatives_of_normalisations(name: str, way: str) -> None:
    f, w = NORMALISED[name], torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
    expected = differences(plain_gradient(lambda w: plain_gradient_of_sin(f, w)), w)
    for derivative in (fh.hessian, lambda g: fh.jacrev(fh.grad(g))):
        got = WAYS[way](derivative, lambda w: fh.grad(f)(w).sin().sum())(w)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)


def plain_gradient_of_sin(f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    return torch.autograd.grad(f(w), w, create_graph=True)[0].sin().sum()


def test_gradients_of_lanes_differentiated_by_autograd() -> None:
    f, w = NORMALISED["layer_norm"], torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
    rows = torch.stack([w, w.sin()]).requires_grad_()
    got = torch.autograd.grad(fh.vmap(fh.grad(f))(rows).sum(), rows)[0]
    expected = torch.stack([differences(plain_gradient(f), row).sum(1) for row in rows.detach()])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NORMALISED)
def test_torchs_hessians_of_normalisations_are_wrong(name: str) -> None:
    """torch (2.13). If this fails, torch was mended: the forms of backward passes may go."""
    f, w = NORMALISED[name], torch.linspace(0.5, 1.5, 3, dtype=torch.float64)
    assert not torch.allclose(torch.func.hessian(f)(w), differences(plain_gradient(f), w), atol=1e-4)


ROWS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], dtype=torch.float64)


def derivatives_along(f: Callable[[Tensor], Tensor], matrix: Tensor, along: Tensor) -> tuple[Tensor, ...]:
    tangent = lambda a: fh.jvp(f, (a,), (along,))[1]
    return f(matrix), tangent(matrix), fh.jvp(tangent, (matrix,), (along,))[1], fh.grad(tangent)(matrix)


@pytest.mark.parametrize("matrix", [ROWS, ROWS[:1].repeat(3, 1), ROWS * 0, ROWS * 1e-6, A], ids=str)
def test_determinants_of_singular_matrices(matrix: Tensor) -> None:
    """torch (2.13) has zero for each tangent. The oracle is the polynomial."""
    polynomial = lambda a: (a[0] * torch.linalg.cross(a[1], a[2])).sum()
    got, expected = (derivatives_along(f, matrix, A.sin()) for f in (torch.det, polynomial))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fh.jvp(torch.det, (matrix,), (A,))[0], torch.det(matrix))


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, torch.nn.BatchNorm1d])
def test_normalised_in_low_precision(kind: Any) -> None:
    layer = kind(3).to(torch.bfloat16).eval()
    x = A.to(torch.bfloat16)
    out, tangent = fh.jvp(layer, (x,), (x,))
    assert (out.dtype, tangent.dtype) == (torch.bfloat16,) * 2
    torch.testing.assert_close(out, layer(x))


def test_running_statistics_are_updated_once() -> None:
    expected, got = (MEAN.clone(), VAR.clone()), (MEAN.clone(), VAR.clone())
    F.batch_norm(A, *expected, training=True)
    fh.jvp(lambda a: F.batch_norm(a, *got, training=True), (A,), (A,))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("run", [lambda f, x: f(x), lambda f, x: fh.jit(f, backend="eager")(x)], ids=["plain", "jit"])
def test_expanded_tensors(run: Any) -> None:
    """torch (2.13) refuses to give them tangents."""
    f = lambda v: (v.sin() * v).sum(0)
    row = torch.linspace(0, 1, 3, dtype=torch.float64)
    for derivative in (
        lambda x: fh.jvp(f, (x,), (x,))[1],
        lambda x: fh.linearize(f, x)[1](x),
        fh.jacfwd(f),
        fh.jacrev(fh.jacfwd(f)),
        fh.jacfwd(fh.jacfwd(f)),
        fh.vmap(lambda r: fh.jvp(f, (r.expand(4, 3),), (r.expand(4, 3).cos(),))[1]),
    ):
        expected = derivative(row.repeat(2, 1))
        torch.testing.assert_close(run(derivative, row.expand(2, 3)), expected)
        torch.testing.assert_close(run(lambda r, d=derivative: d(r.expand(2, 3)), row), expected)


def test_tangents_of_views() -> None:
    """A tangent lies in memory as its primal does, as large a storage included: torch's cache of fakes forgets that."""
    jvp_of_row = lambda x: fh.jvp(lambda v: v[None], (x[0],), (x[0] * 0.5,))[1]
    x = torch.ones(2, 3)
    for f in (lambda x: jvp_of_row(x) * 1, jvp_of_row):
        torch.testing.assert_close(fh.jit(f, backend="eager")(x), 0.5 * torch.ones(1, 3))


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: (1.5 + x) + torch.add(2.5, x) + x.add(0.5),
    "difference": lambda x: (1.5 - x) * (x - 2.5) * torch.sub(1.5, x) * torch.subtract(x, 0.5),
    "product": lambda x: 1.5 * x + x.mul(2.5) + torch.multiply(0.5, x),
    "quotient": lambda x: 1.5 / x + x / 2.5 + torch.div(0.5, x) + torch.true_divide(x, 1.5) + torch.div(2.0, other=x),
    "other arguments": lambda x: (
        torch.add(x, 1.5, alpha=2)
        + torch.add(1.5, x, alpha=2)
        - torch.sub(2.5, x, alpha=3)
        + torch.div(x, 0.3, rounding_mode="floor")
    ),
    "complex": lambda x: (x * (1 + 2j) + 1j).abs(),
}


@pytest.mark.parametrize("f", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: fh.jit(f, backend="eager")], ids=["plain", "jit"])
def test_tangents_of_scalars_and_numbers(f: Any, wrap: Any) -> None:
    """They have the dtype of their values, and so meet weights."""
    x = torch.tensor(0.7)
    weight = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    g = lambda x: (torch.stack([f(x), f(x)]) @ weight.to(x.dtype)).sin()
    got = wrap(lambda x: fh.jvp(f, (x,), (2 * x,)))(x), wrap(fh.jacfwd(g))(x), wrap(fh.hessian(g))(x)
    y = x.double()
    expected = (
        (f(y), 2 * y * torch.func.grad(f)(y)),
        torch.func.jacrev(g)(y),
        torch.func.jacrev(torch.func.jacrev(g))(y),
    )
    torch.testing.assert_close(got, pytree.map(lambda t: t.float(), expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sum", "difference", "product", "quotient"])
def test_torchs_tangents_of_scalars_and_numbers_are_doubles(name: str) -> None:
    """torch (2.13). If this fails, torch was mended: the forms may go."""
    x = torch.tensor(0.7)
    assert torch.func.jvp(NUMBERS[name], (x,), (x,))[1].dtype is torch.float64


BESIDE_TRUTH_VALUES = {
    "/": lambda b, x: b / x,
    "%": lambda b, x: b % x,
    "maximum": lambda b, x: torch.maximum(b, x),
    "-": lambda b, x: b.int() - x,
}


@pytest.mark.parametrize("f", BESIDE_TRUTH_VALUES.values(), ids=BESIDE_TRUTH_VALUES)
def test_tangents_beside_truth_values(f: Any) -> None:
    """Those of the truth values are zeros of their dtype, from which torch subtracts nothing but zeros by structure."""
    b, x = torch.tensor([True, False]), torch.tensor([0.75, 2.0])
    expected = torch.func.jvp(lambda x: f(b, x), (x,), (x + 1,))
    for g in (lambda x: f(b, x), lambda x: fh.scan(lambda c, row: (c, f(*row)), 0, (b[None], x[None]))[1][0]):
        got = fh.jit(lambda x, g=g: fh.jvp(g, (x,), (x + 1,)), backend="eager")(x)
        torch.testing.assert_close(got, expected)
