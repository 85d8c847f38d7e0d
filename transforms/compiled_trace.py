"""A compiled trace of a jitted function: when it may be used, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functorch_hops import _torch, environment
from functorch_hops.calls.recording import recorded_as_bodies_say
from functorch_hops.calls.trace_cache import Trace
from functorch_hops.ir.dependence import Through, dependent_outputs
from functorch_hops.ir.sizes import facts_hold
from functorch_hops.ops.closed_call.op import ClosedCallParams, closed_call_op
from functorch_hops.trace.buffers import Update, refuse_history, refuse_update, refuse_write_back
from functorch_hops.trace.capture import current_capture

__all__ = ["CompiledTrace"]


Places = dict[environment.Path, tuple[dict[str, Any], str]]
"""Where modules keep the buffers that a call binds anew."""


class Watched(NamedTuple):
    """An environment for which a trace is valid."""

    guard: environment.Guard
    places: Places


class CompiledTrace:
    """A compiled trace, and what must hold for it to be used."""

    def __init__(self, trace: Trace, params: ClosedCallParams, found: environment.Snapshot) -> None:
        self.trace, self.params = trace, params
        self._times_found = 0
        self.watch(found)
        self._states = self.watched.guard.states

    def watch(self, found: environment.Snapshot) -> None:
        """Hold on to an environment that is equal to the one of the trace."""
        bound = {update.path for update in self.trace.updates if update.operand is None}
        places = {path: (mapping, name) for path, mapping, name in found.buffers if path in bound}
        self.statics, self.watched = found.statics, Watched(found.guard(self.trace.paths), places)

    def found_often(self) -> bool:
        """To be asked once for each call that had to search for this trace: True for the first one, the second, the
        fourth and so on.
        """
        self._times_found = n = self._times_found + 1
        return n & (n - 1) == 0

    def is_for(self, found: environment.Snapshot, ignored: frozenset[environment.Path]) -> bool:
        """Whether the trace is valid in this environment, found again."""
        if self.statics.without(ignored) != found.statics or not found.tensors.keys() >= set(self.trace.paths):
            return False
        states = found.guard().states
        return all(states.get(path, state) == state for path, state in self._states.items())

    def allows(self, operands: Sequence[Tensor]) -> bool:
        """Whether all that was assumed about open sizes holds for these arguments."""
        body = self.params.body
        return body.shape_env is None or facts_hold(body.shape_env, body.bind(operands))

    def operands(self, given: list[Tensor]) -> list[Tensor] | None:
        """The arguments and the tensors that the function closes over, as they are now; None if this trace is not
        valid.
        """
        tensors = self.watched.guard()
        if tensors is None:
            return None
        operands = [*given, *self.trace.operands(tensors)]
        return operands if not self.trace.assumed or self.trace.holds_for(operands) else None

    def call(self, operands: list[Tensor], places: Places | None = None) -> Sequence[Tensor]:
        """``places``: of the environment that the operands come from, if it is not the one that is watched now."""
        with recorded_as_bodies_say(self.params.body):
            if not self.trace.updates:
                return closed_call_op(self.params, *operands)
            return self._call_with_updates(operands, self.watched.places if places is None else places)

    def results(self, operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the call returns, given what :meth:`call` computed."""
        returned = self.trace.returned
        return outputs if returned is None else returned.of_any(operands, outputs)

    def _call_with_updates(self, operands: list[Tensor], places: Places) -> Sequence[Tensor]:
        """The call, after which the new values of buffers are written back as the function did.

        The graph works on copies, so that what it saved for reverse mode is not written to.
        """
        body, updates = self.trace.body, self.trace.updates
        if _torch.top_interpreter() is not None or _torch.foreign_capture_active() or current_capture() is not None:
            raise refuse_update("jit", updates[0].path, "is updated")
        first_closed = len(operands) - len(self.trace.sources)
        buffers = [None if u.operand is None else operands[first_closed + u.operand] for u in updates]
        _check_buffers(operands, updates, buffers)
        active = tuple(x.requires_grad for x in operands)
        copies = [x.clone() if any(x is b for b in buffers) else x for x in operands]
        outputs = closed_call_op(self.params, *copies)
        n = len(outputs) - len(updates)
        has_history = dependent_outputs(body, active, Through.GRADIENT)[n:]
        for update, buffer, value, keeps in zip(updates, buffers, outputs[n:], has_history):
            value = value if keeps and torch.is_grad_enabled() else value.detach()
            if buffer is not None:
                buffer.copy_(value)
            else:
                mapping, name = places[update.path]
                mapping[name] = value
        return outputs[:n]


def _check_buffers(operands: Sequence[Tensor], updates: Sequence[Update], buffers: Sequence[Tensor | None]) -> None:
    """The graph has a copy of each updated buffer, without its history; no other operand sees what is written to it."""
    storages = list(map(_torch.storage_key, operands))
    for update, buffer in zip(updates, buffers):
        if buffer is None:
            continue
        if buffer.requires_grad:
            raise refuse_history("jit", update.path)
        if storages.count(_torch.storage_key(buffer)) > 1:
            problem = "shares memory with another tensor that the function reads"
            raise refuse_write_back("jit", update.path, problem, "pass a clone()")
