"""Tensors that a captured function makes of NumPy arrays, whose memory they share.

NOTE [Memory that others have too] ``torch.from_numpy(a)`` is an operand of the graph, which reads the memory of ``a``
when it runs. In eager Python a write to the tensor is one to ``a``, and the other way round, from that line on; a graph
has no line at which it happens. So a write to the tensor is refused, and so is a capture at whose end an array holds
other bytes than when the tensor was made. The array itself is unknown here, as no mode sees ``from_numpy``: memory that
torch did not allocate is what can't be resized. So it is with ``frombuffer`` and ``from_dlpack`` (``_torch/hooks.py``).
What ``torch.tensor(a)`` copies, or ``as_tensor`` with another dtype, is copied when it is captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _torch
from ..errors import CaptureError, ErrorContext, message

__all__ = ["SharedMemory", "check_unwritten", "shared_memory"]


class SharedMemory(NamedTuple):
    """A tensor that was made of an array, and what it held then."""

    tensor: Tensor
    content: Tensor


def shared_memory(made: Tensor) -> SharedMemory | None:
    """Of a tensor that has just been made from Python; None if it has memory of its own, as most have."""
    with _torch.without_torch_function():
        if isinstance(made, _torch.FakeTensor) or not _torch.has_storage(made) or made.untyped_storage().resizable():
            return None
    with _torch.suspended(keep_autocast=False):
        return SharedMemory(made, made.clone())


def check_unwritten(context: ErrorContext, shared: Sequence[SharedMemory]) -> None:
    with _torch.suspended(keep_autocast=False):
        if all(torch.equal(_bytes(tensor), _bytes(content)) for tensor, content in shared):
            return
    raise CaptureError(
        message(
            context.operation,
            "an array is written to after a tensor was made of it, which shares its memory: the graph reads that when "
            "it runs",
            parameter=context.parameter,
            remedy="make the tensor of a copy: torch.tensor(array)",
        )
    )


def _bytes(t: Tensor) -> Tensor:
    """NaN equals itself, and zeros of both signs differ. With one element or none an array may have any strides."""
    return t.contiguous().as_strided((t.numel(),), (1,)).view(torch.uint8)
