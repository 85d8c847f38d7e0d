"""Cases of JAX's ``tests/lax_control_flow_test.py`` (class LaxControlFlowTest) about ``while_loop`` and ``fori_loop``.

The docstring of a test names those it stands for.
"""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
import torch

import functorch_hops as fh
from modes import every_mode, same, same_derivatives, while_capturing

F64 = torch.float64
T = lambda *values: torch.tensor(values if len(values) != 1 else values[0], dtype=F64)


def python_while(cond, body, value):
    while cond(value):
        value = body(value)
    return value


# ---------------------------------------------------------------------------------------------------------------------
# while_loop


@every_mode
def test_tuples_and_closures(run):
    """testWhileWithTuple, testWhileWithClosure, testWhileWithClosureJit, testIssue649."""

    def count(start, limit, step):
        add = fh.jit(lambda pos, n: (pos + 1, n + step), backend="eager")
        return fh.while_loop(lambda s: s[0] < limit, lambda s: add(*s), (start, 0))[1]

    for start in (2, 3):
        same(run(count, torch.tensor(start), torch.tensor(10), 1), torch.tensor(10 - start))
    same(
        run(lambda x: fh.while_loop(lambda s: s[1] < 10, lambda s: (7, s[1] + 1), (x, 4)), torch.tensor(33))[0],
        torch.tensor(7),
    )


@every_mode
def test_many_carries(run):
    """testWhileWithManyArgs."""
    out = run(
        lambda x: fh.while_loop(lambda s: s[0] < 2, lambda s: tuple(v + 1 for v in s), (x,) * 256), torch.tensor(0)
    )
    same(out, (torch.tensor(2),) * 256)


@every_mode
def test_nested(run):
    """testNestedWhile."""

    def inner(i, count):
        return fh.while_loop(lambda s: s[0] <= i, lambda s: (s[0] + 1, s[1] + 1), (0, count))[1]

    def outer(num):
        _, i, count = fh.while_loop(lambda s: s[1] < s[0], lambda s: (s[0], s[1] + 1, inner(s[1], s[2])), (num, 0, 0))
        return i, count

    for num, count in [(0, 0), (2, 3), (3, 6), (4, 10)]:
        same(run(outer, torch.tensor(num)), (torch.tensor(num), torch.tensor(count)))
    lanes = torch.tensor([0, 4, 2])
    same(run(fh.vmap(outer), lanes), (lanes, torch.tensor([0, 10, 3])))


@every_mode
def test_writes_by_two_loops(run):
    """testNestedWhileWithDynamicUpdateSlice: the lower triangle, one element after the other."""

    def lower(a):
        def row(i, out):
            def element(s):
                j, out = s
                out = out.clone()
                out[i, j] = a[i, j]
                return j + 1, out

            return fh.while_loop(lambda s: s[0] <= i, element, (0, out))[1]

        return fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, row(*s)), (0, torch.zeros(5, 5, dtype=F64)))[1]

    a = torch.randn(5, 5, dtype=F64)
    same(run(lower, a), a.tril())
    same(run(fh.grad(lambda a: (lower(a) ** 2).sum()), a), 2 * a.tril())


@every_mode
def test_conjunction_of_conditions(run):
    """testLoopWithConjunctionCondition, testForiLoopTupleState, ...DictState, ...EmptyTupleInState."""

    def by_while(a, num):
        keep = lambda s: (s["i"] < num) & (s["i"] < a.shape[0])
        body = lambda s: {"i": s["i"] + 1, "total": s["total"] + a[s["i"]], "none": ()}
        return fh.while_loop(keep, body, {"i": 0, "total": T(0.0), "none": ()})["total"]

    def by_fori(a, num):
        body = lambda i, s: (s[0], {"total": s[1]["total"] + a[i]}, ())
        return fh.fori_loop(0, torch.clamp(num, max=a.shape[0]), body, (a, {"total": T(0.0)}, ()))[1]["total"]

    a = torch.randn(10, dtype=F64)
    for f, num in itertools.product((by_while, by_fori), (0, 5, 15)):
        same(run(f, a, torch.tensor(num)), a[:num].sum())


