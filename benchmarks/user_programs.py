"""Programs of other fields that ``versus_jax.py`` times: particles, sequences, chains, stencils, linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
from loop_programs import Library, Program, normal, uniform, weights

__all__ = ["PROGRAMS"]


def largest(x: Any, dim: int) -> Any:
    return x.amax(dim) if hasattr(x, "amax") else x.max(dim)


def n_body(bodies: int, steps: int) -> Program:
    """All pairs, in three dimensions."""

    def make(lib: Library) -> Any:
        def run(x: Any, v: Any, mass: Any) -> Any:
            def step(_: Any, state: Any) -> Any:
                x, v = state
                away = x[None, :, :] - x[:, None, :]
                square = (away * away).sum(-1) + 0.01
                force = away * (mass[None, :] / (square * lib.np.sqrt(square)))[:, :, None]
                v = v + 0.01 * force.sum(1)
                return x + 0.01 * v, v

            return lib.loops.fori_loop(0, steps, step, (x, v))[0].sum()

        return run

    return Program(make, lambda: [normal(bodies, 3), 0.1 * normal(bodies, 3, seed=1), uniform(bodies, seed=2)])


def viterbi(states: int, steps: int) -> Program:
    """The most likely path through a hidden Markov model, and back along it."""

    def make(lib: Library) -> Any:
        def run(start: Any, moves: Any, seen: Any) -> Any:
            def step(score: Any, row: Any) -> Any:
                by_way = score[:, None] + moves
                return largest(by_way, 0) + row, lib.np.argmax(by_way, 0)

            score, ways = lib.loops.scan(step, start, seen)
            return lib.loops.scan(lambda at, way: (way[at], at), lib.np.argmax(score), ways, reverse=True)[1]

        return run

    return Program(make, lambda: [normal(states), normal(states, states, seed=1), normal(steps, states, seed=2)], False)


def metropolis(chains: int, d: int, steps: int) -> Program:
    """Chains with numbers drawn before, and the mean place of all of them after each step."""

    def make(lib: Library) -> Any:
        def run(x: Any, moves: Any, draws: Any) -> Any:
            density = lambda x: -(x * x).sum(1) / 2

            def step(x: Any, row: Any) -> Any:
                proposed = x + 0.5 * row[0]
                accepted = lib.np.log(row[1]) < density(proposed) - density(x)
                x = lib.np.where(accepted[:, None], proposed, x)
                return x, x.mean()

            return lib.loops.scan(step, x, (moves, draws))[1].sum()

        return run

    return Program(make, lambda: [normal(chains, d), normal(steps, chains, d, seed=1), uniform(steps, chains)])


def heat(n: int, steps: int) -> Program:
    """The heat equation on a torus."""

    def make(lib: Library) -> Any:
        def run(u: Any) -> Any:
            roll = lib.np.roll
            around = lambda u: roll(u, 1, 0) + roll(u, -1, 0) + roll(u, 1, 1) + roll(u, -1, 1)
            u = lib.loops.fori_loop(0, steps, lambda _, u: u + 0.1 * (around(u) - 4 * u), u)
            return (u * u).sum()

        return run

    return Program(make, lambda: [normal(n, n)])


def padded(x: Any, lib: Library) -> Any:
    return lib.np.pad(x, 1) if hasattr(lib.np, "pad") else lib.nn.pad(x, (1, 1, 1, 1))


def waves(n: int, steps: int) -> Program:
    """The wave equation in a box."""

    def make(lib: Library) -> Any:
        def run(u: Any, v: Any) -> Any:
            def step(_: Any, state: Any) -> Any:
                u, v = state
                p = padded(u, lib)
                v = v + 0.1 * (p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2] - 4 * u)
                return u + 0.1 * v, v

            u, v = lib.loops.fori_loop(0, steps, step, (u, v))
            return (u * u).sum() + (v * v).sum()

        return run

    return Program(make, lambda: [normal(n, n), normal(n, n, seed=1)])


def power_iteration(n: int, steps: int) -> Program:
    """The largest eigenvalue of a matrix."""

    def make(lib: Library) -> Any:
        def run(a: Any, x: Any) -> Any:
            def step(_: Any, x: Any) -> Any:
                x = a @ x
                return x / lib.np.sqrt((x * x).sum())

            x = lib.loops.fori_loop(0, steps, step, x)
            return x @ (a @ x)

        return run

    return Program(make, lambda: [weights(n, n), normal(n)])


def common_subsequence(n: int) -> Program:
    """The length of the longest common subsequence of two texts: a loop over cells in a loop over rows."""

    def make(lib: Library) -> Any:
        def run(a: Any, b: Any) -> Any:
            def row(above: Any, letter: Any) -> Any:
                def cell(left: Any, place: Any) -> Any:
                    up, before, other = place
                    best = lib.np.where(letter == other, before + 1, lib.np.maximum(left, up))
                    return best, best

                before = lib.np.concatenate([above[:1] * 0, above[:-1]], 0)
                return lib.loops.scan(cell, above[0] * 0, (above, before, b))[1], None

            return lib.loops.scan(row, b * 0, a)[0][-1]

        return run

    return Program(make, lambda: [np.floor(4 * uniform(n)), np.floor(4 * uniform(n, seed=1))], False)


def whole(x: Any) -> Any:
    return x.long() if hasattr(x, "long") else x.astype(int)


def collatz(lanes: int) -> Program:
    """How many steps each of some numbers takes to 1: integers of 64 bits here, of 32 in JAX."""

    def make(lib: Library) -> Any:
        def length(n: Any) -> Any:
            def step(state: Any) -> Any:
                n, steps = state
                return lib.np.where(n % 2 == 0, n // 2, 3 * n + 1), steps + 1

            return lib.loops.while_loop(lambda state: state[0] != 1, step, (n, n * 0))[1]

        return lambda x: lib.fn.vmap(length)(whole(1000 * x) + 1)

    return Program(make, lambda: [uniform(lanes)], False)


def linear_recurrence(states: int, steps: int) -> Program:
    """A layer of a state-space model: each state turns and decays by a complex number, whose gradient is asked for."""

    def make(lib: Library) -> Any:
        def run(angle: Any, inputs: Any) -> Any:
            decay = 0.95 * lib.np.exp(1j * angle)
            step = lambda h, x: (decay * h + x, (decay * h).real)
            out = lib.loops.scan(step, decay * 0, inputs)[1]
            return (out * out).sum()

        return run

    return Program(make, lambda: [normal(states), normal(steps, states, seed=1)])


def spectral(points: int, steps: int) -> Program:
    """A reaction and diffusion, which is exact in Fourier space."""

    def make(lib: Library) -> Any:
        def run(u: Any, decay: Any) -> Any:
            diffused = lambda u: lib.np.fft.ifft(lib.np.fft.fft(u) * decay).real
            return lib.loops.fori_loop(0, steps, lambda _, u: diffused(u) + 0.01 * lib.np.sin(u), u).sum()

        return run

    frequency = np.minimum(np.arange(points), points - np.arange(points))
    return Program(make, lambda: [normal(points), np.exp(-1e-3 * frequency**2)])


def mandelbrot(points: int) -> Program:
    """After how many steps each of some points of the plane has left a circle."""

    def make(lib: Library) -> Any:
        def escape(c: Any) -> Any:
            inside = lambda state: (abs(state[0]) < 2) & (state[1] < 100)
            step = lambda state: (state[0] * state[0] + c, state[1] + 1)
            return lib.loops.while_loop(inside, step, (c * 0, 0))[1]

        return lambda x, y: lib.fn.vmap(escape)(x + 1j * y)

    return Program(make, lambda: [normal(points), normal(points, seed=1)], False)


def written(x: Any, at: Any, row: Any) -> Any:
    """A copy of ``x`` with another row."""
    return x.index_put((at,), row) if hasattr(x, "index_put") else x.at[at].set(row)


def embedded(words: int, width: int, steps: int) -> Program:
    """A recurrent cell that reads the row of a word in each step: all rows have a gradient."""

    def make(lib: Library) -> Any:
        def run(table: Any, w: Any, text: Any) -> Any:
            def step(h: Any, word: Any) -> Any:
                h = lib.np.tanh(h * w + table[word])
                return h, h

            return (lib.loops.scan(step, w * 0, whole(text))[1] ** 2).mean()

        return run

    text = lambda: np.floor(words * uniform(steps, seed=2))
    return Program(make, lambda: [normal(words, width), normal(width, seed=1), text()])


def cached(keys: int, width: int, steps: int) -> Program:
    """Attention to the last 16 keys of a cache, to which each step writes one."""

    def make(lib: Library) -> Any:
        def run(cache: Any, x: Any) -> Any:
            def step(i: Any, state: Any) -> Any:
                cache, x = state
                last = cache[i + lib.np.arange(16)]
                x = x + lib.nn.softmax(last @ x, -1) @ last
                x = x / (1 + abs(x).mean())
                return written(cache, i + 16, x), x

            return lib.loops.fori_loop(0, steps, step, (cache, x))[1].sum()

        return run

    return Program(make, lambda: [normal(keys, width), normal(width, seed=1)])


PROGRAMS: dict[str, Program] = {
    "N-body, 64 bodies": n_body(64, 50),
    "Viterbi, 32 states": viterbi(32, 200),
    "Metropolis, 128 chains": metropolis(128, 2, 500),
    "heat equation, 64 x 64": heat(64, 100),
    "waves in a box, 64 x 64": waves(64, 100),
    "power iteration, 128": power_iteration(128, 100),
    "longest common subsequence": common_subsequence(64),
    "Collatz, 512 lanes": collatz(512),
    "complex recurrence, 64 states": linear_recurrence(64, 500),
    "spectral method, 256 points": spectral(256, 100),
    "Mandelbrot, 1024 points": mandelbrot(1024),
    "table of 4096 words": embedded(4096, 32, 200),
    "cache of 4096 keys": cached(4096, 32, 200),
}
