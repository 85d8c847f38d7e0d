"""custom_root and custom_linear_solve: derivatives by the implicit function theorem, not through the solver.

The oracles are closed formulas. (Not ``torch.linalg.solve``: its reverse mode over its forward mode is wrong in torch
2.13.) The cases follow JAX's tests of both.
"""

from __future__ import annotations

import optree
import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import captured, every_mode, plain

F64 = torch.float64


def same(got, expected):
    got, expected = (optree.tree_flatten(t) for t in (got, expected))
    assert got[1] == expected[1]
    for a, b in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(a, b)


def f64(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64)


def bisect(f, x, high=10.0):
    """The root of an increasing function between 0 and ``high``: all its steps have derivative zero."""

    def halve(_, state):
        low, high = state
        middle = (low + high) / 2
        is_low = f(middle) < 0
        return torch.where(is_low, middle, low), torch.where(is_low, high, middle)

    low, high = fh.fori_loop(0, 60, halve, (torch.zeros_like(x), torch.full_like(x, high)))
    return (low + high) / 2


def divide(g, y):
    return y / g(1.0)


def dense(g, y):
    """A dense solver for a vector, which is not differentiated itself."""
    solve = lambda g, y: torch.linalg.solve(fh.jacfwd(g)(torch.zeros_like(y)), y)
    return fh.custom_linear_solve(g, y, solve, solve)


def newton(f, x):
    return fh.fori_loop(0, 30, lambda _, x: x - torch.linalg.solve(fh.jacfwd(f)(x), f(x)), x)


def cube_root_of_square(a):
    return fh.custom_root(lambda x: x**3 - a * a, torch.ones((), dtype=F64), bisect, divide)


ORDERS = {
    "value": lambda f: f,
    "grad": fh.grad,
    "jacfwd": fh.jacfwd,
    "grad(grad)": lambda f: fh.grad(fh.grad(f)),
    "hessian": fh.hessian,
    "jacfwd(jacfwd)": lambda f: fh.jacfwd(fh.jacfwd(f)),
    "jacrev(jacfwd)": lambda f: fh.jacrev(fh.jacfwd(f)),
    "third": lambda f: fh.grad(fh.grad(fh.grad(f))),
}


@every_mode
@pytest.mark.parametrize("name", ORDERS)
def test_a_scalar_root(run, name):
    transform, oracle = ORDERS[name], lambda a: a ** (2 / 3)
    a = f64(2.0)
    same(run(transform(cube_root_of_square), a), transform(oracle)(a))
    same(run(fh.vmap(transform(cube_root_of_square)), f64(0.5, 3.0)), fh.vmap(transform(oracle))(f64(0.5, 3.0)))
    if name != "value":
        same(transform(fh.jit(cube_root_of_square, backend="eager"))(a), transform(oracle)(a))


@pytest.mark.parametrize("run", [plain, captured], ids=["plain", "captured"])
def test_plain_autograd(run):
    a = f64(2.0).requires_grad_()
    out = run(cube_root_of_square, a)
    (first,) = torch.autograd.grad(out, a, create_graph=True)
    (second,) = torch.autograd.grad(first, a, create_graph=True)
    (third,) = torch.autograd.grad(second, a)
    exponent = 2 / 3
    expected = [exponent * 2 ** (exponent - 1), exponent * (exponent - 1) * 2 ** (exponent - 2)]
    same((first.detach(), second.detach()), tuple(map(f64, expected)))
    same(third, f64(expected[1] * (exponent - 2) / 2))


@every_mode
def test_the_jacobian_of_an_implicit_root(run):
    """metaopt/torchopt 223: Jacobians of implicit roots, by torch.func's transforms."""

    def root(a, b):
        return fh.custom_root(lambda x: x + 0.3 * torch.tanh(a @ x) - b, torch.zeros_like(b), newton, dense)

    def oracle(a, b):
        x = torch.zeros_like(b)
        for _ in range(100):
            x = b - 0.3 * torch.tanh(a @ x)
        return x

    a = torch.tensor([[0.5, -0.3], [0.8, 0.4]], dtype=F64)
    b = f64(0.7, -1.2)
    for transform in (fh.jacrev, fh.jacfwd):
        same(run(transform(root, argnums=(0, 1)), a, b), transform(oracle, argnums=(0, 1))(a, b))
    loss = lambda f: lambda a, b: (f(a, b) ** 3).sum()
    same(run(fh.hessian(loss(root), argnums=(0, 1)), a, b), fh.hessian(loss(oracle), argnums=(0, 1))(a, b))
    batch = torch.stack([b, b * 2])
    lanes = lambda f: fh.grad(lambda a, b: fh.vmap(loss(f), in_dims=(None, 0))(a, b).sum(), argnums=(0, 1))
    same(run(lanes(root), a, batch), lanes(oracle)(a, batch))


