"""export: native operators, saved and loaded, from any function that can be captured."""

import io

import pytest
import torch
from torch import nn

import functorch_hops as fh

WEIGHT = torch.tensor([0.5, -1.0, 2.0])


def scan(x):
    return fh.scan(lambda c, a: (torch.tanh(c * WEIGHT + a), c.sum()), x, torch.ones(4, 3))


def while_loop(x):
    return fh.while_loop(lambda v: v.sum() < 20, lambda v: v * 1.5 + 1, x.abs())


def branch_in_scan(x):
    return fh.scan(lambda c, a: (fh.cond(c.sum() > 0, torch.sin, torch.cos, c) + a, None), x, torch.ones(4, 3))[0]


FUNCTIONS = {
    "cond in scan": (branch_in_scan, "scan"),
    "cond": (lambda x: fh.cond(x.sum() > 0, torch.sin, lambda x: x * WEIGHT, x), "cond"),
    "switch": (lambda x: fh.switch((x > 0).sum(), [torch.sin, torch.cos, torch.exp], x), "cond"),
    "scan": (scan, "scan"),
    "map": (lambda x: fh.map(lambda a: (a * x).sin(), torch.ones(4, 3)), "map_impl"),
    "fori_loop": (lambda x: fh.fori_loop(0, 4, lambda i, v: v * i + 1, x), "scan"),
    "while_loop": (while_loop, "while_loop"),
    "associative_scan": (lambda x: fh.associative_scan(torch.mul, x), "associative_scan"),
    "vmap": (lambda x: fh.vmap(while_loop)(torch.stack([x, x + 1])), "while_loop"),
    "grad": (fh.grad(lambda x: scan(x)[0].sum()), "scan"),
    "grad of while": (fh.grad(lambda x: while_loop(x).sum()), "while_loop_stack_output"),
    "jit": (fh.jit(scan, backend="eager"), "scan"),
}


def saved_and_loaded(program):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_export_saves_loads_and_agrees(name):
    function, operator = FUNCTIONS[name]
    program = saved_and_loaded(fh.export(function, (torch.ones(3),)))
    x = torch.tensor([0.3, -0.2, 0.9])
    torch.testing.assert_close(program.module()(x), function(x))
    assert operator in {str(node.target).split(".")[-1] for node in program.graph.nodes}


def test_a_module_keeps_the_names_of_its_parameters():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    program = fh.export(fh.vmap(module), (torch.randn(5, 3),))
    assert set(fh.export(module, (torch.randn(3),)).state_dict) == set(module.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(program.module()(x), module(x))


def test_torch_export_of_a_module_that_uses_the_library():
    class Model(nn.Module):
        def forward(self, x):
            return scan(x)[0], while_loop(x)

    program = torch.export.export(Model(), (torch.ones(3),))
    x = torch.tensor([0.3, -0.2, 0.9])
    torch.testing.assert_close(program.module()(x), Model()(x))


def test_misuse():
    with pytest.raises(fh.ArgumentTypeError, match="not a tuple"):
        fh.export(scan, torch.ones(3))
    with pytest.raises(fh.ArgumentTypeError, match="not callable"):
        fh.export(3, ())
