"""The vmap that is older than functorch, by which ``torch.autograd`` batches: ``is_grads_batched``, ``vectorize=True``
and the batched checks of ``gradcheck``.

Its levels are no interpreters, so no rule of an operator hears of them: a tensor is taken out of the level, mapped over
by functorch, and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.vmap import restore_vmap

from ..errors import CaptureError, message

__all__ = ["LEGACY_VMAP", "in_legacy_vmap", "is_legacy_batched", "is_legacy_wrapper", "over_legacy_batch"]

LEGACY_VMAP = torch._C._dispatch_key_parse("VmapMode")
"""The dispatch key that is active inside of it."""


def is_legacy_batched(values: Sequence[Any]) -> bool:
    """Whether such a vmap is active and maps over some of the values."""
    return in_legacy_vmap() and any(map(is_legacy_wrapper, values))


def in_legacy_vmap() -> bool:
    return torch._C._dispatch_tls_is_dispatch_key_included(LEGACY_VMAP)


def is_legacy_wrapper(x: Any) -> bool:
    return isinstance(x, Tensor) and torch._C._functorch.is_legacy_batchedtensor(x)


def over_legacy_batch(
    operation: str, function: Callable[..., Sequence[Tensor | None]], values: Sequence[Any]
) -> tuple[Tensor | None, ...]:
    """``function(*values)``, with the lanes of a legacy vmap as those of one of functorch."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    mapped = [i for i, x in enumerate(values) if is_legacy_wrapper(x)]
    lanes = [torch._remove_batch_dim(values[i], level, 1, 0) for i in mapped]
    if any(map(is_legacy_wrapper, lanes)):
        raise CaptureError(
            message(
                operation,
                "several levels of torch.autograd's own vmap map over it",
                expected="one of is_grads_batched, vectorize=True or a batched check of gradcheck",
                got="one inside another",
                remedy="use fh.vmap, fh.jacrev or fh.jacfwd, which nest",
            )
        )
    is_tensor: list[bool] = []

    def run(*xs: Tensor) -> list[Tensor]:
        given = list(values)
        for i, x in zip(mapped, xs):
            given[i] = x
        outputs = list(function(*given))
        is_tensor[:] = [out is not None for out in outputs]
        return [out for out in outputs if out is not None]

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(LEGACY_VMAP)):
        outputs, dims = restore_vmap(run, (0,) * len(lanes), lanes[0].shape[0], "error")(*lanes)
    results = iter(out if d is None else _with_lanes(out, d, level) for out, d in zip(outputs, dims))
    return tuple(next(results) if is_there else None for is_there in is_tensor)


def _with_lanes(x: Tensor, dim: int, level: int) -> Tensor:
    """Each lane in the layout that its shape alone determines: a tangent of another layout than its primal is copied,
    by an operator that this vmap does not know.
    """
    result: Tensor = torch._add_batch_dim(x.movedim(dim, 0).contiguous(), 0, level)
    return result
