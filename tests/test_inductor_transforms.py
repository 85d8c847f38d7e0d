"""Each pair of transforms around one small function under Inductor.

Each row runs in a process of its own: what compiled code does with a null pointer ends the process, and shall be a
failed test.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TRANSFORMS = {
    "jvp": "lambda f: lambda x: fh.jvp(f, (x,), (x.sin(),))[1]",
    "jacfwd": "fh.jacfwd",
    "jacrev": "fh.jacrev",
    "grad": "lambda f: fh.grad(lambda x: f(x).square().sum())",
    "vjp": "lambda f: lambda x: fh.vjp(f, x)[1](f(x).cos())[0]",
    "vmap": "lambda f: lambda x: fh.vmap(f)(torch.stack([x, x.cos()]))",
    "hessian": "fh.hessian",
}

ROW = """
import torch
import functorch_hops as fh

torch.set_num_threads(1)
transforms = {transforms}
x, w = torch.linspace(-1, 1, 3, dtype=torch.float64), torch.linspace(0.5, 2, 3, dtype=torch.float64)
functions = {{
    "product": lambda a: (a * w).sum() * a.sum(),
    "loop": lambda a: fh.scan(lambda c, r: (torch.tanh(c * r + a), None), a * 0, w)[0],
}}
for inner, transform in transforms.items():
    for name, function in functions.items():
        print("{outer} of", inner, "of", name, flush=True)
        f = transforms["{outer}"](transform(function))
        torch.testing.assert_close(fh.jit(f)(x), f(x))
print("done")
"""


@pytest.mark.parametrize("outer", TRANSFORMS)
def test_pairs(outer):
    table = "{" + ", ".join(f"{name!r}: {text}" for name, text in TRANSFORMS.items()) + "}"
    code = ROW.format(transforms=table, outer=outer)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    last = process.stdout.strip().rpartition("\n")[2]
    assert (process.returncode, last) == (0, "done"), f"{last}: {process.stderr[-2000:]}"