@every_mode
def test_a_root_over_trees(run):
    def root(p):
        def f(x):
            return {"u": x["u"] * p["scale"] - p["v"], "n": (x["n"][0] + x["u"].sum() - 1,)}

        def solve(f, x):
            u = p["v"].detach() / p["scale"].detach()
            return {"u": u, "n": (1 - u.sum(),)}

        tangent_solve = lambda g, y: (lambda u: {"u": u, "n": (y["n"][0] - u.sum(),)})(y["u"] / p["scale"])
        init = {"u": torch.zeros(2, dtype=F64), "n": (torch.zeros((), dtype=F64),)}
        return fh.custom_root(f, init, solve, tangent_solve)

    oracle = lambda p: {"u": p["v"] / p["scale"], "n": (1 - (p["v"] / p["scale"]).sum(),)}
    p = {"scale": f64(2.0), "v": f64(3.0, 5.0)}
    loss = lambda f: lambda p: (f(p)["u"] ** 2).sum() * f(p)["n"][0]
    same(run(root, p), oracle(p))
    same(run(fh.grad(loss(root)), p), fh.grad(loss(oracle))(p))
    same(
        run(fh.grad(lambda p: fh.grad(loss(root))(p)["scale"]), p),
        fh.grad(lambda p: fh.grad(loss(oracle))(p)["scale"])(p),
    )


@every_mode
def test_no_gradient_to_init_nor_to_the_solver(run):
    def root(a, init, high):
        return fh.custom_root(lambda x: x * x - a, init, lambda f, x: bisect(f, x) + 0 * high, divide)

    args = f64(4.0), f64(1.0), f64(10.0)
    same(run(fh.grad(root, argnums=(0, 1, 2)), *args), (f64(0.25), f64(0.0), f64(0.0)))
    same(run(fh.jacfwd(root, argnums=(0, 1, 2)), *args), (f64(0.25), f64(0.0), f64(0.0)))


@every_mode
def test_inside_loops_and_branches(run):
    sqrt = lambda a: fh.custom_root(lambda x: x * x - a, torch.ones_like(a), bisect, divide)

    def looped(f):
        step = lambda c, x: (fh.cond(c > 1, lambda: f(c * x), lambda: f(x) + c), c)
        return lambda c, xs: fh.scan(step, c, xs)[0]

    xs = f64(0.5, 2.0, 3.0)
    derivative = lambda f: fh.grad(looped(f), argnums=(0, 1))
    same(run(derivative(sqrt), f64(0.7), xs), derivative(torch.sqrt)(f64(0.7), xs))
    second = lambda f: fh.hessian(looped(f))
    same(run(second(sqrt), f64(0.7), xs), second(torch.sqrt)(f64(0.7), xs))


