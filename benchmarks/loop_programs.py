"""The loops that ``versus_jax.py`` times, each written once for this library and JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PROGRAMS", "Library", "Program"]


@dataclass(frozen=True)
class Library:
    """``np``: the array functions, ``nn``: sigmoid and softplus, ``loops``: the loops, ``fn``: the transforms."""

    np: Any
    nn: Any
    loops: Any
    fn: Any

    def zeros_like(self, x: Any, *shape: int) -> Any:
        """Zeros of another shape."""
        return self.np.zeros(shape, dtype=x.dtype)


@dataclass(frozen=True)
class Program:
    """``make`` writes the function for a library; ``has_gradient``: it has a scalar result and no while loop."""

    make: Callable[[Library], Callable[..., Any]]
    arrays: Callable[[], list[np.ndarray]]
    has_gradient: bool = True


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return normal(*shape, seed=seed) / shape[-2] ** 0.5


def pointwise(lanes: int, steps: int) -> Program:
    def make(lib: Library) -> Any:
        def f(decay: Any, xs: Any) -> Any:
            step = lambda c, x: (decay * c + x, c * c)
            return lib.loops.scan(step, lib.zeros_like(xs, lanes), xs)[1].sum()

        return f

    return Program(make, lambda: [np.full(lanes, 0.9), normal(steps, lanes)])


def transcendental(lanes: int, steps: int) -> Program:
    def make(lib: Library) -> Any:
        def f(decay: Any, xs: Any) -> Any:
            def step(c: Any, x: Any) -> Any:
                gate = lib.nn.sigmoid(x - c)
                c = gate * c * lib.np.exp(-decay) + (1 - gate) * lib.np.tanh(c + x)
                return c, lib.np.tanh(c) * gate

            return lib.loops.scan(step, lib.zeros_like(xs, lanes), xs)[1].sum()

        return f

    return Program(make, lambda: [np.full(lanes, 0.9), normal(steps, lanes)])


def rnn(h: int, batch: int, steps: int) -> Program:
    def make(lib: Library) -> Any:
        def f(w: Any, u: Any, b: Any, xs: Any) -> Any:
            def step(c: Any, x: Any) -> Any:
                c = lib.np.tanh(c @ w + x @ u + b)
                return c, c.mean()

            return lib.loops.scan(step, lib.zeros_like(xs, batch, h), xs)[1].sum()

        return f

    return Program(make, lambda: [weights(h, h), weights(h, h, seed=1), normal(h), normal(steps, batch, h)])


def gru(h: int, batch: int, steps: int) -> Program:
    def make(lib: Library) -> Any:
        def f(w: Any, u: Any, xs: Any) -> Any:
            def step(c: Any, x: Any) -> Any:
                gates, given = c @ w, x @ u
                z = lib.nn.sigmoid(gates[:, :h] + given[:, :h])
                r = lib.nn.sigmoid(gates[:, h : 2 * h] + given[:, h : 2 * h])
                c = (1 - z) * c + z * lib.np.tanh(r * gates[:, 2 * h :] + given[:, 2 * h :])
                return c, c.mean()

            return lib.loops.scan(step, lib.zeros_like(xs, batch, h), xs)[1].sum()

        return f

    return Program(make, lambda: [weights(h, 3 * h), weights(h, 3 * h, seed=1), normal(steps, batch, h)])


def lstm(h: int, batch: int, steps: int) -> Program:
    def make(lib: Library) -> Any:
        sigmoid, tanh = lib.nn.sigmoid, lib.np.tanh

        def f(w: Any, u: Any, b: Any, xs: Any) -> Any:
            def step(carry: Any, x: Any) -> Any:
                c, y = carry
                gates = y @ w + x @ u + b
                i, f, g, o = (gates[:, k * h : (k + 1) * h] for k in range(4))
                c = sigmoid(f) * c + sigmoid(i) * tanh(g)
                y = sigmoid(o) * tanh(c)
                return (c, y), y

            zeros = lib.zeros_like(xs, batch, h)
            return lib.loops.scan(step, (zeros, zeros), xs)[1].sum()

        return f

    arrays = lambda: [weights(h, 4 * h), weights(h, 4 * h, seed=1), normal(4 * h), normal(steps, batch, h)]
    return Program(make, arrays)


def combine(a: Any, b: Any) -> Any:
    """Of two pieces of the linear recurrence of a state-space model."""
    return a[0] * b[0], b[0] * a[1] + b[1]


def diagonal_ssm(n: int, width: int, by_scan: bool) -> Program:
    def make(lib: Library) -> Any:
        def f(a: Any, x: Any) -> Any:
            if not by_scan:
                return lib.loops.associative_scan(combine, (a, x))[1].sum()
            step = lambda c, row: (row[0] * c + row[1],) * 2
            return lib.loops.scan(step, lib.zeros_like(x, width), (a, x))[1].sum()

        return f

    return Program(make, lambda: [uniform(n, width), normal(n, width)])


def selective_ssm(n: int, width: int, state: int, by_scan: bool) -> Program:
    def make(lib: Library) -> Any:
        def f(a: Any, x: Any, delta: Any, b: Any, c: Any) -> Any:
            if by_scan:

                def step(h: Any, row: Any) -> Any:
                    x, delta, b, c = row
                    h = lib.np.exp(delta[:, None] * a) * h + (delta * x)[:, None] * b
                    return h, h @ c

                return lib.loops.scan(step, lib.zeros_like(x, width, state), (x, delta, b, c))[1].sum()
            decay = lib.np.exp(delta[:, :, None] * a)
            given = (delta * x)[:, :, None] * b[:, None]
            return (lib.loops.associative_scan(combine, (decay, given))[1] * c[:, None]).sum()

        return f

    def arrays() -> list[np.ndarray]:
        rows = [uniform(n, width), normal(n, state, seed=1), normal(n, state, seed=2)]
        return [-uniform(width, state), normal(n, width), *rows]

    return Program(make, arrays)


def linear_attention(n: int, heads: int, d: int) -> Program:
    def make(lib: Library) -> Any:
        def f(q: Any, k: Any, v: Any) -> Any:
            def step(s: Any, row: Any) -> Any:
                q, k, v = row
                s = 0.95 * s + k[:, :, None] * v[:, None, :]
                return s, (q[:, :, None] * s).sum(1)

            return lib.loops.scan(step, lib.zeros_like(q, heads, d, d), (q, k, v))[1].sum()

        return f

    return Program(make, lambda: [normal(n, heads, d, seed=i) for i in range(3)])


def scalar_while(steps: int) -> Program:
    def make(lib: Library) -> Any:
        step = lambda s: (s[0] + 1, s[1] * 0.999 + 0.001)
        return lambda x: lib.loops.while_loop(lambda s: s[0] < steps, step, (0, x))[1]

    return Program(make, lambda: [np.array(0.5)], has_gradient=False)


def newton(lanes: int) -> Program:
    """Cube roots, each lane until it has converged."""

    def make(lib: Library) -> Any:
        def root(a: Any) -> Any:
            step = lambda y: y - (y**3 - a) / (3 * y**2)
            return lib.loops.while_loop(lambda y: abs(y**3 - a) > 1e-4 * a, step, lib.np.ones_like(a))

        return lib.fn.vmap(root)

    return Program(make, lambda: [np.linspace(0.1, 1000.0, lanes)], has_gradient=False)


def runge_kutta(n: int, steps: int) -> Program:
    def make(lib: Library) -> Any:
        def run(y: Any, k: Any) -> Any:
            f = lambda y: k * lib.np.sin(y) - 0.1 * y

            def step(_: Any, y: Any) -> Any:
                a = f(y)
                b = f(y + 0.005 * a)
                c = f(y + 0.005 * b)
                d = f(y + 0.01 * c)
                return y + 0.01 / 6 * (a + 2 * b + 2 * c + d)

            return lib.loops.fori_loop(0, steps, step, y).sum()

        return run

    return Program(make, lambda: [normal(n), normal(n)])


DORMAND_PRINCE = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
DORMAND_PRINCE_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def adaptive_ode(n: int) -> Program:
    """Coupled oscillators by Dormand and Prince's method, with steps as long as the error allows."""

    def make(lib: Library) -> Any:
        def weighted(ks: Any, factors: Any) -> Any:
            return sum(w * k for w, k in zip(factors, ks) if w)

        def run(y: Any, w: Any) -> Any:
            f = lambda y: lib.np.tanh(y @ w) - 0.1 * y

            def step(state: Any) -> Any:
                t, y, h = state
                ks = [f(y)]
                for row in DORMAND_PRINCE:
                    ks.append(f(y + h * weighted(ks, row)))
                new = y + h * weighted(ks, DORMAND_PRINCE[-1])
                scaled = h * weighted(ks, DORMAND_PRINCE_ERROR) / (1e-4 + 1e-3 * abs(new))
                error = lib.np.sqrt((scaled * scaled).mean())
                accepted = error <= 1
                factor = lib.np.clip(0.9 * lib.np.maximum(error, error * 0 + 1e-10) ** -0.2, 0.2, 10.0)
                return lib.np.where(accepted, t + h, t), lib.np.where(accepted, new, y), h * factor

            zero = lib.zeros_like(y)
            return lib.loops.while_loop(lambda state: state[0] < 20, step, (zero, y, zero + 0.01))[1]

        return run

    return Program(make, lambda: [normal(n), 2 * weights(n, n, seed=1)], has_gradient=False)


