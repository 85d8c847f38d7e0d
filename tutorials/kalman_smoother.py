"""A Kalman smoother, in parallel over time.

The level and the trend of a share's price, from its closing prices. Filter and smoother are recurrences, and yet
not bound to go step by step: both combine by an associative function (Särkkä and García-Fernández 2021), so
`fh.associative_scan` takes a number of rounds that grows with the logarithm of the length. `fh.vmap` tries a grid
of noises at once, to find the one under which the prices are most likely.

![Prices with the smoothed level, the trend, and the likelihood](pictures/kalman_smoother.png)
"""

# %% The data and the model
# Prices that matplotlib ships, as logarithms. The state is the level and its trend a day.

from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.cbook import get_sample_data
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

DAY = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
SEEN = torch.tensor([1.0, 0.0], dtype=torch.float64)
ONE = torch.eye(2, dtype=torch.float64)


def load_prices(days: int) -> Tensor:
    prices = get_sample_data("goog.npz")["price_data"]["adj_close"][-days:]
    return torch.tensor(prices.copy(), dtype=torch.float64).log()


class Belief(NamedTuple):
    """What is known of the state on each day: a normal distribution."""

    mean: Tensor
    cov: Tensor


def noises(params: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance of a day's change, and the variance of an observation."""
    return torch.diag(params[:2].exp()), params[2].exp()


# %% The filter
# An element stands for a piece of time: how the state at its end depends on that at its beginning (a, b, c), and
# what its observations tell about that (eta, j).


def filter_element(q: Tensor, r: Tensor, y: Tensor, first: Tensor):
    """The element of one day; that of the first day knows where it begins: at its own price, more or less."""
    q = torch.where(first, ONE, q)
    transition = torch.where(first, 0, DAY)
    start = torch.where(first, y * SEEN, 0)
    s = SEEN @ q @ SEEN + r
    gain = q @ SEEN / s
    keep = ONE - torch.outer(gain, SEEN)
    seen = transition.T @ SEEN
    surprise = y - SEEN @ start
    return keep @ transition, start + gain * surprise, keep @ q, seen * surprise / s, torch.outer(seen, seen) / s


def then(one, two):
    """A piece of time, and the one that follows it."""
    (a1, b1, c1, eta1, j1), (a2, b2, c2, eta2, j2) = one, two
    forward = a2 @ torch.linalg.inv(ONE + c1 @ j2)
    backward = a1.T @ torch.linalg.inv(ONE + j2 @ c1)
    return (
        forward @ a1,
        forward @ (b1 + c1 @ eta2) + b2,
        forward @ c1 @ a2.T + c2,
        backward @ (eta2 - j2 @ b1) + eta1,
        backward @ j2 @ a1 + j1,
    )


def filtered(params: Tensor, ys: Tensor) -> Belief:
    q, r = noises(params)
    first = torch.arange(len(ys)) == 0
    elements = fh.vmap(filter_element, in_dims=(None, None, 0, 0))(q, r, ys, first)
    _, mean, cov, _, _ = fh.associative_scan(then, elements)
    return Belief(mean, cov)


def log_likelihood(params: Tensor, ys: Tensor) -> Tensor:
    """Of each price, given those before it."""
    q, r = noises(params)
    mean, cov = filtered(params, ys)
    expected = mean[:-1] @ DAY.T @ SEEN
    variance = (DAY @ cov[:-1] @ DAY.T + q)[:, 0, 0] + r
    return -((ys[1:] - expected).square() / variance + variance.log()).sum() / 2


# %% The smoother
# The same, from the last day to the first: what a day's state is, given that of the next day.


def smoothed(params: Tensor, ys: Tensor) -> Belief:
    q, _ = noises(params)

    def element(mean: Tensor, cov: Tensor, last: Tensor):
        gain = torch.where(last, 0, cov @ DAY.T @ torch.linalg.inv(DAY @ cov @ DAY.T + q))
        return gain, mean - gain @ DAY @ mean, cov - gain @ DAY @ cov

    def before(later, earlier):
        (e2, g2, l2), (e1, g1, l1) = later, earlier
        return e1 @ e2, e1 @ g2 + g1, e1 @ l2 @ e1.T + l1

    last = torch.arange(len(ys)) == len(ys) - 1
    elements = fh.vmap(element)(*filtered(params, ys), last)
    _, mean, cov = fh.associative_scan(before, elements, reverse=True)
    return Belief(mean, cov)


# %% The same in plain PyTorch
# Step by step: Kalman's filter, then Rauch, Tung and Striebel's smoother.


def plain_smoothed(params: Tensor, ys: Tensor) -> Belief:
    q, r = noises(params)
    (mean, cov), means, covs = (ys[0] * SEEN, ONE), [], []
    for day, y in enumerate(ys):
        if day > 0:
            mean, cov = DAY @ mean, DAY @ cov @ DAY.T + q
        gain = cov @ SEEN / (SEEN @ cov @ SEEN + r)
        mean, cov = mean + gain * (y - SEEN @ mean), (ONE - torch.outer(gain, SEEN)) @ cov
        means.append(mean), covs.append(cov)
    results = [(mean, cov)]
    for mean_f, cov_f in zip(means[-2::-1], covs[-2::-1], strict=True):
        predicted = DAY @ cov_f @ DAY.T + q
        gain = cov_f @ DAY.T @ torch.linalg.inv(predicted)
        mean, cov = mean_f + gain @ (mean - DAY @ mean_f), cov_f + gain @ (cov - predicted) @ gain.T
        results.append((mean, cov))
    return Belief(*(torch.stack(parts[::-1]) for parts in zip(*results, strict=True)))


# %% Choosing the noise, and smoothing


class Result(NamedTuple):
    likelihoods: Tensor
    difference: float
    times: Times


def main(days: int = 512, grid: int = 12, backend: str = "inductor", pictures: Path = PICTURES) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ys = load_prices(days)
    trend, noise = (
        torch.linspace(-18, -9, grid, dtype=torch.float64),
        torch.linspace(-13, -6, grid, dtype=torch.float64),
    )
    level = torch.tensor(2e-4, dtype=torch.float64).log()
    candidates = torch.stack([level.expand(grid, grid), *torch.meshgrid(trend, noise, indexing="ij")], -1)
    scores = fh.jit(fh.vmap(log_likelihood, in_dims=(0, None)), backend=backend)(candidates.flatten(0, 1), ys)
    best = candidates.flatten(0, 1)[scores.argmax()]

    smooth = fh.jit(smoothed, backend=backend)
    times = race(lambda: smooth(best, ys), lambda: plain_smoothed(best, ys))
    belief, expected = smooth(best, ys), plain_smoothed(best, ys)
    difference = max((ours - theirs).abs().max().item() for ours, theirs in zip(belief, expected, strict=True))

    drawing, (left, middle, right) = figure(3)
    width = 2 * belief.cov[:, 0, 0].sqrt()
    left.plot(ys, ".", markersize=2, color="grey", label="closing price")
    left.plot(belief.mean[:, 0], color="tab:blue", linewidth=1, label="level, smoothed")
    left.fill_between(range(days), belief.mean[:, 0] - width, belief.mean[:, 0] + width, alpha=0.3)
    left.set(title="A share's price", xlabel="day", ylabel="logarithm of dollars")
    left.legend(fontsize=8)
    middle.plot(100 * belief.mean[:, 1], color="tab:orange")
    middle.set(title="Its trend", xlabel="day", ylabel="% a day")
    right.contourf(noise, trend, scores.reshape(grid, grid).clamp(min=scores.max() - 40), levels=20)
    right.plot(best[2], best[1], "*", color="tab:red")
    right.set(title="Likelihood of noises", xlabel="log variance, observation", ylabel="log variance, trend")
    save(drawing, __file__, pictures)
    return Result(scores.reshape(grid, grid), difference, times)


if __name__ == "__main__":
    result = main()
    print(f"Filter and smoother differ from those that go step by step by {result.difference:.1e}.")
    print("Filter and smoother:", result.times)
