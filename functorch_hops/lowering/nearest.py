"""Which elements an interpolation by the nearest one reads (torch 2.13, ``UpSample.h`` and ``UpSampleKernel.cpp``)."""

from __future__ import annotations

from ctypes import c_float

import torch
from torch import Tensor

__all__ = ["which_nearest"]


def which_nearest(n: int, m: int, scale: float | None, *, is_exact: bool) -> Tensor:
    """Of ``n`` elements that which each of ``m`` reads, as the gradient has it: counted in single precision, by the
    scale that was asked for. But equal and double sizes are counted whatever it is, if places are not the exact ones.
    """
    count = torch.arange(m)
    if not is_exact and m in (n, 2 * n):
        return count // (m // n)
    step = c_float(1 / scale if scale else n / m).value
    # The middle of an element is a double in torch, which rounds the product.
    places = ((count + 0.5).double() * step).float() if is_exact else count.float() * step
    return places.floor().long().clamp(max=n - 1)