@every_mode
def test_lanes(run):
    """testWhileLoopBatched, ...CondConstsBatched, ...BodyConstsBatched, ...TupleBatched, ...BatchedWithConstBody."""
    ints = torch.arange(4)
    f = lambda x: fh.while_loop(lambda x: x < 3, lambda x: x + 2, x)
    same(run(fh.vmap(f), ints), torch.tensor([4, 3, 4, 3]))
    same(run(fh.vmap(fh.jit(f, backend="eager")), ints), torch.tensor([4, 3, 4, 3]))
    two = torch.tensor([2, 3])
    zero = torch.tensor(0)
    bound = lambda x, y: fh.while_loop(lambda x: x < y, lambda x: x + 2, x)
    same(run(fh.vmap(bound, in_dims=(None, 0)), zero, two), torch.tensor([2, 4]))
    stride = lambda x, y: fh.while_loop(lambda x: x < 3, lambda x: x + y, x)
    same(run(fh.vmap(stride, in_dims=(None, 0)), zero, two), torch.tensor([4, 3]))
    pair = lambda x, y: fh.while_loop(lambda s: s[0] + s[1] < 5, lambda s: (s[0] + 1, s[1]), (x, y))
    same(run(fh.vmap(pair), torch.zeros(2), torch.ones(2)), (torch.tensor([4.0, 4.0]), torch.ones(2)))
    never = lambda x: fh.while_loop(lambda _: torch.tensor(False), lambda _: torch.zeros(()), x)
    same(run(fh.vmap(never), torch.arange(5.0)), torch.arange(5.0))


@every_mode
def test_vmap_of_nested_loops(run):
    """test_issue_3204, test_vmaps_of_while_loop (jax 3164), test_disable_jit_while_loop_with_vmap."""

    def f(a, b):
        def outer(s):
            inner = lambda t: (t[0] + s[1] + t[1], t[1] + 1)
            return fh.while_loop(lambda t: t[1] < b + 1, inner, (s[0], 0))[0], s[1] + 1

        return fh.while_loop(lambda s: s[1] < a + 1, outer, (0, 0))[0]

    lanes = torch.arange(5)
    expected = torch.stack(
        [sum(i + j for i in range(a + 1) for j in range(b + 1)) + torch.tensor(0) for a, b in zip(range(5), range(5))]
    )
    same(run(fh.vmap(f), lanes, lanes), expected)
    add = lambda x, n: fh.fori_loop(0, n, lambda _, x: x + 1, x)
    x, n = torch.arange(3), torch.arange(4)
    same(run(fh.vmap(fh.vmap(add, in_dims=(None, 0)), in_dims=(0, None)), x, n), x[:, None] + n)


@every_mode
def test_batched_closures_find_a_fixpoint(run):
    """test_while_loop_fixed_point_with_batched_pred_and_consts, test_while_readonly_carry_optimization."""
    f = lambda i, x: fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] + x), (i, torch.ones(3)))[1]
    i, x = torch.arange(4), torch.ones(3, 4)
    same(run(fh.vmap(f, in_dims=(0, 1)), i, x), (6.0 - i)[:, None].expand(4, 3))

    def power(w, x, n):
        return fh.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] @ s[2], s[2]), (0, x, w))[1:]

    w, xs, n = torch.ones(2, 2), torch.ones(4, 2), torch.arange(4)
    got, weights = run(fh.vmap(power, in_dims=(None, 0, 0)), w, xs, n)
    same(got, (2.0**n)[:, None].expand(4, 2))
    same(weights, w.expand(4, 2, 2))


def test_an_unbatched_condition_stays_unbatched():
    """testForiLoopBatchedIssue1190: a counter has no lanes."""
    f = lambda x: fh.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, s[1] + 1), (0, x))
    graph = str(fh.make_graph(fh.vmap(f))(torch.arange(3)))
    assert "%arg0: int64[], %arg1: int64[3]" in graph


@every_mode
def test_derivatives(run):
    """testWhileJVP, testWhileLinearize, testWhileGradError (an error there: reverse mode works here)."""
    cond, body = lambda x: x[0, 2] <= 8, lambda x: x * x
    f = lambda x: fh.while_loop(cond, body, x)
    x = torch.arange(9.0, dtype=F64).reshape(3, 3) / 3 + 1
    same_derivatives(run, f, lambda x: python_while(cond, body, x), x)
    y, push = fh.linearize(f, x)
    same((y, push(x)), torch.func.jvp(lambda x: python_while(cond, body, x), (x,), (x,)))


