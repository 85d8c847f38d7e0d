"""Cases of PyTorch's ``test/functorch/test_control_flow.py``.

The docstring of a test names those it stands for. Those that pin the text of a graph, and those about Dynamo, CUDA or
symbolic shapes, are not here.
"""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import every_mode, lane_by_lane, same, same_derivatives, while_capturing

F64 = torch.float64
X = torch.tensor([0.3, -0.8, 1.2, -0.1], dtype=F64)
PREDICATES = [torch.tensor(False), torch.tensor(True), torch.tensor([True])]


def gradients(run, f, leaves, *args):
    return torch.autograd.grad(run(f, *args).sum(), leaves, allow_unused=True, materialize_grads=True)


# ---------------------------------------------------------------------------------------------------------------------
# cond


@every_mode
def test_cond_autograd(run):
    """test_cond_autograd_simple, test_cond_autograd_complex, test_cond_no_trace, test_cond_in_forloop."""
    yes, no = lambda x: torch.abs((x**2).sin()), lambda x: (x + 42).cos()
    for pred in PREDICATES[:2]:
        same_derivatives(run, lambda x: fh.cond(pred, yes, no, x), yes if pred else no, X)
    for i in range(3):
        same(run(lambda x: fh.cond(i < 2, yes, no, x), X), yes(X) if i < 2 else no(X))


def nested(p0, p1, p2, a, b, c, cond):
    yes_no = lambda x, y, z: cond(p2, lambda x, y, z: x * y * z / 2.71, lambda x, y, z: (x + y + z) * 1.23, x, y, z)
    yes = lambda x, y, z: cond(p1, lambda x, y, z: (x - y * z) * 3.14, yes_no, x, y, z)
    no_yes = lambda x, y, z: cond(p2, lambda x, y, z: x - y - z + 1.23, lambda x, y, z: x / y / z - 3.14, x, y, z)
    no = lambda x, y, z: cond(p1, no_yes, lambda x, y, z: (x - y * z) / 2.71, x, y, z)
    return cond(p0, yes, no, a, b, c)


@every_mode
@pytest.mark.parametrize("bits", range(8))
def test_cond_autograd_nested(run, bits):
    """test_cond_autograd_nested, test_cond_vmap_nested: three levels, each way through them."""
    flags = [torch.tensor(bool(bits >> k & 1)) for k in range(3)]
    python = lambda pred, yes, no, *args: yes(*args) if pred else no(*args)
    abc = X, X + 2, X - 3
    same(run(lambda *abc: nested(*flags, *abc, fh.cond), *abc), nested(*flags, *abc, python))
    grad = lambda tools, cond: tools.grad(lambda *abc: nested(*flags, *abc, cond).sum(), argnums=(0, 1, 2))
    same(run(grad(fh, fh.cond), *abc), grad(torch.func, python)(*abc))
    rows = torch.stack(flags)[None].expand(4, 3) ^ torch.eye(4, 3, dtype=torch.bool)
    lane = lambda cond: lambda p, a, b, c: nested(*p, a, b, c, cond)
    same(run(fh.vmap(lane(fh.cond)), rows, *abc), lane_by_lane(lane(python), rows, *abc))


@every_mode
def test_cond_autograd_of_some(run):
    """test_cond_autograd_mixed_require_grad, ...grad_through_cond, ...pytree_not_all_inputs_used, ...pytree_input,
    ...same_pytree_output: some operands need gradients, closed-over modules do, branches read different leaves.
    """
    layer = nn.Linear(4, 4).double()
    yes = lambda t: {"r": [layer(t["t"][0]) + t["t"][1]["b"], (t["t"][2],)]}
    no = lambda t: {"r": [t["t"][0] * layer(t["t"][2] / 3), (t["t"][2] * 2,)]}
    for pred in PREDICATES:
        a, b = X.clone().requires_grad_(), (X + 1).requires_grad_()
        tree = lambda a, b: {"t": [a, {"b": b}, X]}
        f = lambda a, b: fh.cond(pred, yes, no, tree(a, b))["r"][0]
        oracle = lambda a, b: (yes if pred else no)(tree(a, b))["r"][0]
        leaves = [a, b, *layer.parameters()]
        same(gradients(run, f, leaves, a, b), gradients(lambda f, *args: f(*args), oracle, leaves, a, b))


