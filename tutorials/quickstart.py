"""Train a recurrent network that is written for one example: `python tutorials/quickstart.py`.

The network reads a handwritten digit row by row, eight rows of eight pixels, with a gated recurrent cell.
It is written for a single image; the library does the rest:

    fh.scan             the loop over the rows
    fh.vmap             from one image to a batch
    fh.value_and_grad   from a loss to its gradient
    fh.jit              from a training step in Python to one compiled program
    fh.export           from a trained model to a file that needs no Python code of ours
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import optree
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import functorch_hops as fh

HIDDEN = 64
BATCH = 64
CLASSES = 10
LEARNING_RATE = 4e-3
TARGET_ACCURACY = 0.95
FULL_EPOCHS = 25

Params = dict[str, dict[str, Tensor]]


# --- The model, for one image ---------------------------------------------------------------------


def init_params(inputs: int) -> Params:
    """The weights as a plain tree of tensors."""

    def linear(n_in: int, n_out: int) -> dict[str, Tensor]:
        return {"weight": torch.randn(n_in, n_out) / n_in**0.5, "bias": torch.zeros(n_out)}

    return {
        "cell": linear(inputs + HIDDEN, 2 * HIDDEN),
        "readout": linear(HIDDEN, CLASSES),
    }


def apply_linear(layer: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ layer["weight"] + layer["bias"]


def classify(params: Params, image: Tensor) -> Tensor:
    """The ten logits of one image, whose rows are the steps of time."""

    def read_row(hidden: Tensor, row: Tensor) -> tuple[Tensor, None]:
        gate, candidate = apply_linear(params["cell"], torch.cat([row, hidden])).chunk(2)
        return torch.lerp(hidden, candidate.tanh(), gate.sigmoid()), None

    hidden, _ = fh.scan(read_row, torch.zeros(HIDDEN), image)
    return apply_linear(params["readout"], hidden)


# The same function for a batch: the weights are shared, the images are mapped over.
classify_batch = fh.vmap(classify, in_dims=(None, 0))


def loss_fn(params: Params, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(classify_batch(params, images), labels)


# --- The training step ----------------------------------------------------------------------------


class TrainState(NamedTuple):
    """Everything that a step changes: a tree, like its parts."""

    params: Params
    mean: Params
    square: Params
    step: Tensor


def init_state(params: Params) -> TrainState:
    zeros = optree.tree_map(torch.zeros_like, params)
    return TrainState(params, zeros, zeros, torch.tensor(0.0))


def train_step(state: TrainState, images: Tensor, labels: Tensor) -> tuple[TrainState, Tensor]:
    """One step of Adam (Kingma & Ba, 2014, algorithm 1), gradient included: the new state and the loss."""
    loss, grads = fh.value_and_grad(loss_fn)(state.params, images, labels)
    step = state.step + 1
    mean = optree.tree_map(lambda m, g: 0.9 * m + 0.1 * g, state.mean, grads)
    square = optree.tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, state.square, grads)
    rate = LEARNING_RATE * torch.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    params = optree.tree_map(lambda p, m, v: p - rate * m / (v.sqrt() + 1e-8), state.params, mean, square)
    return TrainState(params, mean, square, step), loss


# --- Data, training, export -----------------------------------------------------------------------


class Digits(NamedTuple):
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data() -> Digits:
    """scikit-learn's 1797 digits, of which a random fifth is for testing."""
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    n_test = len(order) // 5
    return Digits(images[n_test:], labels[n_test:], images[:n_test], labels[:n_test])


class History(NamedTuple):
    losses: list[float]
    accuracies: list[float]


def train(digits: Digits, epochs: int, backend: str) -> tuple[Params, History]:
    step = fh.jit(train_step, backend=backend)
    predict = fh.jit(classify_batch, backend=backend)
    state = init_state(init_params(digits.train_images.shape[-1]))
    history = History([], [])

    progress = tqdm(range(epochs), desc="compiling", unit="epoch")
    for _ in progress:
        # Whole batches only: one shape, one compilation.
        order = torch.randperm(len(digits.train_images))
        losses = []
        for batch in order.split(BATCH)[:-1]:
            state, loss = step(state, digits.train_images[batch], digits.train_labels[batch])
            losses.append(loss)
        history.losses.append(torch.stack(losses).mean().item())
        correct = predict(state.params, digits.test_images).argmax(1) == digits.test_labels
        history.accuracies.append(correct.float().mean().item())
        progress.set_description("training")
        progress.set_postfix(loss=f"{history.losses[-1]:.3f}", accuracy=f"{history.accuracies[-1]:.1%}")
    return state.params, history


def export_model(params: Params, images: Tensor, path: Path) -> Tensor:
    """Saves the model with its weights, loads it back, and returns the logits of the loaded one."""
    program = fh.export(functools.partial(classify_batch, params), (images,))
    torch.export.save(program, path)
    return torch.export.load(path).module()(images)


def plot(history: History, path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epochs = range(1, len(history.losses) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.semilogy(epochs, history.losses, color="tab:orange", marker=".")
    left.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    right.plot(epochs, [100 * a for a in history.accuracies], color="tab:blue", marker=".")
    right.axhline(100 * TARGET_ACCURACY, color="grey", linestyle="--", linewidth=1)
    right.annotate("target", (1, 100 * TARGET_ACCURACY), (0, 4), textcoords="offset points", color="grey")
    right.set(title="Test accuracy", xlabel="epoch", ylabel="% of digits right", ylim=(None, 100.5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=FULL_EPOCHS, help="passes over the data (%(default)s)")
    parser.add_argument("--backend", default="inductor", help="as of torch.compile (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("quickstart-output"), help="folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    # The steps are small: several threads would wait for one another longer than they work.
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    digits = load_data()

    params, history = train(digits, arguments.epochs, arguments.backend)
    plot(history, arguments.output / "training.png")

    exported = export_model(params, digits.test_images, arguments.output / "digits.pt2")
    torch.testing.assert_close(exported, classify_batch(params, digits.test_images))

    accuracy = (exported.argmax(1) == digits.test_labels).float().mean().item()
    print(f"The exported model reads {accuracy:.1%} of the {len(exported)} test digits right.")
    print(f"Saved: {arguments.output / 'training.png'}, {arguments.output / 'digits.pt2'}")
    if accuracy < TARGET_ACCURACY and arguments.epochs >= FULL_EPOCHS:
        print(f"This is below the target of {TARGET_ACCURACY:.0%}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
