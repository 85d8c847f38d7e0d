"""The carry of a plain-eager loop: checked after each step, cheaply."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import pytree
from ...capture.output import OutputSpec, number_as_tensor
from ...capture.validate import check_carry

__all__ = ["PlainCarry"]


class PlainCarry:
    """What the carry of a loop must look like."""

    def __init__(self, operation: str, parameter: str, init: Any) -> None:
        self.operation, self.parameter = operation, parameter
        leaves, self.spec = pytree.flatten(init)
        self.expected = [(x.shape, x.dtype, x.device) for x in leaves]
        self.init = init

    def checked(self, value: Any) -> Any:
        """``value``, its Python numbers as tensors; raises if it is not like the initial carry."""
        leaves, spec = pytree.flatten(value)
        agrees = spec == self.spec
        if agrees:
            for leaf, (shape, dtype, device) in zip(leaves, self.expected):
                if not isinstance(leaf, Tensor):
                    return self.checked(pytree.unflatten(spec, self._without_numbers(leaves)))
                if leaf.shape != shape or leaf.dtype is not dtype or leaf.device != device:
                    agrees = False
        if not agrees:
            check_carry(
                self.operation,
                self.parameter,
                OutputSpec.flatten(self.init)[1],
                OutputSpec.flatten(pytree.map(number_as_tensor, value))[1],
            )
        return value

    def _without_numbers(self, leaves: list[Any]) -> list[Any]:
        converted = [number_as_tensor(x) for x in leaves]
        if not all(isinstance(x, Tensor) for x in converted):
            got = OutputSpec.flatten(pytree.unflatten(self.spec, converted))[1]
            check_carry(self.operation, self.parameter, OutputSpec.flatten(self.init)[1], got)
        return converted