@every_mode
def test_cond_of_modules(run):
    """test_cond_autograd_torch_nn_module, test_cond_autograd_user_nn_module, test_cond_autograd_inner_fn,
    test_cond_autograd_inner_tensor: a Linear against a GRUCell.
    """
    linear, gru = nn.Linear(4, 4).double(), nn.GRUCell(4, 4).double()
    yes, no = lambda x: linear(torch.abs((x**2).sin())), lambda x: gru((x + 42).cos())
    leaves = [*linear.parameters(), *gru.parameters()]
    for pred in PREDICATES:
        f = lambda x: fh.cond(pred, yes, no, x)
        oracle = yes if pred else no
        same(gradients(run, f, leaves, X), gradients(lambda f, *args: f(*args), oracle, leaves, X))


@every_mode
@pytest.mark.parametrize("n_operands", [1, 2])
@pytest.mark.parametrize("n_closure", [0, 1])
def test_cond_vmap(run, n_operands, n_closure):
    """test_cond_vmap, test_cond_vmap_simple, ...multiple_inputs, ...single_input_with_closure, ...multiple_args...:
    a predicate of one element, operands with lanes, closures without.
    """
    operands = [torch.ones(2, 3) + i for i in range(n_operands)]
    closure = [torch.ones(3) - i for i in range(n_closure)]
    reduce = lambda *xs: sum([*xs, *closure])
    for pred in PREDICATES:
        f = fh.vmap(lambda *xs: fh.cond(pred, reduce, lambda *xs: -reduce(*xs), *xs))
        same(run(f, *operands), reduce(*operands) * (1 if pred else -1))


@while_capturing
def test_cond_errors(run):
    """test_cond_autograd_different_pytree_output, test_raise_error_on_mismatch_type_size, ..._tensor_meta,
    test_cond_functionalized_input_mutation_on_*_branch.
    """
    p = torch.tensor(True)
    for error, yes, no in [
        (fh.TreeMismatchError, lambda x: (x, {"r": x}), lambda x: {"res": [x, x]}),
        (fh.TreeMismatchError, lambda x: (x, x), lambda x: x),
        (fh.MetadataMismatchError, lambda x: x, lambda x: x.reshape(2, 2)),
        (fh.MetadataMismatchError, lambda x: x, lambda x: x.to(torch.float16)),
        (fh.InputMutationError, lambda x: x.add_(1), lambda x: x),
        (fh.InputMutationError, lambda x: x, lambda x: x.view(2, 2).add_(1)),
    ]:
        with pytest.raises(error):
            run(lambda x: fh.cond(p, yes, no, x), X.clone())


@every_mode
def test_cond_mutates_what_it_made(run):
    """test_cond_functionalized, test_cond_functionalized_nested."""

    def yes(x):
        y = x.sin()
        y.add_(4)
        y.view(2, 2)[0].mul_(2)
        return x.sin().max() + y.sum()

    f = lambda x: fh.cond(x[0] > 0, yes, lambda x: x.cos().min(), x)
    oracle = lambda x: x.sin().max() + (x.sin() + 4).sum() + (x[:2].sin() + 4).sum()
    same_derivatives(run, f, oracle, X)


# ---------------------------------------------------------------------------------------------------------------------
# map


@every_mode
def test_map_trees(run):
    """test_map_list_in_out, test_map_dict_in_out, test_map_autograd_nested_list, ...partial_grad, ...no_grad_output."""
    w = torch.tensor(1.5, dtype=F64)

    def f(x):
        ((a, b), (c, d)) = x["t"]
        return {"y": [[b.sin() * c.cos() * w], [a.cos() + d.detach()]], "n": d > 0}

    tree = lambda x: {"t": [[x, x * 2], [x.flip(0), x + 1]]}
    oracle = lambda x: {
        "y": [[(2 * x).sin() * x.flip(0).cos() * w], [x.cos() + (x + 1).detach()]],
        "n": x + 1 > 0,
    }
    x = torch.stack([X, X * 3, X - 1])
    one_by_one = lambda x: fh.map(f, tree(x))
    flipped = lambda x: oracle(x)
    same_derivatives(run, one_by_one, flipped, x)
    same_derivatives(run, lambda x: fh.map(f, tree(x), batch_size=2), flipped, x)


