"""Messages between ranks as functions with derivatives: linear ones, each the transpose of another.

NOTE [Exchanges are transposed] What all ranks compute together is a function of what all of them hold, and an exchange
is a linear map between such collections. Let x_p be the value at place p of n, and ct_p its cotangent. ``Send`` and
``Receive`` are halves of one map, whose other half is what travels: a value that p sends is what p + 1 receives, so the
cotangent of what p + 1 received goes back to p. Hence the transpose of ``Receive`` is ``Send`` the other way round, and
that of ``Send`` is ``Receive``: at the ends of the way, where nothing travels, both are the identity. ``Share`` copies
x_(n-1) to all places: its transpose sums all cotangents there (``Collect``), and theirs is ``Share``. ``Shift`` by k
moves x_p to p + k, its transpose by -k. What is differentiated is the sum over the ranks of what each differentiates.

NOTE [Exchanges are tied] A rank that leaves out the transpose of a message lets another one wait for ever. So an
exchange also takes and returns what is computed along with its values, unchanged: whatever of that is differentiated,
on whichever rank, of whatever order, reverse mode passes through the exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...ir.meta import Mask
from ..custom_rule.call import call_custom_rule
from ..custom_rule.flat_rule import FlatRule, Tensors, differentiable_inputs
from . import messages
from .messages import Route

__all__ = ["Receive", "Send", "Share", "Shift", "exchange"]


@dataclass(unsafe_hash=True)
class Exchange(FlatRule):
    """The first ``n`` operands travel along the route, the others are tied to them; of those that travel the first
    ``n_differentiable`` have derivatives.
    """

    route: Route
    n: int
    n_differentiable: int
    name = "exchange"
    has_backward = has_tangent = True

    def moved(self, values: Tensors, tied: Tensors) -> Any:
        raise NotImplementedError

    def transposed(self) -> Exchange:
        """Between cotangents, of which ``n_differentiable`` travel."""
        raise NotImplementedError

    @property
    def identity(self) -> tuple[Any, ...]:  # type: ignore[override]
        return type(self), self

    def primal(self, *inputs: Tensor) -> Tensors:
        return [*self.moved(inputs[: self.n], inputs[self.n :]), *inputs[self.n :]]

    def forward(self, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        return call_custom_rule(self, inputs), []

    def backward(self, residuals: Tensors, cotangents: Tensors) -> Tensors:
        return call_custom_rule(self.transposed(), cotangents)

    def tangent(self, inputs: Tensors, tangents: Tensors) -> tuple[Tensors, Tensors]:
        of_tangents = replace(self, n=self.n_differentiable)
        return call_custom_rule(self, inputs), call_custom_rule(of_tangents, tangents)

    def vmap(self, operands: Tensors, mapped: Mask, size: int, randomness: str) -> tuple[Tensors, Mask]:
        """What travels has the same shape on all ranks: it is mapped as soon as anything is."""
        values = [x if m else x.expand(size, *x.shape) for x, m in zip(operands[: self.n], mapped)]
        outs = call_custom_rule(self, [*values, *operands[self.n :]])
        return outs, (*(True,) * self.n, *mapped[self.n :])


class Send(Exchange):
    def moved(self, values: Tensors, tied: Tensors) -> Any:
        return messages.send(values, tied, *self.route)

    def transposed(self) -> Exchange:
        return Receive(self.route.reversed(), self.n_differentiable, self.n_differentiable)


class Receive(Exchange):
    def moved(self, values: Tensors, tied: Tensors) -> Any:
        return messages.receive(values, tied, *self.route)

    def transposed(self) -> Exchange:
        return Send(self.route.reversed(), self.n_differentiable, self.n_differentiable)


class Share(Exchange):
    def moved(self, values: Tensors, tied: Tensors) -> Any:
        return messages.share(values, tied, *self.route)

    def transposed(self) -> Exchange:
        return Collect(self.route, self.n_differentiable, self.n_differentiable)


class Collect(Exchange):
    def moved(self, values: Tensors, tied: Tensors) -> Any:
        return messages.collect(values, tied, *self.route)

    def transposed(self) -> Exchange:
        return Share(self.route, self.n_differentiable, self.n_differentiable)


@dataclass(unsafe_hash=True)
class Shift(Exchange):
    offset: int = 0

    def moved(self, values: Tensors, tied: Tensors) -> Any:
        return messages.shift(values, tied, self.offset, *self.route)

    def transposed(self) -> Exchange:
        return replace(self, n=self.n_differentiable, offset=-self.offset)


def exchange(kind: Callable[[Route, int, int], Exchange], route: Route, values: Tensors, tied: Tensors = ()) -> Any:
    """What an exchange makes of the values, and of what is tied to it."""
    if not values:
        return [], tied
    differentiable = differentiable_inputs(values)
    order = sorted(range(len(values)), key=lambda i: not differentiable[i])
    rule = kind(route, len(values), sum(differentiable))
    outs = call_custom_rule(rule, [*(values[i] for i in order), *tied])
    moved = dict(zip(order, outs))
    return [moved[i] for i in range(len(values))], outs[len(values) :]
