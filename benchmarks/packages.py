"""What loops take in a package of AOTInductor: `python benchmarks/packages.py`.

Each program is exported and packaged twice, with the loops as kernels and, as without this library, as torch's own; the
packages and the jitted function are called in turns, with the same tensors. A call of a package looks at its arguments
and has an interface in C++, which costs some microseconds.

Target: a package's loop takes as long as that of ``jit``.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import interleaved, print_table
from torch import Tensor, nn

import functorch_hops as fh
from functorch_hops.lowering import inductor


def scanned(h: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda c, x: ((c * 0.9 + x).tanh(), c), h, xs)


def slope(h: Tensor, xs: Tensor) -> Any:
    return fh.grad(lambda h: scanned(h, xs)[1].square().sum())(h)


def halved(h: Tensor, xs: Tensor) -> Any:
    return fh.while_loop(lambda c: c.abs().max() > 1e-6, lambda c: c * 0.99, h)


def recurrent(h: Tensor, xs: Tensor) -> Any:
    w = torch.eye(64) * 0.5
    return fh.scan(lambda c, x: ((c @ w + x).tanh(), None), h.expand(8, 64), xs[:, None].expand(-1, 8, 64))[0]


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Tensor, Tensor]]] = {
    "scan, 16 lanes, 1000 steps": (scanned, (torch.rand(16), torch.rand(1000, 16))),
    "its gradient": (slope, (torch.rand(16), torch.rand(1000, 16))),
    "while_loop, 16 lanes, 1375 steps": (halved, (torch.ones(16), torch.rand(1, 16))),
    "RNN, 8 sequences of 64 units, 100 steps": (recurrent, (torch.rand(64), torch.rand(100, 64))),
}


class Program(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor, xs: Tensor) -> Any:
        return self.function(h, xs)


def packaged(function: Callable[..., Any], args: tuple[Tensor, Tensor], folder: str, name: str) -> Callable[..., Any]:
    path = str(Path(folder, f"{name}.pt2"))
    torch._inductor.aoti_compile_and_package(torch.export.export(Program(function), args), package_path=path)
    run: Callable[..., Any] = torch._inductor.aoti_load_package(path, run_single_threaded=True)
    return run


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (function, args) in PROGRAMS.items():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            kernels = packaged(function, args, folder, "kernels")
            with mock.patch.object(inductor, "put_kernels"):
                native = packaged(function, args, folder, "native")
            jitted = fh.jit(function)
            for run in (kernels, native):
                torch.testing.assert_close(run(*args), jitted(*args))
            contenders = [functools.partial(run, *args) for run in (jitted, kernels, native)]
            own, kernel, torchs = interleaved(*contenders, seconds=2)
        ratios = [f"{x:.2f}" for x in (kernel.ratio, kernel.median_ratio)]
        rows.append([name, *(f"{t.micros:.0f}" for t in (own, kernel, torchs)), *ratios])
    print_table("A call, in microseconds (target: a ratio of 1)", HEADER, rows)


HEADER = ["program", "jit", "package", "package of torch's loops", "package to jit", "median ratio"]


if __name__ == "__main__":
    main()
