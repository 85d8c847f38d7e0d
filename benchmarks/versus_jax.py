"""Compiled loops against JAX: how long does a call take, on one thread in one process, and how was the loop lowered?

JAX is not among the requirements: ``pip install jax``. Arguments choose loops by a part of their names, ``value`` or
``gradient`` one of the two tables. Each program is first checked against JAX's result in double precision. JAX has no
gradient of a ``while_loop``.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import math
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from loop_programs import PROGRAMS, Library
from timing import interleaved, print_table

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.planning import LoopReport, planned

OURS = Library(torch, torch.nn.functional, fh, fh)
THEIRS = Library(jnp, jax.nn, SimpleNamespace(**vars(jax.lax)), jax)


def leaves(x: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(x)]


def reports(f: Callable[..., Any], args: list[torch.Tensor]) -> tuple[LoopReport, ...]:
    with exact_code():
        return planned(fh.jit(f).lower(*args)._body, {}).loops


def check(ours: Callable[..., Any], theirs: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    with jax.enable_x64(True):
        expected = leaves(jax.jit(theirs)(*map(jnp.asarray, arrays)))
    got = leaves(fh.jit(ours, backend="eager")(*map(torch.tensor, arrays)))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def first_call(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(name: str, is_gradient: bool) -> tuple[list[str], float]:
    program = PROGRAMS[name]
    ours, theirs = program.make(OURS), program.make(THEIRS)
    if is_gradient:
        places = tuple(range(len(program.arrays())))
        ours, theirs = fh.value_and_grad(ours, argnums=places), jax.value_and_grad(theirs, argnums=places)
    double = program.arrays()
    check(ours, theirs, double)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in double]
    arrays = [jnp.asarray(a, dtype=jnp.float32) for a in double]
    run, other = fh.jit(ours), jax.jit(theirs)
    seconds, other_seconds = first_call(lambda: run(*tensors)), first_call(lambda: other(*arrays))
    theirs_timed, ours_timed = interleaved(lambda: other(*arrays), lambda: run(*tensors))
    lowered = reports(ours, tensors)
    times = f"{ours_timed.millis:.3f}", f"{theirs_timed.millis:.3f}", f"{ours_timed.ratio:.2f}"
    firsts = f"{seconds:.1f}", f"{other_seconds:.1f}"
    taken = "; ".join(dict.fromkeys(f"{r.taken} ({r.reason})" if r.reason else r.taken for r in lowered))
    return [name, *times, f"{ours_timed.median_ratio:.2f}", *firsts, taken], ours_timed.ratio


def main() -> None:
    torch.set_num_threads(1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # a call is done when it returns
    words = [word for word in sys.argv[1:] if word not in ("value", "gradient")]
    chosen = [name for name in PROGRAMS if any(word in name for word in words or [""])]
    for title, is_gradient in (("value", False), ("gradient", True)):
        if title not in sys.argv and {"value", "gradient"} & {*sys.argv}:
            continue
        rows, ratios = [], []
        for name in chosen:
            if PROGRAMS[name].has_gradient or not is_gradient:
                row, ratio = measure(name, is_gradient)
                print(*row, sep=", ", file=sys.stderr, flush=True)
                rows.append(row)
                ratios.append(ratio)
        header = ["loop", "ms", "JAX, ms", "ratio", "median ratio", "first call, s", "JAX, s", "lowering"]
        print_table(title, header, rows)
        print(f"geometric mean of the ratios: {math.exp(sum(map(math.log, ratios)) / max(len(ratios), 1)):.2f}")


if __name__ == "__main__":
    main()
