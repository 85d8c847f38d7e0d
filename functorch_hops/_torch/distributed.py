"""Process groups by name, as graphs hold them (checked against torch 2.13.0)."""

from __future__ import annotations

from typing import Any

__all__ = ["process_group_named"]


def process_group_named(name: str) -> Any:
    """The process group of this process that has this name; raises where there is none."""
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)  # type: ignore[arg-type]
