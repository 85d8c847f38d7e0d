"""What users ask for in public: a test for each issue about what is here. pt = pytorch/pytorch, jax = jax-ml/jax.

Not here: issues about CUDA, compile time or memory (benchmarks), custom rules, symbolic shapes and ``torch.compile``.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import every_mode, lane_by_lane, same, same_derivatives, while_capturing

F64 = torch.float64
T = lambda *values: torch.tensor(values if len(values) != 1 else values[0], dtype=F64)


# ---------------------------------------------------------------------------------------------------------------------
# reverse mode


def sqrt(a):
    """Newton's iteration, until it stands still."""
    body = lambda s: (0.5 * (s[0] + a / s[0]), s[0])
    return fh.while_loop(lambda s: (s[0] - s[1]).abs() > 1e-12, body, (a, a * 0))[0]


@every_mode
def test_reverse_mode_of_an_unbounded_while(run):
    """jax 2469, jax 13062, mujoco 1207, mujoco 3264."""
    a = T(2.0, 9.0, 0.25)
    same(run(fh.vmap(fh.grad(sqrt)), a), 0.5 * a**-0.5)
    same(run(fh.vmap(fh.grad(fh.grad(sqrt))), a), -0.25 * a**-1.5)
    x = a.clone().requires_grad_()
    run(fh.vmap(sqrt), x).sum().backward()
    same(x.grad, 0.5 * a**-0.5)


@every_mode
def test_early_exit_of_a_scan(run):
    """jax 650 and the early-exit scan: gradients of a loop that stops when it has converged, xs included."""

    def f(xs):
        body = lambda s: (s[0] + 1, s[1] * 0.5 + xs[s[0]])
        return fh.while_loop(lambda s: (s[0] < xs.shape[0]) & (s[1] < 1.0), body, (0, xs[0]))

    xs = T(0.1, 0.4, 0.8, 9.0, 9.0)
    same(run(f, xs), (torch.tensor(3), T(1.0375)))
    same(run(fh.grad(lambda xs: f(xs)[1]), xs), T(0.375, 0.5, 1.0, 0.0, 0.0))


@every_mode
def test_jacfwd_through_while(run):
    """Forward mode through the loop that a solver is."""
    a = T(2.0, 3.0)
    same(run(fh.jacfwd(fh.vmap(sqrt)), a), torch.diag(0.5 * a**-0.5))
    same(run(fh.jacfwd(fh.jacrev(fh.vmap(sqrt))), a).sum(), (-0.25 * a**-1.5).sum())


@every_mode
def test_checkpointed_scan(run):
    """jax 2139: a scan whose step is checkpointed has the same gradients."""
    w = T(0.3, -0.7)
    step = lambda c, x: (torch.tanh(c * w + x), c.sum())

    def oracle(c):
        for _ in range(4):
            c = torch.tanh(c * w + 1)
        return c

    f = lambda c: fh.scan(fh.checkpoint(step), c, torch.ones(4, 1, dtype=F64))[0]
    same_derivatives(run, f, oracle, T(0.2, 0.5))


# ---------------------------------------------------------------------------------------------------------------------
# vmap


@every_mode
def test_vmap_of_while_loop(run):
    """pt 175522: while_loop has no batching rule."""
    f = lambda x: fh.while_loop(lambda s: s[1] < 100, lambda s: (s[0] + 1, s[1] * s[1] + 1), (0, x))

    def python(x):
        n = 0
        while x < 100:
            n, x = n + 1, x * x + 1
        return torch.tensor(n), x

    x = T(0.0, 3.0, 200.0, -1.5)
    same(run(fh.vmap(f), x), lane_by_lane(python, x))


@every_mode
def test_vmap_of_cond(run):
    """pt 114136, jax 8409: a batched predicate, with operands and closures that have lanes and that have none."""
    w = T(2.0)
    f = lambda p, x, y: fh.cond(p, lambda x: x * w + y, lambda x: x - y, x)
    p, x = torch.tensor([True, False, True]), T(1.0, 2.0, 3.0)
    same(run(fh.vmap(f, in_dims=(0, 0, None)), p, x, T(10.0)), T(12.0, -8.0, 16.0))
    same(run(fh.vmap(f, in_dims=(0, None, 0)), p, T(10.0), x), T(21.0, 8.0, 23.0))
    same(run(fh.vmap(f, in_dims=(0, None, None)), p, T(10.0), T(1.0)), T(21.0, 9.0, 21.0))