@every_mode
def test_gradients_of_loops_in_branches_and_scans(run):
    """testWhileGradError: fori_inside_cond, fori_inside_scan."""
    n = torch.tensor(2)
    in_cond = lambda x: fh.cond(x > 0, lambda x: fh.fori_loop(0, n, lambda i, c: c * 2.0, x), lambda x: x, x)
    same_derivatives(run, in_cond, lambda x: x * 4, T(1.0))
    in_scan = lambda x: fh.scan(lambda c, _: (fh.fori_loop(0, n, lambda i, d: d * c, x), None), x, length=2)[0]
    same_derivatives(run, in_scan, lambda x: x**7, T(1.1))


@every_mode
def test_tangents_that_grow(run):
    """testWhileJVPWithGrowingNonzeroTangents: carries become active one after the other."""

    def loop(impl, x, y, z):
        body = lambda s: (s[0] + 1, s[1] + s[3], s[1] * s[1], s[2] * s[2])
        return impl(lambda s: s[0] < 3, body, (0, x, y, z))[1]

    y, z, x = T(0.3, -0.2), T(1.1, 0.4), T(-0.6, 0.8)
    python = lambda cond, body, init: python_while(cond, body, (torch.tensor(0), *init[1:]))
    same_derivatives(run, lambda x: loop(fh.while_loop, x, y, z), lambda x: loop(python, x, y, z), x)


@every_mode
def test_constant_conditions(run):
    """testWhileCondConstant, test_grad_remat_while_fixpoint, test_while_constification_correctness_manually."""
    assert run(lambda x: fh.while_loop(lambda _: False, lambda _: (), ()), T(0.0)) == ()
    swap = lambda x, y: sum(fh.while_loop(lambda _: torch.tensor(False), lambda s: (s[1], s[0]), (x, y)))
    same_derivatives(run, fh.checkpoint(swap), lambda x, y: x + y, T(1.0), T(2.0))
    moved = lambda x: fh.while_loop(lambda s: s[1] == 0, lambda s: (0.0, 1.0, s[0]), (x, 0.0, 3.14))
    same(run(moved, torch.tensor(5.0)), (torch.tensor(0.0), torch.tensor(1.0), torch.tensor(5.0)))


@every_mode
@pytest.mark.parametrize(
    ("constants", "read", "unread", "moved"), [(0, 1, 1, 1), (2, 2, 0, 2), (1, 0, 2, 0), (2, 1, 2, 1)]
)
def test_carries_that_are_handed_on(run, constants, read, unread, moved):
    """test_while_constification_correctness: carries that the body returns unchanged, at their place and at another."""
    rng = np.random.RandomState(constants + 3 * read)
    n = read + unread + moved + 4
    order = rng.permutation(n)
    inverse = np.argsort(order)
    consts = [torch.from_numpy(rng.randn(3)) for _ in range(constants)]
    init = [torch.tensor(v) for v in rng.uniform(size=n)]

    def cond(s):
        i, c = s
        c = [c[k] for k in inverse][:read]
        return i < 2 + (0 * sum(c, torch.zeros(())))

    def body(s):
        i, c = s
        c = [c[k] for k in inverse]
        kept, turned, rest = c[: read + unread], c[read + unread : read + unread + moved], c[read + unread + moved :]
        rest = [torch.sin(x) + sum(w.sum() for w in consts) for x in rest]
        new = [*kept, *rest, *turned]
        return i + 1, [new[k] for k in order]

    loop = lambda *c: fh.while_loop(cond, body, (0, list(c)))[1]
    oracle = lambda *c: body(body((0, list(c))))[1]
    same_derivatives(run, loop, oracle, *init, order=1)


@every_mode
def test_a_body_with_its_own_in_place_update(run):
    """test_disable_jit_while_loop_with_mutation (jax 27019): the caller's value survives."""

    def body(s):
        x, y = s
        x = x.clone()
        x += 1
        return x, y + x

    start = torch.tensor(1.0)
    same(run(lambda v: fh.while_loop(lambda s: s[0] < 10, body, (v, v))[1], start), torch.tensor(55.0))
    same(start, torch.tensor(1.0))


@while_capturing
def test_while_errors(run):
    """testWhileTypeErrors, testCallableErrors, testScanMetadataError."""
    x = torch.tensor(0.0)
    for error, call in [
        (TypeError, lambda x: fh.while_loop(42, 42, x)),
        (TypeError, lambda x: fh.while_loop(lambda c: (1.0, 1.0), lambda c: c, x)),
        (fh.TreeMismatchError, lambda x: fh.while_loop(lambda c: c < 1, lambda c: (c, c), x)),
        (fh.MetadataMismatchError, lambda x: fh.while_loop(lambda c: c[0] < 1, lambda c: (c[0], c[1] < 1), (x, x))),
        (TypeError, lambda x: fh.fori_loop(0, 1, 42, x)),
        (fh.TreeMismatchError, lambda x: fh.fori_loop(0, 1, lambda i, c: {"T": c["t"]}, {"t": x})),
        (fh.InfiniteLoopError, lambda x: fh.while_loop(lambda c: True, lambda c: c, x)),
    ]:
        with pytest.raises(error):
            run(call, x)


