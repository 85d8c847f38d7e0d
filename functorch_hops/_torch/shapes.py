"""Shape functions that an older torch gets wrong (checked against torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import get_computation_dtype
from torch._subclasses.fake_impls import register_op_impl
from torch.torch_version import TorchVersion

__all__: list[str] = []

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def _fake_attention(mode: Any, func: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """torch 2.11 says that logarithms of sums are float32, which those of float64 are not."""
    batch, heads, length, _ = query.shape
    with mode:
        sums = query.new_empty((batch, length, heads), dtype=get_computation_dtype(query.dtype))
        return torch.empty_like(query), sums.transpose(1, 2)


if TorchVersion(torch.__version__) < "2.13":
    register_op_impl(_attention)(_fake_attention)
