"""Packages that AOTInductor makes of exported programs: loaded without the library, in Python and in C++."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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


@pytest.fixture(scope="module")
def package(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    model = Model().requires_grad_(False)
    program = torch.export.export(model, EXAMPLES[0], dynamic_shapes=({}, {0: torch.export.Dim("T", min=2)}))
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
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