@every_mode
def test_vmap_of_a_loop_in_a_branch_ends(run):
    """jax 2947: vmap(cond(while)), where the loop would not end for lanes that do not take its branch."""
    loop = lambda n: fh.while_loop(
        lambda n: n != 1, lambda n: fh.cond(n % 2 == 0, lambda n: n // 2, lambda n: 3 * n + 1, n), n
    )
    f = lambda n: fh.cond(n > 0, loop, lambda n: n, n)
    same(run(fh.vmap(f), torch.tensor([0, 3, -5, 7])), torch.tensor([0, 1, -5, 1]))
    same(run(fh.vmap(f), torch.tensor([0, -5])), torch.tensor([0, -5]))


@every_mode
def test_the_branch_not_taken_is_not_felt(run):
    """jax 5658: a select that is safe with NaN, without a where in the user's branches."""
    f = lambda x: fh.cond(x == 0, lambda x: torch.ones_like(x), lambda x: torch.sin(x) / x, x)
    x = T(0.0, 1.0)
    same(run(fh.vmap(f), x), torch.sinc(x / torch.pi))
    same(run(fh.vmap(fh.grad(f)), x), torch.stack([T(0.0), x[1].cos() - x[1].sin()]))
    assert run(fh.grad(lambda x: fh.vmap(fh.grad(f))(x).sum()), x).isfinite().all()


@every_mode
def test_data_dependent_control_flow_under_vmap(run):
    """functorch 257: the sign of an element decides."""
    f = lambda x: fh.cond(x.sum() > 0, lambda x: x / x.norm(), lambda x: x * 0, x)
    x = torch.stack([T(3.0, 4.0), T(-1.0, 0.5), T(0.0, 2.0)])
    same(run(fh.vmap(f), x), torch.stack([T(0.6, 0.8), T(0.0, 0.0), T(0.0, 1.0)]))


@every_mode
def test_random_numbers_of_each_lane(run):
    """functorch 408: lanes draw numbers of their own inside of loops, or all the same."""
    walk = lambda x: fh.scan(lambda c, _: (c + torch.randn(()), c), x, length=5)[0]
    x = torch.zeros(4)
    assert run(fh.vmap(walk, randomness="different"), x).unique().numel() == 4
    assert run(fh.vmap(walk, randomness="same"), x).unique().numel() == 1


# ---------------------------------------------------------------------------------------------------------------------
# scan


@every_mode
def test_scan_over_closed_over_weights(run):
    """pt 50688: the request for scan: a cell that closes over its weights, with jvp and gradients."""
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 4).double()
    xs, h = torch.randn(6, 3, dtype=F64), torch.randn(4, dtype=F64)

    def oracle(h, xs):
        hs = []
        for x in xs:
            h = cell(x, h)
            hs.append(h)
        return h, torch.stack(hs)

    f = lambda h, xs: fh.scan(lambda h, x: (lambda h: (h, h))(cell(x, h)), h, xs)
    same(run(f, h, xs), oracle(h, xs))
    same(run(lambda *args: fh.jvp(f, args, args), h, xs), torch.func.jvp(oracle, (h, xs), (h, xs)))
    grads = [
        torch.autograd.grad(out[1].square().sum(), list(cell.parameters())) for out in (run(f, h, xs), oracle(h, xs))
    ]
    same(*grads)


@every_mode
@pytest.mark.parametrize("as_list", [True, False], ids=["list of states", "one tensor of states"])
@pytest.mark.parametrize("layers", [1, 3])
def test_gradients_of_a_multi_layer_rnn(run, as_list, layers):
    """pt 153679 (torch's test_scan_multiple_layers_gradient), pt 153705: states written in place into one tensor."""
    torch.manual_seed(0)
    modules = nn.ModuleList([nn.Linear(6, 3) for _ in range(layers)]).double()
    xs, states = torch.randn(4, 2, 3, dtype=F64), [torch.zeros(2, 3, dtype=F64) for _ in range(layers)]

    def by_list(hs, x):
        hs = hs[:]
        for i, layer in enumerate(modules):
            hs[i] = x = hs[i] + layer(torch.cat((hs[i], x), -1))
        return hs, x

    def by_tensor(h, x):
        h = h.clone()
        for i, layer in enumerate(modules):
            x = h[:, i] + layer(torch.cat((h[:, i].clone(), x), -1))
            h[:, i, :] = x
        return h, x

    step, init = (by_list, states) if as_list else (by_tensor, torch.stack(states, 1))
    outs, hs = [], states
    for x in xs:
        hs, y = by_list(hs, x)
        outs.append(y)
    got = run(lambda xs: fh.scan(step, init, xs)[1], xs)
    same(got, torch.stack(outs))
    weights = list(modules.parameters())
    same(
        torch.autograd.grad(got.square().sum(), weights), torch.autograd.grad(torch.stack(outs).square().sum(), weights)
    )


