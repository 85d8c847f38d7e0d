"""A closed call that is made again and again on plain operands of one kind: what does not depend on their values is
settled before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from ...hop.autograd import PlainCall, RecordedCall, is_augmented, vjp_forward
from ...hop.operator import is_plain_call
from ...hop.rules import Maybe
from ...ir.meta import Mask
from ...ir.subgraph import Subgraph
from ...lowering.backends import Compiled, compiled
from ...trace.capture import current_capture
from .op import ClosedCallParams, DeferredCallParams
from .taped import are_whole, partition_of

__all__ = ["prepared"]

Run = Callable[[list[Tensor]], Sequence[Tensor]]


def prepared(params: ClosedCallParams, operands: Sequence[Tensor]) -> Run:
    """The call, for plain operands of these sizes, strides and needs of gradients, with these settings, and nothing
    active but autograd: all of which is for the caller to see to. It may empty the list that it gets.
    """
    active = tuple(x.requires_grad for x in operands)
    if not (torch.is_grad_enabled() and True in active):
        return _runner(params, operands)
    recorded = params.recorded(active)
    if isinstance(recorded, DeferredCallParams):
        return _until_augmented(params, recorded, active, operands)
    return _recorder(recorded, active, operands)


def _until_augmented(
    params: ClosedCallParams, recorded: DeferredCallParams, active: Mask, operands: Sequence[Tensor]
) -> Run:
    """See NOTE [Gradients of gradients are late]."""
    run, saving = _recorder(recorded, active, operands), params.saving()
    is_late = True

    def call(operands: list[Tensor]) -> Sequence[Tensor]:
        nonlocal run, is_late
        if is_late and is_augmented(saving, active):
            run, is_late = _recorder(saving, active, operands), False
        return run(operands)

    return call


def _recorder(params: ClosedCallParams, active: Mask, operands: Sequence[Tensor]) -> Run:
    """The call, which autograd remembers."""
    augmented: Any = vjp_forward(params, active)
    run = _runner(augmented, operands)
    is_late = isinstance(params, DeferredCallParams)
    plain = _PlainRun(augmented, run) if is_late else PreparedCall(params, augmented, active, run)
    apply, n = _torch.applied(RecordedCall), params.n_outputs
    no_tangents = (False,) * len(active)

    def call(operands: list[Tensor]) -> Sequence[Tensor]:
        outs: Sequence[Tensor] = apply(params, augmented, active, no_tangents, None, plain, *operands)
        return outs[:n]

    return call


def _runner(params: ClosedCallParams, operands: Sequence[Tensor]) -> Run:
    """The same without gradients; results are contiguous."""
    code = compiled(params.body, params.backend, params.origin).at(operands)
    contiguous = Tensor.contiguous
    if isinstance(code, Subgraph):
        return lambda operands: tuple(map(contiguous, code(*operands)))
    if all(x.is_contiguous() for x in operands):
        return lambda operands: tuple(map(contiguous, code(operands)))
    return lambda operands: tuple(map(contiguous, code([*map(contiguous, operands)])))


class _PlainRun(PlainCall):
    """The augmented call."""

    def __init__(self, augmented: ClosedCallParams, run: Run) -> None:
        super().__init__(augmented)
        self._run = run

    def run(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self._run([*operands])  # type: ignore[return-value]


class PreparedCall(_PlainRun):
    """The augmented call, and the backward pass where nothing else is active then either, and no gradient of the
    gradient is asked for.
    """

    def __init__(self, params: ClosedCallParams, augmented: ClosedCallParams, active: Mask, run: Run) -> None:
        super().__init__(augmented, run)
        self._params = params
        self._partition = partition_of(params, active)
        self._compiled: dict[Subgraph, Compiled] = {}
        """Backward graphs, one for each set of outputs from which gradients came."""

    def _backward(self, graph: Subgraph) -> Compiled:
        code = self._compiled.get(graph)
        if code is None:
            origin = self._params.origin
            origin = None if origin is None else replace(origin, part="backward", saved=None)
            code = self._compiled[graph] = compiled(graph, self._params.backend, origin)
        return code

    def pull(self, operands: Sequence[Tensor], residuals: Sequence[Tensor], cotangents: Maybe) -> Maybe | None:
        n, given = self._params.n_outputs, [ct for ct in cotangents if ct is not None]
        is_first_order = not torch.is_grad_enabled() and all(ct is None for ct in cotangents[n:])
        is_alone = current_capture() is None and not (_torch.in_legacy_vmap() or _torch.autocast_enabled())
        if not (is_first_order and is_alone and is_plain_call(given)):
            return None
        if not are_whole(self._partition, residuals):
            return None
        return self._partition.pull(self._run_backward, operands, residuals, cotangents[:n])

    def _run_backward(self, graph: Subgraph, operands: list[Tensor]) -> Iterable[Tensor]:
        return map(Tensor.contiguous, self._backward(graph)(operands))
