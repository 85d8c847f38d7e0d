"""Packages that AOTInductor makes of exported programs: loaded without the library, in Python and in C++."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan as scan_of_torch
from torch.utils import cpp_extension

import functorch_hops as fh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


class Model(nn.Module):
    """A while loop in a branch in a scan, and the gradient of a scan, over an open number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0, 0.75]))

    def forward(self, x: Tensor, xs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grow = lambda c: fh.while_loop(lambda v: v.abs().sum() < 20, lambda v: 2 * v + self.w, c)
        step = lambda c, row: (0.1 * fh.cond(c.sum() > 0, grow, lambda c: c * self.w, c) + row, c.sum())
        carry, sums = fh.scan(step, x, xs)
        slope = fh.grad(lambda x: fh.scan(lambda c, row: (torch.tanh(c * self.w + row), None), x, xs)[0].sum())
        return carry, sums, slope(x)


EXAMPLES = [
    (torch.linspace(0.2, 0.5, 3) * scale, torch.linspace(-1, 1, 3 * t).reshape(t, 3))
    for scale, t in ((1, 4), (100, 2), (-1, 9))
]


N_LOOPS = 3
"""Not in one another, the loop backwards included."""


@contextlib.contextmanager
def told_of_loops() -> Iterator[list[str]]:
    """What becomes of loops, as the logger of the library tells it."""
    log, lines = logging.getLogger("functorch_hops"), list[str]()
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@pytest.fixture(scope="module")
def package(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    model = Model().requires_grad_(False)
    program = torch.export.export(model, EXAMPLES[0], dynamic_shapes=({}, {0: torch.export.Dim("T", min=2)}))
    with told_of_loops() as told:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    assert len(told) == N_LOOPS
    assert all(line.endswith("is a kernel") for line in told)
    torch.save([(given, model(*given)) for given in EXAMPLES], path.with_suffix(".cases"))
    return path


LOAD = """
import sys, torch
run = torch._inductor.aoti_load_package(sys.argv[1])
for given, expected in torch.load(sys.argv[1].replace(".pt2", ".cases")):
    torch.testing.assert_close(run(*given), expected)
assert "functorch_hops" not in sys.modules
"""


def test_a_package_runs_in_a_process_without_the_library(package: Path) -> None:
    subprocess.run([sys.executable, "-c", LOAD, str(package)], check=True, cwd=package.parent)


MAIN = """
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <c10/core/InferenceMode.h>
#include <iostream>

int main(int argc, char** argv) {
  c10::InferenceMode mode;
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  for (int t : {4, 2, 9}) {
    auto x = at::linspace(0.2, 0.5, 3) * (t == 4 ? 1 : t == 2 ? 100 : -1);
    auto xs = at::linspace(-1, 1, 3 * t).reshape({t, 3});
    for (auto& y : loader.run({x, xs})) {
      auto flat = y.reshape(-1).contiguous();
      for (int i = 0; i < flat.numel(); ++i) std::cout << flat.data_ptr<float>()[i] << " ";
    }
    std::cout << std::endl;
  }
}
"""


def test_a_package_runs_in_a_program_in_cpp(package: Path) -> None:
    source, program = package.with_name("main.cpp"), package.with_name("main")
    source.write_text(MAIN)
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    (libraries,) = cpp_extension.library_paths()
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-std=c++20", "-O0", abi, *includes, str(source), "-o", str(program), f"-L{libraries}"]
    command += [f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(program), str(package)], check=True, capture_output=True, text=True).stdout
    for line, (_, expected) in zip(printed.splitlines(), torch.load(package.with_suffix(".cases")), strict=True):
        got = torch.tensor([float(number) for number in line.split()])
        torch.testing.assert_close(got, torch.cat([y.reshape(-1) for y in expected]), rtol=1e-4, atol=1e-4)


def test_loops_without_a_step_and_side_by_side(tmp_path: Path) -> None:
    """Inductor by itself (torch 2.13) hands the memory of their initial carries on."""

    class Module(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            zero = torch.zeros(3)
            first = fh.fori_loop(0, n, lambda i, c: c + x, zero)
            second = fh.fori_loop(0, n, lambda i, c: c - x * i, zero)
            return first, second, fh.fori_loop(0, n, lambda i, c: c * 2, x) * x + second

    x, path = torch.tensor([1.0, 2.0, 3.0]), str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.export(Module(), (x, torch.tensor(2))), package_path=path)
    run = torch._inductor.aoti_load_package(path)
    for n in (0, 1, 3):
        torch.testing.assert_close(tuple(run(x, torch.tensor(n))), Module()(x, torch.tensor(n)))


def test_a_frozen_number_that_a_while_loop_closes_over(tmp_path: Path) -> None:
    """AOTInductor knows it as a number, of which Inductor (torch 2.13) makes no view."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.8), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return fh.while_loop(lambda v: v.sum() < 9, lambda v: v + self.rate, x)

    x, path = torch.ones(3), str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.export(Module(), (x,)), package_path=path)
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), Module()(x))


def test_what_a_kernel_finds_wrong_is_an_error_of_the_package(tmp_path: Path) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor, rows: Tensor) -> Tensor:
            return fh.scan(lambda c, i: (c + x[i], None), x[0], rows)[0]

    x, rows, path = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 2]), str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.export(Module(), (x, rows)), package_path=path)
    run = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(run(x, rows), Module()(x, rows))
    with pytest.raises(RuntimeError, match="index out of bounds"):
        run(x, torch.tensor([0, 3]))
    torch.testing.assert_close(run(x, rows), Module()(x, rows))


def in_a_package(run: Any, *args: Tensor, path: Path) -> Any:
    class Module(nn.Module):
        def forward(self, *args: Tensor) -> Any:
            return run(*args)

    torch._inductor.aoti_compile_and_package(torch.export.export(Module(), args), package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))


def test_torch_packages_no_stacks_of_while_loops_and_no_prefixes_in_half_precision(tmp_path: Path) -> None:
    x, path = torch.ones(3), tmp_path / "model.pt2"
    grow = lambda x: fh.while_loop(lambda v: v.sum() < 10, lambda v: v * v + 1, x).sum()
    with pytest.raises(RuntimeError, match="NYI cpp wrapper for while_loop_stack_output"):
        in_a_package(fh.grad(grow), x, path=path)
    with pytest.raises(RuntimeError, match="Unable to generate code for associative_scan"):
        in_a_package(lambda x: fh.associative_scan(torch.mul, x), x.half(), path=path)


def test_torch_packages_no_check_in_a_loop(tmp_path: Path) -> None:
    """A scan of torch's own."""
    solve = lambda c, row: (torch.linalg.solve(torch.eye(3) + row.outer(row), c), row.clone())
    run = lambda xs: scan_of_torch(solve, xs[0], xs)[0]
    with pytest.raises(RuntimeError, match="Expected positional argument"):
        in_a_package(run, torch.ones(4, 3), path=tmp_path / "model.pt2")


def test_torch_counts_negative_rows_from_the_end(tmp_path: Path) -> None:
    """Where eager raises. Compiled code of torch's own does so too."""
    select, x = lambda x, i: x.index_select(0, i), torch.arange(6.0)
    for run in (in_a_package(select, x, torch.tensor([1]), path=tmp_path / "model.pt2"), torch.compile(select)):
        assert run(x, torch.tensor([-1])).item() == 5
        with pytest.raises(RuntimeError):
            run(x, torch.tensor([-7]))
    for refusing in (select, fh.jit(select)):
        with pytest.raises(IndexError):
            refusing(x, torch.tensor([-1]))
