"""Compiled loops on a GPU: how long does a call take, against a Python loop of torch's operators and against JAX?

Sizes are those of a GPU, the time is that of the clock until the GPU is done, contenders take turns in one process;
the Python loop, which takes long, runs once. JAX takes part where it is installed and finds the GPU. Each program is
first compared with the Python loop. Arguments
choose loops by a part of their names, ``value`` or ``gradient`` one form; ``--seconds N`` ends the run early: no
program is begun after so many. ``--device cpu`` tries the script without a GPU, at small sizes.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import argparse
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import optree
import torch
from loop_programs import Library, Program, gae, lstm, newton, pointwise, runge_kutta, scalar_while, transcendental
from loop_programs import diagonal_ssm as ssm
from timing import print_table

import functorch_hops as fh

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

OURS = Library(torch, torch.nn.functional, fh, fh)


def programs(scale: int) -> dict[str, Program]:
    """The sizes of lanes divided by ``scale``."""
    return {
        "transcendental, 65536 lanes, 500 steps": transcendental(65536 // scale, 500),
        "pointwise, 65536 lanes, 500 steps": pointwise(65536 // scale, 500),
        "transcendental, 1024 lanes, 1000 steps": transcendental(max(1, 1024 // scale), 1000),
        "Runge-Kutta, 4096 lanes": runge_kutta(max(1, 4096 // scale), 1000),
        "diagonal SSM, scan": ssm(1000, max(1, 16384 // scale), True),
        "diagonal SSM, associative_scan": ssm(1000, max(1, 16384 // scale), False),
        "GAE, 4096 lanes": gae(max(1, 4096 // scale), 512),
        "Newton, 65536 lanes": newton(65536 // scale),
        "scalar while": scalar_while(1000),
        "LSTM, 256 units": lstm(256, 32, 100),
    }


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(f: Callable[[], object], finish: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        f()
    finish()
    return (time.perf_counter() - start) / calls


def best(contenders: dict[str, tuple[Callable[[], object], Callable[[], object]]], seconds: float) -> dict[str, float]:
    """The best time of each in as many rounds as fit."""
    calls = {}
    for name, (f, finish) in contenders.items():
        fastest = min(seconds_of(f, finish, 1) for _ in range(3))
        calls[name] = max(1, math.ceil(2e-3 / fastest))
    found = dict.fromkeys(contenders, math.inf)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, (f, finish) in contenders.items():
            found[name] = min(found[name], seconds_of(f, finish, calls[name]))
    return found


def with_gradient(library: Any, f: Callable[..., Any], n: int) -> Callable[..., Any]:
    transformed: Callable[..., Any] = library.value_and_grad(f, argnums=tuple(range(n)))
    return transformed


def jax_contender(program: Program, is_gradient: bool) -> tuple[Callable[[], object], Callable[[], object]] | None:
    if jax is None or jax.default_backend() != "gpu":
        return None
    arrays = [jnp.asarray(a, dtype=jnp.float32) for a in program.arrays()]
    theirs = program.make(Library(jnp, jax.nn, SimpleNamespace(**vars(jax.lax)), jax))
    run = jax.jit(with_gradient(jax, theirs, len(arrays)) if is_gradient else theirs)
    last: list[Any] = [None]

    def call() -> None:
        last[0] = run(*arrays)

    return call, lambda: jax.block_until_ready(last[0])


def measure(name: str, program: Program, is_gradient: bool, device: str) -> list[str]:
    tensors = [torch.tensor(a, dtype=torch.float32, device=device) for a in program.arrays()]
    ours = program.make(OURS)
    if is_gradient:
        ours = with_gradient(fh, ours, len(tensors))
    run, plain = fh.jit(ours), fh.jit(ours, backend="eager")
    finish = lambda: wait(device)
    first = seconds_of(lambda: run(*tensors), finish, 1)
    pairs = zip(*map(optree.tree_leaves, (run(*tensors), plain(*tensors))), strict=True)
    worst = max(float((a.double() - b.double()).norm() / (b.double().norm() + 1e-12)) for a, b in pairs)
    contenders = {"ours": (lambda: run(*tensors), finish)}
    theirs = jax_contender(program, is_gradient)
    if theirs is not None:
        contenders["jax"] = theirs
    found = {**best(contenders, 0.5), "plain": seconds_of(lambda: plain(*tensors), finish, 1)}
    lowered = "; ".join(dict.fromkeys(str(loop.lowering) for loop in fh.explain(ours)(*tensors).loops))
    cells = [f"{found[key] * 1e3:.3f}" if key in found else "-" for key in ("ours", "plain", "jax")]
    ratio = f"{found['ours'] / found['jax']:.2f}" if "jax" in found else "-"
    return [f"{name}{', gradient' * is_gradient}", *cells, ratio, f"{first:.1f}", f"{worst:.0e}", lowered]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    torch.set_default_device(given.device)
    start = time.perf_counter()
    forms = [word for word in given.words if word in ("value", "gradient")] or ["value", "gradient"]
    words = [word for word in given.words if word not in ("value", "gradient")] or [""]
    header = ["loop", "ms", "Python loop, ms", "JAX, ms", "ratio to JAX", "first call, s", "error", "lowering"]
    rows: list[list[str]] = []
    for name, program in programs(1 if given.device == "cuda" else 1024).items():
        for form in forms:
            is_gradient = form == "gradient"
            is_late = time.perf_counter() - start > given.seconds
            if is_late or not any(word in name for word in words) or (is_gradient and not program.has_gradient):
                continue
            try:
                rows.append(measure(name, program, is_gradient, given.device))
            except Exception as error:  # noqa: BLE001 - a run on a lent GPU goes on with the next program
                lines = str(error).strip().splitlines() or [""]
                rows.append([f"{name}, {form}", *["-"] * 6, f"{type(error).__name__}: {lines[0][:90]}"])
            print(*rows[-1], sep=", ", flush=True)
    where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print_table(f"{where}, torch {torch.__version__}", header, rows)


if __name__ == "__main__":
    main()
