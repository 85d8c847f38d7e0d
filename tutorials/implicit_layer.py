"""An implicit layer.

A layer whose output is the solution of an equation: `z = tanh(W z + U x + b)`, a network that is as deep as it needs
to be (Bai et al. 2019, "Deep equilibrium models"). A `fh.while_loop` finds the solution; `fh.custom_root`
differentiates it by the implicit function theorem, without a look at the steps, and without memory for them. It reads
handwritten digits.

![Loss, accuracy, and how deep the layer is](pictures/implicit_layer.png)
"""

# %% The data

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

Params = dict[str, Tensor]


def load_data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    return torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]


# %% The layer, for one image
# The weights are scaled so that the equation has one solution, to which every iteration comes nearer. The same
# iteration solves the linear equation that the derivative asks for; it takes a fixed number of steps, so that it is
# linear.


def init_params(units: int) -> Params:
    return {
        "w": torch.randn(units, units),
        "u": torch.randn(units, 64) / 8,
        "b": torch.zeros(units),
        "readout": torch.randn(10, units) / units**0.5,
    }


def contracting(params: Params) -> Params:
    return {**params, "w": 0.9 * params["w"] / torch.linalg.matrix_norm(params["w"], 2)}


def update(params: Params, x: Tensor, z: Tensor) -> Tensor:
    return torch.tanh(z @ params["w"].T + x @ params["u"].T + params["b"])


def iterate(f, z: Tensor) -> tuple[Tensor, Tensor]:
    """The solution of `f(z) = z`, and the number of steps that it took."""

    def step(state):
        z, _, count = state
        new = f(z)
        return new, (new - z).norm(), count + 1

    z, _, count = fh.while_loop(lambda state: state[1] > 1e-5, step, (z, torch.tensor(1.0), 0), max_steps=100)
    return z, count


def equilibrium(params: Params, x: Tensor) -> Tensor:
    residual = lambda z: update(params, x, z) - z
    solve = lambda residual, z: iterate(lambda z: residual(z) + z, z)[0]
    tangent_solve = lambda g, y: fh.fori_loop(0, 60, lambda i, v: g(v) + v - y, -y)
    return fh.custom_root(residual, torch.zeros(len(params["b"])), solve, tangent_solve)


def loss_of(params: Params, xs: Tensor, labels: Tensor) -> Tensor:
    params = contracting(params)
    z = fh.vmap(equilibrium, in_dims=(None, 0))(params, xs)
    return F.cross_entropy(z @ params["readout"].T, labels)


# %% The same in plain PyTorch
# All steps are recorded, and the gradient goes back through each of them.


def plain_loss(params: Params, xs: Tensor, labels: Tensor) -> Tensor:
    params = contracting(params)
    z, moved = torch.zeros(len(xs), len(params["b"])), torch.tensor(1.0)
    while moved > 1e-5:
        new = update(params, xs, z)
        z, moved = new, (new - z).norm(dim=1).max().detach()
    return F.cross_entropy(z @ params["readout"].T, labels)


# %% Training


class Result(NamedTuple):
    losses: list[float]
    accuracy: float
    depths: list[int]
    difference: float
    times: Times


def main(epochs: int = 12, units: int = 48, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    xs, labels = load_data()
    n_test = len(xs) // 5
    params = {name: value.requires_grad_() for name, value in init_params(units).items()}
    optimizer = torch.optim.Adam(params.values(), lr=4e-3)
    value_and_grad = fh.jit(fh.value_and_grad(loss_of), backend=backend)
    batch = xs[n_test : n_test + 64], labels[n_test : n_test + 64]

    times = race(lambda: value_and_grad(params, *batch), lambda: plain_loss(params, *batch).backward())
    expected = torch.autograd.grad(plain_loss(params, *batch), params["w"])[0]
    difference = (value_and_grad(params, *batch)[1]["w"] - expected).abs().max().item()

    losses = []
    for _ in range(epochs):
        for rows in (n_test + torch.randperm(len(xs) - n_test)).split(64)[:-1]:
            loss, grads = value_and_grad(params, xs[rows], labels[rows])
            for name, param in params.items():
                param.grad = grads[name]
            optimizer.step()
            losses.append(loss.item())

    with torch.no_grad():
        params = contracting(params)
        z, depths = fh.vmap(lambda x: iterate(lambda z: update(params, x, z), torch.zeros(units)))(xs[:n_test])
    accuracy = ((z @ params["readout"].T).argmax(1) == labels[:n_test]).float().mean().item()

    drawing, (left, right) = figure(2)
    left.semilogy(losses, color="tab:orange", linewidth=0.8)
    left.set(title=f"Training loss; {accuracy:.1%} of test digits right", xlabel="step", ylabel="cross-entropy (nats)")
    right.hist(depths.numpy(), bins=range(int(depths.min()), int(depths.max()) + 2), align="left", color="tab:green")
    right.set(title="Each image takes its own depth", xlabel="steps to the solution", ylabel="images")
    save(drawing, __file__, pictures)
    return Result(losses, accuracy, depths.tolist(), difference, times)


if __name__ == "__main__":
    result = main()
    print(f"{result.accuracy:.1%} of the test digits right, {min(result.depths)} to {max(result.depths)} steps deep.")
    print("Loss and gradient of 64 images:", result.times)
