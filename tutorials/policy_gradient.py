"""A policy gradient in a compiled world.

A pole on a cart is balanced by a policy that learns from its own attempts (Schulman et al. 2017, "Proximal policy
optimization"). World, policy and estimator are written for one cart: the rollout is a `fh.scan` whose world begins
anew by a `fh.cond`, the advantages (Schulman et al. 2015, "Generalized advantage estimation") are a scan in
reverse. `fh.vmap` runs 64 carts, and one `fh.jit` holds all of it: rollout, advantages, and the epochs of the
update.

![Returns, and an attempt of the trained policy](pictures/policy_gradient.png)
"""

# %% The world
# Barto, Sutton and Anderson's cart and pole (1983). The state is place, speed, angle and its speed.

from pathlib import Path
from typing import NamedTuple

import optree
import torch
import torch.nn.functional as F
from torch import Tensor

import functorch_hops as fh
from gallery import PICTURES, Times, figure, race, save

Params = dict[str, Tensor]
GAMMA, LAMBDA, CLIP, RATE = 0.99, 0.95, 0.2, 1e-2


def move(state: Tensor, push: Tensor) -> Tensor:
    """The state a fiftieth of a second later, after a push to the right (1) or left (0)."""
    x, v, angle, spin = state.unbind(-1)
    force = 20.0 * push - 10.0
    sine, cosine = angle.sin(), angle.cos()
    pull = (force + 0.05 * spin.square() * sine) / 1.1
    turn = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
    shove = pull - 0.05 * turn * cosine / 1.1
    return torch.stack([x + 0.02 * v, v + 0.02 * shove, angle + 0.02 * spin, spin + 0.02 * turn], -1)


def fallen(state: Tensor) -> Tensor:
    return (state[..., 0].abs() > 2.4) | (state[..., 2].abs() > 0.21)


# %% The policy
# One network gives the logit of a push to the right, and the value of the state.


def init_params(units: int) -> Params:
    return {
        "w1": torch.randn(4, units) / 2,
        "b1": torch.zeros(units),
        "w2": torch.randn(units, 2) * 0.1 / units**0.5,
        "b2": torch.zeros(2),
    }


def act(params: Params, state: Tensor) -> tuple[Tensor, Tensor]:
    logit, value = (torch.tanh(state @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]).unbind(-1)
    return logit, value


def log_probability(logit: Tensor, push: Tensor) -> Tensor:
    return F.logsigmoid(torch.where(push > 0, logit, -logit))


# %% A rollout, and its advantages, for one cart


class Step(NamedTuple):
    state: Tensor
    push: Tensor
    log_p: Tensor
    value: Tensor
    ended: Tensor


def rollout(params: Params, state: Tensor, length: int) -> tuple[Tensor, Step]:
    def step(state: Tensor, _: None) -> tuple[Tensor, Step]:
        logit, value = act(params, state)
        push = (torch.rand(()) < torch.sigmoid(logit)).float()
        new = move(state, push)
        ended = fallen(new)
        new = fh.cond(ended, lambda: 0.1 * torch.rand(4) - 0.05, lambda: new)
        return new, Step(state, push, log_probability(logit, push), value, ended)

    return fh.scan(step, state, length=length)


def advantages(steps: Step, last_value: Tensor) -> Tensor:
    """Every step is rewarded by 1; what comes after a fall is another attempt."""

    def back(carry: tuple[Tensor, Tensor], step: Step) -> tuple[tuple[Tensor, Tensor], Tensor]:
        advantage, next_value = carry
        goes_on = 1.0 - step.ended.float()
        surprise = 1.0 + GAMMA * goes_on * next_value - step.value
        advantage = surprise + GAMMA * LAMBDA * goes_on * advantage
        return (advantage, step.value), advantage

    return fh.scan(back, (torch.zeros(()), last_value), steps, reverse=True)[1]


# %% The update
# Adam on the clipped objective, for some epochs on the same steps.


class Learner(NamedTuple):
    params: Params
    mean: Params
    square: Params
    count: Tensor


def objective(params: Params, steps: Step, gains: Tensor) -> Tensor:
    logit, value = act(params, steps.state)
    log_p = log_probability(logit, steps.push)
    ratio = torch.exp(log_p - steps.log_p)
    scaled = (gains - gains.mean()) / (gains.std() + 1e-6)
    policy = torch.minimum(ratio * scaled, ratio.clamp(1 - CLIP, 1 + CLIP) * scaled).mean()
    return -policy + 0.5 * (value - (gains + steps.value)).square().mean() / 100