@every_mode
def test_nested_map_cond(run):
    """test_nested_map_cond_real, test_map_unfunc_boolean_tensor_for_nested_map_cond, test_vmap_vmap."""
    inner = lambda x, pred, y: fh.cond(pred, lambda x, y: x + y, lambda x, y: x - y, x, y)
    f = lambda xs, pred, y: fh.map(lambda x: inner(x, pred, y), xs)
    xs, y = torch.randn(3, 2, 4, dtype=F64), torch.randn(4, dtype=F64)
    for pred in PREDICATES:
        same(run(f, xs, pred, y), xs + y if pred else xs - y)
    flags = torch.tensor([True, False])
    both = fh.vmap(fh.vmap(f, in_dims=(None, 0, None)), in_dims=(None, None, 0))
    expected = torch.stack([torch.stack([xs + v, xs - v]) for v in (y, 2 * y)])
    same(run(both, xs, flags, torch.stack([y, 2 * y])), expected)


# ---------------------------------------------------------------------------------------------------------------------
# while_loop


@every_mode
def test_while_loops(run):
    """WHILE_LOOP_TESTS: simple, simple_with_mutation, nested, nested2, pytree_int_carry, int_carry."""
    with_clones = lambda x: x.clone().add_(1).add_(-1)
    simple = lambda x: fh.while_loop(lambda x: with_clones(x).sum() < 10, lambda x: with_clones(x) + 1, x)
    same(run(simple, torch.zeros(1)), torch.tensor([10.0]))

    def twice(n, m, a, b):
        inner = lambda s: (s[0], s[1] - 1, s[2] + 3.14, s[3] - 2.71)
        outer = lambda s: (lambda i, j, a, b: (i - 1, j, a * 2, b / 2))(*fh.while_loop(lambda s: s[1] > 0, inner, s))
        return fh.while_loop(lambda s: s[0] > 0, outer, (n, m, a, b))

    a = torch.ones(2, 2)
    got = run(twice, torch.tensor(2), torch.tensor(2), a, a)
    same(got, (torch.tensor(0), torch.tensor(0), ((a + 6.28) * 2) * 2, ((a - 5.42) / 2) / 2))

    def rows(x):
        def body(s):
            x = s["x"].clone()
            x[s["it"]] = x[s["it"]] + s["it"]
            return {"it": s["it"] + 1, "x": x, "n": (s["n"][0] + 2, 7)}

        return fh.while_loop(lambda s: s["it"] < x.shape[0], body, {"it": 0, "x": x, "n": (1, 7)})

    out = run(rows, torch.zeros(3, 2))
    same(out["x"], torch.arange(3.0)[:, None].expand(3, 2))
    same(out["n"], (torch.tensor(7), torch.tensor(7)))


@every_mode
def test_while_loop_with_modules(run):
    """WHILE_LOOP_TESTS: simple_with_linear, nested_with_linear; with the gradients that torch's loop lacks there."""
    inner, outer = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    stop = torch.tensor(1)

    def apply(n, x):
        step = lambda s: (s[0] - 1, inner(s[1]))
        return fh.while_loop(lambda s: s[0] - stop > 0, step, (n, x))[1]

    def f(n, x):
        return fh.while_loop(lambda s: s[0] - stop > 0, lambda s: (s[0] - 1, outer(apply(*s))), (n, x))[1]

    n, x = torch.tensor(3), torch.randn(2, 2, dtype=F64)
    expected = outer(inner(outer(inner(inner(x)))))
    same(run(f, n, x), expected)
    leaves = [*inner.parameters(), *outer.parameters()]
    same(gradients(run, f, leaves, n, x), torch.autograd.grad(expected.sum(), leaves))


# ---------------------------------------------------------------------------------------------------------------------
# scan


def python_scan(f, carry, xs, reverse=False):
    ys = []
    for x in reversed(xs) if reverse else xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys[::-1] if reverse else ys)


reversible = pytest.mark.parametrize("reverse", [False, True])


@every_mode
@reversible
def test_scan_operators(run, reverse):
    """test_scan_compile, test_scan_dim, test_scan_non_pointwise, test_scan_downstream_scan_matmul,
    test_scan_downstream_scan_scan_dim.
    """
    xs = torch.linspace(-1, 1, 24, dtype=F64).reshape(3, 4, 2)
    init = torch.linspace(0, 1, 8, dtype=F64).reshape(4, 2)
    weight = torch.ones(2, 5, dtype=F64)

    def chain(scan):
        step = lambda c, x: (torch.softmax(c @ c.T, -1) @ x, c.sum(-1, keepdim=True) * x)

        def of(init, xs):
            carry, ys = scan(step, init, xs, reverse=reverse)
            second = scan(lambda c, x: (c + x, c * x), ys[:, 0], ys.movedim(1, 0), reverse=not reverse)
            return carry @ weight, second

        return of

    same_derivatives(run, chain(fh.scan), chain(python_scan), init, xs)