def test_a_module_as_an_equation():
    """A deep-equilibrium layer: gradients reach the parameters of the module that defines it."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    x = torch.randn(3, dtype=F64)

    def fixpoint(f, z):
        return fh.while_loop(lambda z: f(z).abs().max() > 1e-13, lambda z: z - f(z), z)

    def equilibrium():
        f = lambda z: z - 0.3 * torch.tanh(layer(z) + x)
        return fh.custom_root(f, torch.zeros(3, dtype=F64), fixpoint, dense)

    def oracle():
        z = torch.zeros(3, dtype=F64)
        for _ in range(60):
            z = 0.3 * torch.tanh(layer(z) + x)
        return z

    expected = torch.autograd.grad((oracle() ** 2).sum(), list(layer.parameters()))
    for run in (plain, captured):
        same(torch.autograd.grad((run(equilibrium) ** 2).sum(), list(layer.parameters())), expected)


@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
def test_python_in_a_solver(capture):
    """In plain eager a solver may look at its data and call what torch can't differentiate."""

    def solve(f, x):
        while f(x).abs() > 1e-12:
            x = torch.from_numpy((x - f(x) / (2 * x)).numpy()) if x.grad_fn is None else x
        return x

    a = f64(9.0).requires_grad_()
    root = lambda: fh.custom_root(lambda x: x * x - a, f64(1.0), solve, divide)
    if capture:
        with pytest.raises(fh.DataDependentError, match=r"fh\.while_loop"):
            captured(root)
        return
    same(torch.autograd.grad(root(), a)[0], f64(1 / 6))
    with torch.no_grad():
        same(root(), f64(3.0))


def test_a_solver_that_does_not_converge():
    f = lambda a: lambda x: x * x - a
    a = f64(4.0)
    cases = {
        "stays": lambda f, x: x,
        "one step of too many": lambda f, x: x - 0.01 * f(x),
        "diverges": lambda f, x: fh.fori_loop(0, 50, lambda i, x: x + f(x) ** 2, x),
        "nan": lambda f, x: x * float("nan"),
    }
    for solve in cases.values():
        for call in (
            lambda a, solve=solve: fh.custom_root(f(a), f64(1.0), solve, divide),
            fh.grad(lambda a, solve=solve: fh.custom_root(f(a), f64(1.0), solve, divide)),
        ):
            with pytest.raises(fh.ArgumentValueError, match="solve did not converge"):
                call(a)
    with pytest.raises(fh.ArgumentValueError, match="solve did not converge"):
        fh.custom_root(f(a.clone().requires_grad_()), f64(1.0), cases["stays"], divide)


def test_a_good_start_is_no_failure_to_converge():
    for init in (2.0, 2.0 + 1e-12, 2.001):
        same(fh.custom_root(lambda x: x * x - 4, f64(init), bisect, divide), f64(2.0))
    same(fh.custom_root(lambda x: x * x - 4, f64(2.0), lambda f, x: x, divide), f64(2.0))
    same(fh.custom_root(lambda x: x, f64(0.0), lambda f, x: x, divide), f64(0.0))


# ---------------------------------------------------------------------------------------------------------------------
# linear systems


A = torch.tensor([[3.0, 0.5, -0.2], [0.1, 2.0, 0.7], [0.4, -0.6, 2.5]], dtype=F64)
B = f64(1.0, -2.0, 0.5)
LINEAR = {
    "value": lambda f: f,
    "grad": lambda f: fh.grad(lambda a, b: (f(a, b) ** 3).sum(), argnums=(0, 1)),
    "jacfwd": lambda f: fh.jacfwd(f, argnums=(0, 1)),
    "jacrev": lambda f: fh.jacrev(f, argnums=(0, 1)),
    "hessian": lambda f: fh.hessian(lambda a, b: (f(a, b) ** 3).sum(), argnums=(0, 1)),
    "jacrev(jacrev)": lambda f: fh.jacrev(fh.jacrev(f, argnums=0), argnums=1),
    "jacrev(jacfwd)": lambda f: fh.jacrev(fh.jacfwd(f, argnums=0), argnums=0),
    "vmap(grad)": lambda f: lambda a, b: fh.vmap(fh.grad(lambda b: f(a, b).prod()))(torch.stack([b, b + 1])),
    "grad(vmap)": lambda f: fh.grad(
        lambda a, b: fh.vmap(lambda s: f(a * s, b).prod())(f64(1.0, 2.0)).sum(), argnums=(0, 1)
    ),
}


def dense_solve(matvec, b):
    return torch.linalg.solve(fh.jacfwd(matvec)(torch.zeros_like(b)), b)


def general(a, b):
    return fh.custom_linear_solve(lambda x: a @ x, b, dense_solve, dense_solve)


def symmetric(a, b):
    return fh.custom_linear_solve(lambda x: a @ x + x @ a, b, dense_solve, symmetric=True)


