"""Cases of JAX's ``tests/lax_control_flow_test.py`` (class LaxControlFlowTest) about ``cond`` and ``switch``.

The docstring of a test names those it stands for.
"""

from __future__ import annotations

import weakref

import pytest
import torch

import functorch_hops as fh
from leftovers import are_gone
from modes import every_mode, same, same_derivatives, while_capturing

F64 = torch.float64
T = lambda *values: torch.tensor(values if len(values) != 1 else values[0], dtype=F64)


def twice(x):
    y = 2 * x
    return y, 2 * y


def pair(x):
    return fh.cond(x < 3, lambda x: (x, x), twice, x)


def pair_oracle(x):
    return (x, x) if x < 3 else twice(x)


@every_mode
def test_values(run):
    """testCond, testCondJit, testCondJitDisabled."""
    for x in range(5):
        same(run(pair, torch.tensor(x)), tuple(map(torch.as_tensor, pair_oracle(x))))


@every_mode
@pytest.mark.parametrize("n", [2, 3])
def test_several_operands(run, n):
    """testCondTwoOperands, testCondThreeOperands."""
    add, mul = lambda *xs: sum(xs), lambda *xs: torch.stack(xs).prod(0)
    f = lambda x: fh.cond(x == 0, add, mul, *[x] * n)
    for x in (T(0.0), T(2.0)):
        same(run(f, x), x * 0 if x == 0 else x**n)


@every_mode
def test_nested(run):
    """testNestedCond."""

    def f(x):
        inner = lambda x: fh.cond(x < 5, lambda x, _: 3 * x, lambda _, y: y * x, x, 4)
        return fh.cond(x < 2, lambda x: 2 * x, inner, x)

    for x, expected in [(1, 2), (3, 9), (6, 24)]:
        same(run(f, torch.tensor(x)), torch.tensor(expected))


@every_mode
def test_a_predicate_that_is_a_number(run):
    """testIssue1379: 0, 0., 1 and 1. are predicates, strings and sequences are none."""
    f = lambda pred, x: fh.cond(pred, lambda x: (True, x), lambda x: (False, x), x)
    for value in (0, 0.0, 1, 1.0):
        flag, _ = run(lambda x: f(value, x), T(1.0))
        assert bool(flag) == bool(value)
        pred = torch.tensor(value)
        taken, _ = run(lambda p, x: fh.cond(p, lambda x: (x, x), lambda x: (-x, x), x), pred, T(1.0))
        same(taken, T(1.0 if value else -1.0))
    for value in ("abc", [], [1, 2], None):
        with pytest.raises(TypeError):
            run(lambda x: f(value, x), T(1.0))


@every_mode
def test_callable_objects_in_trees(run):
    """testCondCallableOperands: an operand that is callable is a tree, no function."""

    class Box:
        def __init__(self, x):
            self.x = x

        def __call__(self, *_):
            raise AssertionError("an operand was called")

    torch.utils._pytree.register_pytree_node(Box, lambda b: ([b.x], None), lambda xs, _: Box(*xs))
    f = lambda a, b: fh.cond(a > 0, lambda p, q: p.x + q.x, lambda p, q: p.x * q.x, Box(a), Box(b))
    same(run(f, T(3.0), T(4.0)), T(7.0))


@every_mode
def test_one_branch_is_constant(run):
    """testCondOneBranchConstant, testCondOneBranchConstantTuple, testCondJVP2, testCondGrad3."""
    f = lambda x: fh.cond(x < 3, lambda x: (torch.ones_like(x), 2 * x), lambda x: (x, torch.full_like(x, 4.0)), x)
    oracle = lambda x: (torch.ones_like(x), 2 * x) if x < 3 else (x, torch.full_like(x, 4.0))
    for x in (T(2.0), T(4.0)):
        same_derivatives(run, f, oracle, x)


@every_mode
def test_constant_tensors_in_branches(run):
    """testCondWithConsts, testCondJitWithConsts, testCondGrad2, testCondLinearize2."""
    a, b = T(1.0, 2.0), T(3.0, 4.0)
    f = lambda x: fh.cond(x[0] < 2, lambda x: a * x, lambda x: b * torch.cos(torch.sin(x)), x)
    oracle = lambda x: a * x if x[0] < 2 else b * torch.cos(torch.sin(x))
    for x in (T(2.14, 2.14), T(-1.72, 1.72)):
        same_derivatives(run, f, oracle, x)
        _, push = fh.linearize(f, x)
        same(push(x), torch.func.jvp(oracle, (x,), (x,))[1])