def hmc(chains: int, d: int, steps: int) -> Program:
    """Hamiltonian Monte Carlo for the banana of Rosenbrock, five leapfrog steps to a proposal."""

    def make(lib: Library) -> Any:
        def run(q: Any, scale: Any, noise: Any, draws: Any) -> Any:
            def log_density(q: Any) -> Any:
                return -(scale * (q[:, 1:] - q[:, :-1] ** 2) ** 2 + (1 - q[:, :-1]) ** 2).sum()

            force = lib.fn.grad(log_density)
            energy = lambda q, p: (
                (scale * (q[:, 1:] - q[:, :-1] ** 2) ** 2 + (1 - q[:, :-1]) ** 2).sum(1) + (p * p).sum(1) / 2
            )

            def step(q: Any, row: Any) -> Any:
                p, u = row

                def leap(_: Any, state: Any) -> Any:
                    q, p = state
                    p = p + 0.005 * force(q)
                    q = q + 0.01 * p
                    return q, p + 0.005 * force(q)

                new, p_new = lib.loops.fori_loop(0, 5, leap, (q, p))
                accepted = u < lib.np.exp(energy(q, p) - energy(new, p_new))
                q = lib.np.where(accepted[:, None], new, q)
                return q, q

            return lib.loops.scan(step, q, (noise, draws))[1].sum()

        return run

    arrays = lambda: [normal(chains, d), np.array(2.0), normal(steps, chains, d, seed=1), uniform(steps, chains)]
    return Program(make, arrays)


