"""Programs that users write: solvers, samplers, decoders, recurrent and state-space models, meta-learning.

Each against the same program in Python, for its values and for the gradients that its use needs.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import every_mode, lane_by_lane, same, while_capturing

F64 = torch.float64
T = lambda *values: torch.tensor(values if len(values) != 1 else values[0], dtype=F64)


class Python:
    """The operations and transforms as loops, for the oracles."""

    grad, vmap = staticmethod(torch.func.grad), staticmethod(torch.func.vmap)

    @staticmethod
    def scan(f, carry, xs=None, length=None):
        ys = []
        for x in [None] * length if xs is None else xs:
            carry, y = f(carry, x)
            ys.append(y)
        return carry, None if ys[0] is None else torch.stack(ys)

    @staticmethod
    def while_loop(cond, body, value):
        while cond(value):
            value = body(value)
        return value

    @staticmethod
    def cond(pred, yes, no, *args):
        return yes(*args) if pred else no(*args)


# ---------------------------------------------------------------------------------------------------------------------
# differential equations


def prey_and_predators(y, p):
    return torch.stack([p[0] * y[0] - p[1] * y[0] * y[1], p[2] * y[0] * y[1] - p[3] * y[1]])


def rk4(tools, y, p):
    def step(y, dt):
        k1 = prey_and_predators(y, p)
        k2 = prey_and_predators(y + dt / 2 * k1, p)
        k3 = prey_and_predators(y + dt / 2 * k2, p)
        k4 = prey_and_predators(y + dt * k3, p)
        y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y, y

    return tools.scan(step, y, torch.full((4,), 0.1, dtype=F64))[1]


def adaptive(tools, y, p, tolerance=1e-3):
    """Heun's method with step control: each initial value takes a number of steps of its own."""

    def body(s):
        t, y, h = s
        h = torch.minimum(h, 1.0 - t)
        k1 = prey_and_predators(y, p)
        k2 = prey_and_predators(y + h * k1, p)
        error = (h / 2 * (k2 - k1)).detach().abs().max()
        t, y = tools.cond(error < tolerance, lambda: (t + h, y + h / 2 * (k1 + k2)), lambda: (t, y))
        return t, y, h * torch.clamp(0.9 * (tolerance / (error + 1e-12)) ** 0.5, 0.2, 5.0)

    return tools.while_loop(lambda s: s[0] < 1.0, body, (T(0.0), y, T(0.1)))[1]


Y0 = T(1.5, 1.0), T(1.0, 1.8)
PARAMETERS = T(1.1, 0.4, 0.1, 0.4)


@every_mode
@pytest.mark.parametrize("solve", [rk4, adaptive])
def test_vmapped_ode_solvers(run, solve):
    """Values, and sensitivities to parameters and initial values, per lane."""
    y = torch.stack(Y0)
    p = torch.stack([PARAMETERS, PARAMETERS * 2])
    loss = lambda tools: lambda y, p: solve(tools, y, p).square().sum()
    same(run(fh.vmap(lambda y, p: solve(fh, y, p)), y, p), lane_by_lane(lambda y, p: solve(Python, y, p), y, p))
    slopes = lane_by_lane(torch.func.grad(loss(Python), argnums=(0, 1)), y, p)
    same(run(fh.vmap(fh.grad(loss(fh), argnums=(0, 1))), y, p), slopes)
    if solve is rk4:
        product = lambda tools, jvp, grad: lambda y, p: jvp(grad(loss(tools)), (y, p), (y, p))[1]
        expected = lane_by_lane(product(Python, torch.func.jvp, torch.func.grad), y, p)
        same(run(fh.vmap(product(fh, fh.jvp, fh.grad)), y, p), expected)


# ---------------------------------------------------------------------------------------------------------------------
# sampling and optimisation


def log_density(x):
    return -(x**4).sum() / 4 - x[0] * x[1]


def hamiltonian_monte_carlo(tools, x):
    def leap(c, _):
        x, v = c
        v = v + 0.05 * tools.grad(log_density)(x)
        x = x + 0.1 * v
        return (x, v + 0.05 * tools.grad(log_density)(x)), None

    def step(x, _):
        v = torch.randn_like(x)
        (new, w), _ = tools.scan(leap, (x, v), length=3)
        ratio = log_density(new) - w.square().sum() / 2 - log_density(x) + v.square().sum() / 2
        x = tools.cond(torch.rand((), dtype=F64).log() < ratio, lambda: new, lambda: x)
        return x, x

    return tools.scan(step, x, length=6)[1]


