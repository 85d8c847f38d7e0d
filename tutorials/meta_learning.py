"""Learning to learn from one example.

Model-agnostic meta-learning (Finn et al. 2017): weights from which a few steps of gradient descent lead to a classifier
of two digits that it saw once each. The inner training is a `fh.scan` of `fh.grad`, written for one task; `fh.vmap`
makes a batch of tasks, and `fh.value_and_grad` differentiates through all of their trainings, second derivatives
included. Half of the images are kept for the test.

![Loss, and accuracy after each inner step](pictures/meta_learning.png)
"""

# %% The data
# A task is two digits, with one image of each to learn from, and others to be judged by.

from pathlib import Path
from typing import NamedTuple

import optree
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

Params = dict[str, Tensor]
SHOTS, JUDGES = 1, 10


class Task(NamedTuple):
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_data() -> list[Tensor]:
    """The images of each digit."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    return [images[labels == digit] for digit in range(10)]


def draw_tasks(images: list[Tensor], count: int) -> Task:
    def draw() -> Task:
        pair = [images[digit] for digit in torch.randperm(10)[:2]]
        rows = [of_one[torch.randperm(len(of_one))[: SHOTS + JUDGES]] for of_one in pair]
        answers = torch.tensor([0.0, 1.0])
        return Task(
            torch.cat([row[:SHOTS] for row in rows]),
            answers.repeat_interleave(SHOTS),
            torch.cat([row[SHOTS:] for row in rows]),
            answers.repeat_interleave(JUDGES),
        )

    return optree.tree_map(lambda *leaves: torch.stack(leaves), *(draw() for _ in range(count)))


# %% The inner training, for one task


def init_params(units: int) -> Params:
    return {
        "w1": torch.randn(64, units) / 8,
        "b1": torch.zeros(units),
        "w2": torch.randn(units) / units**0.5,
        "b2": torch.zeros(()),
    }


def predict(params: Params, x: Tensor) -> Tensor:
    return torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(predict(params, x), y)


def adapt(params: Params, task: Task, steps: int, rate: float = 0.5) -> tuple[Params, Tensor]:
    """The weights after some steps on the task, and the accuracy on its other images before each of them."""

    def step(params: Params, _: None) -> tuple[Params, Tensor]:
        right = (predict(params, task.test_x) > 0) == (task.test_y > 0)
        grads = fh.grad(loss_of)(params, task.train_x, task.train_y)
        return optree.tree_map(lambda p, g: p - rate * g, params, grads), right.float().mean()

    return fh.scan(step, params, length=steps)


def meta_loss(params: Params, tasks: Task, steps: int) -> Tensor:
    def after_training(task: Task) -> Tensor:
        adapted, _ = adapt(params, task, steps)
        return loss_of(adapted, task.test_x, task.test_y)

    return fh.vmap(after_training)(tasks).mean()


# %% The same in plain PyTorch
# Task by task, with `create_graph` for the gradient of the gradients.


def plain_meta_loss(params: Params, tasks: Task, steps: int, rate: float = 0.5) -> Tensor:
    losses = []
    for task in (Task(*parts) for parts in zip(*tasks, strict=True)):
        adapted = params
        for _ in range(steps):
            loss = loss_of(adapted, task.train_x, task.train_y)
            grads = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
            adapted = {name: p - rate * g for (name, p), g in zip(adapted.items(), grads, strict=True)}
        losses.append(loss_of(adapted, task.test_x, task.test_y))
    return torch.stack(losses).mean()


# %% The outer training


class Result(NamedTuple):
    losses: list[float]
    accuracy: float
    accuracy_before: float
    difference: float
    times: Times


def main(
    rounds: int = 400,
    units: int = 32,
    batch: int = 16,
    steps: int = 3,
    backend: str = "inductor",
    pictures: Path = PICTURES,
) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = load_data()
    seen, unseen = [of_one[::2] for of_one in images], [of_one[1::2] for of_one in images]
    start = init_params(units)
    params = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(params.values(), lr=3e-3)
    value_and_grad = fh.jit(lambda params, tasks: fh.value_and_grad(meta_loss)(params, tasks, steps), backend=backend)
    tasks = draw_tasks(seen, batch)

    times = race(lambda: value_and_grad(params, tasks), lambda: plain_meta_loss(params, tasks, steps).backward())
    expected = torch.autograd.grad(plain_meta_loss(params, tasks, steps), params["w1"])[0]
    difference = (value_and_grad(params, tasks)[1]["w1"] - expected).abs().max().item()

    losses = []
    for _ in range(rounds):
        loss, grads = value_and_grad(params, draw_tasks(seen, batch))
        for name, param in params.items():
            param.grad = grads[name]
        optimizer.step()
        losses.append(loss.item())

    tests = draw_tasks(unseen, 300)
    accuracies = {}
    with torch.no_grad():
        for label, weights in (("random weights", start), ("learned weights", params)):
            accuracies[label] = fh.vmap(lambda task, w=weights: adapt(w, task, 11)[1])(tests).mean(0)

    drawing, (left, right) = figure(2)
    left.plot(losses, color="tab:orange", linewidth=0.7)
    left.set(title=f"Loss after {steps} inner steps", xlabel="round", ylabel="cross-entropy (nats)")
    for label, accuracy in accuracies.items():
        right.plot(100 * accuracy.numpy(), ".-", label=label)
    right.set(title="Two images to learn from", xlabel="inner steps", ylabel="% of images right")
    right.legend()
    save(drawing, __file__, pictures)
    learned, random = accuracies["learned weights"][steps], accuracies["random weights"][steps]
    return Result(losses, learned.item(), random.item(), difference, times)


if __name__ == "__main__":
    result = main()
    print(f"After 3 steps on 2 images: {result.accuracy:.1%}, from random weights {result.accuracy_before:.1%}.")
    print("Loss and meta-gradient of 16 tasks:", result.times)
