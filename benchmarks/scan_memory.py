"""Memory and time of the gradient of a scan against its length, for each choice of ``remat``.

A recurrence ``h = tanh(h @ w + x @ u)`` with a mean of each step as y, whose loss reads all. The contenders: the Python
loop, ``fh.scan`` in plain eager and compiled by ``fh.jit``, and ``jax.lax.scan`` if JAX is installed (``pip install
jax``), as it is and with ``jax.checkpoint`` around the step or around segments of sqrt(T) steps.

Bytes are those of torch's CPU allocator, as its profiler reports them: *kept* is what is alive between the forward and
the backward pass over what was before, *peak* the most that is alive while value and gradient are computed. For JAX,
*peak* is the compiler's own figure for temporary memory, and *kept* is not defined.

    python benchmarks/scan_memory.py [--compile] [--plot scan_memory.svg]

``--compile`` uses Inductor for the jitted contenders (minutes), else the captured graph runs as it is.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timing import print_table
from torch import Tensor

import functorch_hops as fh

LENGTHS = (64, 256, 1024)
HIDDEN, BATCH = 256, 8
TARGET = 1 / 8
MIB = 2**20


class Row(NamedTuple):
    contender: str
    length: int
    kept: float | None
    peak: float
    seconds: float


def arguments(length: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.05
    return draw(HIDDEN, HIDDEN), draw(HIDDEN, HIDDEN), torch.zeros(BATCH, HIDDEN), draw(length, BATCH, HIDDEN)


def python_loss(w: Tensor, u: Tensor, h: Tensor, xs: Tensor) -> Tensor:
    total = torch.zeros(())
    for x in xs:
        h = torch.tanh(h @ w + x @ u)
        total = total + h.mean()
    return total


def scan_loss(remat: Any) -> Callable[..., Tensor]:
    def loss(w: Tensor, u: Tensor, h: Tensor, xs: Tensor) -> Tensor:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(h @ w + x @ u)
            return h, h.mean()

        return fh.scan(step, h, xs, remat=remat)[1].sum()

    return loss


# ---------------------------------------------------------------------------------------------------------------------
# measuring


def allocated(function: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that are alive when the function has returned, and the most meanwhile, over what was alive before."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        kept = function()
    events = sorted((e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]")
    del kept
    live = peak = 0
    for _, size in events:
        live += size
        peak = max(peak, live)
    return live, peak


def measured(name: str, loss: Callable[..., Tensor], length: int) -> Row:
    w, u, h, xs = arguments(length)
    w.requires_grad_()
    u.requires_grad_()
    forward = lambda: loss(w, u, h, xs)
    both = lambda: torch.autograd.grad(forward(), (w, u))
    both()
    return Row(name, length, allocated(forward)[0] / MIB, allocated(both)[1] / MIB, best_time(both))


def measured_gradient(name: str, loss: Callable[..., Tensor], length: int, backend: str) -> Row:
    """Value and gradient as one compiled program: nothing is kept between calls."""
    operands = arguments(length)
    gradient = fh.jit(fh.value_and_grad(loss, argnums=(0, 1)), backend=backend)
    both = lambda: gradient(*operands)
    both()
    return Row(name, length, None, allocated(both)[1] / MIB, best_time(both))


def best_time(function: Callable[[], Any]) -> float:
    """CPU seconds of the fastest of three calls."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


# ---------------------------------------------------------------------------------------------------------------------
# JAX


def jax_rows(length: int) -> list[Row]:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return []

    def step(weights: Any, h: Any, x: Any) -> Any:
        w, u = weights
        h = jnp.tanh(h @ w + x @ u)
        return h, h.mean()

    def loss(remat: str | None, w: Any, u: Any, h: Any, xs: Any) -> Any:
        body = lambda h, x: step((w, u), h, x)
        if remat == "sqrt":
            segments = xs.reshape(math.isqrt(length), -1, BATCH, HIDDEN)
            return jax.lax.scan(jax.checkpoint(lambda h, x: jax.lax.scan(body, h, x)), h, segments)[1].sum()
        return jax.lax.scan(jax.checkpoint(body) if remat else body, h, xs)[1].sum()

    rows = []
    operands = [jnp.asarray(x.numpy()) for x in arguments(length)]
    for remat in (None, "step", "sqrt"):
        gradient = jax.jit(jax.value_and_grad(lambda *a, remat=remat: loss(remat, *a), argnums=(0, 1)))
        compiled = gradient.lower(*operands).compile()
        peak = compiled.memory_analysis().temp_size_in_bytes / MIB
        seconds = best_time(lambda f=compiled: jax.block_until_ready(f(*operands)))
        rows.append(Row(f"JAX, {remat or 'no'} remat", length, None, peak, seconds))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# reporting


def rows_of(length: int, backend: str) -> list[Row]:
    choices = {"no remat": None, 'remat="step"': "step", 'remat="sqrt"': "sqrt", "remat=8": 8}
    rows = [measured("Python loop", python_loss, length)]
    rows += [measured(f"plain eager, {name}", scan_loss(remat), length) for name, remat in choices.items()]
    rows += [
        measured(f"backward of jit, {name}", fh.jit(scan_loss(remat), backend=backend), length)
        for name, remat in choices.items()
    ]
    rows += [
        measured_gradient(f"jit of gradient, {name}", scan_loss(remat), length, backend)
        for name, remat in choices.items()
    ]
    return rows + jax_rows(length)


def check_target(rows: list[Row]) -> None:
    kept = {row.contender: row.kept for row in rows if row.length == max(LENGTHS)}
    for name in ('plain eager, remat="sqrt"', 'backward of jit, remat="sqrt"'):
        ratio = kept[name] / kept["Python loop"]  # type: ignore[operator]
        print(f"{name}: {ratio:.3f} of what the Python loop keeps (target: at most {TARGET})")


def plot(rows: list[Row], path: str) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    styles = {"Python loop": "-", "plain eager": "-", "backward of jit": ":", "jit of gradient": "--", "JAX": "-."}
    colours = {"no": "C0", "step": "C1", "sqrt": "C2", "8": "C3"}
    for contender in dict.fromkeys(row.contender for row in rows):
        own = [row for row in rows if row.contender == contender]
        lengths = [row.length for row in own]
        mode, _, remat = contender.partition(", ")
        colour = next((c for word, c in colours.items() if word in remat), "black")
        kind = {"linestyle": styles[mode], "color": colour, "marker": "."}
        axes[0].loglog(lengths, [row.peak for row in own], label=contender, **kind)
        axes[1].loglog(lengths, [row.seconds * 1e3 for row in own], **kind)
    axes[0].set(xlabel="steps", ylabel="peak memory, MiB")
    axes[1].set(xlabel="steps", ylabel="CPU time of value and gradient, ms")
    for axis in axes:
        axis.set_xticks(LENGTHS, labels=map(str, LENGTHS))
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the jitted contenders with Inductor")
    parser.add_argument("--plot", metavar="PATH", help="draw memory and time against the length (needs matplotlib)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for length in LENGTHS:
        rows += rows_of(length, "inductor" if options.compile else "eager")
    cells = [
        [
            r.contender,
            str(r.length),
            "" if r.kept is None else f"{r.kept:.2f}",
            f"{r.peak:.2f}",
            f"{r.seconds * 1e3:.0f}",
        ]
        for r in sorted(rows, key=lambda row: (row.contender, row.length))
    ]
    print_table("Value and gradient of a scan", ["contender", "steps", "kept, MiB", "peak, MiB", "CPU, ms"], cells)
    check_target(rows)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
