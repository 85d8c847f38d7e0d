"""An ensemble, and the gradient of every sample.

How far does diabetes advance in a year? Thirty-two networks are trained on resamples of the
data. The network, its loss and its whole training, a `fh.scan` over the steps of the optimizer, are written for one
model; `fh.vmap` trains all of them in one compiled call. Then `fh.vmap` of `fh.grad` says which samples a model learns
most from.

![Trainings, answers with the ensemble's spread, and the samples' gradients](pictures/ensemble.png)
"""

# %% The data

from pathlib import Path
from typing import NamedTuple

import optree
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

Params = dict[str, Tensor]


def load_data() -> tuple[Tensor, Tensor]:
    data = load_diabetes()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target, dtype=torch.float32)
    order = torch.randperm(len(y))
    return (x / x.std(0))[order], ((y - y.mean()) / y.std())[order]


# %% One model, and its training
# `weights` says how often each sample is in the model's own resample.


def init_params(inputs: int, units: int) -> Params:
    return {
        "w1": torch.randn(inputs, units) / inputs**0.5,
        "b1": torch.zeros(units),
        "w2": torch.randn(units) / units**0.5,
        "b2": torch.zeros(()),
    }


def predict(params: Params, x: Tensor) -> Tensor:
    return torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss_of(params: Params, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (weights * (predict(params, x) - y).square()).mean()


def train(params: Params, weights: Tensor, x: Tensor, y: Tensor, steps: int, rate: float = 0.03):
    """Gradient descent with momentum and decay: the trained model, and the losses on the way."""

    def step(state: tuple[Params, Params], _: None):
        params, velocity = state
        loss, grads = fh.value_and_grad(loss_of)(params, weights, x, y)
        velocity = optree.tree_map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = optree.tree_map(lambda p, v: 0.999 * p - rate * v, params, velocity)
        return (params, velocity), loss

    (params, _), losses = fh.scan(step, (params, optree.tree_map(torch.zeros_like, params)), length=steps)
    return params, losses


# %% The same in plain PyTorch
# One model after another, and `backward` in each step.


def plain_train(models: Params, weights: Tensor, x: Tensor, y: Tensor, steps: int, rate: float = 0.03) -> list[Tensor]:
    losses = []
    for model in range(len(weights)):
        params = {name: value[model].clone().requires_grad_() for name, value in models.items()}
        optimizer = torch.optim.SGD(params.values(), lr=rate, momentum=0.9)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(params, weights[model], x, y)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for name, value in params.items():
                    value.sub_(0.001 * (value + rate * optimizer.state[params[name]]["momentum_buffer"]))
        losses.append(loss.detach())
    return losses


# %% Training all


class Result(NamedTuple):
    error: float
    error_of_one: float
    norms: Tensor
    difference: float
    times: Times


def main(
    models: int = 32, steps: int = 150, units: int = 24, backend: str = "inductor", pictures: Path = PICTURES
) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    xs, ys = load_data()
    n_test = len(xs) // 4
    x, y, test_x, test_y = xs[n_test:], ys[n_test:], xs[:n_test], ys[:n_test]
    params = optree.tree_map(lambda *leaves: torch.stack(leaves), *(init_params(10, units) for _ in range(models)))
    weights = torch.stack([torch.bincount(torch.randint(len(x), (len(x),)), minlength=len(x)) for _ in range(models)])

    train_all = fh.jit(fh.vmap(lambda params, weights: train(params, weights, x, y, steps)), backend=backend)
    times = race(lambda: train_all(params, weights), lambda: plain_train(params, weights, x, y, steps), rounds=1)
    trained, losses = train_all(params, weights)
    difference = (losses[:2, -1] - torch.stack(plain_train(params, weights[:2], x, y, steps))).abs().max().item()

    answers = fh.vmap(predict, in_dims=(0, None))(trained, test_x)
    mean, doubt = answers.mean(0), answers.std(0)
    error = (mean - test_y).square().mean().sqrt().item()
    error_of_one = (answers - test_y).square().mean(1).sqrt().mean().item()

    # One model's gradient of every sample, and its size.
    one = optree.tree_map(lambda leaf: leaf[0], trained)
    grads = fh.vmap(fh.grad(loss_of), in_dims=(None, None, 0, 0))(one, torch.tensor(1.0), x, y)
    norms = torch.stack([leaf.reshape(len(x), -1).square().sum(1) for leaf in grads.values()]).sum(0).sqrt()

    drawing, (left, middle, right) = figure(3)
    left.plot(losses.T.numpy(), color="tab:blue", alpha=0.2, linewidth=0.7)
    left.set(title=f"{models} trainings in one call", xlabel="step", ylabel="loss", yscale="log")
    order = mean.argsort()
    middle.errorbar(
        range(n_test), mean[order], 2 * doubt[order], fmt=".", markersize=3, linewidth=0.6, color="tab:blue"
    )
    middle.plot(range(n_test), test_y[order], ".", color="tab:orange", markersize=3)
    middle.set(title="The ensemble (blue) and the truth", xlabel="patient, sorted", ylabel="advance (deviations)")
    right.hist(norms.numpy(), bins=40, color="tab:green")
    right.set(title="Gradients of single samples", xlabel="norm", ylabel="samples")
    save(drawing, __file__, pictures)
    return Result(error, error_of_one, norms, difference, times)


if __name__ == "__main__":
    result = main()
    print(f"Error of the ensemble {result.error:.3f}, of a model alone {result.error_of_one:.3f} (deviations).")
    print("All trainings:", result.times)
