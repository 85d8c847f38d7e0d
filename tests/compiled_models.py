"""Models with loops and branches, for tests of compilers: what is asked for is the gradient of each parameter."""

from __future__ import annotations

import torch
from torch import nn

import functorch_hops as fh


class Recurrent(nn.Module):
    """Two layers of a recurrent network, each a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(3, 4), nn.GRUCell(4, 4)])

    def forward(self, xs):
        for cell in self.cells:
            _, xs = fh.scan(lambda h, row, cell=cell: (cell(row, h),) * 2, xs.new_zeros(xs.shape[1], 4), xs)
        return xs


class While(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), nn.Parameter(torch.linspace(0.5, 1, 4))

    def forward(self, x):
        step = lambda c: (c[0] + 1, torch.tanh(self.linear(c[1]) * self.scale))
        return fh.while_loop(lambda c: c[0] < 3, step, (0, x))[1]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, x):
        return fh.map(lambda row: fh.cond(row.sum() > 0, self.first, lambda r: self.second(r) * self.gain, row), x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        grow = lambda c: fh.while_loop(lambda v: v.abs().sum() < 20, lambda v: 2 * v + 0.1 * self.linear(v) + 0.1, c)
        step = lambda c, _: (0.1 * fh.cond(c.sum() > 0, grow, lambda c: -self.linear(c), c), c)
        return fh.scan(step, x, torch.ones(3))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x):
        return fh.checkpoint(self.layers, policy=fh.checkpoint_policies.save_matmuls)(x)


class InnerGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        energy = lambda x: fh.scan(lambda c, _: (torch.tanh(self.linear(c)), None), x, length=3)[0].sum()
        return fh.grad(energy)(x)


MODELS = {
    "recurrent": (Recurrent, (5, 2, 3)),
    "while": (While, (2, 4)),
    "branches": (Branches, (3, 4)),
    "nested": (Nested, (4,)),
    "checkpointed": (Checkpointed, (2, 4)),
    "inner gradient": (InnerGradient, (4,)),
}


def training_step(model: nn.Module, run, example: torch.Tensor) -> list[torch.Tensor]:
    """The outputs, and the gradients of the input and of each parameter."""
    model.zero_grad()
    example = example.clone().requires_grad_()
    leaves = torch.utils._pytree.tree_leaves(run(example))
    weighted = [(y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum() for y in leaves]
    torch.stack(weighted).sum().backward()
    return [*map(torch.detach, leaves), example.grad, *(p.grad for p in model.parameters())]


def asserted(c, r):
    """Here, since pytest rewrites what its own files assert."""
    assert c.shape == (2,), "the shape is bad"
    return c, r


def asserted_in_a_region(c, r):
    with torch.no_grad():
        assert c.dim() == 2
    return c, r