def kalman(n: int, m: int, steps: int) -> Program:
    """The log likelihood of a linear Gaussian model."""

    def make(lib: Library) -> Any:
        def run(a: Any, c: Any, q: Any, r: Any, ys: Any) -> Any:
            def step(carry: Any, y: Any) -> Any:
                x, p = carry
                x, p = a @ x, a @ p @ a.T + q
                residual = y - c @ x
                s = c @ p @ c.T + r
                gain = lib.np.linalg.solve(s, c @ p).T
                likelihood = residual @ lib.np.linalg.solve(s, residual)
                return (x + gain @ residual, p - gain @ c @ p), likelihood

            return lib.loops.scan(step, (lib.zeros_like(a, n), q), ys)[1].sum()

        return run

    arrays = lambda: [0.9 * np.eye(n), normal(m, n), np.eye(n), np.eye(m), normal(steps, m)]
    return Program(make, arrays)


def gae(lanes: int, steps: int) -> Program:
    """Generalized advantage estimation, from the last step to the first."""

    def make(lib: Library) -> Any:
        def run(rewards: Any, values: Any, going: Any) -> Any:
            def step(carry: Any, row: Any) -> Any:
                advantage, following = carry
                reward, value, alive = row
                delta = reward + 0.99 * following * alive - value
                advantage = delta + 0.99 * 0.95 * alive * advantage
                return (advantage, value), advantage

            zeros = lib.zeros_like(values, lanes)
            return lib.loops.scan(step, (zeros, zeros), (rewards, values, going), reverse=True)[1].sum()

        return run

    arrays = lambda: [normal(steps, lanes), normal(steps, lanes, seed=1), (uniform(steps, lanes) < 0.98) * 1.0]
    return Program(make, arrays)