@every_mode
def test_nobody_has_to_clone(run):
    """pt 153437: carries and outputs that are the inputs, each other, or views of one another."""
    f = lambda a, xs: fh.scan(lambda c, x: ((c[1], x, x), (x, c[0], c[0][:1], x)), (a, a, a), xs)
    a, xs = T(1.0, 2.0), torch.stack([T(3.0, 4.0), T(5.0, 6.0), T(7.0, 8.0)])
    firsts = torch.stack([a, a, xs[0]])
    same(run(f, a, xs), ((xs[1], xs[2], xs[2]), (xs, firsts, firsts[:, :1], xs)))


@while_capturing
def test_errors_name_the_line(run):
    """pt 158566: what went wrong in a body, and where, in the user's words."""

    def step(c, x):
        return {"h": [c["h"][0], c["h"][1].to(torch.float64)]}, x

    with pytest.raises(fh.MetadataMismatchError) as caught:
        run(lambda xs: fh.scan(step, {"h": [xs[0], xs[0]]}, xs), torch.ones(3))
    for part in ("scan", "['h'][1]", "float32", "float64", "test_demand.py"):
        assert part in str(caught.value)


@every_mode
def test_reverse_of_an_associative_scan(run):
    """pt 137943: reverse is silently wrong for what does not commute."""
    xs = torch.linspace(-1, 1, 24, dtype=F64).reshape(6, 2, 2)
    rows = list(xs.flip(0))
    for t in range(1, 6):
        rows[t] = rows[t - 1] @ rows[t]
    same(run(lambda xs: fh.associative_scan(torch.matmul, xs, reverse=True), xs), torch.stack(rows[::-1]))


@every_mode
def test_branches_disagree_on_requires_grad(run):
    """pt 141259: one branch returns a tensor that needs no gradient."""
    w = T(2.0)
    f = lambda x, w: fh.cond(x > 0, lambda x: x.detach() * 3, lambda x: x * w, x)
    for value, expected in [(1.0, (0.0, 0.0)), (-1.0, (2.0, -1.0))]:
        got = run(fh.grad(f, argnums=(0, 1)), T(value), w)
        same(got, tuple(map(T, expected)))


# ---------------------------------------------------------------------------------------------------------------------
# transforms and compilation


def loss(w, xs):
    return fh.scan(lambda c, x: (torch.tanh(w @ c + x), c.square().sum()), torch.zeros(2, dtype=F64), xs)[1].sum()


W = torch.tensor([[0.4, -0.3], [0.2, 0.6]], dtype=F64)
XS = torch.linspace(-1, 1, 12, dtype=F64).reshape(2, 3, 2)


def loss_oracle(w, xs):
    c, total = torch.zeros(2, dtype=F64), T(0.0)
    for x in xs:
        total, c = total + c.square().sum(), torch.tanh(w @ c + x)
    return total


COMPOSITIONS = {
    "vmap(jacfwd), pt 151196": (lambda tools, f: tools.vmap(tools.jacfwd(f), in_dims=(None, 0)), XS),
    "hessian, pt 154284": (lambda tools, f: tools.hessian(f), XS[0]),
    "hessian(hessian), pt 154284": (lambda tools, f: tools.hessian(lambda *a: tools.hessian(f)(*a).sum()), XS[0]),
    "vmap(hessian)": (lambda tools, f: tools.vmap(tools.hessian(f), in_dims=(None, 0)), XS),
    "jvp through vmap, pt 182842": (
        lambda tools, f: lambda w, xs: tools.jvp(lambda w: tools.vmap(f, in_dims=(None, 0))(w, xs), (w,), (w * 2,)),
        XS,
    ),
    "vmap of jvp, pt 182842": (
        lambda tools, f: tools.vmap(lambda w, xs: tools.jvp(lambda w: f(w, xs), (w,), (w * 2,)), in_dims=(None, 0)),
        XS,
    ),
}