@every_mode
def test_hamiltonian_monte_carlo(run):
    """The same chain from the same seed in each mode; its pathwise gradient; chains of their own in lanes."""
    x = T(0.3, -0.8)

    def seeded(f, *args):
        torch.manual_seed(0)
        return f(*args)

    same(seeded(run, lambda x: hamiltonian_monte_carlo(fh, x), x), seeded(hamiltonian_monte_carlo, Python, x))
    total = lambda tools: lambda x: hamiltonian_monte_carlo(tools, x).sum()
    same(seeded(run, fh.grad(total(fh)), x), seeded(torch.func.grad(total(Python)), x))
    chains = fh.vmap(lambda x: hamiltonian_monte_carlo(fh, x), randomness="different")
    outs = seeded(run, chains, torch.stack([x, x]))
    assert outs.isfinite().all()
    assert not torch.equal(outs[0], outs[1])


def newton(tools, jacobian, theta):
    """The z with z = tanh(W z + theta), the Jacobian taken inside the loop."""
    w = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.1], [0.2, 0.1, -0.3]], dtype=F64)
    residual = lambda z: z - torch.tanh(w @ z + theta)

    def body(s):
        z, _ = s
        step = torch.linalg.solve(jacobian(residual)(z), residual(z)[:, None])[:, 0]
        return z - step, step.norm()

    return tools.while_loop(lambda s: s[1] > 1e-10, body, (torch.zeros(3, dtype=F64), T(1.0)))[0]


@every_mode
def test_implicit_layer(run):
    f, oracle = lambda t: newton(fh, fh.jacfwd, t), lambda t: newton(Python, torch.func.jacfwd, t)
    theta = torch.stack([T(0.5, -1.0, 2.0), T(0.1, 0.0, 0.3)])
    same(run(fh.vmap(f), theta), lane_by_lane(oracle, theta))
    slopes = torch.stack([torch.func.jacrev(oracle)(t) for t in theta])
    same(run(fh.vmap(fh.jacrev(f)), theta), slopes)
    # Not vmap(jacfwd): that of torch.linalg.solve itself is wrong in torch 2.13.
    same(run(fh.jacfwd(f), theta[0]), slopes[0])


def trained(tools, rate, w):
    """The loss after some steps of gradient descent with momentum, the rate of which falls."""
    energy = lambda w: ((w - 1) ** 4).sum() + w[0] * w[1]

    def step(s, i):
        w, m = s
        m = 0.9 * m + tools.grad(energy)(w)
        return (w - rate / (1 + i) * m, m), None

    return energy(tools.scan(step, (w, torch.zeros_like(w)), torch.arange(3))[0][0])


@every_mode
def test_hypergradients(run):
    """A derivative of training for its rate, to second order; MAML is the same for the weights."""
    rate, w = T(0.05), T(0.3, -0.4)
    first = lambda tools: tools.grad(lambda *args: trained(tools, *args), argnums=(0, 1))
    same(run(first(fh), rate, w), first(Python)(rate, w))
    second = lambda tools: tools.grad(tools.grad(lambda r: trained(tools, r, w)))
    same(run(second(fh), rate), second(Python)(rate))
    rates = T(0.01, 0.05, 0.1)
    same(
        run(fh.vmap(first(fh), in_dims=(0, None)), rates, w),
        torch.func.vmap(first(Python), in_dims=(0, None))(rates, w),
    )


def bounces(tools, height, theta):
    """A ball that loses energy at each bounce: a branch in each step of the rollout."""

    def step(s, _):
        x, v, n = s
        x, v = x + 0.1 * v, v - 0.1 * theta[0]
        x, v, n = tools.cond(x < 0, lambda: (-x, -theta[1] * v, n + 1), lambda: (x, v, n))
        return (x, v, n), x

    return tools.scan(step, (height, torch.zeros_like(height), torch.tensor(0)), length=15)


@every_mode
def test_rollout_with_contacts(run):
    heights, theta = T(1.0, 2.0, 0.3), T(9.8, 0.8)
    oracle = lambda h: bounces(Python, h, theta)
    same(run(fh.vmap(lambda h: bounces(fh, h, theta)), heights), lane_by_lane(oracle, heights))
    slope = lambda tools, grad: lambda h: grad(lambda t: bounces(tools, h, t)[1].square().sum())(theta)
    same(run(fh.vmap(slope(fh, fh.grad)), heights), lane_by_lane(slope(Python, torch.func.grad), heights))