@every_mode
@reversible
def test_scan_trees(run, reverse):
    """test_scan_tuple, test_scan_complex_pytree, test_scan_binary_operator, test_scan_pytree_closure."""
    closed = ({"param": torch.tensor([[0.5, -1.0], [0.2, 0.7]], dtype=F64)}, (torch.ones(2, dtype=F64),))

    def step(c, x):
        i = c["i"] * x["j"][0] + closed[1][0]
        o = c["j"][1]["o"] + torch.sin(x["i"]) @ closed[0]["param"]
        return {"i": i, "j": ([x["i"]], {"o": o})}, i.sum() * o

    xs = {
        "i": torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2),
        "j": [torch.linspace(0, 1, 6, dtype=F64).reshape(3, 2)],
    }
    init = {"i": torch.ones(2, dtype=F64), "j": ([torch.zeros(2, dtype=F64)], {"o": torch.ones(2, dtype=F64)})}
    rows = [{"i": xs["i"][t], "j": [xs["j"][0][t]]} for t in range(3)]
    same(run(lambda c, xs: fh.scan(step, c, xs, reverse=reverse), init, xs), python_scan(step, init, rows, reverse))


@every_mode
def test_scan_aliases(run):
    """test_scan_functionalized_elem_alias: an error there, a result here; carries and outputs that are inputs or each
    other.
    """
    xs = torch.stack([X, X * 2, X + 1])
    step = lambda c, x: ((c[1], c[1], x), (x, c[0], c[0], x[:2]))
    init = (X, X * 3, X)
    got = run(lambda a, b, c, xs: fh.scan(step, (a, b, c), xs), *init, xs)
    ys = (xs, torch.stack([X, X * 3, X * 3]), torch.stack([X, X * 3, X * 3]), xs[:, :2])
    same(got, ((X * 3, X * 3, X + 1), ys))


@while_capturing
def test_scan_errors(run):
    """test_scan_wrong_pytree, test_scan_init_wrong_shape, test_scan_functionalized_elem_mutation."""
    xs = torch.stack([X, X])
    for error, step, init in [
        (fh.TreeMismatchError, lambda c, x: ({**c, "k": 0.0}, x), {"i": X}),
        (fh.TreeMismatchError, lambda c, x: ((c["i"], c["i"]), x), {"i": X}),
        (fh.MetadataMismatchError, lambda c, x: (c + x, x), torch.tensor(1.0, dtype=F64)),
        (fh.MetadataMismatchError, lambda c, x: (c.to(torch.float32), x), X),
        (fh.InputMutationError, lambda c, x: (c.add_(4), x), X.clone()),
        (fh.InputMutationError, lambda c, x: (c + x.add_(4), x), X),
    ]:
        with pytest.raises(error):
            run(lambda xs: fh.scan(step, init, xs), xs.clone())


@every_mode
@reversible
def test_scan_rnn(run, reverse):
    """test_scan_RNN, test_scan_closure_RNN_partial_autograd, test_scan_closure_combine_fn_with_no_grad_*: closed-over
    weights, one frozen, and a part of the step without gradients; against nn.RNN.
    """
    torch.manual_seed(0)
    rnn = nn.RNN(4, 3).double()
    w_ih, w_hh, b_ih, b_hh = rnn.parameters()
    b_hh.requires_grad_(False)
    xs, h = torch.randn(5, 4, dtype=F64), torch.zeros(3, dtype=F64)

    def step(h, x):
        h = torch.tanh(w_ih @ x + b_ih + w_hh @ h + b_hh)
        with torch.no_grad():
            norm = h.norm()
        return h, h / norm

    got = run(lambda h, xs: fh.scan(step, h, xs, reverse=reverse), h, xs)
    outs, last = rnn(xs.flip(0) if reverse else xs)
    outs = outs.flip(0) if reverse else outs
    expected = last[0], outs / outs.norm(dim=-1, keepdim=True).detach()
    same(got, expected)
    leaves = [w_ih, w_hh, b_ih]
    loss = lambda out: (out[0].sum() + (out[1] ** 3).sum()).backward()
    grads = []
    for out in (got, expected):
        rnn.zero_grad()
        loss(out)
        grads.append([p.grad.clone() for p in leaves])
        assert b_hh.grad is None
    same(*grads)