@every_mode
@pytest.mark.parametrize("x", [3.14, 2.72])
def test_derivatives(run, x):
    """testCondJVP, testCondGrad, testCondGrad4, test_cond_basic_vjp3: a branch closes over the other argument."""
    same_derivatives(run, pair, pair_oracle, T(x))
    f = lambda x, y: fh.cond(x < 3, lambda _: 2.0 * torch.sin(y), lambda x: 2.0 * torch.cos(x) + x, x)
    oracle = lambda x, y: 2.0 * torch.sin(y) if x < 3 else 2.0 * torch.cos(x) + x
    same_derivatives(run, f, oracle, T(x), T(5.8))


@every_mode
def test_linearize(run):
    """testCondLinearize, testSwitchLinearize."""
    branches = [lambda x: 3.0 * x, torch.sin, torch.neg]
    cases = {
        "cond": lambda x: fh.cond(x < 2, branches[0], branches[1], x),
        "switch": lambda x: fh.switch(x.to(torch.int32), branches, x),
    }
    for f in cases.values():
        for x in (T(-1.0), T(0.0), T(1.0), T(4.0)):
            y, slope = run(lambda x: (lambda y, push: (y, push(T(2.0))))(*fh.linearize(f, x)), x)
            same((y, slope), torch.func.jvp(f, (x,), (T(2.0),)))


@every_mode
def test_lanes_of_operands_and_predicates(run):
    """testCondBatched."""
    f = lambda x, y, z: fh.cond(x < 3, lambda y, _: y, lambda _, z: -z, y, z)
    y, z = T(1.0, 2.0), T(3.0, 4.0)
    for x, expected in [(T(2.0), y), (T(4.0), -z)]:
        same(run(fh.vmap(f, in_dims=(None, 0, 0)), x, y, z), expected)
    same(run(fh.vmap(f, in_dims=(None, 0, None)), T(4.0), y, T(5.0)), T(-5.0, -5.0))
    same(run(fh.vmap(f, in_dims=(0, 0, None)), T(2.0, 4.0), y, T(5.0)), T(1.0, -5.0))
    same(run(fh.vmap(f), T(2.0, 4.0), y, z), T(1.0, -4.0))


def test_an_unbatched_predicate_stays_a_branch():
    """testCondBatched: no select in the graph."""
    f = lambda x, y: fh.cond(x < 3, torch.sin, torch.cos, y)
    lanes = T(1.0, 2.0)
    unbatched = str(fh.make_graph(fh.vmap(f, in_dims=(None, 0)))(T(2.0), lanes))
    assert "where" not in unbatched
    assert "where" in str(fh.make_graph(fh.vmap(f))(lanes, lanes))


@every_mode
def test_vmap_of_grad(run):
    """testCondVmapGrad (jax 2264), testCondGradVmapNan, test_cond_ad_batched_unit (jax 9985)."""
    f = lambda x: fh.cond(x > 0, lambda x: x**2, lambda x: x**3, x)
    x = torch.linspace(-1, 1, 20, dtype=F64)
    same(run(fh.vmap(fh.grad(f)), x), torch.where(x > 0, 2 * x, 3 * x**2))
    safe = lambda x: fh.cond(x < 1e-3, lambda: torch.full_like(x, 1e-3), lambda: torch.sqrt(x))
    same(run(fh.grad(lambda x: fh.vmap(safe)(x).sum()), torch.zeros(10, dtype=F64)), torch.zeros(10, dtype=F64))
    same_branches = lambda x: fh.cond(x < 0.0, lambda x: x, lambda x: x, x)
    same(run(fh.vmap(fh.jacrev(lambda x: same_branches(same_branches(x)))), torch.ones(1, dtype=F64)), T([1.0]))


