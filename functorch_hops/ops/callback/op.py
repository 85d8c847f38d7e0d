"""``callback``: the results of a Python function that no graph can hold, such as one of NumPy or SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...calls.output import OutputSpec
from ...hop.operator import Hop
from ...ir.meta import TensorMeta
from ..user_python import UserPython

__all__ = ["CallbackParams", "callback_op"]


@dataclass(frozen=True, eq=False)
class CallbackParams(UserPython):
    """``call``: the tree of the arguments and its constants; ``outputs``: the tensors that one call returns.

    Operands: the tensors among the arguments; outputs: those of all lanes. ``at_once``: one call takes and returns all
    lanes.
    """

    calls_python: ClassVar[bool] = True

    function: Callable[..., Any]
    call: OutputSpec
    outputs: tuple[TensorMeta, ...]
    at_once: bool

    @property
    def n_outputs(self) -> int:
        return len(self.outputs)

    def all_outputs(self, operands: Sequence[Tensor]) -> tuple[TensorMeta, ...]:
        """The outputs with the dimensions of the lanes."""
        lanes = self.lane_sizes(operands)
        return tuple(TensorMeta((*lanes, *meta.shape), meta.dtype, meta.device) for meta in self.outputs)


callback_op = Hop("callback", CallbackParams)
