"""torch's recurrent layers as scans.

NOTE [Recurrent layers] ``nn.LSTM`` and its kin are one call of torch's, of three kinds: a kernel of a library, for
values only, or on GPUs, where it packs the weights by a write to their storage; else the operators of all steps one
after the other, some fifty each with a gradient. A capture can hold the first only, and takes a minute for a hundred
steps of the last. So there a layer is a ``scan``, but where torch's kernel gives all that is asked for: values of
tensors on the CPU, while no gradients are recorded. Packed sequences, whose sizes are data, are left to torch, and
can't be captured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import _torch
from ..ops.scan.api import scan

__all__ = ["LAYERS"]

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, "Weights"], State]


class Weights(NamedTuple):
    """Of one layer in one direction; ``projected``: what makes an output of the hidden state of an LSTM."""

    of_input: Tensor
    of_hidden: Tensor
    bias_of_input: Tensor | None = None
    bias_of_hidden: Tensor | None = None
    projected: Tensor | None = None


def _lstm_step(gates: Tensor, state: State, weights: Weights) -> State:
    h, c = state
    written, kept, new, shown = (gates + linear(h, weights.of_hidden, weights.bias_of_hidden)).chunk(4, -1)
    c = kept.sigmoid() * c + written.sigmoid() * new.tanh()
    h = shown.sigmoid() * c.tanh()
    return h if weights.projected is None else linear(h, weights.projected), c


def _gru_step(gates: Tensor, state: State, weights: Weights) -> State:
    (h,) = state
    given, kept = gates.chunk(3, -1), linear(h, weights.of_hidden, weights.bias_of_hidden).chunk(3, -1)
    reset, update = (given[0] + kept[0]).sigmoid(), (given[1] + kept[1]).sigmoid()
    new = (given[2] + kept[2] * reset).tanh()
    return ((h - new) * update + new,)


def _elman_step(activation: Callable[[Tensor], Tensor], gates: Tensor, state: State, weights: Weights) -> State:
    return (activation(gates + linear(state[0], weights.of_hidden, weights.bias_of_hidden)),)


def _layers(
    step: Cell,
    xs: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of the last layer, and the last states of all. ``states``: of h, and of c, with a row for each layer
    and direction.
    """
    xs = xs.transpose(0, 1) if batch_first else xs
    n_directions = 2 if bidirectional else 1
    n = len(params) // (num_layers * n_directions)
    weights = [_weights(params[i : i + n], has_biases) for i in range(0, len(params), n)]
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for is_reversed in (False, True)[:n_directions]:
            own = weights[len(last)]
            begin = tuple(state[len(last)] for state in states)
            gates = linear(xs, own.of_input, own.bias_of_input)
            end, hs = scan(functools.partial(_stacking, step, own), begin, gates, reverse=is_reversed)
            last.append(end)
            outputs.append(hs)
        xs = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout and train and layer < num_layers - 1:
            xs = torch.dropout(xs, dropout, True)
    return xs.transpose(0, 1) if batch_first else xs, [torch.stack(rows) for rows in zip(*last)]


def _stacking(step: Cell, weights: Weights, state: State, gates: Tensor) -> tuple[State, Tensor]:
    state = step(gates, state, weights)
    return state, state[0]


def _weights(params: Sequence[Tensor], has_biases: bool) -> Weights:
    biases = params[2:4] if has_biases else (None, None)
    rest = params[4 if has_biases else 2 :]
    return Weights(params[0], params[1], *biases, *rest)


def _layer(step: Cell, *args: Any, **named: Any) -> Any:
    if named:
        return NotImplemented
    xs, states, params, *options = args
    is_packed = isinstance(params, Tensor) or isinstance(states, Tensor) is (step is _lstm_step)
    if is_packed:
        return NotImplemented
    states = states if step is _lstm_step else [states]
    is_done_by_torch = xs.device.type == "cpu" and not torch.is_grad_enabled()
    if is_done_by_torch or _torch.autocast_enabled() or not _agree(xs, states, params, *options):
        return NotImplemented
    out, last = _layers(step, xs, states, params, *options)
    return out, *last


def _agree(
    xs: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> bool:
    """Whether there are steps, and a state of that dtype for each layer, direction and element of the batch; else torch
    promotes, or says what is wrong.
    """
    time, batch = (1, 0) if batch_first else (0, 1)
    if xs.dim() != 3 or any(state.dim() != 3 or state.dtype != xs.dtype for state in states):
        return False
    rows = num_layers * (2 if bidirectional else 1)
    has_steps = isinstance(xs.shape[time], torch.SymInt) or xs.shape[time] > 0
    has_parts = len(params) % rows == 0 and len(params) // rows in ((4, 5) if has_biases else (2, 3))
    return has_steps and has_parts and all(state.shape[:2] == (rows, xs.shape[batch]) for state in states)


LAYERS: dict[Any, Callable[..., Any]] = {
    torch.lstm: functools.partial(_layer, _lstm_step),
    torch.gru: functools.partial(_layer, _gru_step),
    torch.rnn_tanh: functools.partial(_layer, functools.partial(_elman_step, torch.tanh)),
    torch.rnn_relu: functools.partial(_layer, functools.partial(_elman_step, torch.relu)),
}
"""By the functions of torch; NotImplemented where torch's own will do."""
