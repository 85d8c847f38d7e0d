"""Cases of PyTorch's ``test/functorch/test_eager_transforms.py`` and ``test/functorch/test_vmap.py``.

The docstring of a test names those it stands for.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import every_mode, same

F64 = torch.float64
X = torch.tensor([0.3, -1.2, 0.8], dtype=F64)


@every_mode
@pytest.mark.parametrize("written", ["base", "view"])
@pytest.mark.parametrize("returned", ["base", "view"])
def test_the_gradient_of_a_write_around_a_view(run, written, returned):
    """TestGradTransform.test_inplace_on_view, test_inplace_on_view_base: the returned view's history is a write's."""

    def f(x):
        values = {"base": x.clone()}
        values["view"] = values["base"][:2]
        values[written].sin_()
        return values[returned] if returned == "view" else values[returned].square()

    total = lambda x: f(x).sum()
    one = lambda x: f(x)[0]  # a view of the view
    for g in (total, one):
        x = X.clone().requires_grad_()
        expected = torch.autograd.grad(g(x), x)[0]
        same(run(fh.grad(g), X), expected)
        same(run(fh.vmap(fh.grad(g)), X.expand(2, 3)), expected.expand(2, 3))
    same(run(fh.jacrev(f), X), torch.func.jacrev(f)(X))
    same(run(fh.jacfwd(f), X), torch.func.jacrev(f)(X))


@every_mode
def test_no_grad_between_two_levels(run):
    """TestGradTransform.test_no_grad_nested_complicated: the value and a derivative of first order are constants."""

    def f(x):
        with torch.no_grad():
            shift = fh.grad(lambda x: 0.25 * x**4)(x)
        return x**3 - shift

    same(run(fh.grad(f), X[0]), 3 * X[0] ** 2)
    same(run(fh.grad(fh.grad(f)), X[0]), 6 * X[0])


@every_mode
def test_a_vjp_of_a_vjp(run):
    """TestComposability.test_vjp_vjp, test_grad_of_vjp_of_grad_composition, with the pull function used inside."""

    def f(x, ct):
        _, pull = fh.vjp(torch.sin, x)
        out, pull_again = fh.vjp(lambda ct: pull(ct)[0], ct)
        return out, pull_again(torch.ones_like(ct))[0], fh.grad(lambda ct: pull(ct)[0].sum())(ct)

    same(run(f, X, X), (X * X.cos(), X.cos(), X.cos()))
    same(run(fh.vmap(f), X, X), (X * X.cos(), X.cos(), X.cos()))


@every_mode
def test_per_example_gradients_of_a_network(run):
    """TestExamplesCorrectness.test_maml_regression in small: one step of training in each lane, differentiated."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).to(F64)
    weights = dict(net.named_parameters())
    xs, ys = torch.rand(2, 4, 1, dtype=F64), torch.rand(2, 4, 1, dtype=F64)

    def loss(p, x, y):
        return (torch.func.functional_call(net, p, (x,)) - y).square().mean()

    def adapted(tools, p, x, y):
        steps = tools.grad(loss)(p, x, y)
        return loss({k: p[k] - 0.1 * steps[k] for k in p}, x, y)

    def meta(tools):
        return tools.grad(lambda p: tools.vmap(lambda x, y: adapted(tools, p, x, y))(xs, ys).mean())

    detached = {k: p.detach() for k, p in weights.items()}
    same(run(meta(fh), detached), meta(torch.func)(detached))


@every_mode
def test_members_of_an_ensemble(run):
    """TestExamplesCorrectness.test_ensemble_regression: ``stack_module_state`` and a vmap over the members."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to(F64) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    out = run(lambda p, x: fh.vmap(lambda p: torch.func.functional_call(nets[0], (p, buffers), (x,)))(p), parameters, X)
    same(out, torch.stack([net(X) for net in nets]))


@every_mode
def test_lennard_jones_forces_of_second_order(run):
    """TestExamplesCorrectness.test_lennard_jones_batched_jac: forces by a Jacobian, in lanes, with a loss of them."""
    r = torch.linspace(0.9, 2.0, 5, dtype=F64)
    energy = lambda r: 4 * ((1 / r) ** 12 - (1 / r) ** 6)
    loss = lambda tools: lambda s: tools.vmap(tools.jacrev(lambda r: energy(s * r)))(r).square().sum()
    s = torch.tensor(1.1, dtype=F64)
    same(run(fh.grad(loss(fh)), s), torch.func.grad(loss(torch.func))(s))
    same(run(fh.hessian(loss(fh)), s), torch.func.hessian(loss(torch.func))(s))