def layers(n: int, width: int, batch: int) -> Program:
    """Residual layers of one shape, one after the other."""

    def make(lib: Library) -> Any:
        def run(x: Any, w: Any, v: Any) -> Any:
            def layer(x: Any, row: Any) -> Any:
                w, v = row
                scaled = x / lib.np.sqrt((x * x).mean(-1)[:, None] + 1e-5)
                return x + lib.np.tanh(scaled @ w) @ v, None

            return lib.loops.scan(layer, x, (w, v))[0].sum()

        return run

    return Program(make, lambda: [normal(batch, width), weights(n, width, width), weights(n, width, width, seed=1)])


def solves(n: int, count: int) -> Program:
    def make(lib: Library) -> Any:
        def run(a: Any, b: Any) -> Any:
            return lib.loops.map(lambda row: lib.np.linalg.solve(row[0], row[1]), (a, b)).sum()

        return run

    return Program(make, lambda: [normal(count, n, n) + 3 * np.eye(n), normal(count, n)])


def decode(vocabulary: int, width: int, longest: int) -> Program:
    """Greedy decoding into a buffer, until the token that ends a text."""

    def make(lib: Library) -> Any:
        def run(embedding: Any, w: Any, h: Any) -> Any:
            def step(state: Any) -> Any:
                i, token, h, tokens = state
                h = lib.np.tanh(h @ w + embedding[token])
                token = lib.np.argmax(embedding @ h)
                tokens = lib.np.where(lib.np.arange(longest) == i, token, tokens)
                return i + 1, token, h, tokens

            going = lambda state: (state[0] < longest) & (state[1] != 3)
            first = lib.np.argmax(h) * 0 + 1
            return lib.loops.while_loop(going, step, (0, first, h, lib.np.zeros(longest, dtype=first.dtype)))[3]

        return run

    arrays = lambda: [normal(vocabulary, width), weights(width, width, seed=1), normal(width, seed=2)]
    return Program(make, arrays, has_gradient=False)


PROGRAMS: dict[str, Program] = {
    **{f"pointwise, {n} lanes": pointwise(n, min(1000, (1 << 22) // n)) for n in (16, 256, 4096, 65536)},
    **{f"transcendental, {n} lanes": transcendental(n, min(1000, (1 << 22) // n)) for n in (16, 256, 4096, 65536)},
    **{f"tanh RNN, {h} units": rnn(h, batch, 100) for h, batch in ((16, 8), (64, 8), (256, 32))},
    **{f"GRU, {h} units": gru(h, batch, 100) for h, batch in ((16, 8), (64, 8), (256, 32))},
    **{f"LSTM, {h} units": lstm(h, batch, 100) for h, batch in ((16, 8), (64, 8), (256, 32))},
    "diagonal SSM, scan": diagonal_ssm(4096, 64, True),
    "diagonal SSM, associative_scan": diagonal_ssm(4096, 64, False),
    "selective SSM, scan": selective_ssm(512, 64, 16, True),
    "selective SSM, associative_scan": selective_ssm(512, 64, 16, False),
    "linear attention": linear_attention(256, 4, 32),
    "scalar while": scalar_while(1000),
    "Newton, vmap of 1024 lanes": newton(1024),
    "Runge-Kutta, 64 lanes": runge_kutta(64, 1000),
    "adaptive ODE, 16 variables": adaptive_ode(16),
    "HMC, 64 chains": hmc(64, 4, 200),
    "Kalman filter, 4 states": kalman(4, 2, 200),
    "GAE, 64 lanes": gae(64, 512),
    "24 layers": layers(24, 128, 32),
    "map of 3 x 3 solves": solves(3, 500),
    "greedy decode": decode(512, 64, 64),
}
