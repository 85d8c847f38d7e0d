"""What it costs to capture a function as a graph, and that it happens once: `python benchmarks/capture.py`.

Captures a function of twelve operators, a scan of it, and the transforms of that scan, with nothing compiled.
torch's own `make_fx` on the function shows what tracing twelve operators costs in itself. Then calls a jitted
function many times with signatures that it has seen, and counts how often the Python function ran. At last times
plain-eager calls that need a graph: the first one of some code, and those that use its trace again.

Target: at most 20 ms for twelve operators; no call of the Python function for a signature that was seen.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, print_table
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import functorch_hops as fh
from functorch_hops.calls import trace_cache

TARGET = 20.0
CALLS = 100


def twelve_operators(h: Tensor, x: Tensor) -> Tensor:
    a = h * x
    b = a.sin()
    c = b + h
    d = c.tanh()
    e = d * 0.5
    f = e + x
    g = f.sigmoid()
    i = g * d
    j = i - e
    k = j.cos()
    m = k * a
    return m + b


def summed(h: Tensor, xs: Tensor) -> Tensor:
    h, ys = fh.scan(lambda h, x: (twelve_operators(h, x),) * 2, h, xs)
    return h.sum() + ys.sum()


def tangent(h: Tensor, xs: Tensor) -> Any:
    return fh.jvp(lambda h: summed(h, xs), (h,), (h,))


def scan_of_cond(h: Tensor, xs: Tensor) -> Tensor:
    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = fh.cond(h.sum() > 0, twelve_operators, lambda h, x: (h * x).tanh(), h, x)
        return h, h

    h, ys = fh.scan(step, h, xs)
    return h.sum() + ys.sum()


def captures() -> dict[str, Callable[[], object]]:
    h, xs = torch.rand(8), torch.rand(64, 8)
    hs = torch.rand(4, 8)
    in_dims = (0, None)
    return {
        "make_fx of twelve operators": lambda: make_fx(twelve_operators, tracing_mode="fake")(h, xs[0]),
        "twelve operators": lambda: fh.make_graph(twelve_operators)(h, xs[0]),
        "a scan of them": lambda: fh.make_graph(summed)(h, xs),
        "vmap of the scan": lambda: fh.make_graph(fh.vmap(summed, in_dims))(hs, xs),
        "jvp of the scan": lambda: fh.make_graph(tangent)(h, xs),
        "grad of the scan": lambda: fh.make_graph(fh.grad(summed))(h, xs),
        "vmap of grad of the scan": lambda: fh.make_graph(fh.vmap(fh.grad(summed), in_dims))(hs, xs),
        "hessian of the scan": lambda: fh.make_graph(fh.hessian(summed))(h, xs),
        "hessian of a scan of cond": lambda: fh.make_graph(fh.hessian(scan_of_cond))(h, xs),
    }


def repeated_calls() -> list[list[str]]:
    """How often the Python function ran, and what the cache says."""
    rows = []
    scales = {"scale": torch.ones(8)}
    ran = 0

    def counted(h: Tensor, options: dict[str, Any]) -> Tensor:
        nonlocal ran
        ran += 1
        return twelve_operators(h, scales["scale"]) * options["factor"] + (1 if options["shift"] else 0)

    jitted = fh.jit(counted, backend="eager")

    def call_with(name: str, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        before, ran_before = jitted.cache_info(), ran
        for i in range(CALLS):
            jitted(*arguments(i))
        after = jitted.cache_info()
        rows.append([name, str(CALLS), str(ran - ran_before), str(after.hits - before.hits)])
        rows[-1].append(str(after.misses - before.misses))

    call_with("first signature", lambda i: (torch.rand(8), {"factor": 2.0, "shift": True}))
    call_with("new tensors, new floats", lambda i: (torch.rand(8), {"factor": float(i), "shift": True}))
    call_with("a second shape and flag, in turns", lambda i: (torch.rand(4 if i % 2 else 8, 8), options(i)))
    call_with("the same again", lambda i: (torch.rand(4 if i % 2 else 8, 8), options(i)))

    def rebound(i: int) -> tuple[Any, ...]:
        scales["scale"] = torch.full((8,), float(i))
        return torch.rand(8), {"factor": 2.0, "shift": True}

    call_with("a rebound closed-over tensor", rebound)
    with torch.no_grad():
        call_with("gradient mode off", lambda i: (torch.rand(8), options(1)))
    call_with("gradient mode on again", lambda i: (torch.rand(8), options(1)))
    return rows


def plain_eager_calls() -> list[list[str]]:
    """Calls that capture although nothing asks for a graph, with bodies that are made anew at each call."""
    xs, weight = torch.linspace(1, 2, 8), torch.rand(8)

    def newton(a: Tensor) -> Tensor:
        return fh.while_loop(lambda x: (x * x - a).abs() > 1e-3, lambda x: 0.5 * (x + a / x), a)

    def select(x: Tensor) -> Tensor:
        return fh.cond(x > 1.5, lambda x: twelve_operators(x, weight[0]), torch.cos, x)

    def checkpointed(x: Tensor) -> Tensor:
        return fh.checkpoint(lambda x: twelve_operators(x, weight).sum())(x)

    def captured_scan() -> object:
        with fh.eager_capture():
            return summed(xs, torch.stack([weight, xs]))

    calls: dict[str, Callable[[], object]] = {
        "vmap of while_loop, 4 iterations": lambda: torch.func.vmap(newton)(xs),
        "vmap of cond": lambda: torch.func.vmap(select)(xs),
        "grad of vmap of cond": lambda: torch.func.grad(lambda xs: torch.func.vmap(select)(xs).sum())(xs),
        "grad of checkpoint": lambda: torch.func.grad(checkpointed)(xs),
        "scan in eager_capture": captured_scan,
    }
    rows = []
    for name, call in calls.items():
        first = min(first_call(call) for _ in range(5))
        (later,) = interleaved(call, seconds=1.0)
        rows.append([name, f"{first:.1f}", f"{later.millis:.2f}", f"{first / later.millis:.0f}"])
    return rows


def first_call(call: Callable[[], object]) -> float:
    """Milliseconds of a call for which nothing was captured or derived before."""
    trace_cache.forget()
    gc.collect()
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def options(i: int) -> dict[str, Any]:
    return {"factor": 0.5 * i, "shift": bool(i % 2)}


def main() -> None:
    torch.set_num_threads(1)
    # torch's own remark on its first forward-mode derivative
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rows = []
    for name, capture in captures().items():
        start = time.process_time()
        capture()
        first = (time.process_time() - start) * 1e3
        (timing,) = interleaved(capture, seconds=1.0)
        rows.append([name, f"{timing.millis:.1f}", f"{first:.0f}"])
    header = ["captured", "best, ms", "first time, ms"]
    print_table(f"Captures (target: twelve operators in at most {TARGET:.0f} ms)", header, rows)
    header = ["calls of a jitted function", "calls", "function ran", "hits", "misses"]
    print_table("Seen signatures are not captured again", header, repeated_calls())
    header = ["plain-eager call", "traced, ms", "trace used again, ms", "ratio"]
    print_table("Plain-eager calls that need a graph", header, plain_eager_calls())


if __name__ == "__main__":
    main()