@every_mode
@pytest.mark.parametrize("name", LINEAR)
def test_linear_systems(run, name):
    transform = LINEAR[name]
    same(run(transform(general), A, B), transform(lambda a, b: torch.linalg.inv(a) @ b)(A, B))
    same(run(transform(symmetric), A, B), transform(lambda a, b: torch.linalg.inv(a + a.mT) @ b)(A, B))


def conjugate_gradients(matvec, b):
    """Iterative, over a while_loop, each lane as long as it needs."""

    def step(state):
        x, r, p = state
        q = matvec(p)
        alpha = (r * r).sum() / (p * q).sum()
        s = r - alpha * q
        return x + alpha * p, s, s + (s * s).sum() / (r * r).sum() * p

    return fh.while_loop(lambda state: (state[1] ** 2).sum() > 1e-26, step, (torch.zeros_like(b), b, b))[0]


@every_mode
def test_an_iterative_solver(run):
    """Reverse mode runs the solver once more, and differentiates none of its steps."""
    f = lambda s, b: fh.custom_linear_solve(lambda x: A @ x * s + A.mT @ x * s, b, conjugate_gradients, symmetric=True)
    oracle = lambda s, b: torch.linalg.inv((A + A.mT) * s) @ b
    derivative = lambda f: fh.grad(lambda s, b: f(s, b).prod(), argnums=(0, 1))
    same(run(derivative(f), f64(2.0), B), derivative(oracle)(f64(2.0), B))
    second = lambda f: fh.hessian(lambda s, b: f(s, b).prod(), argnums=(0, 1))
    same(run(second(f), f64(2.0), B), second(oracle)(f64(2.0), B))
    same(run(fh.vmap(f, in_dims=(0, None)), f64(1.0, 3.0), B), torch.stack([oracle(f64(s), B) for s in (1.0, 3.0)]))


def settle(g, y):
    """The solution of g(x) = y by steps that end at a small residual."""
    return fh.while_loop(lambda x: (g(x) - y).abs().max() > 1e-13, lambda x: x - (g(x) - y), y)


def settle_in_python(g, y):
    x = y
    while float((g(x) - y).detach().abs().max()) > 1e-13:
        x = x - (g(x) - y)
    return x


def settle_counted(g, y):
    return fh.while_loop(lambda state: state[1] < 60, lambda s: (s[0] - (g(s[0]) - y), s[1] + 1), (y, 0))[0]


def settled_root(tangent_solve):
    solve = lambda f, x: fh.while_loop(lambda x: f(x).abs().max() > 1e-14, lambda x: x - f(x), x)
    f = lambda a, b: lambda x: x + 0.3 * torch.tanh(a @ x) - b
    return lambda a, b: fh.custom_root(f(a, b), torch.zeros_like(b), solve, tangent_solve)


def settled_oracle(a, b):
    x = torch.zeros_like(b)
    for _ in range(60):
        x = b - 0.3 * torch.tanh(a @ x)
    return x


@every_mode
def test_a_tangent_solver_that_stops_by_its_residual(run):
    """Its gradient at zero tangents, where it takes no step, was taken for its transpose, in silence."""
    loss = lambda f: lambda a, b: (f(a, b) ** 3).sum()
    lanes = lambda f: fh.vmap(fh.grad(loss(f)), in_dims=(None, 0))
    b = B / 2
    wrapped = settled_root(lambda g, y: fh.custom_linear_solve(g, y, settle, settle))
    for root in (wrapped, settled_root(settle_counted)):
        same(run(root, A / 2, b), settled_oracle(A / 2, b))
        for transform in (fh.grad, fh.hessian):
            derivative = lambda f, transform=transform: transform(loss(f), argnums=(0, 1))
            same(run(derivative(root), A / 2, b), derivative(settled_oracle)(A / 2, b))
        same(run(lanes(root), A / 2, torch.stack([b, -b / 3])), lanes(settled_oracle)(A / 2, torch.stack([b, -b / 3])))
    alone = settled_root(settle)
    same(run(fh.jacfwd(alone), A / 2, b), fh.jacfwd(settled_oracle)(A / 2, b))
    for reverse, right in ((fh.grad(loss(alone)), b), (lanes(alone), torch.stack([b, -b / 3]))):
        with pytest.raises(fh.ArgumentTypeError, match=r"has no transpose.*\n.*fh\.custom_linear_solve"):
            run(reverse, A / 2, right)


