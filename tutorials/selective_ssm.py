"""A selective state-space model, in half precision and little memory.

A digit is read as a sequence of 64 pixels, by a recurrence whose decay, input and output depend on what it reads
(Gu and Dao 2023, "Mamba"). `fh.scan(remat="sqrt")` keeps the states between segments only and computes the others
again; the projections run in `bfloat16` under torch's own autocast. The module is trained by `loss.backward()` and
`torch.optim`.

![Loss, and what reverse mode keeps](pictures/selective_ssm.png)
"""

# %% The data

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save


def load_data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    return torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]


# %% The layer, for one sequence
# What a step needs is projected for the whole sequence before the loop. In the loop the state stays in single
# precision: sums over many steps would lose too much in half.


class SelectiveLayer(nn.Module):
    def __init__(self, channels: int, states: int, remat: Any = "sqrt") -> None:
        super().__init__()
        self.project = nn.Linear(channels, 2 * states + channels)
        self.mix = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.log_rates = nn.Parameter(torch.arange(1.0, states + 1).log().expand(channels, states).clone())
        self.remat = remat

    def coefficients(self, x: Tensor) -> tuple[Tensor, ...]:
        states = self.log_rates.shape[1]
        b, c, dt = self.project(self.norm(x)).float().split([states, states, x.shape[-1]], -1)
        return x, b, c, F.softplus(dt)

    def step(self, h: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x, b, c, dt = (value[..., None] for value in inputs)
        b, c = b.mT, c.mT
        h = torch.exp(-dt * self.log_rates.exp()) * h + dt * b * x
        return h, (h * c).sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        _, ys = fh.scan(self.step, torch.zeros_like(self.log_rates), self.coefficients(x), remat=self.remat)
        return x + self.mix(F.silu(ys)).float()


class Classifier(nn.Module):
    def __init__(self, channels: int, states: int, layers: int = 2, remat: Any = "sqrt") -> None:
        super().__init__()
        self.embed = nn.Linear(1, channels)
        self.place = nn.Parameter(0.1 * torch.randn(64, channels))
        self.layers = nn.Sequential(*(SelectiveLayer(channels, states, remat) for _ in range(layers)))
        self.head = nn.Linear(channels, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels[:, None]).float() + self.place
        return self.head(self.layers(x).mean(0)).float()


def loss_of(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.cross_entropy(fh.vmap(model)(images), labels)


# %% The same in plain PyTorch
# A loop over pixels with a batch in front; everything that it computes is kept for the gradient.


def plain_loss(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = model.embed(images[..., None]).float() + model.place
        for layer in model.layers:
            h, ys = torch.zeros(len(x), *layer.log_rates.shape), []
            for inputs in zip(*(value.unbind(1) for value in layer.coefficients(x)), strict=True):
                h, y = layer.step(h, inputs)
                ys.append(y)
            x = x + layer.mix(F.silu(torch.stack(ys, 1))).float()
        return F.cross_entropy(model.head(x.mean(1)).float(), labels)


def kept_bytes(function) -> int:
    """The size of what autograd saves while `function` runs."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = function()
    del alive
    return sum(sizes.values())


# %% Training


class Result(NamedTuple):
    losses: list[float]
    accuracy: float
    difference: float
    kept: dict[str, int]
    times: Times


def main(epochs: int = 20, channels: int = 24, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = load_data()
    n_test = len(images) // 5
    model = Classifier(channels, states=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, epochs * ((len(images) - n_test) // 64))
    loss_and_grads = fh.jit(lambda images, labels: loss_of(model, images, labels), backend=backend)
    batch = images[n_test : n_test + 64], labels[n_test : n_test + 64]

    times = race(lambda: loss_and_grads(*batch).backward(), lambda: plain_loss(model, *batch).backward())
    difference = abs(loss_and_grads(*batch) - plain_loss(model, *batch)).item()
    kept = {"plain loop": kept_bytes(lambda: plain_loss(model, *batch))}
    for remat in (None, "sqrt"):
        for layer in model.layers:
            layer.remat = remat
        kept[f"remat={remat!r}"] = kept_bytes(lambda: loss_of(model, *batch))

    losses = []
    for _ in range(epochs):
        for rows in (n_test + torch.randperm(len(images) - n_test)).split(64)[:-1]:
            optimizer.zero_grad()
            loss = loss_and_grads(images[rows], labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())

    with torch.no_grad():
        predicted = fh.vmap(model)(images[:n_test]).argmax(1)
    accuracy = (predicted == labels[:n_test]).float().mean().item()

    drawing, (left, right) = figure(2)
    left.semilogy(losses, color="tab:orange", linewidth=0.8)
    left.set(title=f"Training loss; {accuracy:.1%} of test digits right", xlabel="step", ylabel="cross-entropy (nats)")
    bars = right.barh(list(kept), [size / 2**20 for size in kept.values()], color=["tab:grey", "tab:blue", "tab:green"])
    right.bar_label(bars, fmt="%.1f", padding=3)
    right.set(title="Kept for the gradient of 64 images", xlabel="MiB", xlim=(0, 1.2 * max(kept.values()) / 2**20))
    save(drawing, __file__, pictures)
    return Result(losses, accuracy, difference, kept, times)


if __name__ == "__main__":
    result = main()
    print(f"{result.accuracy:.1%} of the test digits right; kept for reverse mode, in bytes: {result.kept}")
    print("Loss and gradient of 64 images:", result.times)