# ---------------------------------------------------------------------------------------------------------------------
# sequence models


@while_capturing
def test_greedy_decoding(run):
    """A while loop that writes tokens into a buffer until the end token (torch's own vmap has no rule for GRUCell)."""
    torch.manual_seed(3)
    embed, cell, head = nn.Embedding(7, 5), nn.GRUCell(5, 5), nn.Linear(5, 7)

    def decode(tools, h):
        def body(s):
            i, token, h, buffer = s
            h = cell(embed(token), h)
            buffer = buffer.clone()
            buffer[i] = token = head(h).argmax()
            return i + 1, token, h, buffer

        init = torch.tensor(0), torch.tensor(1), h, torch.zeros(6, dtype=torch.int64)
        return tools.while_loop(lambda s: (s[0] < 6) & (s[1] != 0), body, init)

    h = torch.randn(5, 5)
    got = run(fh.vmap(lambda h: decode(fh, h)), h)
    expected = lane_by_lane(lambda h: decode(Python, h), h)
    same(got, expected)
    leaves = [*cell.parameters(), embed.weight]
    same(torch.autograd.grad(got[2].sum(), leaves), torch.autograd.grad(expected[2].sum(), leaves))


def attend(tools, weights, xs):
    """Attention one token at a time, with a cache of keys and values."""
    q, k, v = weights
    n = xs.shape[0]

    def step(cache, x):
        keys, values, i = cache
        keys, values = keys.index_copy(0, i[None], (k @ x)[None]), values.index_copy(0, i[None], (v @ x)[None])
        scores = torch.where(torch.arange(n) <= i, keys @ (q @ x), -torch.inf)
        return (keys, values, i + 1), torch.softmax(scores, 0) @ values

    return tools.scan(step, (torch.zeros_like(xs), torch.zeros_like(xs), torch.tensor(0)), xs)[1]


@every_mode
def test_key_value_cache(run):
    """Against attention with a mask."""
    torch.manual_seed(0)
    weights, xs = torch.randn(3, 4, 4, dtype=F64) * 0.5, torch.randn(2, 5, 4, dtype=F64)

    def masked(weights, xs):
        q, k, v = (xs @ w.T for w in weights)
        return torch.softmax((q @ k.T).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf), -1) @ v

    same(run(fh.vmap(lambda xs: attend(fh, weights, xs)), xs), torch.func.vmap(lambda xs: masked(weights, xs))(xs))
    slope = lambda tools, f: tools.vmap(
        tools.grad(lambda w, xs: f(w, xs).square().sum(), argnums=(0, 1)), in_dims=(None, 0)
    )
    expected = slope(torch.func, masked)(weights, xs)
    same(run(slope(fh, lambda w, xs: attend(fh, w, xs)), weights, xs), expected)


class StackedLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 4)])

    def forward(self, xs):
        def step(states, x):
            new = []
            for cell, state in zip(self.cells, states, strict=True):
                new.append(cell(x, state))
                x = new[-1][0]
            return new, x

        zero = torch.zeros(4, dtype=xs.dtype)
        return fh.scan(step, [(zero, zero), (zero, zero)], xs)[1]


@while_capturing
def test_stacked_lstm(run):
    """Cells of a module against nn.LSTM: gradients of a batch by autograd, of each sample by vmap(grad)."""
    torch.manual_seed(0)
    ours, theirs = StackedLSTM().double(), nn.LSTM(3, 4, 2).double()
    pairs = {f"cells.{n[-1]}.{n[:-3]}": p for n, p in theirs.named_parameters()}
    ours.load_state_dict(pairs)
    xs = torch.randn(2, 6, 3, dtype=F64)
    expected = theirs(xs.movedim(1, 0))[0].movedim(0, 1)
    got = run(fh.vmap(ours), xs)
    same(got, expected)
    names = list(dict(ours.named_parameters()))
    gradients = torch.autograd.grad(expected.square().sum(), [pairs[n] for n in names])
    same(torch.autograd.grad(got.square().sum(), list(ours.parameters())), gradients)
    parameters = {n: p.detach() for n, p in ours.named_parameters()}
    loss = lambda p, x: torch.func.functional_call(ours, p, (x,)).square().sum()
    each = run(fh.vmap(fh.grad(loss), in_dims=(None, 0)), parameters, xs)
    same(tuple(each[n].sum(0) for n in names), gradients)


