"""Beam search, exported, and run where this library is not installed.

The likeliest way to end a line of Python's own documentation. The search is a `fh.while_loop` that ends when all
beams have, `fh.vmap` runs it for several beginnings at once, and `fh.export` writes it to a file with the loop in
it. A process that knows nothing of this library loads and runs the file.

![The best ends of a line, and how long searches take](pictures/beam_search.png)
"""

# %% The data and the model
# How often each word follows another in the docstrings of Python's built-in functions. It is a table; a network
# would take its place without a change of the search.

import builtins
import inspect
import itertools
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

END = 0
BEGINNINGS = ("Return", "Create", "Base", "Like", "Convert", "Remove", "The", "If")


def load_model() -> tuple[Tensor, list[str]]:
    """The logarithms of probabilities, [word, next word], and the words."""
    kinds = [value for value in vars(builtins).values() if isinstance(value, type)]
    values = [*vars(builtins).values(), *(value for kind in kinds for value in vars(kind).values())]
    texts = {(inspect.getdoc(value) or "").split("\n")[0] for value in values if not isinstance(value, str)}
    lines = sorted(text for text in texts if text.endswith("."))
    words = ["", *sorted({word for line in lines for word in line.split()} | set(BEGINNINGS))]
    counts = torch.full((len(words),) * 2, 1e-4) * (1 + torch.rand(len(words), len(words)))  # no two lines are a tie
    for line in lines:
        tokens = [words.index(word) for word in line.split()] + [END]
        for word, following in itertools.pairwise(tokens):
            counts[word, following] += 1
    return (counts / counts.sum(-1, keepdim=True)).log(), words


# %% The search, for one beginning


def search(table: Tensor, beginning: Tensor, beams: int = 6, longest: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """The best lines, their scores (a logarithm of probability), and the number of steps."""
    stays = torch.full((len(table),), -torch.inf)
    stays[END] = 0.0  # a line that has ended goes on with end tokens, at no cost

    def goes_on(state: tuple[Tensor, ...]) -> Tensor:
        place, lines, _ = state
        return (place < longest) & (lines.T[place - 1] != END).any()

    def step(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        place, lines, scores = state
        last = lines.T[place - 1]
        follows = torch.where((last == END)[:, None], stays, table[last])
        scores, choice = (scores[:, None] + follows).flatten().topk(beams)
        lines = lines[choice // len(table)]
        return place + 1, lines.index_copy(1, place[None], (choice % len(table))[:, None]), scores

    lines = torch.cat([beginning.expand(beams, 1), torch.full((beams, longest - 1), END)], 1)
    scores = torch.full((beams,), -torch.inf).index_fill(0, torch.tensor([0]), 0.0)  # one beam at the beginning
    place, lines, scores = fh.while_loop(goes_on, step, (1, lines, scores))
    return lines, scores, place - 1


# %% The same in plain PyTorch
# A loop over beginnings, and one over words.


def plain_search(table: Tensor, beginning: Tensor, beams: int = 6, longest: int = 12) -> tuple[Tensor, Tensor]:
    lines, scores = beginning[None, None], torch.zeros(1)
    while lines.shape[1] < longest and (lines[:, -1] != END).any():
        follows = table[lines[:, -1]].clone()
        ended = lines[:, -1] == END
        follows[ended] = -torch.inf
        follows[ended, END] = 0.0
        scores, choice = (scores[:, None] + follows).flatten().topk(beams)
        lines = torch.cat([lines[choice // len(table)], choice[:, None] % len(table)], 1)
    return lines, scores


# %% Export
# The program holds the table, the loop and the batch; no code of ours is needed to run it.


ELSEWHERE = """
import sys, torch
sys.modules["functorch_hops"] = None  # an import of it would fail
program, beginnings, results = sys.argv[1:]
torch.save(torch.export.load(program).module()(torch.load(beginnings)), results)
"""


def run_elsewhere(program: torch.export.ExportedProgram, beginnings: Tensor) -> tuple[Tensor, ...]:
    with TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}" for name in ("search.pt2", "beginnings.pt", "results.pt")]
        torch.export.save(program, paths[0])
        torch.save(beginnings, paths[1])
        subprocess.run([sys.executable, "-c", ELSEWHERE, *paths], check=True)
        return torch.load(paths[2])


# %% Searching


class Result(NamedTuple):
    lines: list[str]
    steps: list[int]
    same_elsewhere: bool
    same_as_plain: bool
    times: Times


def main(beams: int = 6, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table, words = load_model()
    beginnings = torch.tensor([words.index(word) for word in BEGINNINGS])
    search_all = fh.vmap(lambda beginning: search(table, beginning, beams))

    compiled = fh.jit(search_all, backend=backend)
    plain = lambda: [plain_search(table, beginning, beams) for beginning in beginnings]
    times = race(lambda: compiled(beginnings), plain)
    lines, scores, steps = compiled(beginnings)

    elsewhere = run_elsewhere(fh.export(search_all, (beginnings,)), beginnings)
    same_elsewhere = torch.equal(elsewhere[0], lines) and torch.allclose(elsewhere[1], scores)
    same_as_plain = all(torch.allclose(ours, theirs[1]) for ours, theirs in zip(scores, plain(), strict=True))
    read = lambda line: " ".join(words[token] for token in line if token != END)

    drawing, (left, right) = figure(2)
    left.barh(range(beams)[::-1], scores[0].tolist(), color="tab:blue", alpha=0.35)
    for place, line in enumerate(lines[0]):
        left.text(0.98 * scores[0].min().item(), beams - 1 - place, read(line), va="center", fontsize=7)
    left.set(title=f"Lines that begin with {BEGINNINGS[0]!r}", xlabel="logarithm of probability", yticks=[])
    left.set_xlim(scores[0].min().item(), 0)
    right.bar(BEGINNINGS, steps.tolist(), color="tab:green")
    right.set(title="Each search ends by itself", ylabel="steps")
    right.tick_params("x", rotation=30)
    save(drawing, __file__, pictures)
    return Result([read(line[0]) for line in lines], steps.tolist(), same_elsewhere, same_as_plain, times)


if __name__ == "__main__":
    result = main()
    print(*result.lines, sep="\n")
    print("The same where the library is not installed:", result.same_elsewhere)
    print("All searches:", result.times)
