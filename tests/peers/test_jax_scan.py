"""Cases of JAX's ``tests/lax_control_flow_test.py`` (class LaxControlFlowTest) about ``scan``, ``map`` and
``associative_scan``.

The docstring of a test names those it stands for.
"""

from __future__ import annotations

import collections
import operator

import numpy as np
import pytest
import torch

import functorch_hops as fh
from modes import every_mode, lane_by_lane, same, same_derivatives, while_capturing

F64 = torch.float64
T = lambda *values: torch.tensor(values if len(values) != 1 else values[0], dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def python_scan(f, carry, xs):
    ys = []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


D = randn(2)


def wave(c, a):
    b = torch.cos(torch.sin(a).sum() + torch.cos(c).sum() + D.sum())
    return torch.sin(c * b), b


jitted_wave = fh.jit(wave, backend="eager")
BODIES = pytest.mark.parametrize(
    "f", [wave, jitted_wave, fh.checkpoint(wave)], ids=["body", "jit(body)", "checkpoint(body)"]
)


@every_mode
@BODIES
def test_derivatives(run, f):
    """testScanImpl, testScanJVP, testScanLinearize, testScanGrad; SCAN_IMPLS: the body plain, jitted, checkpointed."""
    c, xs = randn(4), randn(5, 3, seed=1)
    same_derivatives(run, lambda c, xs: fh.scan(f, c, xs), lambda c, xs: python_scan(wave, c, xs), c, xs)


@every_mode
def test_third_derivatives(run):
    """testScanHigherOrderDifferentiation, one order further."""

    def f(c, a):
        return 0.9 * torch.cos(0.75 * torch.sin(c * a).sum()), torch.sin(c * torch.cos(0.75 * a).sum())

    xs = torch.arange(6.0, dtype=F64).reshape(3, 2)
    third = lambda tools, impl: lambda c: tools.grad(tools.grad(tools.grad(lambda c: impl(f, c, xs)[1].sum())))(c)
    same(run(third(fh, fh.scan), T(1.0)), third(torch.func, python_scan)(T(1.0)))


@every_mode
@pytest.mark.parametrize(("c_dim", "a_dim"), [(0, None), (None, 2), (0, 1), (1, 0), (1, 2)])
def test_lanes(run, c_dim, a_dim):
    """testScanVmap: every place of the lanes, in carry and xs."""
    c, xs = randn(7, 4), randn(7, 5, 3, seed=1)
    expected = lane_by_lane(
        lambda i: python_scan(wave, c[i if c_dim is not None else 0], xs[i if a_dim is not None else 0]),
        torch.arange(7),
    )
    c = c[0] if c_dim is None else c.movedim(0, c_dim)
    xs = xs[0] if a_dim is None else xs.movedim(0, a_dim)
    same(run(fh.vmap(lambda c, xs: fh.scan(wave, c, xs), in_dims=(c_dim, a_dim)), c, xs), expected)
    same(run(fh.vmap(lambda c, xs: fh.scan(jitted_wave, c, xs), in_dims=(c_dim, a_dim)), c, xs), expected)


@every_mode
def test_lanes_of_trees(run):
    """testScanVmapTuples."""

    def f(c, a):
        y = torch.cos(a[0]).sum() * (c[1] * a[1]).sum()
        return (c[0] * torch.sin((a[0] * a[1]).sum()), c[1] * torch.cos(a[0].sum())), y

    xs, c = (randn(3, 7), randn(3, 4, 7, seed=1)), (randn(7, 2, seed=2), randn(7, seed=3))
    one = lambda i: fh.scan(f, (c[0][i], c[1][i]), (xs[0][:, i], xs[1][:, :, i]))
    got = run(fh.vmap(lambda c, xs: fh.scan(f, c, xs), in_dims=(0, (1, 2))), c, xs)
    same(got, lane_by_lane(one, torch.arange(7)))


@every_mode
def test_lanes_that_move_through_the_carry(run):
    """testScanVmapFixpoint: three rounds until every carry is known to have lanes."""
    step = lambda c, _: ((c[1], c[2], c[3], torch.zeros_like(c[3])), None)
    f = lambda x: fh.scan(step, (0.0, 1.0, 2.0, x), length=2)[0]
    x, zeros = torch.tensor([3.0, 4.0, 5.0]), torch.zeros(3)
    same(run(fh.vmap(f), x), (torch.full((3,), 2.0), x, zeros, zeros))
    same(run(fh.vmap(fh.jacrev(lambda x: f(x)[1])), x), torch.ones(3))


@every_mode
def test_rnn(run):
    """testScanRnn."""
    inputs, targets = randn(7, 3, 4), randn(7, 3, 1, seed=1)
    params = {"transition": randn(2, 6, seed=2), "out": randn(1, 6, seed=3)}

    def loss(scan):
        def of(w, v, xs, ys):
            def step(h, x):
                stacked = torch.cat([h, x])
                return torch.tanh(w @ stacked), torch.tanh(v @ stacked)

            return ((scan(step, torch.zeros(2, dtype=F64), xs)[1] - ys) ** 2).sum()

        return of

    args = params["transition"], params["out"], inputs[0], targets[0]
    same_derivatives(run, loss(fh.scan), loss(python_scan), *args)
    losses = run(fh.vmap(loss(fh.scan), in_dims=(None, None, 0, 0)), *args[:2], inputs, targets)
    same(losses, lane_by_lane(lambda x, y: loss(python_scan)(*args[:2], x, y), inputs, targets))


@every_mode
def test_gradients_inside(run):
    """testIssue711, testIssue757, testIssue1316, testIssue1361, test_scan_fixpoint_instantiate."""

    def minimised(scan, grad):
        def of(p):
            energy = lambda x: (x * p).sum() + 0.5 * (x**2).sum()
            return torch.sin(
                1.0 - scan(lambda x, _: (x - 0.1 * grad(energy)(x), x), T(1.0, 2.0, 3.0), torch.zeros(8))[0]
            )

        return of

    same_derivatives(run, minimised(fh.scan, fh.grad), minimised(python_scan, torch.func.grad), T(0.25))
    cosine = lambda x: fh.scan(lambda x, _: (fh.grad(torch.cos)(x), None), x, torch.arange(10))[0]
    sines = lambda x: python_scan(lambda x, _: (-torch.sin(x), x), x, range(10))[0]
    same(run(fh.jacfwd(cosine), T(0.5)), torch.func.grad(sines)(T(0.5)))
    unread = lambda x: fh.scan(lambda c, _: ((2 * c[0], 0.0), None), (x, 0.0), length=3)[0][0]
    same(run(fh.grad(fh.jit(unread, backend="eager")), T(0.0)), T(8.0))
    dropped = lambda x: sum(fh.scan(lambda c, _: ((torch.zeros_like(x), 0.0), None), (x, 0.0), length=5)[0])
    same(run(fh.grad(dropped), T(1.0)), T(0.0))


@every_mode
def test_constants_in_products(run):
    """testIssue810, test_scan_hoisting_consts, testScanRnn: weights that every step reads."""
    A, B = randn(2, 2), randn(2, 2, seed=1)

    def f(scan):
        def of(x, A, B):
            step = lambda c, _: ((A @ c[0], B @ c[1], torch.sin(B) @ c[2]), c[0].sum())
            return sum(c.sum() for c in scan(step, (x, x, x), torch.zeros(3))[0])

        return of

    same_derivatives(run, f(fh.scan), f(python_scan), T(1.0, -1.0), A, B)


def test_constants_are_not_stacked():
    """testIssue810: backward holds no copy of a weight per step."""
    loss = lambda A: fh.scan(lambda x, _: (A @ x, None), torch.ones(3), length=10)[0].sum()
    graph = str(fh.make_graph(fh.grad(loss))(torch.eye(3)))
    assert "[10, 3, 3]" not in graph


def test_residuals_are_shared_with_inputs():
    """test_scan_vjp_forwards_extensive_residuals (jax 4510): what the caller holds already is not stored again."""
    products = lambda x: fh.scan(lambda s, x: (x * s, s), torch.ones(2, 3), x)[0].sum()
    graph = str(fh.make_graph(fh.grad(products))(torch.ones(8, 2, 3)))
    forward = next(line for line in graph.splitlines() if "= scan[" in line)
    assert "n_carry=1, n_xs=1" in forward
    stacks = [line for line in graph.splitlines() if "float32[8, 2, 3] = getitem" in line]
    assert len(stacks) <= 2  # the carries that forward kept, and the gradient of xs


@every_mode
def test_reverse(run):
    """test_scan_reverse, with the carry in both directions."""
    xs = torch.tensor([3, 1, 4, 1, 5, 9])
    sums = lambda xs, reverse: fh.scan(lambda c, x: (c + x, c + x), 0, xs, reverse=reverse)[1]
    same(run(lambda xs: sums(xs, False), xs), xs.cumsum(0))
    same(run(lambda xs: sums(xs, True), xs), xs.flip(0).cumsum(0).flip(0))
    c, xs = randn(4), randn(5, 3, seed=1)
    backwards = lambda c, xs: (lambda c, ys: (c, ys.flip(0)))(*python_scan(wave, c, xs.flip(0)))
    same_derivatives(run, lambda c, xs: fh.scan(wave, c, xs, reverse=True), backwards, c, xs)


@every_mode
@pytest.mark.parametrize("unroll", [2, 3, 5, 8])
def test_unroll(run, unroll):
    """test_scan_unroll: the same results, the remainder included."""
    c, xs = randn(4), randn(5, 3, seed=1)
    f = lambda c, xs: fh.scan(wave, c, xs, unroll=unroll)
    same_derivatives(run, f, lambda c, xs: python_scan(wave, c, xs), c, xs, order=1)


@every_mode
def test_length(run):
    """testScanLengthArg, test_scan_xs_none, test_scan_length_concrete_error."""
    same(
        run(lambda c: fh.scan(lambda c, _: (c + 1, c), c, length=10), torch.tensor(0)),
        (torch.tensor(10), torch.arange(10)),
    )
    same(run(lambda c: fh.scan(lambda c, _: (c + 1, None), c, None, 20)[0], torch.tensor(0)), torch.tensor(20))
    with pytest.raises(TypeError, match="length"):
        run(lambda n: fh.scan(lambda c, _: (c, None), 0, None, n), torch.tensor(3))
    with pytest.raises(TypeError, match="unroll"):
        run(lambda n: fh.scan(lambda c, _: (c, None), 0, None, 3, unroll=n), torch.tensor(3))


Point = collections.namedtuple("Point", ["x", "y"])


@while_capturing
def test_errors(run):
    """testScanBodyOutputError, ...CarryPytreeMismatchErrors, ...CarryTypeMismatchErrors, ...LengthError,
    ...InvalidUnrollRaises, testIssue744.
    """
    i, xs = torch.tensor(0), torch.arange(5.0)
    for error, call in [
        (TypeError, lambda i, xs: fh.scan(42, i, xs)),
        (fh.TreeMismatchError, lambda i, xs: fh.scan(lambda c, x: x, i, xs)),
        (fh.TreeMismatchError, lambda i, xs: fh.scan(lambda c, x: ((i, i, i), x), (1, (2, 3)), xs)),
        (fh.TreeMismatchError, lambda i, xs: fh.scan(lambda c, x: ((c[0],), x), (i, i), xs)),
        (fh.TreeMismatchError, lambda i, xs: fh.scan(lambda c, x: ([c[0]] * 2, x), (i, i), xs)),
        (fh.TreeMismatchError, lambda i, xs: fh.scan(lambda c, x: ({"a": c["a"], "b": c["a"]}, x), {"a": i}, xs)),
        (fh.MetadataMismatchError, lambda i, xs: fh.scan(lambda c, x: (c.to(torch.float32), x), i, xs)),
        (fh.MetadataMismatchError, lambda i, xs: fh.scan(lambda c, x: ((c[0], c[1].reshape(1, 1)), x), (i, i), xs)),
        (ValueError, lambda i, xs: fh.scan(lambda c, x: (c, x), i, xs, length=4)),
        (ValueError, lambda i, xs: fh.scan(lambda c, x: (c, x), i, xs, unroll=-1)),
        (ValueError, lambda i, xs: fh.scan(lambda p, j: (Point(p.x + 1, p.y + 1), j), Point(i, i), list(range(5)))),
    ]:
        with pytest.raises(error):
            run(call, i, xs)


@every_mode
@pytest.mark.parametrize(("consts", "kept", "moved", "given"), [(0, 0, 0, 0), (1, 2, 1, 1), (2, 1, 2, 2), (1, 0, 2, 1)])
def test_what_is_handed_on(run, consts, kept, moved, given):
    """test_scan_constification_correctness, test_scan_forwarding_correctness, test_scan_vjp_forwarding_correctness,
    test_scan_input_to_output_forwarding: carries and xs that the body returns as they are, at any place.
    """
    rng = np.random.RandomState(consts + 5 * kept)
    n, m = kept + moved + 3, given + 2
    order, xs_order = rng.permutation(n), rng.permutation(m)
    inverse = np.argsort(order)
    weights = [torch.from_numpy(rng.randn(3)) for _ in range(consts)]
    init = [torch.from_numpy(rng.uniform(size=3)) for _ in range(n)]
    xs = [torch.from_numpy(rng.uniform(size=2)) for _ in range(m)]

    def body(c, x):
        c, x = [c[k] for k in inverse], [x[k] for k in xs_order]
        rest = [torch.sin(v) * (1 + sum(w.sum() for w in weights)) for v in c[kept + moved :]]
        new = [*c[:kept], *rest, *c[kept : kept + moved]]
        return [new[k] for k in order], [*x[:given], *(torch.cos(v) * rest[0].sum() for v in x[given:]), 0]

    def python(c, xs):
        ys = []
        for t in range(2):
            c, y = body(c, [x[t] for x in xs])
            ys.append(y[:-1])
        return c, [torch.stack(column) for column in zip(*ys, strict=True)]

    both = lambda impl: lambda *args: impl(list(args[:n]), list(args[n:]))
    scan = lambda c, xs: (lambda c, ys: (c, ys[:-1]))(*fh.scan(body, c, xs))
    same_derivatives(run, both(scan), both(python), *init, *xs, order=1)


# ---------------------------------------------------------------------------------------------------------------------
# map, associative_scan


@every_mode
def test_map(run):
    """testMap, testMapEmpty."""
    same(run(lambda xs: fh.map(lambda x: x**2, xs), torch.arange(10)), torch.arange(10) ** 2)
    same(run(lambda xs: fh.map(lambda x: x * x, xs), torch.zeros(0)), torch.zeros(0))


@every_mode
@pytest.mark.parametrize("shape", [[0], [1], [2], [3], [5], [10], [1000], [2, 3], [7, 5], [5, 6, 7]], ids=str)
def test_associative_scan(run, shape):
    """testAssociativeScanUnstructured, testAssociativeScanUnstructured1000Reverse."""
    data = torch.arange(int(np.prod(shape))).reshape(shape) + 7
    for dim in range(-len(shape), len(shape)):
        same(run(lambda x: fh.associative_scan(operator.add, x, dim=dim), data), data.cumsum(dim))
    backwards = data.flip(0).cumsum(0).flip(0)
    same(run(lambda x: fh.associative_scan(operator.add, x, reverse=True), data), backwards)


@every_mode
def test_associative_scan_of_trees_and_bools(run):
    """testAssociativeScanStructured3, testAssociativeScanOfBools."""
    data = Point(T(0.0, 1.0, 2.0), T(0.0, 10.0, 20.0))
    out = run(lambda p: fh.associative_scan(lambda a, b: Point(a.x + b.x, a.y + b.y), p), data)
    assert isinstance(out, Point)
    same(tuple(out), (T(0.0, 1.0, 3.0), T(0.0, 10.0, 30.0)))
    flags = torch.tensor([False, True, True, True, False, True])
    same(run(lambda x: fh.associative_scan(torch.bitwise_xor, x), flags), flags.cumsum(0) % 2 == 1)


@every_mode
@pytest.mark.parametrize("n", [2, 43, 100])
def test_associative_scan_with_solve(run, n):
    """testAssociativeScanSolvingRegressionTest: an fn whose meaning depends on the number of dimensions."""
    m, v = torch.eye(2, dtype=F64).expand(n, 2, 2), torch.ones(n, 2, dtype=F64)
    fn = lambda a, b: (a[0] + b[0], torch.linalg.solve(a[0], b[1]) + torch.linalg.solve(b[0], a[1]))
    matrices, _ = run(lambda m, v: fh.associative_scan(fn, (m, v)), m, v)
    same(matrices, torch.eye(2, dtype=F64) * torch.arange(1, n + 1)[:, None, None])