@every_mode
def test_what_is_not_batched_may_stay_so(run):
    """test_cond_vmap_forwarding_doesnt_promote, test_scan_readonly_carry_optimization."""
    f = lambda x, y: fh.cond(x < 3, lambda x, y: (x * 2, y), lambda x, y: (x * 3, y), x, y)
    got = run(fh.vmap(f, in_dims=(0, None)), torch.arange(5.0), torch.tensor(3.0))
    same(got, (torch.tensor([0.0, 2, 4, 9, 12]), torch.full((5,), 3.0)))
    step = lambda _, y: fh.scan(lambda y, _: (y, None), y, length=1)[0]
    g = lambda x, y: fh.cond(x < 0, step, step, x, y)
    same(run(fh.vmap(g, in_dims=(0, None)), torch.arange(3.0), torch.tensor(3.0)), torch.full((3,), 3.0))


@every_mode
def test_chains_of_conditions(run):
    """test_xla_cpu_gpu_loop_cond_bug (jax 5900): a bounded while loop as a scan of cond, linearised."""

    def power(x, n):
        step = lambda s, _: (fh.cond(s[1] < n, lambda v, i: (v * x, i + 1), lambda v, i: (v, i), *s), None)
        return fh.scan(step, (torch.ones_like(x), 0), length=5)[0][0]

    for n in (0, 1, 4):
        y, push = run(lambda x: (lambda y, push: (y, push(T(1.0))))(*fh.linearize(lambda x: power(x, n), x)), T(3.0))
        same((y, push), (T(3.0**n), T(n * 3.0 ** (n - 1))))


@every_mode
def test_random_predicates_in_a_loop(run):
    """testIssue1263: lanes of a loop whose branches depend on random numbers."""

    def body(i, x):
        return fh.cond(torch.rand(()) < 0.5, lambda x, _: x, lambda _, x: x, x, x.abs() - 1.0)

    f = fh.vmap(lambda x: fh.fori_loop(0, 10, body, x), randomness="different")
    assert run(f, torch.ones(3, 4)).shape == (3, 4)


# ---------------------------------------------------------------------------------------------------------------------
# switch


BRANCHES = [lambda x: (x, x), twice, lambda x: (x, -x)]


def chosen(x):
    return fh.switch(torch.floor(x).to(torch.int32), BRANCHES, x)


def chosen_oracle(x):
    return BRANCHES[min(max(int(x.floor()), 0), 2)](x)


@every_mode
def test_switch(run):
    """testSwitch, testSwitchJit, testSwitchMultiOperands, testOneBranchSwitch."""
    for x in (T(-1.0), T(0.0), T(1.0), T(2.0), T(3.0)):
        same(run(chosen, x), chosen_oracle(x))
        two = lambda x: fh.switch(x.to(torch.int64), [torch.add, torch.mul], x, x)
        same(run(two, x), x + x if x <= 0 else x * x)
        same(run(lambda x: fh.switch(x.to(torch.int64), [torch.neg], x), x), -x)


@every_mode
@pytest.mark.parametrize("x", [-0.7, 0.7, 1.7, 2.7, 3.7])
def test_switch_derivatives(run, x):
    """testSwitchJVP, testSwitchGrad, testSwitchGradWithWeakTypeMismatch."""
    same_derivatives(run, chosen, chosen_oracle, T(x))


@every_mode
def test_switch_lanes(run):
    """testSwitchBatched."""

    def f(index, x, y, z):
        return fh.switch(index, [lambda t: t[0], lambda t: -t[1], lambda t: torch.sign(t[2])], (x, y, z))

    x, y, z = T(1.0, 2.0), T(3.0, 4.0), T(9.0)
    for index, expected in [(0, x), (1, -y), (2, T(1.0, 1.0))]:
        same(run(fh.vmap(f, in_dims=(None, 0, 0, None)), torch.tensor(index), x, y, z), expected)
    same(run(fh.vmap(f, in_dims=(0, 0, None, None)), torch.tensor([0, 1]), x, T(5.0), z), T(1.0, -5.0))
    same(run(fh.vmap(f), torch.tensor([7, -1]), x, y, T(9.0, -9.0)), T(1.0, 2.0))


