"""Process groups by name, as graphs hold them, and DTensors (checked against torch 2.13.0)."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

__all__ = ["is_distributed_tensor", "process_group_named"]


def is_distributed_tensor(t: Tensor) -> bool:
    """Whether a tensor is a DTensor, whose module takes a second to import."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def process_group_named(name: str) -> Any:
    """The process group of this process that has this name; raises where there is none."""
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)  # type: ignore[arg-type]