# ---------------------------------------------------------------------------------------------------------------------
# associative_scan


def python_prefixes(fn, xs, reverse=False):
    rows = list(reversed(xs) if reverse else xs)
    for t in range(1, len(rows)):
        rows[t] = fn(rows[t - 1], rows[t])
    return torch.stack(rows[::-1] if reverse else rows)


PREFIX_FUNCTIONS = {
    "add": operator.add,
    "matmul": torch.matmul,
    "cond": lambda a, b: a * fh.cond(b.sum() > 0, lambda b: b + 0.0, lambda b: 1.0 - b, b),
    "loop": lambda a, b: a * sum(b[i].abs() for i in range(3)),
    "while": lambda a, b: a + fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * 0.5), (0, b))[1] * 32,
    "map": lambda a, b: a + fh.map(lambda r: r - r.mean() * 0, b),
    "vmap": lambda a, b: a + torch.vmap(lambda r: r * 1.0)(b),
    "nested": lambda a, b: a + b - 0 * fh.associative_scan(torch.mul, b, reverse=True),
}


@every_mode
@reversible
@pytest.mark.parametrize("name", PREFIX_FUNCTIONS)
def test_prefixes(run, reverse, name):
    """test_associative_scan_dim, ...non_pointwise_generic, ...cond_in_combine_fn, ...loop_in_combine_fn, ...map_in...,
    ...vmap_in..., ...nested (the last five partly expected failures there). pytorch/pytorch 137943: reverse.
    """
    fn = PREFIX_FUNCTIONS[name]
    xs = torch.linspace(0.1, 1, 45, dtype=F64).reshape(5, 3, 3)
    f = lambda xs: fh.associative_scan(fn, xs, reverse=reverse)
    oracle = lambda xs: python_prefixes(fn, xs, reverse)
    # Those with a loop or a reduction of b only are associative on two elements.
    xs = xs[:2] if name in ("cond", "loop") else xs
    same(run(f, xs), oracle(xs))
    same(run(fh.grad(lambda xs: (f(xs) ** 2).sum()), xs), torch.func.grad(lambda xs: (oracle(xs) ** 2).sum())(xs))


@every_mode
@reversible
def test_prefixes_of_chains(run, reverse):
    """test_associative_scan_downstream_scan_matmul, ...scan_scan, ...scan_scan_different_dim, ...binary_operator:
    with closed-over tensors, in several dimensions, complex.
    """
    scale = torch.tensor(0.5, dtype=torch.complex128)
    weight = torch.ones(2, 5, dtype=torch.complex128)
    affine = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1] * (2 * scale))

    def f(a, b):
        u = fh.associative_scan(affine, (a, b), dim=1, reverse=reverse)[1]
        v = fh.associative_scan(lambda x, y: x + y + scale * x * y, u, dim=0, reverse=not reverse)
        return torch.view_as_real(v @ weight)

    def oracle(a, b):
        rows = list(zip(a.unbind(1), b.unbind(1), strict=True))
        rows = rows[::-1] if reverse else rows
        for t in range(1, len(rows)):
            rows[t] = affine(rows[t - 1], rows[t])
        u = torch.stack([r[1] for r in (rows[::-1] if reverse else rows)], 1)
        v = python_prefixes(lambda x, y: x + y + scale * x * y, u, not reverse)
        return torch.view_as_real(v @ weight)

    a = torch.polar(torch.full((3, 4, 2), 0.9), torch.linspace(0, 3, 24).reshape(3, 4, 2)).to(torch.complex128)
    same(run(f, a, a + 1), oracle(a, a + 1))
    total = lambda f: lambda a, b: (f(a, b) ** 2).sum()
    expected = torch.func.grad(total(oracle), argnums=(0, 1))(a, a + 1)
    same(run(fh.grad(total(f), argnums=(0, 1)), a, a + 1), expected)
    lanes = torch.stack([a, a * 0.5])
    same(run(fh.vmap(f, in_dims=(0, None)), lanes, a + 1), lane_by_lane(lambda a: oracle(a, lanes[0] + 1), lanes))
