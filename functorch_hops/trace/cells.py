"""Steps of torch's recurrent cells, in operators that every transform knows. ``gates``: what the input gives them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import linear

__all__ = ["elman_step", "gru_step", "lstm_step"]


def elman_step(
    activation: Callable[[Tensor], Tensor], gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return activation(gates + linear(h, weight, bias))


def gru_step(gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    given, kept = (of.split(h.shape[-1], -1) for of in (gates, linear(h, weight, bias)))
    reset, update = ((k + g).sigmoid() for k, g in zip(kept[:2], given[:2]))
    new = (given[2] + kept[2] * reset).tanh()
    return (h - new) * update + new


def lstm_step(gates: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    written, kept, new, shown = (linear(h, weight, bias) + gates).split(c.shape[-1], -1)
    c = kept.sigmoid() * c + written.sigmoid() * new.tanh()
    return shown.sigmoid() * c.tanh(), c
