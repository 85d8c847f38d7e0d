"""Compiled loops against what torch offers: a Python loop in eager mode, ``torch.compile`` of torch's own operators
(``scan``, ``while_loop``, ``associative_scan``, ``map``), and ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``.

The programs are those of ``versus_jax.py``. Each contender has a process of its own, where its result is first compared
with that of a captured graph in double precision; gradients are those of ``torch.autograd``, ours by
``value_and_grad``. *Peak* is the memory that a call takes of the system (Linux). Arguments choose loops by a part of
their names, ``value`` or ``gradient`` one of the two tables. One that fails, or takes more than ``--limit`` seconds
(180), is left out.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optree
import torch
import torch.utils._pytree as torch_pytree
from loop_programs import PROGRAMS as LOOP_PROGRAMS
from loop_programs import Library
from timing import interleaved, print_table
from torch import Tensor, nn
from torch._higher_order_ops import associative_scan, scan
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.while_loop import while_loop
from user_programs import PROGRAMS as USER_PROGRAMS

import functorch_hops as fh

PROGRAMS = {**LOOP_PROGRAMS, **USER_PROGRAMS}
CONTENDERS = "fh.jit", "Python loop", "torch.compile", "torch.nn"


def python_while(pred: Callable[..., Any], body: Callable[..., Any], init: Any) -> Any:
    carry = init
    while pred(carry):
        carry = body(carry)
    return carry


def python_fori(lower: int, upper: int, body: Callable[..., Any], init: Any) -> Any:
    carry = init
    for i in range(lower, upper):
        carry = body(i, carry)
    return carry


def stacked(rows: list[Any]) -> Any:
    return optree.tree_map(lambda *leaves: torch.stack(leaves), *rows)


def python_scan(step: Callable[..., Any], init: Any, xs: Any, length: int | None = None, reverse: bool = False) -> Any:
    carry, ys = init, []
    count = length if xs is None else len(optree.tree_leaves(xs)[0])
    for i in reversed(range(count)) if reverse else range(count):
        carry, y = step(carry, optree.tree_map(lambda x, i=i: x[i], xs))
        ys.append(y)
    return carry, stacked(ys[::-1] if reverse else ys)


def python_prefixes(combine: Callable[..., Any], xs: Any) -> Any:
    elements = [optree.tree_map(lambda x, i=i: x[i], xs) for i in range(len(optree.tree_leaves(xs)[0]))]
    for i in range(1, len(elements)):
        elements[i] = combine(elements[i - 1], elements[i])
    return stacked(elements)


def python_map(f: Callable[..., Any], xs: Any) -> Any:
    return python_scan(lambda _, x: (None, f(x)), None, xs)[1]


def torch_while(pred: Callable[..., Any], body: Callable[..., Any], init: Any) -> Any:
    leaves, spec = torch_pytree.tree_flatten(init)
    whole = lambda *leaves: torch_pytree.tree_unflatten(leaves, spec)
    step = lambda *leaves: tuple(torch_pytree.tree_leaves(body(whole(*leaves))))
    return whole(*while_loop(lambda *leaves: pred(whole(*leaves)), step, tuple(leaves)))


def torch_fori(lower: int, upper: int, body: Callable[..., Any], init: Any) -> Any:
    step = lambda carry: (carry[0] + 1, body(*carry))
    return torch_while(lambda carry: carry[0] < upper, step, (torch.tensor(lower), init))[1]


def torch_scan(step: Callable[..., Any], init: Any, xs: Any, length: int | None = None, reverse: bool = False) -> Any:
    return scan(step, init, torch.arange(length) if xs is None else xs, reverse=reverse)


OURS = Library(torch, nn.functional, fh, fh)
PYTHON = Library(
    torch,
    nn.functional,
    SimpleNamespace(
        while_loop=python_while,
        fori_loop=python_fori,
        scan=python_scan,
        associative_scan=python_prefixes,
        map=python_map,
    ),
    torch.func,
)
TORCH = Library(
    torch,
    nn.functional,
    SimpleNamespace(
        while_loop=torch_while,
        fori_loop=torch_fori,
        scan=torch_scan,
        associative_scan=lambda combine, xs: associative_scan(combine, xs, 0, combine_mode="generic"),
        map=torch_map,
    ),
    torch.func,
)
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {"tanh RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def layer(name: str, arrays: list[Any]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """torch's layer of the size of a program, whose numbers are other ones, and what its gradient is by."""
    kind, _, units = name.partition(", ")
    n = int(units.split()[0])
    module = LAYERS[kind](n, n)
    xs = next(torch.tensor(a, dtype=torch.float32) for a in arrays if a.ndim == 3)
    return lambda *_: module(xs)[0].mean(-1).sum(), [*module.parameters(), xs]


