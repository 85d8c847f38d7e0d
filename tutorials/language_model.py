"""A language model that stops by itself.

A recurrent network learns the one-line descriptions of Python's own built-in functions, letter by letter, and then
writes lines of its own. The model is written for one line. `fh.scan` reads it, `fh.vmap` makes a batch of it,
`fh.jit` compiles it, and `torch.optim` trains it as any other module. Sampling is a `fh.while_loop` that ends at
the end token, in each line at its own time.

![Loss, and how long the lines are](pictures/language_model.png)
"""

# %% The text
# The docstrings of built-in functions and methods are on every machine that has Python.

import builtins
import inspect
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

LONGEST = 48
END = 0  # ends a line, begins the next one, and fills what is left of a row


def load_lines() -> tuple[Tensor, str]:
    """The lines as rows of numbers, each between two end tokens, and the letters that these are for."""
    values = [value for kind in vars(builtins).values() for value in (kind, *vars(type(kind)).values())]
    values += [value for kind in vars(builtins).values() if isinstance(kind, type) for value in vars(kind).values()]
    texts = {(inspect.getdoc(value) or "").split("\n")[0] for value in values if not isinstance(value, str)}
    lines = sorted(text for text in texts if 12 < len(text) < LONGEST and text.isascii() and text.endswith("."))
    letters = sorted({letter for line in lines for letter in line})
    rows = torch.full((len(lines), LONGEST + 1), END)
    for row, line in zip(rows, lines, strict=True):
        row[1 : len(line) + 1] = torch.tensor([1 + letters.index(letter) for letter in line])
    return rows, "|" + "".join(letters)


# %% The model, for one line
# `write` takes no batch either. It fills a buffer until it draws the end token or has no room left.


class Writer(nn.Module):
    def __init__(self, letters: int, units: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, units)
        self.cell = nn.GRUCell(units, units)
        self.head = nn.Linear(units, letters)

    def start(self) -> Tensor:
        return torch.zeros(self.cell.hidden_size)

    def forward(self, row: Tensor) -> Tensor:
        """The loss of one line, in nats a letter; what comes after its end does not count."""

        def read(state: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
            state = self.cell(self.embed(token), state)
            return state, state

        _, states = fh.scan(read, self.start(), row[:-1])
        losses = F.cross_entropy(self.head(states), row[1:], reduction="none")
        counts = torch.cat([torch.ones(1, dtype=torch.bool), row[1:-1] != END])
        return torch.where(counts, losses, 0).sum() / counts.sum()

    def write(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """A new line, and its length."""

        def goes_on(state: tuple[Tensor, ...]) -> Tensor:
            length, token, _, _ = state
            return (length < LONGEST) & ((token != END) | (length == 0))

        def next_letter(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            length, token, hidden, line = state
            hidden = self.cell(self.embed(token), hidden)
            noise = -torch.log(-torch.log(torch.rand(self.head.out_features)))  # Gumbel's: the argmax is a draw
            token = torch.argmax(self.head(hidden) / temperature + noise)
            line = line.clone()
            line[length] = token
            return length + 1, token, hidden, line

        blank = torch.full((LONGEST,), END)
        length, _, _, line = fh.while_loop(goes_on, next_letter, (0, torch.tensor(END), self.start(), blank))
        return line, length


# %% The same in plain PyTorch
# A loop over letters, with a batch that the programmer handles. It is here to be compared with.


def plain_loss(model: Writer, rows: Tensor) -> Tensor:
    state, losses, counts = torch.zeros(len(rows), model.cell.hidden_size), 0.0, 0
    alive = torch.ones(len(rows), dtype=torch.bool)
    for position in range(rows.shape[1] - 1):
        state = model.cell(model.embed(rows[:, position]), state)
        loss = F.cross_entropy(model.head(state), rows[:, position + 1], reduction="none")
        losses = losses + torch.where(alive, loss, 0)
        counts = counts + alive
        alive = alive & (rows[:, position + 1] != END)
    return (losses / counts).mean()


# %% Training and writing


class Result(NamedTuple):
    losses: list[float]
    lines: list[str]
    lengths: list[int]
    difference: float
    times: Times


def main(epochs: int = 60, units: int = 96, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows, letters = load_lines()
    rows = rows[: len(rows) // 32 * 32]
    model = Writer(len(letters), units)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    mean_loss = fh.jit(lambda rows: fh.vmap(model)(rows).mean(), backend=backend)
    times = race(lambda: mean_loss(rows[:32]).backward(), lambda: plain_loss(model, rows[:32]).backward())
    difference = abs(mean_loss(rows[:32]) - plain_loss(model, rows[:32])).item()

    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(rows)).split(32):
            optimizer.zero_grad()
            loss = mean_loss(rows[batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(batch) / len(rows)
        losses.append(total)

    write = fh.jit(fh.vmap(model.write, randomness="different"), backend=backend)
    with torch.no_grad():
        written, lengths = write(torch.full((64,), 0.8))
    texts = ["".join(letters[token] for token in line[:length]) for line, length in zip(written, lengths, strict=True)]

    drawing, (left, right) = figure(2)
    left.plot(losses, color="tab:orange")
    left.set(title="Training loss", xlabel="epoch", ylabel="nats a letter")
    real = (rows[:, 1:] != END).sum(1) + 1
    right.hist([real.numpy(), lengths.numpy()], bins=12, density=True, label=["Python's lines", "written"])
    right.set(title="Each line ends by itself", xlabel="letters", ylabel="share")
    right.legend()
    save(drawing, __file__, pictures)
    return Result(losses, texts, lengths.tolist(), difference, times)


if __name__ == "__main__":
    result = main()
    print(*result.lines[:10], sep="\n")
    print("A gradient of the loss of 32 lines:", result.times)
