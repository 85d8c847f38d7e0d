"""``torch.utils.checkpoint`` and hooks on saved tensors around calls of the library that ``torch.compile`` compiles."""

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import functorch_hops as fh

XS = torch.linspace(-1, 1, 12).reshape(4, 3)


def recurrent(linear, xs):
    return fh.scan(lambda c, x: (torch.tanh(linear(c) + x), None), torch.zeros(3), xs)[0]


def oracle(linear, xs):
    c = torch.zeros(3)
    for x in xs:
        c = torch.tanh(linear(c) + x)
    return c


def gradients(linear, value):
    return torch.autograd.grad(value.square().sum(), list(linear.parameters()))


def saved_products():
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default, torch.ops.aten.mm.default])


def compiled(function, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


AROUND = {
    "whole": lambda run, xs: checkpoint(run, xs, use_reentrant=False),
    "selective": lambda run, xs: checkpoint(run, xs, use_reentrant=False, context_fn=saved_products),
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_checkpoint_in_a_compiled_function(name, backend):
    linear = nn.Linear(3, 3)
    run = compiled(lambda xs: AROUND[name](functools.partial(recurrent, linear), xs), backend)
    torch.testing.assert_close(gradients(linear, run(XS)), gradients(linear, oracle(linear, XS)))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_a_compiled_function(use_reentrant):
    linear = nn.Linear(3, 3)
    run, xs = compiled(functools.partial(recurrent, linear)), XS.clone().requires_grad_()
    value = checkpoint(run, xs, use_reentrant=use_reentrant)
    value.square().sum().backward()
    torch.testing.assert_close([p.grad for p in linear.parameters()], [*gradients(linear, oracle(linear, XS))])


def test_tensors_that_are_saved_elsewhere():
    linear = nn.Linear(3, 3)
    run = compiled(functools.partial(recurrent, linear))
    with torch.autograd.graph.save_on_cpu():
        value = run(XS)
    torch.testing.assert_close(gradients(linear, value), gradients(linear, oracle(linear, XS)))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_random_numbers_are_drawn_again(backend):
    """The gradient by a weight that is dropped out is zero where its value is."""
    weights = torch.ones(20, 30).requires_grad_()
    dropped = lambda rows: fh.map(lambda row: nn.functional.dropout(row, 0.5), rows)
    value = compiled(lambda rows: checkpoint(dropped, rows, use_reentrant=False), backend)(weights)
    value.sum().backward()
    torch.testing.assert_close(weights.grad, value.detach())
    assert 0.3 < (value == 0).float().mean() < 0.7


def named(x):
    return fh.checkpoint_name(torch.tanh(x), "state").sin()


policies = fh.checkpoint_policies
several = policies.union(policies.save_names("state"), policies.save_matmuls)
POLICIES = {"made outside": lambda: several, "made inside": lambda: policies.save_names("state")}


@pytest.mark.parametrize("name", POLICIES)
def test_names_that_a_policy_saves(name):
    run = lambda x: fh.grad(lambda x: fh.checkpoint(named, policy=POLICIES[name]())(x).sum())(x)
    torch.testing.assert_close(compiled(run, "eager")(XS), run(XS))
    torch.testing.assert_close(compiled(named, "eager")(XS), named(XS))


def test_a_policy_that_is_made_of_others_inside_runs_as_python():
    run = lambda x: fh.grad(fh.checkpoint(lambda x: named(x).sum(), policy=policies.complement(policies.nothing)))(x)
    torch.testing.assert_close(torch.compile(run, backend="eager")(XS), run(XS))
    with pytest.raises(Unsupported, match=r"no node for complement of functorch_hops"):
        compiled(run, "eager")(XS)