def with_gradient(f: Callable[..., Tensor], args: list[Tensor]) -> Callable[[], Any]:
    leaves = [x.requires_grad_() for x in args]

    def run() -> Any:
        loss = f(*leaves)
        return loss, torch.autograd.grad(loss, leaves)

    return run


def status(name: str) -> float:
    """MiB of this process, by Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**10


def peak(call: Callable[[], Any]) -> float:
    """MiB that a call takes of the system, beyond what the process had when all that is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = status("VmRSS")
    call()
    return max(0.0, status("VmHWM") - before)


def contender(kind: str, name: str, is_gradient: bool) -> Callable[[], Any]:
    program = PROGRAMS[name]
    args = [torch.tensor(a, dtype=torch.float32) for a in program.arrays()]
    if kind == "fh.jit":
        ours = program.make(OURS)
        if is_gradient:
            ours = fh.value_and_grad(ours, argnums=tuple(range(len(args))))
        run = fh.jit(ours)
        return lambda: run(*args)
    if kind == "torch.nn":
        f, args = layer(name, program.arrays())
    elif kind == "torch.compile":
        f = torch.compile(program.make(TORCH), fullgraph=True)
    else:
        f = program.make(PYTHON)
    return with_gradient(f, args) if is_gradient else lambda: f(*args)


def check(call: Callable[[], Any], name: str) -> None:
    program = PROGRAMS[name]
    doubles = [torch.tensor(a) for a in program.arrays()]
    expected = optree.tree_leaves(fh.jit(program.make(OURS), backend="eager")(*doubles))
    for got, exact in zip(optree.tree_leaves(call()), expected):
        torch.testing.assert_close(got.detach().double(), exact.double(), rtol=1e-3, atol=1e-3)


def measure(kind: str, name: str, is_gradient: bool) -> dict[str, float]:
    """In a process of its own."""
    torch.set_num_threads(1)
    call = contender(kind, name, is_gradient)
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if kind != "torch.nn":
        check(call, name)
    (timing,) = interleaved(call, seconds=0.5, least=3)
    return {"ms": timing.millis, "first": first, "peak": peak(call)}


def measured_apart(kind: str, name: str, is_gradient: bool, limit: float) -> dict[str, float] | str:
    """By another process; or how that failed."""
    form = "gradient" if is_gradient else "value"
    command = [sys.executable, __file__, "--contender", kind, form, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    if done.returncode == 0:
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures
    lines = done.stderr.strip().splitlines() or [""]
    return next((line for line in reversed(lines) if "Error" in line or "Exception" in line), lines[-1])[:90]


def row(name: str, is_gradient: bool, limit: float) -> list[str]:
    found = {}
    for kind in CONTENDERS:
        if kind == "torch.nn" and name.partition(", ")[0] not in LAYERS:
            continue
        result = measured_apart(kind, name, is_gradient, limit)
        if isinstance(result, str):
            print(f"{name}, {kind}: {result}", file=sys.stderr, flush=True)
        else:
            found[kind] = result
    ours = found["fh.jit"]["ms"] if "fh.jit" in found else math.nan
    times = [f"{found[kind]['ms']:.3f}" if kind in found else "-" for kind in CONTENDERS]
    ratios = [f"{found[kind]['ms'] / ours:.0f}" if kind in found else "-" for kind in CONTENDERS[1:3]]
    compared = ("fh.jit", "Python loop", "torch.compile")
    peaks = [f"{found[kind]['peak']:.2f}" if kind in found else "-" for kind in compared]
    firsts = [f"{found[kind]['first']:.1f}" if kind in found else "-" for kind in ("fh.jit", "torch.compile")]
    return [name, *times, *ratios, *peaks, *firsts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--limit", type=float, default=180)
    given = parser.parse_args()
    forms = [word for word in given.words if word in ("value", "gradient")] or ["value", "gradient"]
    words = [word for word in given.words if word not in ("value", "gradient")] or [""]
    if given.contender:
        print(json.dumps(measure(given.contender, words[0], forms[0] == "gradient")))
        return
    header = ["loop", *(f"{kind}, ms" for kind in CONTENDERS), "times Python loop's", "times torch.compile's"]
    header += ["peak, MiB", "Python loop's", "torch.compile's", "first call, s", "torch.compile's"]
    for form in forms:
        rows = []
        for name, program in PROGRAMS.items():
            if any(word in name for word in words) and (program.has_gradient or form == "value"):
                rows.append(row(name, form == "gradient", given.limit))
                print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
        print_table(form, header, rows)


if __name__ == "__main__":
    main()
