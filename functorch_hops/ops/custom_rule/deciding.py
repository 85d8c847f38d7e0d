"""Whether a rule that runs as Python decides by its tangents, see NOTE [Only what is linear is transposed]."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ... import _torch, pytree
from ...derive.linear import is_transposable
from ...hop.autograd import is_recorded_call
from ...hop.rules import operator_of
from ...ir.dependence import Through, dependent_outputs
from ...trace.refusals import READS
from ..closed_call.op import ClosedCallParams

__all__ = ["Transposition", "apart", "is_transposed", "transposed_call"]

_READS = {*READS, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose} - {Tensor.__format__, Tensor.data_ptr}
"""What gives Python a value, by which it may decide."""
_SAME_FOR_ALL = {
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like, torch.randn_like),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty),
    *(torch.isnan, torch.isinf, torch.isfinite, Tensor.isnan, Tensor.isinf, Tensor.isfinite),
}
"""What is the same for all finite tangents."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.all: list[Transposition] = []
        self.watching: Transposition | None = None


_active = _Active()


class Transposition(TorchFunctionMode):
    """The run of a rule at tangents of zero, whose gradient is to be the transpose.

    ``identity``: that of the rule. ``decides``: it compared what depends on the tangents, and used or read the outcome.
    """

    def __init__(self, identity: tuple[Hashable, ...], zeros: Sequence[Tensor]) -> None:
        super().__init__()
        self.identity, self.decides = identity, False
        self._leaves = {id(z): z for z in zeros if z.requires_grad}
        self._known = _torch.WeakTensorKeyDictionary()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _active.watching is not self:
            return func(*args, **kwargs)
        operands = _tensors((args, kwargs))
        reached = [] if func in _SAME_FOR_ALL else [t for t in operands if self.reaches(t)]
        result = func(*args, **kwargs)
        outs = _tensors(result)
        for t in (*outs, *(operands[:1] if func is Tensor.__setitem__ else [])):
            self._known[t] = bool(reached)
        if reached and torch.is_grad_enabled():
            compared = any(t.dtype == torch.bool for t in reached)
            self.decides |= func in _READS or (compared and any(t.requires_grad for t in outs))
        return result

    def reaches(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the tangents: it was seen to, or autograd leads from it to them."""
        known = self._known.get(tensor)
        if known is None:
            base = _torch.base_tensor(tensor)
            known = self._known[tensor] = id(base) in self._leaves or self._leads_back(base.grad_fn)
        return bool(known)

    def _leads_back(self, node: Any) -> bool:
        return any(id(getattr(n, "variable", None)) in self._leaves for n in _history([node]))

    def decides_in_graphs(self, tangents: Sequence[Tensor]) -> bool:
        """Whether a call that ran as a graph did: it saved what depends on the tangents, and has no derivative."""
        return any(_saves_decisions(n, self._leads_back) for n in _history([t.grad_fn for t in tangents]))


def _history(nodes: Sequence[Any]) -> Iterator[Any]:
    """The nodes of autograd behind these, and these."""
    todo, seen = [n for n in nodes if n is not None], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [below for below, _ in node.next_functions if below is not None]


def _saves_decisions(node: Any, leads_back: Callable[[Any], bool]) -> bool:
    if not is_recorded_call(node):
        return False
    edges = iter(node.next_functions)
    mask = tuple(i not in node.numbers and leads_back(next(edges)[0]) for i in range(len(node.active)))
    if isinstance(node.params, ClosedCallParams):
        body = node.params.body
        return not is_transposable(body, mask, dependent_outputs(body, mask, Through.GRADIENT))
    found, smooth = (
        operator_of(node.augmented).rules.dependent_outputs(node.augmented, mask, through, node.trips)
        for through in (Through.READ, Through.TANGENT)
    )
    return any(f and not s for f, s in list(zip(found, smooth))[node.params.n_outputs :])


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.flatten(tree)[0] if isinstance(x, Tensor)]


@contextlib.contextmanager
def transposed_call(identity: tuple[Hashable, ...], zeros: Sequence[Tensor]) -> Iterator[Transposition]:
    """Around the run of a rule. It may call its own function on its tangents, which says that it is linear: it is
    differentiated as it is.
    """
    run = Transposition(identity, zeros)
    outer, _active.watching = _active.watching, run
    _active.all.append(run)
    try:
        with run:
            yield run
    finally:
        _active.all.pop()
        _active.watching = outer


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Around a call that has a derivative of its own: what it decides is no part of the transposed function."""
    outer, _active.watching = _active.watching, None
    try:
        yield
    finally:
        _active.watching = outer


def is_transposed(identity: tuple[Hashable, ...], inputs: Sequence[Tensor]) -> bool:
    """Whether a rule with this identity is being transposed, and calls its function on its tangents."""
    return any(run.identity == identity and any(map(run.reaches, inputs)) for run in _active.all)
