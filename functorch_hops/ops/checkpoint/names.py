"""``checkpoint_name``: a value under a name, for policies.

An operator of its own, because vmap, jvp and grad rewrite graphs: whatever they make of the value has the name too. It
computes nothing, and is gone in the graphs that compilers see.

Static parameters: ``name``. Operand and output: one tensor.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from ... import pytree
from ...capture.current import current_capture
from ...capture.passes.fission import no_products
from ...capture.passes.hoisting import not_a_loop
from ...capture.subgraph import Mask, StaticParameters
from ...hop import Hop, Rules
from ..mode import is_capturing
from .policies import check_name

__all__ = ["checkpoint_name", "checkpoint_name_op"]


def checkpoint_name(x: Any, name: str, /) -> Any:
    """The same value under a name, by which a policy of :func:`checkpoint` may save it.

    ``checkpoint_name : (a, str) -> a``. Equivalent to ``x``.

    Arguments:
        x: any tree; its tensors get the name. Under ``jvp`` their tangents have it too.
        name: what ``fh.checkpoint_policies.save_names`` calls it. Several values may have one name, and one value
            several names.

    Raises:
        ArgumentTypeError: ``name`` is no string.
        InputMutationError: a named value is written to in a captured body.

    Cost: none.

    Source: ``jax.ad_checkpoint.checkpoint_name``.

    >>> import torch, functorch_hops as fh
    >>> f = lambda x: fh.checkpoint_name(x.exp(), "exp").sin()
    >>> fh.grad(fh.checkpoint(f, policy=fh.checkpoint_policies.save_names("exp")))(torch.tensor(0.0))
    tensor(0.5403)
    """
    check_name("checkpoint_name", "name", name)
    if not is_capturing():
        return x
    return pytree.map(lambda leaf: _named(leaf, name) if isinstance(leaf, Tensor) else leaf, x)


def _named(x: Tensor, name: str) -> Tensor:
    (out,) = checkpoint_name_op(StaticParameters("checkpoint_name", [], name=name, n_outputs=1), x)
    capture = current_capture()
    if capture is not None:
        capture.protect(out)
    return out


def checkpoint_name_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return [x.view_as(x) for x in operands]


def checkpoint_name_reached(static: StaticParameters, sources: Mask, by: str) -> Mask:
    return sources


def checkpoint_name_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    return checkpoint_name_op(static, *operands), mapped


def checkpoint_name_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    (tangent,) = tangents
    return checkpoint_name_op(static, *primals), [None] if tangent is None else checkpoint_name_op(static, tangent)


def checkpoint_name_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    return static


def checkpoint_name_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    return cotangents


def checkpoint_name_prune(static: StaticParameters, used: Mask) -> None:
    return None


def checkpoint_name_forward(static: StaticParameters, operands: Sequence[Hashable]) -> None:
    """It hands its operand on, but under a name that a policy may ask for."""


def checkpoint_name_native(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return operands


checkpoint_name_op = Hop(
    "checkpoint_name",
    Rules(
        run=checkpoint_name_run,
        abstract=checkpoint_name_run,
        reached=checkpoint_name_reached,
        batch=checkpoint_name_batch,
        jvp=checkpoint_name_jvp,
        augment=checkpoint_name_augment,
        pullback=checkpoint_name_pullback,
        prune=checkpoint_name_prune,
        forward=checkpoint_name_forward,
        hoist=not_a_loop,
        fission=no_products,
        native=checkpoint_name_native,
    ),
)
