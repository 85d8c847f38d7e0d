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
from ..trace.cells import elman_step, gru_step, lstm_step

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


class Options(NamedTuple):
    """As torch's functions take them, in their order."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    @property
    def directions(self) -> tuple[bool, ...]:
        """Whether each goes backwards."""
        return (False, True) if self.bidirectional else (False,)


def _lstm(gates: Tensor, state: State, weights: Weights) -> State:
    h, c = state
    h, c = lstm_step(gates, h, c, weights.of_hidden, weights.bias_of_hidden)
    return h if weights.projected is None else linear(h, weights.projected), c


def _of_h(step: Callable[..., Tensor], gates: Tensor, state: State, weights: Weights) -> State:
    return (step(gates, state[0], weights.of_hidden, weights.bias_of_hidden),)


def _layers(
    step: Cell, xs: Tensor, states: Sequence[Tensor], weights: Sequence[Weights], options: Options
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of the last layer, and the last states of all. ``states``: of h, and of c, with a row for each layer
    and direction.
    """
    xs = xs.transpose(0, 1) if options.batch_first else xs
    last: list[State] = []
    for layer in range(options.num_layers):
        outputs = []
        for is_reversed in options.directions:
            own = weights[len(last)]
            begin = tuple(state[len(last)] for state in states)
            gates = linear(xs, own.of_input, own.bias_of_input)
            end, hs = scan(functools.partial(_stacking, step, own), begin, gates, reverse=is_reversed)
            last.append(end)
            outputs.append(hs)
        xs = torch.cat(outputs, -1) if options.bidirectional else outputs[0]
        if options.dropout and options.train and layer < options.num_layers - 1:
            xs = torch.dropout(xs, options.dropout, True)
    return xs.transpose(0, 1) if options.batch_first else xs, [torch.stack(rows) for rows in zip(*last)]


def _stacking(step: Cell, weights: Weights, state: State, gates: Tensor) -> tuple[State, Tensor]:
    state = step(gates, state, weights)
    return state, state[0]


def _weights(params: Sequence[Tensor], options: Options) -> list[Weights] | None:
    """Of each layer and direction, if there are as many as there should be."""
    n, rest = divmod(len(params), options.num_layers * len(options.directions))
    if rest or n not in ((4, 5) if options.has_biases else (2, 3)):
        return None
    biases = () if options.has_biases else (None, None)
    parts: list[list[Any]] = [[*params[i : i + 2], *biases, *params[i + 2 : i + n]] for i in range(0, len(params), n)]
    return [Weights(*part) for part in parts]


def _layer(step: Cell, *args: Any, **named: Any) -> Any:
    if named:
        return NotImplemented
    xs, states, params, *rest = args
    is_packed = isinstance(params, Tensor) or isinstance(states, Tensor) is (step is _lstm)
    if is_packed:
        return NotImplemented
    states, options = states if step is _lstm else [states], Options(*rest)
    weights = _weights(params, options)
    is_done_by_torch = xs.device.type == "cpu" and not torch.is_grad_enabled()
    if weights is None or is_done_by_torch or _torch.autocast_enabled() or not _agree(xs, states, options):
        return NotImplemented
    out, last = _layers(step, xs, states, weights, options)
    return out, *last


def _agree(xs: Tensor, states: Sequence[Tensor], options: Options) -> bool:
    """Whether there are steps, and a state of that dtype for each layer, direction and element of the batch; else torch
    promotes, or says what is wrong.
    """
    time, batch = (1, 0) if options.batch_first else (0, 1)
    if xs.dim() != 3 or any(state.dim() != 3 or state.dtype != xs.dtype for state in states):
        return False
    rows = options.num_layers * len(options.directions)
    has_steps = isinstance(xs.shape[time], torch.SymInt) or xs.shape[time] > 0
    return has_steps and all(state.shape[:2] == (rows, xs.shape[batch]) for state in states)


LAYERS: dict[Any, Callable[..., Any]] = {
    torch.lstm: functools.partial(_layer, _lstm),
    torch.gru: functools.partial(_layer, functools.partial(_of_h, gru_step)),
    torch.rnn_tanh: functools.partial(_layer, functools.partial(_of_h, functools.partial(elman_step, torch.tanh))),
    torch.rnn_relu: functools.partial(_layer, functools.partial(_of_h, functools.partial(elman_step, torch.relu))),
}
"""By the functions of torch; NotImplemented where torch's own will do."""
