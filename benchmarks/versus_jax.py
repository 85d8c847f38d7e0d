"""Compiled loops against JAX: how long does a call take, on one thread in one process, and how was the loop lowered?

JAX is not among the requirements: ``pip install jax``. Arguments choose loops by a part of their names, ``value`` or
``gradient`` one of the two tables. Each program is first checked against JAX's result in double precision. JAX has no
gradient of a ``while_loop``. ``--json PATH`` puts the rows into a file, beside those that it holds of other programs;
``versus_jax_results.py`` makes RESULTS.md of it.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import datetime
import json
import math
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from loop_programs import PROGRAMS as LOOP_PROGRAMS
from loop_programs import Library
from timing import interleaved, print_table
from user_programs import PROGRAMS as USER_PROGRAMS

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import LoopReport
from functorch_hops.lowering.real_parts import in_real_parts

PROGRAMS = {**LOOP_PROGRAMS, **USER_PROGRAMS}
OURS = Library(torch, torch.nn.functional, fh, fh)
VECTORS = torch.backends.cpu.get_cpu_capability()
THEIRS = Library(jnp, jax.nn, SimpleNamespace(**vars(jax.lax)), jax)


class Row(NamedTuple):
    """Milliseconds of a call, of JAX's, their ratio, the median of the ratios of all rounds; seconds of CPU that first
    calls take.
    """

    form: str
    program: str
    ms: float
    jax_ms: float
    ratio: float
    median_ratio: float
    first_call: float
    jax_first_call: float
    lowering: str

    def cells(self) -> list[str]:
        times = f"{self.ms:.3f}", f"{self.jax_ms:.3f}", f"{self.ratio:.2f}", f"{self.median_ratio:.2f}"
        return [self.program, *times, f"{self.first_call:.1f}", f"{self.jax_first_call:.1f}", self.lowering]


def leaves(x: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(x)]


def reports(f: Callable[..., Any], args: list[torch.Tensor]) -> tuple[LoopReport, ...]:
    with exact_code():
        return planned(in_real_parts(fh.jit(f).lower(*args)._body), {}).loops


def check(ours: Callable[..., Any], theirs: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    with jax.enable_x64(True):
        expected = leaves(jax.jit(theirs)(*map(jnp.asarray, arrays)))
    got = leaves(fh.jit(ours, backend="eager")(*map(torch.tensor, arrays)))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def cpu_seconds() -> float:
    """Of this process, and of the compilers that it ran."""
    return sum(resource.getrusage(who)[i] for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) for i in (0, 1))


def first_call(f: Callable[[], Any]) -> float:
    start = cpu_seconds()
    f()
    return cpu_seconds() - start


def warm_up() -> None:
    """What compilers import and set up once in a process counts for no first call."""
    fh.jit(lambda x: fh.fori_loop(0, 3, lambda i, c: c * 2 + i, x))(torch.ones(20))
    jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * 2 + i, x))(jnp.ones(20))


def measure(name: str, is_gradient: bool) -> Row:
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
    taken = "; ".join(dict.fromkeys(f"{r.taken} ({r.reason})" if r.reason else r.taken for r in lowered))
    times = ours_timed.millis, theirs_timed.millis, ours_timed.ratio, ours_timed.median_ratio
    return Row("gradient" if is_gradient else "value", name, *times, seconds, other_seconds, taken)


def keep(path: Path, rows: list[Row]) -> None:
    """Put rows into a file, in the place of older ones."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {(row["form"], row["program"]): row for row in [*old, *(row._asdict() for row in rows)]}
    about = {"date": str(datetime.date.today()), "machine": f"{processor()}, {VECTORS}, {os.cpu_count()} cores"}
    versions = {"torch": torch.__version__, "jax": jax.__version__, "python": platform.python_version()}
    path.write_text(json.dumps({**about, "versions": versions, "rows": [*merged.values()]}, indent=1) + "\n")


def processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    torch.set_num_threads(1)
    given = sys.argv[1:]
    path = None
    if "--json" in given:
        place = given.index("--json")
        path = Path(given[place + 1])
        del given[place : place + 2]
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # a call is done when it returns
    warm_up()
    words = [word for word in given if word not in ("value", "gradient")]
    chosen = [name for name in PROGRAMS if any(word in name for word in words or [""])]
    for title, is_gradient in (("value", False), ("gradient", True)):
        if title not in given and {"value", "gradient"} & {*given}:
            continue
        rows = []
        for name in chosen:
            if PROGRAMS[name].has_gradient or not is_gradient:
                rows.append(measure(name, is_gradient))
                print(*rows[-1].cells(), sep=", ", file=sys.stderr, flush=True)
                if path is not None:
                    keep(path, rows[-1:])
        header = ["loop", "ms", "JAX, ms", "ratio", "median ratio", "first call, s", "JAX, s", "lowering"]
        print_table(title, header, [row.cells() for row in rows])
        mean = math.exp(sum(math.log(row.ratio) for row in rows) / max(len(rows), 1))
        print(f"geometric mean of the ratios: {mean:.2f}")


if __name__ == "__main__":
    main()
