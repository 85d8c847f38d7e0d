"""``refusal``: a derivative that does not exist, as a value that must not be computed.

NOTE [What is missing is missed late] Backward passes are prepared for being differentiated again, by functorch at every
level and by loops in their graphs, and most never are. So what has no derivative is no error where a derivative is
prepared, but where one is computed: in a capture it becomes a node that raises when it runs, or is lowered. Where
nobody reads it, it is dead code.

Static parameters: the error, and the metadata of the outputs. Operands: what the derivative would depend on, the values
and the cotangents or tangents that ask for it; so a derivative of it is missed as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...capture.current import current_capture
from ...capture.liveness import Pruned
from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...capture.subgraph import Mask, StaticParameters, TensorMeta, is_differentiable
from ...errors import ArgumentTypeError, ArgumentValueError, FunctorchHopsError, message
from ...hop import Hop, Rules

__all__ = ["Refusal", "closed_over", "missing", "refusal_op", "refused"]


@dataclass(frozen=True)
class Refusal:
    """An error that may be raised later."""

    error: type[FunctorchHopsError]
    name: str
    problem: str
    remedy: str
    got: str | None = None

    def exception(self) -> FunctorchHopsError:
        return self.error(message(self.name, self.problem, got=self.got, remedy=self.remedy))


def missing(name: str, problem: str, remedy: str) -> Refusal:
    """The rule has no such derivative."""
    return Refusal(ArgumentTypeError, name, problem, remedy)


def closed_over(name: str, what: str) -> Refusal:
    """The rule says nothing of a value that the function closes over."""
    problem = "differentiated with respect to a value that the function closes over, of which its rule says nothing"
    remedy = "pass the value as an argument, or detach() it where the function reads it"
    return Refusal(ArgumentValueError, name, problem, remedy, got=f"a closed-over {what}")


def refused(refusal: Refusal, outputs: Sequence[TensorMeta], asked: Sequence[Tensor]) -> Sequence[Tensor]:
    """In place of derivatives like ``outputs``, which depend on ``asked``."""
    if current_capture() is None:
        raise refusal.exception()
    return refusal_op(_static(refusal, outputs), *asked)


def _static(refusal: Refusal, outputs: Sequence[TensorMeta]) -> StaticParameters:
    return StaticParameters("refusal", [], refusal=refusal, outputs=tuple(outputs), n_outputs=len(outputs))


def refusal_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    raise static["refusal"].exception()


def refusal_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [meta.empty() for meta in static["outputs"]]


def refusal_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    by_value = by in ("value", "lane")
    return tuple(any(sources) and (by_value or is_differentiable(meta.dtype)) for meta in static["outputs"])


def refusal_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    batched = _static(static["refusal"], [meta.with_leading(size) for meta in static["outputs"]])
    return refusal_op(batched, *operands), (True,) * static["n_outputs"]


def refusal_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """What is missing has no derivative that is known: it is missing too."""
    moves = refusal_reached(static, tuple(t is not None for t in tangents), "tangent")
    moving = iter(refusal_op(static, *primals, *(t for t in tangents if t is not None)))
    return refusal_op(static, *primals), [t if m else None for t, m in zip(moving, moves)]


def refusal_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    return static


def refusal_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    metas = [TensorMeta.of(x) for x, a in zip(operands, active) if a]
    asked = [ct for ct in cotangents if ct is not None]
    grads = iter(refusal_op(_static(static["refusal"], metas), *operands, *asked))
    return [next(grads) if a else None for a in active]


def refusal_prune(static: StaticParameters, used: Mask) -> Pruned | None:
    return None


def refusal_forward(static: StaticParameters, operands: Sequence[Hashable]) -> None:
    """Nothing is known of what is not computed."""


refusal_op = Hop(
    "refusal",
    Rules(
        run=refusal_run,
        abstract=refusal_abstract,
        reached=refusal_reached,
        batch=refusal_batch,
        jvp=refusal_jvp,
        augment=refusal_augment,
        pullback=refusal_pullback,
        prune=refusal_prune,
        forward=refusal_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=refusal_run,
    ),
)
