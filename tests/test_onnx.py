"""Programs of ONNX: do Scan, Loop and If of `torch.onnx.export` compute what the module does, in onnxruntime?

They run where the extra `onnx` is installed.
"""

import logging

import pytest
import torch
from torch import nn

import functorch_hops as fh

pytestmark = [pytest.mark.slow, pytest.mark.onnx]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, xs):
        def step(h, x):
            h = self.cell(x, h)
            return h, h * 2

        return fh.scan(step, xs.new_zeros(2, 4), xs)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return fh.cond(x.sum() > 0, lambda v: self.linear(v).sin(), lambda v: v - 1, x)


class While(nn.Module):
    def forward(self, x):
        return fh.while_loop(lambda v: (v * v).sum() < 100, lambda v: v * 1.5 + 0.1, x)


class BranchInLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3) / 2)

    def forward(self, xs):
        def step(h, x):
            h = fh.cond(x.sum() > 0, lambda v: torch.tanh(v @ self.weight), lambda v: v / 2, h + x)
            return h, h.sum(-1)

        return fh.scan(step, xs.new_zeros(3), xs)


SIGNS = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
CASES = {
    "scan": (Recurrent, [SIGNS.expand(2, 3, 3).transpose(0, 1)], {"Scan"}),
    "cond": (Branch, [SIGNS, -SIGNS], {"If"}),
    "while": (While, [torch.ones(3), torch.full((3,), 50.0)], {"Loop"}),
    "cond in scan": (BranchInLoop, [SIGNS, -SIGNS], {"Scan"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_computes_what_the_module_does(name, monkeypatch) -> None:
    import onnxruntime

    monkeypatch.setattr(logging.getLogger("torch.onnx"), "disabled", True)
    make, inputs, operators = CASES[name]
    torch.manual_seed(0)
    module = make()
    model = torch.onnx.export(module, (inputs[0],), dynamo=True, verbose=False).model_proto
    assert operators <= {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (argument,) = session.get_inputs()
    for x in inputs:
        expected = module(x)
        got = session.run(None, {argument.name: x.numpy()})
        for value, y in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
            torch.testing.assert_close(torch.from_numpy(value), y, check_dtype=True, rtol=1e-4, atol=1e-5)