@every_mode
@pytest.mark.parametrize("form", ["scan", "associative_scan"])
def test_state_space_model(run, form):
    """A diagonal complex recurrence with real parameters, as a loop and as prefixes."""

    def outputs(tools, p, u):
        a = torch.exp(torch.complex(-p["re"].exp(), p["im"]) * p["dt"].exp())
        b, c = torch.complex(p["b"], p["b"]), torch.complex(p["c"], -p["c"])
        if tools is fh and form == "associative_scan":
            combine = lambda s, t: (s[0] * t[0], t[0] * s[1] + t[1])
            states = fh.associative_scan(combine, (a.expand(u.shape[0], -1), b * u[:, None]))[1]
            return (states * c).sum(-1).real

        def step(x, u):
            x = a * x + b * u
            return x, (x * c).sum().real

        return tools.scan(step, torch.zeros_like(a), u)[1]

    p = {k: torch.linspace(-0.5, 0.4, 3, dtype=F64) * (i + 1) for i, k in enumerate(("re", "im", "dt", "b", "c"))}
    u = torch.stack([torch.linspace(-1, 1, 7, dtype=F64), torch.linspace(2, 0, 7, dtype=F64)])
    loss = lambda tools: lambda p, u: outputs(tools, p, u).square().sum()
    same(run(fh.vmap(lambda u: outputs(fh, p, u)), u), lane_by_lane(lambda u: outputs(Python, p, u), u))
    expected = torch.func.vmap(torch.func.grad(loss(Python), argnums=(0, 1)), in_dims=(None, 0))(p, u)
    same(run(fh.vmap(fh.grad(loss(fh), argnums=(0, 1)), in_dims=(None, 0)), p, u), expected)
    hessian = torch.func.hessian(lambda u: loss(Python)(p, u))(u[0])
    same(run(fh.hessian(lambda u: loss(fh)(p, u)), u[0]), hessian)


@every_mode
@pytest.mark.parametrize("batch_size", [None, 1, 3, 7, 10])
def test_ragged_map(run, batch_size):
    """Chunks that do not divide the number of elements, with a branch in the body."""
    xs = {"a": torch.linspace(-1, 1, 21, dtype=F64).reshape(7, 3), "n": torch.arange(7)}

    def body(cond):
        return lambda e: {"y": (e["a"].sin() * e["n"]).sum(), "z": cond(e["n"] > 3, lambda: e["a"], lambda: -e["a"])}

    f = lambda xs: fh.map(body(fh.cond), xs, batch_size=batch_size)
    same(run(f, xs), lane_by_lane(body(Python.cond), xs))
    slope = run(fh.grad(lambda a: f({**xs, "a": a})["y"].sum()), xs["a"])
    same(slope, xs["a"].cos() * xs["n"][:, None])


@every_mode
def test_power_iteration(run):
    def dominant(loop, m):
        start = torch.full((3,), 0.5, dtype=F64)
        v = loop(lambda v: (lambda w: w / w.norm())(m @ v), start)
        return v @ m @ v

    ours = lambda m: dominant(lambda f, v: fh.fori_loop(0, 8, lambda i, v: f(v), v), m)
    python = lambda m: dominant(lambda f, v: Python.scan(lambda v, _: (f(v), v), v, length=8)[0], m)
    m = torch.linspace(-1, 2, 18, dtype=F64).reshape(2, 3, 3)
    m = m @ m.mT
    same(
        run(fh.vmap(fh.value_and_grad(ours)), m), tuple(reversed(torch.func.vmap(torch.func.grad_and_value(python))(m)))
    )
    same(run(fh.hessian(ours), m[0]), torch.func.hessian(python)(m[0]))


def test_gradients_of_masked_attention_in_half_precision():
    """The mask is an operand by its name, beside those of two dtypes."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.full((5, 5), -1e9).triu(1).bfloat16()
    q = torch.randn(2, 2, 5, 4, generator=generator).bfloat16()
    attended = lambda c: c + nn.functional.scaled_dot_product_attention(c, c, c, attn_mask=mask)
    ours = lambda q: fh.fori_loop(0, 2, lambda i, c: attended(c), q).float().square().sum()
    python = lambda q: attended(attended(q)).float().square().sum()
    same(fh.jit(fh.grad(ours), backend="eager")(q), torch.func.grad(python)(q))
