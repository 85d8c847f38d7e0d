"""Hamiltonian Monte Carlo over many chains.

Bayesian logistic regression: which of five measurements of a tumour speak for it being benign, and how sure is
that? One chain is a `fh.scan` over proposals, each of which is a scan of leapfrog steps and a `fh.cond` that
accepts it or not (Neal 2011). The gradient is `fh.grad`, inside of the loops; `fh.vmap` runs all chains at once.

![Chains, the posterior, and whether chains agree](pictures/hmc.png)
"""

# %% The data and the density
# The log density of the posterior is a function of one vector of weights.

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

NAMES = ("bias", "texture", "smoothness", "concavity", "symmetry")


def load_data() -> tuple[Tensor, Tensor]:
    data = load_breast_cancer()
    columns = [list(data.feature_names).index(f"mean {name}") for name in NAMES[1:]]
    x = torch.tensor(data.data[:, columns], dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    return torch.cat([torch.ones(len(x), 1), x], 1), torch.tensor(data.target, dtype=torch.float32)


def log_density(data: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    x, benign = data
    logits = x @ weights
    likelihood = (benign * F.logsigmoid(logits) + (1 - benign) * F.logsigmoid(-logits)).sum()
    return likelihood - weights.square().sum() / 2 / 3**2


# %% One chain


def chain(log_p: Callable[[Tensor], Tensor], start: Tensor, draws: int, size: float = 0.05, leaps: int = 10):
    """The samples of one chain, and how often it moved."""

    def leap(state: tuple[Tensor, Tensor], _: None):
        position, momentum = state
        momentum = momentum + size / 2 * fh.grad(log_p)(position)
        position = position + size * momentum
        momentum = momentum + size / 2 * fh.grad(log_p)(position)
        return (position, momentum), None

    def propose(position: Tensor, _: None):
        momentum = torch.randn_like(position)
        (new, new_momentum), _ = fh.scan(leap, (position, momentum), length=leaps)
        energy_gain = log_p(new) - new_momentum.square().sum() / 2 - log_p(position) + momentum.square().sum() / 2
        accepted = torch.rand(()).log() < energy_gain
        position = fh.cond(accepted, lambda: new, lambda: position)
        return position, (position, accepted)

    _, (samples, accepted) = fh.scan(propose, start, length=draws)
    return samples, accepted.float().mean()


# %% The same in plain PyTorch
# Two loops, with the chains as a batch; acceptance is a mask.


def plain_chains(data: tuple[Tensor, Tensor], start: Tensor, draws: int, size: float = 0.05, leaps: int = 10) -> Tensor:
    log_p = torch.func.vmap(lambda weights: log_density(data, weights))
    slope = torch.func.vmap(torch.func.grad(lambda weights: log_density(data, weights)))
    position, samples = start, []
    for _ in range(draws):
        momentum = first = torch.randn_like(position)
        new = position
        for _ in range(leaps):
            momentum = momentum + size / 2 * slope(new)
            new = new + size * momentum
            momentum = momentum + size / 2 * slope(new)
        gain = log_p(new) - momentum.square().sum(1) / 2 - log_p(position) + first.square().sum(1) / 2
        position = torch.where((torch.rand(len(gain)).log() < gain)[:, None], new, position)
        samples.append(position)
    return torch.stack(samples, 1)


# %% Sampling
# If the chains agree, their variance is that within each of them: the ratio, Gelman and Rubin's, is near 1.


def gelman_rubin(samples: Tensor) -> Tensor:
    draws = samples.shape[1]
    within = samples.var(1).mean(0)
    between = samples.mean(1).var(0)
    return ((draws - 1) / draws + between / within).sqrt()


class Result(NamedTuple):
    samples: Tensor
    accepted: float
    rhat: Tensor
    plain_mean: Tensor
    times: Times


def main(chains: int = 32, draws: int = 200, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_data()
    run_chain = lambda start: chain(lambda weights: log_density(data, weights), start, draws)
    run = fh.jit(fh.vmap(run_chain, randomness="different"), backend=backend)
    start = torch.randn(chains, len(NAMES))
    times = race(lambda: run(start), lambda: plain_chains(data, start, draws), rounds=1)

    samples, accepted = run(start)
    kept = samples[:, draws // 4 :]
    plain_mean = plain_chains(data, start, draws)[:, draws // 4 :].mean((0, 1))

    drawing, (left, middle, right) = figure(3)
    left.plot(samples[:6, :, 3].T, linewidth=0.7)
    left.set(title="Six chains from far apart", xlabel="draw", ylabel="weight of concavity")
    for place, name in enumerate(NAMES):
        middle.hist(kept[:, :, place].flatten().numpy(), bins=60, density=True, histtype="step", label=name)
    middle.set(title="The posterior", xlabel="weight", ylabel="density")
    middle.legend(fontsize=7)
    right.plot(range(10, draws, 10), [gelman_rubin(samples[:, n // 4 : n]).max() for n in range(10, draws, 10)])
    right.axhline(1.0, color="grey", linestyle="--", linewidth=1)
    right.set(title="Do chains agree?", xlabel="draws", ylabel="Gelman and Rubin's ratio")
    save(drawing, __file__, pictures)
    return Result(kept, accepted.mean().item(), gelman_rubin(kept), plain_mean, times)


if __name__ == "__main__":
    result = main()
    for name, mean, deviation in zip(NAMES, result.samples.mean((0, 1)), result.samples.std((0, 1)), strict=True):
        print(f"{name:>12} {mean:6.2f} ± {deviation:.2f}")
    print(f"{result.accepted:.0%} of the proposals accepted, ratio {result.rhat.max():.3f}.")
    print("All chains:", result.times)
