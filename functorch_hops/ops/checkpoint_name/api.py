"""``checkpoint_name``: a value under a name, for policies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import pytree
from ...calls.leaf import one_node
from ...trace.capture import current_capture
from ...trace.refusals import write_to_named
from ..checkpoint.policies import check_name
from ..mode import is_capturing
from .op import CheckpointNameParams, checkpoint_name_op

__all__ = ["checkpoint_name"]


@one_node
def checkpoint_name(x: Any, name: str, /) -> Any:
    """The same value under a name, by which a policy of :func:`checkpoint` may save it.

    ``checkpoint_name : (a, str) -> a``. Equivalent to ``x``.

    Arguments:
        x: any tree; its tensors get the name. Under ``jvp`` their tangents have it too.
        name: what ``fh.checkpoint_policies.save_names`` calls it. Several values may have one name, and one value
            several names.

    Returns:
        A tree like ``x``. In plain eager, where nothing is captured, ``x`` itself.

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
    (out,) = checkpoint_name_op(CheckpointNameParams(name), x)
    capture = current_capture()
    if capture is not None:
        capture.protect(out, write_to_named)
    return out
