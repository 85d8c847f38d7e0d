"""Recurrent networks of several layers under Inductor: the gradient of each parameter against the Python loop.

Two scans that feed each other, and their two scans backwards, are where Inductor mixed up accumulators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functorch_hops as fh
from modes import same
from reference import Reference

pytestmark = pytest.mark.slow

STEPS, BATCH, WIDTH = 5, 2, 3
Parameters = dict[str, Tensor]


def gates(p: Parameters, layer: str, x: Tensor, h: Tensor) -> Tensor:
    return x @ p[f"{layer}.w"].T + h @ p[f"{layer}.u"].T + p[f"{layer}.b"]


def rnn(p: Parameters, layer: str, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(gates(p, layer, x, h))
    return h, h


def gru(p: Parameters, layer: str, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    z, r, _ = torch.sigmoid(gates(p, layer, x, h)).chunk(3, -1)
    new = torch.tanh(gates(p, layer, x, r * h).chunk(3, -1)[2])
    h = (1 - z) * new + z * h
    return h, h


def lstm(p: Parameters, layer: str, state: tuple[Tensor, Tensor], x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    h, c = state
    i, f, g, o = gates(p, layer, x, h).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h, c), h


CELLS: dict[str, tuple[Callable[..., Any], int]] = {"rnn": (rnn, 1), "gru": (gru, 3), "lstm": (lstm, 4)}


def zero_state(cell: str) -> Any:
    zeros = lambda: torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    return (zeros(), zeros()) if cell == "lstm" else zeros()


def parameters(cell: str, layers: list[str], width_in: Callable[[int], int] = lambda i: WIDTH) -> Parameters:
    n = CELLS[cell][1] * WIDTH
    p = {}
    for i, layer in enumerate(layers):
        p[f"{layer}.w"] = torch.randn(n, width_in(i), dtype=torch.float64) / 2
        p[f"{layer}.u"] = torch.randn(n, WIDTH, dtype=torch.float64) / 2
        p[f"{layer}.b"] = torch.randn(n, dtype=torch.float64) / 2
    return p


def run_layer(ops: Any, cell: str, p: Parameters, layer: str, state: Any, xs: Tensor, **options: bool) -> Any:
    return ops.scan(lambda s, x: CELLS[cell][0](p, layer, s, x), state, xs, **options)


def stacked(ops: Any, cell: str, layers: list[str]) -> Callable[[Parameters, Tensor], Tensor]:
    def loss(p: Parameters, xs: Tensor) -> Tensor:
        for layer in layers:
            _, xs = run_layer(ops, cell, p, layer, zero_state(cell), xs)
        return xs.square().sum()

    return loss


def bidirectional(ops: Any, cell: str, layers: list[str]) -> Callable[[Parameters, Tensor], Tensor]:
    def loss(p: Parameters, xs: Tensor) -> Tensor:
        for there, back in zip(layers[::2], layers[1::2]):
            _, forwards = run_layer(ops, cell, p, there, zero_state(cell), xs)
            _, backwards = run_layer(ops, cell, p, back, zero_state(cell), xs, reverse=True)
            xs = forwards + backwards
        return xs.square().sum()

    return loss


def encoder_decoder(ops: Any, cell: str, layers: list[str]) -> Callable[[Parameters, Tensor], Tensor]:
    encoder, decoder = layers

    def loss(p: Parameters, xs: Tensor) -> Tensor:
        state, memory = run_layer(ops, cell, p, encoder, zero_state(cell), xs)

        def step(s: Any, x: Tensor) -> Any:
            weights = torch.softmax((memory * x).sum(-1), 0)
            return CELLS[cell][0](p, decoder, s, (weights[..., None] * memory).sum(0))

        _, ys = ops.scan(step, state, xs.flip(0))
        return ys.square().sum()

    return loss


def agree(network: Callable[..., Any], cell: str, layers: list[str], transform: Callable[..., Any]) -> None:
    p, xs = parameters(cell, layers), torch.randn(STEPS, BATCH, WIDTH, dtype=torch.float64)
    compiled = fh.jit(transform(fh, network(fh, cell, layers)))
    oracle = transform(torch.func, network(Reference, cell, layers))
    for factor in (1.0, 0.5):
        args = {name: w * factor for name, w in p.items()}, xs
        same(compiled(*args), oracle(*args))


def gradients(tools: Any, loss: Callable[..., Tensor]) -> Callable[..., Any]:
    return tools.grad(loss, argnums=(0, 1))


def second_order(tools: Any, loss: Callable[..., Tensor]) -> Callable[..., Any]:
    """The gradient of the gradient's norm, and the gradient's derivative along the parameters."""

    def both(p: Parameters, xs: Tensor) -> Any:
        gradient = tools.grad(loss)
        norm = lambda p: sum(g.square().sum() for g in gradient(p, xs).values())
        return tools.grad(norm)(p), tools.jvp(lambda p: gradient(p, xs), (p,), (p,))[1]

    return both


@pytest.mark.parametrize(("cell", "layers"), [("rnn", 2), ("rnn", 3), ("gru", 2), ("lstm", 2)])
def test_stacked(cell, layers):
    agree(stacked, cell, [f"layer {i}" for i in range(layers)], gradients)


def test_bidirectional_in_two_layers():
    agree(bidirectional, "gru", ["0 there", "0 back", "1 there", "1 back"], gradients)


def test_encoder_and_decoder():
    agree(encoder_decoder, "lstm", ["encoder", "decoder"], gradients)


def test_second_order_of_two_layers():
    agree(stacked, "rnn", ["lower", "upper"], second_order)


def test_modules_trained_by_backward():
    """Modules closed over by the bodies, with autograd outside of the compiled function."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.ModuleList(nn.GRUCell(WIDTH, WIDTH) for _ in range(2))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, xs: Tensor) -> Tensor:
            for cell in self.cells:

                def step(h: Tensor, x: Tensor, cell: nn.Module = cell) -> tuple[Tensor, Tensor]:
                    h = cell(x, h)
                    return h, self.norm(h)

                _, xs = fh.scan(step, torch.zeros(BATCH, WIDTH), xs)
            return xs

    network, xs = Network(), torch.randn(STEPS, BATCH, WIDTH)
    compiled = fh.jit(network)
    for _ in range(2):
        expected = torch.autograd.grad(network(xs).square().sum(), list(network.parameters()))
        got = torch.autograd.grad(compiled(xs).square().sum(), list(network.parameters()))
        same(got, expected, rtol=1e-4, atol=1e-5)
