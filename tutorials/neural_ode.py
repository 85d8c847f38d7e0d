"""A neural ordinary differential equation.

A vector field, a small network, moves wines of three cultivars through the plane, until straight lines part them
(Chen et al. 2018). The solver chooses its steps: it is a `fh.while_loop` with a `fh.cond` in it, written for one
wine. Under `fh.vmap` each wine takes as many steps as it needs, and `fh.grad` goes back through a loop whose length
nobody knew.

![Loss, the flow, and how many steps it takes](pictures/neural_ode.png)
"""

# %% The data
# Thirteen measurements of 178 wines, seen from the two directions in which they differ most.

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

Params = dict[str, Tensor]


def load_data() -> tuple[Tensor, Tensor]:
    wine = load_wine()
    x = torch.tensor(wine.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    _, _, directions = torch.linalg.svd(x, full_matrices=False)
    return x @ directions[:2].T / 2, torch.tensor(wine.target)


# %% The flow of one point
# Heun's method; the difference to Euler's tells the error. A step that is too long is tried again with a shorter one.


def init_params(units: int) -> Params:
    return {
        "w1": torch.randn(3, units) / 2,
        "b1": torch.zeros(units),
        "w2": torch.randn(units, 2) / units**0.5,
        "classes": torch.randn(2, 3),
        "bias": torch.zeros(3),
    }


def velocity(params: Params, t: Tensor, x: Tensor) -> Tensor:
    hidden = torch.tanh(torch.cat([x, t[..., None]], -1) @ params["w1"] + params["b1"])
    return hidden @ params["w2"]


def attempt(params: Params, t: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Where a step of size h leads, and its error."""
    h = h[..., None]
    slope = velocity(params, t, x)
    new_slope = velocity(params, t + h[..., 0], x + h * slope)
    return x + h * (slope + new_slope) / 2, (h * (new_slope - slope) / 2).norm(dim=-1)


def flow(params: Params, x: Tensor, tolerance: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Where the point is at time 1, and how many steps it took."""

    def step(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        t, x, h, count = state
        h = torch.minimum(h, 1 - t)
        new_x, error = attempt(params, t, x, h)
        t, x = fh.cond(error < tolerance, lambda: (t + h, new_x), lambda: (t, x))
        factor = (0.9 * (tolerance / (error.detach() + 1e-9)).sqrt()).clamp(0.2, 4.0)
        return t, x, (h * factor).detach().clamp(min=1e-3), count + 1

    zero = torch.zeros(())
    _, x, _, count = fh.while_loop(lambda state: state[0] < 1 - 1e-5, step, (zero, x, zero + 0.25, 0), max_steps=200)
    return x, count


def loss_of(params: Params, xs: Tensor, labels: Tensor) -> Tensor:
    moved, _ = fh.vmap(flow, in_dims=(None, 0))(params, xs)
    return F.cross_entropy(moved @ params["classes"] + params["bias"], labels)


# %% The same in plain PyTorch
# All wines in one loop, which goes on until the last one is there; masks keep the others where they are.


def plain_loss(params: Params, xs: Tensor, labels: Tensor, tolerance: float = 1e-2) -> Tensor:
    t, h = torch.zeros(len(xs)), torch.full((len(xs),), 0.25)
    while (running := t < 1 - 1e-5).any():
        h = torch.where(running, torch.minimum(h, 1 - t), h)
        new_x, error = attempt(params, t, xs, h)
        good = running & (error < tolerance)
        t, xs = torch.where(good, t + h, t), torch.where(good[:, None], new_x, xs)
        factor = (0.9 * (tolerance / (error.detach() + 1e-9)).sqrt()).clamp(0.2, 4.0)
        h = torch.where(running, (h * factor).detach().clamp(min=1e-3), h)
    return F.cross_entropy(xs @ params["classes"] + params["bias"], labels)


# %% Training


class Result(NamedTuple):
    losses: list[float]
    accuracy: float
    steps: list[int]
    difference: float
    times: Times


def main(steps: int = 300, units: int = 32, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    xs, labels = load_data()
    params = {name: value.requires_grad_() for name, value in init_params(units).items()}
    optimizer = torch.optim.Adam(params.values(), lr=2e-2)
    value_and_grad = fh.jit(fh.value_and_grad(loss_of), backend=backend)

    times = race(lambda: value_and_grad(params, xs, labels), lambda: plain_loss(params, xs, labels).backward())
    difference = abs(value_and_grad(params, xs, labels)[0] - plain_loss(params, xs, labels)).item()

    losses = []
    for _ in range(steps):
        loss, grads = value_and_grad(params, xs, labels)
        for name, param in params.items():
            param.grad = grads[name]
        optimizer.step()
        losses.append(loss.item())

    paths = [xs]
    with torch.no_grad():
        moved, counts = fh.vmap(flow, in_dims=(None, 0))(params, xs)
        accuracy = ((moved @ params["classes"] + params["bias"]).argmax(1) == labels).float().mean().item()
        for t in torch.linspace(0, 1, 21)[:-1]:
            paths.append(attempt(params, t.expand(len(xs)), paths[-1], torch.full((len(xs),), 0.05))[0])
    drawing, (left, middle, right) = figure(3)
    left.semilogy(losses, color="tab:orange")
    left.set(title="Training loss", xlabel="step", ylabel="cross-entropy (nats)")
    for path, label in zip(torch.stack(paths, 1), labels, strict=True):
        middle.plot(*path.T, color=f"C{label}", linewidth=0.5, alpha=0.5)
        middle.plot(*path[-1], ".", color=f"C{label}", markersize=4)
    middle.set(title="Wines on their way, three cultivars", xlabel="first direction", ylabel="second")
    right.hist(counts.numpy(), bins=range(int(counts.min()), int(counts.max()) + 2), align="left", color="tab:green")
    right.set(title="Each wine takes its own steps", xlabel="steps", ylabel="wines")
    save(drawing, __file__, pictures)
    return Result(losses, accuracy, counts.tolist(), difference, times)


if __name__ == "__main__":
    result = main()
    print(f"{result.accuracy:.1%} of the wines are told apart; {min(result.steps)} to {max(result.steps)} steps.")
    print("Loss and gradient:", result.times)