@pytest.mark.parametrize("solver", ["loop", "python", "jit", "lanes"])
def test_such_a_solver_by_plain_autograd(solver):
    solvers = {
        "loop": settle,
        "python": settle_in_python,
        "jit": fh.jit(lambda g, y: settle(g, y), backend="eager"),
        "lanes": lambda g, y: fh.vmap(lambda y: settle(g, y))(y[None])[0],
    }
    tangent_solve = solvers[solver]
    b = (B / 2).requires_grad_()
    x = settled_root(tangent_solve)(A / 2, b)
    same(x.detach(), settled_oracle(A / 2, b.detach()))
    with pytest.raises(fh.ArgumentTypeError, match=r"fh\.custom_linear_solve"):
        x.sum().backward()
    settled_root(lambda g, y: fh.custom_linear_solve(g, y, tangent_solve, tangent_solve))(A / 2, b).sum().backward()
    same(b.grad, torch.func.grad(lambda b: settled_oracle(A / 2, b).sum())(b.detach()))


@every_mode
def test_forward_mode_needs_no_transpose(run):
    f = lambda a, b: fh.custom_linear_solve(lambda x: a @ x, b, dense_solve)
    oracle = lambda a, b: torch.linalg.inv(a) @ b
    same(run(fh.jacfwd(f, argnums=(0, 1)), A, B), fh.jacfwd(oracle, argnums=(0, 1))(A, B))
    same(run(fh.jacfwd(fh.jacfwd(f)), A, B), fh.jacfwd(fh.jacfwd(oracle))(A, B))
    with pytest.raises(fh.ArgumentTypeError, match="transpose_solve"):
        run(fh.grad(lambda a, b: f(a, b).sum()), A, B)


def test_reverse_mode_without_transpose_by_plain_autograd():
    b = B.clone().requires_grad_()
    for run in (plain, captured):
        x = run(lambda: fh.custom_linear_solve(lambda x: A @ x, b, dense_solve))
        with pytest.raises(fh.ArgumentTypeError, match="transpose_solve"):
            x.sum().backward()


@every_mode
def test_a_complex_system(run):
    """The transposed system is that of the adjoint, as torch's gradients want it."""
    a = torch.complex(A, 0.3 * A.mT)
    solve = lambda matvec, b: torch.linalg.solve(torch.stack([matvec(e) for e in torch.eye(3, dtype=b.dtype)], 1), b)
    f = lambda b: fh.custom_linear_solve(lambda x: a @ x, b, solve, solve)
    loss = lambda f: lambda b: f(b).abs().pow(3).sum()
    b = torch.complex(B, B.flip(0))
    oracle = lambda b: torch.linalg.inv(a) @ b
    same(run(f, b), oracle(b))
    same(run(fh.grad(loss(f)), b), torch.func.grad(loss(oracle))(b))


@every_mode
def test_a_matrix_that_does_not_depend_on_parameters(run):
    f = lambda b: fh.custom_linear_solve(lambda x: 2 * x, b, lambda matvec, b: b / matvec(1.0), symmetric=True)
    same(run(fh.grad(f), f64(3.0)), f64(0.5))
    same(run(fh.grad(fh.grad(f)), f64(3.0)), f64(0.0))


def test_exported():
    sqrt = lambda a: fh.custom_root(lambda x: x * x - a, torch.ones_like(a), bisect, divide)
    a = torch.tensor(2.0)
    same(fh.export(fh.grad(sqrt), (a,)).module()(a), 1 / (2 * a.sqrt()))


@pytest.mark.slow
def test_compiled():
    sqrt = lambda a: fh.custom_root(lambda x: x * x - a, torch.ones_like(a), bisect, divide)
    a = torch.tensor([2.0, 5.0])
    same(fh.jit(fh.vmap(fh.value_and_grad(sqrt)))(a), (a.sqrt(), 1 / (2 * a.sqrt())))
    same(fh.jit(fh.grad(lambda b: general(A, b).sum()))(B), torch.linalg.inv(A).sum(0))
