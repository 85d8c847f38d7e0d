"""``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` in captured functions: scans, with all derivatives and any number of steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functorch_hops as fh
from modes import same

F64 = torch.float64
STEPS, BATCH, INPUTS, UNITS = 4, 3, 2, 3

LAYERS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(INPUTS, UNITS),
    "lstm, projected": lambda: nn.LSTM(INPUTS, UNITS, 2, proj_size=2, bidirectional=True),
    "gru": lambda: nn.GRU(INPUTS, UNITS),
    "gru, no biases": lambda: nn.GRU(INPUTS, UNITS, 2, bias=False, batch_first=True),
    "rnn": lambda: nn.RNN(INPUTS, UNITS, bidirectional=True, batch_first=True),
    "rnn of relu": lambda: nn.RNN(INPUTS, UNITS, 2, nonlinearity="relu"),
    "lstm, both ways": lambda: nn.LSTM(INPUTS, UNITS, 2, bidirectional=True),
}


def layer(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module: nn.Module = LAYERS[name]().to(F64)
    return module, torch.randn(STEPS, BATCH, INPUTS, dtype=F64)


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    out, last = module(x)
    return [out, *last] if isinstance(last, tuple) else [out, last]


def loss(module: nn.Module, x: Tensor) -> Tensor:
    terms = [(y.square() * (i + 1)).sum() for i, y in enumerate(outputs(module, x))]
    return torch.stack(terms).sum()


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients(name: str) -> None:
    module, x = layer(name)
    jitted = fh.jit(module, backend="eager")
    same(outputs(jitted, x), outputs(module, x))
    found, expected = (torch.autograd.grad(loss(m, x), [*module.parameters()]) for m in (jitted, module))
    same(found, expected)
    of_input = fh.jit(fh.grad(lambda x: loss(module, x)), backend="eager")
    same(of_input(x), torch.func.grad(lambda x: loss(module, x))(x))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm, projected"])
def test_transforms(name: str) -> None:
    module, x = layer(name)
    xs, f = torch.stack([x, x.cos()]), lambda x: loss(module, x)
    for transformed, oracle in (
        (fh.vmap(fh.grad(f)), lambda xs: torch.stack([torch.func.grad(f)(x) for x in xs])),
        (fh.vmap(lambda x: outputs(module, x)[0]), lambda xs: torch.stack([module(x)[0] for x in xs])),
    ):
        same(transformed(xs), oracle(xs))
        same(fh.jit(transformed, backend="eager")(xs), oracle(xs))
    gradient = torch.func.grad(f)(x)
    value, slope = fh.jit(lambda x, t: fh.jvp(f, (x,), (t,)), backend="eager")(x, x.sin())
    same((value, slope), (f(x), (gradient * x.sin()).sum()))
    step = 1e-6
    along = (torch.func.grad(f)(x + step * x.sin()) - torch.func.grad(f)(x - step * x.sin())) / (2 * step)
    found = fh.jit(lambda x, t: fh.jvp(fh.grad(f), (x,), (t,))[1], backend="eager")(x, x.sin())
    same(found, along, rtol=1e-6, atol=1e-7)


def test_many_steps_are_no_larger_graph() -> None:
    module = nn.LSTM(INPUTS, UNITS)
    gradient = fh.grad(lambda x: loss(module, x))
    few, many = (len(fh.jit(gradient).lower(torch.randn(n, 2, INPUTS)).graph.graph.nodes) for n in (4, 400))
    assert few == many < 80


def test_values_alone_are_torchs_kernel() -> None:
    module = nn.LSTM(INPUTS, UNITS)
    with torch.no_grad():
        graph = fh.jit(module).lower(torch.randn(4, 2, INPUTS)).graph
    assert any("mkldnn_rnn_layer" in str(node.target) for node in graph.graph.nodes)


def test_dropout_draws_the_numbers_of_torch() -> None:
    module = nn.GRU(INPUTS, UNITS, 3, dropout=0.4).to(F64)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=F64)
    results = []
    for f in (module, fh.jit(module, backend="eager")):
        torch.manual_seed(3)
        results.append(outputs(f, x))
    same(results[1], results[0])
    module.eval()
    same(outputs(fh.jit(module, backend="eager"), x), outputs(module, x))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_other_forms_of_input(name: str) -> None:
    module, x = layer(name)
    jitted = fh.jit(module, backend="eager")
    same(outputs(jitted, x[:, 0]), outputs(module, x[:, 0]))  # no batch
    state = outputs(module, x)[1:]
    given = tuple(state) if len(state) > 1 else state[0]
    same(jitted(x, given)[0], module(x, given)[0])


def test_what_torch_refuses_it_refuses_in_its_words() -> None:
    module, x = layer("gru")
    jitted = fh.jit(module, backend="eager")
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        jitted(x, torch.zeros(1, BATCH + 1, UNITS, dtype=F64))
    with pytest.raises(RuntimeError, match="larger than 0"):
        jitted(x[:0])
    params = [*module.parameters()]
    run = lambda x, h: torch.gru(x, h, params, True, 1, 0.0, True, False, False)
    with pytest.raises(RuntimeError, match="more hidden states"):
        fh.jit(run, backend="eager")(x, torch.zeros(2, BATCH, UNITS, dtype=F64))


def test_torchs_functions_by_themselves() -> None:
    module, x = layer("lstm")
    h, params = torch.zeros(1, BATCH, UNITS, dtype=F64), [*module.parameters()]
    promoted = lambda x, h: torch.lstm(x, (h, h.float()), params, True, 1, 0.0, True, False, False)
    options = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True, "bidirectional": False}
    named = lambda x, h: torch.lstm(x, (h, h), params, **options, batch_first=False)
    for f in (promoted, named):
        same(fh.jit(f, backend="eager")(x, h), f(x, h))


def test_weights_as_arguments() -> None:
    """The module remembers those that it was called with last, traced ones too."""
    module, x = layer("lstm")
    weights = {name: p.detach() * 2 for name, p in module.named_parameters()}
    f = lambda weights, x: torch.func.functional_call(module, weights, (x,))[0]
    run = fh.jit(f, backend="eager")
    for scale in (1, 3):
        given = {name: p * scale for name, p in weights.items()}
        same(run(given, x), f(given, x))
    assert run.cache_info().misses == 1
    same(copy.deepcopy(module)(x)[0], module(x)[0])


def test_tensors_without_numbers() -> None:
    module = nn.LSTM(INPUTS, UNITS).to("meta")
    assert fh.jit(module, backend="eager")(torch.empty(STEPS, BATCH, INPUTS, device="meta"))[0].shape == (4, 3, 3)


def test_any_length_is_one_graph() -> None:
    module = nn.LSTM(INPUTS, UNITS).to(F64)
    run = fh.jit(lambda x: loss(module, x), dynamic=True, backend="eager")
    for n in (3, 5, 8):
        x = torch.randn(n, BATCH, INPUTS, dtype=F64)
        same(run(x), loss(module, x))
    assert run.cache_info().misses == 1


@pytest.mark.slow
def test_one_kernel() -> None:
    module, x = layer("lstm")
    gradient = fh.jit(fh.grad(lambda x: loss(module, x)))
    same(gradient(x), torch.func.grad(lambda x: loss(module, x))(x))
    assert {loop.lowering for loop in fh.explain(gradient)(x).loops} == {"steps"}


@pytest.mark.cuda
@pytest.mark.parametrize("name", LAYERS)
def test_on_a_gpu(name: str) -> None:
    """Where torch's own knows no transform."""
    module, x = layer(name)
    expected = torch.func.grad(lambda x: loss(module, x))(x)
    module, x = module.cuda(), x.cuda()
    gradient = fh.grad(lambda x: loss(module, x))
    for f in (fh.jit(gradient, backend="eager"), fh.jit(gradient)):
        same(f(x).cpu(), expected)
    same(fh.vmap(lambda x: outputs(module, x)[0])(x[None]).cpu(), module(x)[0][None].cpu())
