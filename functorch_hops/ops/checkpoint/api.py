"""``checkpoint``: trade time for memory in reverse mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.utils.checkpoint
from torch import Tensor

from ... import _torch, pytree
from ...capture.output import OutputSpec
from ...capture.speculate import speculate_subgraph
from ...capture.subgraph import TensorMeta
from ...capture.validate import check_callable
from ..mode import is_capturing

__all__ = ["checkpoint"]


def checkpoint(
    func: Callable[..., Any], /, *, policy: Any = None, preserve_rng_state: bool = True
) -> Callable[..., Any]:
    """The same function, which stores its inputs for reverse mode and computes everything else again.

    ``checkpoint : (a -> b) -> (a -> b)``. Equivalent to ``func``.

    Arguments:
        func: a function of trees; it may close over anything.
        policy: what is stored all the same; anything but None comes later.
        preserve_rng_state: random numbers are the same in the recomputation.

    Works under every transform, and for ``loss.backward()``.

    Raises:
        ArgumentTypeError: ``func`` is not callable.

    Cost: one more forward pass of ``func`` when gradients are taken; memory of its inputs instead of its residuals.

    Source: ``jax.checkpoint``; Griewank and Walther 2000; asked for under functorch in pytorch/pytorch 122729.

    >>> import torch, functorch_hops as fh
    >>> fh.grad(fh.checkpoint(lambda x: x.sin().sin()))(torch.tensor(0.0))
    tensor(1.)
    """
    check_callable("checkpoint", "func", func)
    if policy is not None:
        raise NotImplementedError("checkpoint: policy= comes in a later version; nothing is saved meanwhile")

    @functools.wraps(func)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not is_capturing() and _torch.top_interpreter() is None:
            return torch.utils.checkpoint.checkpoint(
                func, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state, **kwargs
            )
        return _captured(func, args, kwargs)

    return checkpointed


def save_nothing(node):
    return False


def _captured(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from . import checkpoint_op, checkpoint_static

    leaves, spec = pytree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    outputs: list[OutputSpec] = []

    def run(*flat: Tensor) -> list[Tensor]:
        values = list(leaves)
        for place, value in zip(places, flat):
            values[place] = value
        call_args, call_kwargs = pytree.unflatten(spec, values)
        tensors, output = OutputSpec.flatten(func(*call_args, **call_kwargs))
        outputs.append(output)
        return tensors

    inputs = [TensorMeta.of(leaves[i]) for i in places]
    body, lifted = speculate_subgraph(run, inputs, operation="checkpoint", parameter="func")
    outs = checkpoint_op(checkpoint_static(body, save_nothing), *(leaves[i] for i in places), *lifted)
    return outputs[-1].unflatten(outs)