@every_mode
@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(0, 0), (0, 1), (0, 3), (2, 0), (2, 1)])
def test_switch_that_forwards_operands(run, n_inputs, n_outputs):
    """testSwitchGradWithForwarding: branches hand on their operands, and share residuals."""

    def branch(s, inputs):
        inputs = [inputs[i] for i in (2, 0, 1)]
        rest = [s * torch.exp(v) if i < n_outputs else torch.sin(v) for i, v in enumerate(inputs[: 3 - n_inputs])]
        outputs = [*inputs[:n_inputs], *rest]
        return [outputs[i] for i in (1, 2, 0)]

    branches = [lambda inputs, s=s: branch(s, inputs) for s in range(3)]
    for index in range(3):
        f = lambda *inputs: fh.switch(torch.tensor(index), branches, list(inputs))
        oracle = lambda *inputs: branches[index](list(inputs))
        same_derivatives(run, f, oracle, T(0.5), T(1.0), T(2.0), order=1)


def test_branches_share_residuals():
    """testSwitchResidualsMerge: backward is a node that takes the union of what its branches saved, not the sum."""
    branches = [torch.sin, torch.cos, lambda x: torch.sin(x) + torch.cos(x)]
    f = lambda x, i: fh.switch(i, branches, x)
    graph = str(fh.make_graph(fh.grad(f))(T(0.5), torch.tensor(0)))
    forward = next(line for line in graph.splitlines() if "= cond[" in line)
    assert graph.count("= cond[") <= 2
    assert forward.count("%") <= 4  # the result, its parameters, the selector and x


@every_mode
def test_gradients_of_an_index(run):
    """test_custom_jvp_tangent_cond_transpose (jax 14026), its part without a custom rule."""
    mask = lambda a, choice: (1 - choice) * a.sum() + choice * (1 - a.sum())
    branch = lambda a, choice: fh.switch(choice.to(torch.int32), [torch.sum, lambda a: 1 - a.sum()], a)
    for choice in (T(0.0), T(1.0)):
        same(
            run(fh.grad(branch), torch.arange(3.0, dtype=F64), choice), torch.func.grad(mask)(T(0.0, 1.0, 2.0), choice)
        )


@while_capturing
def test_errors(run):
    """testCondTypeErrors, testSwitchErrors, testCondPredIsNone, testCallableErrors."""
    x = T(1.0)
    p, i = torch.tensor(True), torch.tensor(1)
    for error, call in [
        (TypeError, lambda x: fh.cond(lambda x: True, torch.sin, torch.cos, x)),
        (TypeError, lambda x: fh.cond("foo", torch.sin, torch.cos, x)),
        (TypeError, lambda x: fh.cond((1.0, 1.0), torch.sin, torch.cos, x)),
        (TypeError, lambda x: fh.cond(None, torch.sin, torch.cos, x)),
        (TypeError, lambda x: fh.cond(0, 42, 42)),
        (fh.TreeMismatchError, lambda x: fh.cond(p, lambda x: {"a": x}, lambda x: {"a": (x, x)}, x)),
        (fh.MetadataMismatchError, lambda x: fh.cond(p, lambda x: x[None], lambda x: x, x)),
        (TypeError, lambda x: fh.switch(lambda x: True, [torch.sin, torch.cos], x)),
        (TypeError, lambda x: fh.switch("foo", [torch.sin, torch.cos], x)),
        (TypeError, lambda x: fh.switch((1, 1), [torch.sin, torch.cos], x)),
        (TypeError, lambda x: fh.switch(0, [42])),
        (ValueError, lambda x: fh.switch(0, [], x)),
        (fh.TreeMismatchError, lambda x: fh.switch(i, [lambda x: {"a": x}, lambda x: {"a": (x, x)}], x)),
        (fh.MetadataMismatchError, lambda x: fh.switch(i, [lambda x: {"a": x[None]}, lambda x: {"a": x}], x)),
    ]:
        with pytest.raises(error):
            run(call, x)


def test_a_static_branch_does_not_keep_its_closure_alive():
    """test_cond_memory_leak (jax 12719)."""

    def leak():
        data = torch.ones(1024)
        f = fh.jit(lambda: fh.cond(data[0] > 0, lambda: data[0], lambda: data[1]), backend="eager")
        f()
        return weakref.ref(data)

    assert are_gone(leak())
