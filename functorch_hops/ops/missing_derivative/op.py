"""A derivative that does not exist, as a value that must not be computed.

NOTE [Absent derivatives raise when they run] functorch prepares every backward pass to be differentiated again, and
most never are. So a missing derivative must not raise while it is prepared. In a capture it becomes a node that raises
when it runs or is lowered; if nothing reads it, dead-code elimination removes it. So it is with a rule of the user's
that fails when it is captured, along with the function that it belongs to: the derivative is missing, for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import ArgumentTypeError, ArgumentValueError, FunctorchHopsError, message, user_frame
from ...hop.operator import Hop
from ...ir.meta import TensorMeta
from ...ir.subgraph import Params
from ...trace.capture import current_capture

__all__ = [
    "FailedRule",
    "MissingDerivative",
    "MissingDerivativeParams",
    "absent_derivatives",
    "closed_over",
    "missing",
    "missing_derivative_op",
]


@dataclass(frozen=True)
class MissingDerivative:
    """An error that may be raised later."""

    error: type[FunctorchHopsError]
    name: str
    problem: str
    remedy: str
    got: str | None = None

    def exception(self) -> FunctorchHopsError:
        return self.error(message(self.name, self.problem, got=self.got, remedy=self.remedy))


@dataclass(frozen=True)
class FailedRule:
    """The error with which a rule failed, to be raised again. Rules that failed alike are equal."""

    kind: type[Exception]
    text: str
    error: Exception = field(compare=False)

    @staticmethod
    def of(name: str, error: Exception) -> FailedRule:
        frame = None if isinstance(error, FunctorchHopsError) else user_frame(error)  # ours name the line already
        note = f"{name}: its derivative rule failed at {frame.filename}:{frame.lineno}: {frame.line}" if frame else ""
        if note and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        _forget_frames(error)
        return FailedRule(type(error), f"{error}{note}", error)

    def exception(self) -> Exception:
        return self.error.with_traceback(None)


def _forget_frames(error: BaseException | None) -> None:
    """An error that is kept must not keep the tensors of the frames that it passed."""
    while error is not None:
        error.__traceback__, error = None, error.__cause__ or error.__context__


@dataclass(frozen=True, eq=False)
class MissingDerivativeParams(Params):
    """The error, and the metadata of the outputs.

    Operands: what the derivative would depend on, the values and the cotangents or tangents that ask for it.
    Differentiating the node gives another such node.
    """

    missing: MissingDerivative | FailedRule
    outputs: tuple[TensorMeta, ...]

    @property
    def n_outputs(self) -> int:
        return len(self.outputs)


missing_derivative_op = Hop("missing_derivative", MissingDerivativeParams)


def missing(name: str, problem: str, remedy: str) -> MissingDerivative:
    """The rule has no such derivative."""
    return MissingDerivative(ArgumentTypeError, name, problem, remedy)


def closed_over(name: str, what: str) -> MissingDerivative:
    """The rule says nothing of a value that the function closes over."""
    problem = "differentiated with respect to a value that the function closes over, of which its rule says nothing"
    remedy = "pass the value as an argument, or detach() it where the function reads it"
    return MissingDerivative(ArgumentValueError, name, problem, remedy, got=f"a closed-over {what}")


def absent_derivatives(
    missing: MissingDerivative | FailedRule, outputs: Sequence[TensorMeta], asked: Sequence[Tensor]
) -> Sequence[Tensor]:
    """In place of derivatives like ``outputs``, which depend on ``asked``."""
    if current_capture() is None:
        raise missing.exception()
    return missing_derivative_op(MissingDerivativeParams(missing, tuple(outputs)), *asked)