@every_mode
def test_keys_of_a_tree_need_no_paths(run):
    """testWhileLoopCustomPytreeDiffAuxData: what a node says of itself besides its children may differ."""
    Point = collections.namedtuple("Point", ["x", "y"])
    out = run(lambda x: fh.while_loop(lambda p: p.x > 0.0, lambda p: Point(p.x - 1, p.y * 2), Point(x, x)), T(2.0))
    assert isinstance(out, Point)
    same(tuple(out), (T(0.0), T(8.0)))


def test_equal_loops_are_one_graph():
    """testCaching2, not implemented in JAX: equal bodies of different functions are one sub-graph."""
    make = lambda: lambda x: fh.while_loop(lambda x: x < 5, lambda x: x + 2, x)
    graphs = [fh.make_graph(make())(torch.tensor(0)) for _ in range(2)]
    assert str(graphs[0]) == str(graphs[1])


# ---------------------------------------------------------------------------------------------------------------------
# fori_loop


@every_mode
@pytest.mark.parametrize("as_tensor", [lambda n: n, torch.tensor, lambda n: torch.tensor(n, dtype=torch.int16)])
def test_bounds(run, as_tensor):
    """testForiLoopBasic, testForiLoopClosure, testForiLoopScalarLimits, testForiLoopErrors (promoted here)."""
    for num in (0, 2, 3, 4):
        same(
            run(lambda x: fh.fori_loop(0, as_tensor(num), lambda i, t: t + i, x), torch.tensor(0)),
            torch.tensor(num * (num - 1) // 2),
        )
        same(
            run(lambda x: fh.fori_loop(as_tensor(0), num, lambda i, t: t + i + num, x), torch.tensor(0)),
            torch.tensor(num * (num - 1) // 2 + num**2),
        )


@every_mode
@pytest.mark.parametrize("upper", [0, -1])
def test_no_iteration(run, upper):
    """test_fori_loop_returns_init_with_nonpositive_length, testForiLoopIssue8152."""
    for unroll in (1, 3):
        same(run(lambda x: fh.fori_loop(0, upper, lambda i, c: c + 1, x, unroll=unroll), T(10.0)), T(10.0))
    same(run(lambda x: fh.fori_loop(0, torch.tensor(upper), lambda i, c: c + 1, x), T(10.0)), T(10.0))


@every_mode
@pytest.mark.parametrize("unroll", [1, 2, 3, 10, 20])
def test_unroll(run, unroll):
    """test_fori_loop_supports_unrolling, test_fori_loop_with_dynamic_indices_cannot_unroll."""
    f = lambda x: fh.fori_loop(0, 10, lambda i, c: c * 1.1 + i, x, unroll=unroll)
    oracle = lambda x: fh.fori_loop(0, 10, lambda i, c: c * 1.1 + i, x)
    same_derivatives(run, f, oracle, T(10.0), order=1)
    if unroll > 1:
        with pytest.raises(ValueError, match="unroll"):
            run(lambda n, x: fh.fori_loop(0, n, lambda i, c: c + 1, x, unroll=unroll), torch.tensor(10), T(1.0))


@every_mode
def test_fori_lanes(run):
    """testForiLoopBatched."""
    f = lambda x: fh.fori_loop(0, 10, lambda i, s: (s[0] + 1, s[1] + 2), (x, 0))
    same(run(fh.vmap(f), torch.tensor([0, 1])), (torch.tensor([10, 11]), torch.tensor([20, 20])))


@every_mode
def test_fori_derivatives(run):
    """testWhileJVPViaForiLoop, testStaticForiGrad (bounds that are active there are integers here)."""
    same_derivatives(run, lambda x: fh.fori_loop(0, 3, lambda i, x: x * 2, x), lambda x: x * 8, T(2.0))
    n = torch.tensor(3)
    same_derivatives(
        run, lambda x: fh.fori_loop(0, n, lambda i, x: x * (i + 1), x), lambda x: x * math.factorial(3), T(2.0)
    )