SLOW = [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW if "hessian(hessian)" in n else []) for n in COMPOSITIONS])
@pytest.mark.parametrize("inside", [False, True], ids=["jit outside", "jit inside"])
def test_transforms_of_loops_compile(name, inside):
    """pt 151196, pt 154284, pt 182842, with the loops that they could not have."""
    compose, xs = COMPOSITIONS[name]
    jit = lambda f: fh.jit(f, backend="eager")
    got = compose(fh, jit(loss)) if inside else jit(compose(fh, loss))
    same(got(W, xs), compose(torch.func, loss_oracle)(W, xs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vmap(jacfwd), pt 151196", "vmap of jvp, pt 182842"])
def test_transforms_of_loops_compile_by_inductor(name):
    """pt 151196, pt 182842."""
    compose, xs = COMPOSITIONS[name]
    same(fh.jit(compose(fh, loss))(W, xs), compose(torch.func, loss_oracle)(W, xs))


@every_mode
def test_jacobian_of_an_implicit_root(run):
    """torchopt 223: Jacobians of what an iteration converges to, by its own derivative in each mode."""
    root = lambda a: fh.while_loop(
        lambda s: (s[0] - s[1]).abs().max() > 1e-13, lambda s: (torch.cos(a * s[0]), s[0]), (a * 0 + 0.5, a * 0)
    )[0]
    a = T(0.3, 0.7)
    x = run(root, a)
    slope = torch.diag(-x * torch.sin(a * x) / (1 + a * torch.sin(a * x)))
    same(run(fh.jacrev(root), a), slope)
    same(run(fh.jacfwd(root), a), slope)


# ---------------------------------------------------------------------------------------------------------------------
# export


def exported(f, *args):
    return fh.export(f, args).module()


def test_a_fact_of_one_branch_stays_there():
    """pt 147991, its part without symbolic shapes: each branch sees the shapes of its own."""
    f = lambda x: fh.cond(x.sum() > 0, lambda x: x[:2].sum(), lambda x: x[2:].sum(), x)
    program = exported(f, torch.ones(5))
    for x in (torch.arange(5.0), -torch.arange(5.0)):
        same(program(x), f(x))


def test_values_of_unknown_number_in_a_branch():
    """pt 144691: nonzero in a branch, whose result is reduced there."""
    f = lambda x: fh.cond(x.sum() > 0, lambda x: x[x > 0].sum(), lambda x: x.sum(), x)
    for x in (T(1.0, -2.0, 4.0), T(1.0, -2.0, -4.0)):
        same(fh.jit(f, backend="eager")(x), f(x))


def test_loops_export():
    """pt 174013, executorch 8769, and what pt 122588 and pt 146674 start from: a loop stays one in the program."""
    collatz = lambda n: fh.while_loop(
        lambda s: s[0] != 1,
        lambda s: (fh.cond(s[0] % 2 == 0, lambda n: n // 2, lambda n: 3 * n + 1, s[0]), s[1] + 1),
        (n, 0),
    )[1]
    program = fh.export(collatz, (torch.tensor(6),))
    assert any("while_loop" in str(node.target) for node in program.graph.nodes)
    same(program.module()(torch.tensor(27)), torch.tensor(111))


# ---------------------------------------------------------------------------------------------------------------------
# debugging


def test_print_in_a_branch(capsys):
    """pt 147115, jax 19314: eager branches are Python, so a print shows a value, of the branch that is taken only."""

    def noisy(name):
        def branch(x):
            print(name, x.item())
            return x

        return branch

    fh.cond(torch.tensor(True), noisy("yes"), noisy("no"), torch.tensor(3.0))
    assert capsys.readouterr().out == "yes 3.0\n"


@while_capturing
def test_predicates_combined_with_and(run):
    """pt 177517: Python's ``and`` asks a traced tensor for its value; the error says what to use."""
    f = lambda x: fh.while_loop(lambda x: x.sum() < 9 and x[0] < 4, lambda x: x + 1, x)
    with pytest.raises(fh.DataDependentError, match="and"):
        run(f, torch.ones(2))
    g = lambda x: fh.while_loop(lambda x: (x.sum() < 9) & (x[0] < 4), lambda x: x + 1, x)
    same(run(g, torch.ones(2)), torch.full((2,), 4.0))
