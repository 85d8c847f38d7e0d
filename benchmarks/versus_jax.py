"""Compiled loops against JAX: how long does a call take, in one process, on one thread?

JAX is not among the requirements: ``pip install jax``. Arguments choose loops by a part of their names. JAX has no
gradient of a ``while_loop``.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import interleaved, print_table

import functorch_hops as fh

Program = tuple[Callable[..., Any], Callable[..., Any], list[np.ndarray]]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def scan_pointwise(n: int, steps: int) -> Program:
    def ours(decay: Any, xs: Any) -> Any:
        return fh.scan(lambda c, x: (decay * c + torch.tanh(x), c * c), torch.zeros(n), xs)[1].sum()

    def theirs(decay: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda c, x: (decay * c + jnp.tanh(x), c * c), jnp.zeros(n), xs)[1].sum()

    return ours, theirs, [np.full(n, 0.9), normal(steps, n)]


def gru(h: int, batch: int, steps: int) -> Program:
    def cell(lib: Any, c: Any, x: Any, w: Any, u: Any) -> Any:
        gates = c @ w
        given = x @ u
        sigmoid = torch.sigmoid if lib is torch else jax.nn.sigmoid
        z = sigmoid(gates[:, :h] + given[:, :h])
        r = sigmoid(gates[:, h : 2 * h] + given[:, h : 2 * h])
        new = lib.tanh(r * gates[:, 2 * h :] + given[:, 2 * h :])
        return (1 - z) * c + z * new

    def ours(w: Any, u: Any, xs: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            c = cell(torch, c, x, w, u)
            return c, c.mean()

        return fh.scan(step, torch.zeros(batch, h), xs)[1].sum()

    def theirs(w: Any, u: Any, xs: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            c = cell(jnp, c, x, w, u)
            return c, c.mean()

        return jax.lax.scan(step, jnp.zeros((batch, h)), xs)[1].sum()

    weights = [normal(h, 3 * h) / h**0.5 for _ in range(2)]
    return ours, theirs, [*weights, normal(steps, batch, h)]


def scalar_while(steps: int) -> Program:
    def ours(x: Any) -> Any:
        return fh.while_loop(lambda s: s[0] < steps, lambda s: (s[0] + 1, s[1] * 0.999 + 0.001), (0, x))[1]

    def theirs(x: Any) -> Any:
        return jax.lax.while_loop(lambda s: s[0] < steps, lambda s: (s[0] + 1, s[1] * 0.999 + 0.001), (0, x))[1]

    return ours, theirs, [np.array(0.5)]


def newton(lanes: int) -> Program:
    """Cube roots, each lane until it has converged."""

    def ours(a: Any) -> Any:
        step = lambda y: y - (y**3 - a) / (3 * y**2)
        return fh.while_loop(lambda y: (y**3 - a).abs() > 1e-4 * a, step, torch.ones_like(a))

    def theirs(a: Any) -> Any:
        step = lambda y: y - (y**3 - a) / (3 * y**2)
        return jax.lax.while_loop(lambda y: jnp.abs(y**3 - a) > 1e-4 * a, step, jnp.ones_like(a))

    return fh.vmap(ours), jax.vmap(theirs), [np.linspace(0.1, 1000.0, lanes)]


def runge_kutta(n: int, steps: int) -> Program:
    def integrate(lib: Any, loop: Any) -> Callable[..., Any]:
        def run(y: Any, k: Any) -> Any:
            f = lambda y: k * lib.sin(y) - 0.1 * y

            def step(_: Any, y: Any) -> Any:
                a = f(y)
                b = f(y + 0.005 * a)
                c = f(y + 0.005 * b)
                d = f(y + 0.01 * c)
                return y + 0.01 / 6 * (a + 2 * b + 2 * c + d)

            return loop(0, steps, step, y).sum()

        return run

    return integrate(torch, fh.fori_loop), integrate(jnp, jax.lax.fori_loop), [normal(n), normal(n)]


def prefix(n: int, width: int) -> Program:
    """The linear recurrence of a state-space model."""

    def combine(a: Any, b: Any) -> Any:
        return a[0] * b[0], b[0] * a[1] + b[1]

    def ours(a: Any, x: Any) -> Any:
        return fh.associative_scan(combine, (a, x))[1].sum()

    def theirs(a: Any, x: Any) -> Any:
        return jax.lax.associative_scan(combine, (a, x))[1].sum()

    return ours, theirs, [np.random.default_rng(1).random((n, width)), normal(n, width)]


PROGRAMS: dict[str, Callable[[], Program]] = {
    "scan, pointwise, 16 lanes, 1000 steps": lambda: scan_pointwise(16, 1000),
    "scan, pointwise, 4096 lanes, 1000 steps": lambda: scan_pointwise(4096, 1000),
    "scan, GRU 64 units, batch 8, 100 steps": lambda: gru(64, 8, 100),
    "scan, GRU 256 units, batch 32, 100 steps": lambda: gru(256, 32, 100),
    "while_loop, scalar, 1000 steps": lambda: scalar_while(1000),
    "while_loop, Newton, vmap of 1024 lanes": lambda: newton(1024),
    "fori_loop, Runge-Kutta, 64 lanes, 1000 steps": lambda: runge_kutta(64, 1000),
    "associative_scan, 4096 x 64": lambda: prefix(4096, 64),
}


def measure(name: str, is_gradient: bool) -> list[Any]:
    ours, theirs, arrays = PROGRAMS[name]()
    if is_gradient:
        ours, theirs = fh.value_and_grad(ours), jax.value_and_grad(theirs)
    ours, theirs = fh.jit(ours), jax.jit(theirs)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in arrays]
    arrays = [jnp.asarray(a, dtype=jnp.float32) for a in arrays]
    start = time.perf_counter()
    ours(*tensors)
    compile_ours = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(theirs(*arrays))
    compile_theirs = time.perf_counter() - start
    other, own = interleaved(lambda: theirs(*arrays), lambda: ours(*tensors))
    times = f"{own.millis:.3f}", f"{other.millis:.3f}", f"{own.ratio:.2f}", f"{own.median_ratio:.2f}"
    return [name, *times, f"{compile_ours:.1f}", f"{compile_theirs:.1f}"]


def main() -> None:
    torch.set_num_threads(1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # a call is done when it returns
    chosen = [name for name in PROGRAMS if any(word in name for word in sys.argv[1:] or [""])]
    for is_gradient in (False, True):
        rows = [measure(n, is_gradient) for n in chosen if not (is_gradient and n.startswith("while_loop"))]
        header = ["loop", "ms", "JAX, ms", "ratio", "median ratio", "first call, s", "JAX, s"]
        print_table("value and gradient" if is_gradient else "value", header, rows)


if __name__ == "__main__":
    main()