def update(learner: Learner, steps: Step, gains: Tensor, epochs: int) -> Learner:
    def epoch(learner: Learner, _: None) -> tuple[Learner, None]:
        params, mean, square, count = learner
        grads, count = fh.grad(objective)(params, steps, gains), count + 1
        mean = optree.tree_map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = optree.tree_map(lambda s, g: 0.999 * s + 0.001 * g * g, square, grads)
        rate = RATE * (1 - 0.999**count).sqrt() / (1 - 0.9**count)
        params = optree.tree_map(lambda p, m, s: p - rate * m / (s.sqrt() + 1e-8), params, mean, square)
        return Learner(params, mean, square, count), None

    return fh.scan(epoch, learner, length=epochs)[0]


def learn(learner: Learner, states: Tensor, length: int, epochs: int) -> tuple[Learner, Tensor, Tensor]:
    """One round: try, judge, improve. Also the states to go on from, and the length of an attempt."""
    run = fh.vmap(rollout, in_dims=(None, 0, None), randomness="different")
    states, steps = run(learner.params, states, length)
    gains = fh.vmap(advantages)(steps, act(learner.params, states)[1])
    learner = update(learner, steps, gains, epochs)
    return learner, states, steps.ended.numel() / (steps.ended.sum() + 1.0)


# %% The same in plain PyTorch
# The rollout and the advantages alone, with the carts as a batch.


@torch.no_grad()
def plain_rollout(params: Params, states: Tensor, length: int) -> tuple[Tensor, Tensor]:
    steps = []
    for _ in range(length):
        logit, value = act(params, states)
        push = (torch.rand(len(states)) < torch.sigmoid(logit)).float()
        new = move(states, push)
        ended = fallen(new)
        steps.append((value, ended.float()))
        states = torch.where(ended[:, None], 0.1 * torch.rand(len(states), 4) - 0.05, new)
    advantage, next_value, gains = torch.zeros(len(states)), act(params, states)[1], []
    for value, ended in reversed(steps):
        advantage = 1.0 + GAMMA * (1 - ended) * next_value - value + GAMMA * LAMBDA * (1 - ended) * advantage
        next_value = value
        gains.append(advantage)
    return states, torch.stack(gains[::-1])


# %% Learning


class Result(NamedTuple):
    lengths: list[float]
    attempt: Tensor
    times: Times


def main(
    rounds: int = 60, carts: int = 64, length: int = 128, backend: str = "inductor", pictures: Path = PICTURES
) -> Result:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    params = init_params(units=32)
    zeros = optree.tree_map(torch.zeros_like, params)
    learner = Learner(params, zeros, zeros, torch.tensor(0.0))
    states = 0.1 * torch.rand(carts, 4) - 0.05

    def try_and_judge(params: Params, states: Tensor) -> tuple[Tensor, Tensor]:
        states, steps = fh.vmap(rollout, in_dims=(None, 0, None), randomness="different")(params, states, length)
        return states, fh.vmap(advantages)(steps, act(params, states)[1])

    compiled = fh.jit(try_and_judge, backend=backend)
    times = race(lambda: compiled(params, states), lambda: plain_rollout(params, states, length))

    learn_once = fh.jit(lambda learner, states: learn(learner, states, length, epochs=8), backend=backend)
    lengths = []
    for _ in range(rounds):
        learner, states, mean_length = learn_once(learner, states)
        lengths.append(mean_length.item())

    attempt = rollout(learner.params, torch.tensor([0.0, 0.0, 0.05, 0.0]), 300)[1]
    drawing, (left, right) = figure(2)
    left.plot(lengths, color="tab:orange")
    left.set(title="How long the pole stands", xlabel="round", ylabel="steps from fall to fall", yscale="log")
    right.plot(attempt.state[:, 0].numpy(), label="place (m)")
    right.plot(attempt.state[:, 2].numpy(), label="angle (rad)")
    right.set(title="An attempt of the trained policy", xlabel="step")
    right.legend()
    save(drawing, __file__, pictures)
    return Result(lengths, attempt.ended, times)


if __name__ == "__main__":
    result = main()
    print(f"The pole falls every {result.lengths[0]:.0f} steps at first, every {result.lengths[-1]:.0f} at the end.")
    print("A rollout and its advantages:", result.times)
