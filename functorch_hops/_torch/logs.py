"""torch's structured trace (``TORCH_TRACE``), for tools such as tlparse (checked against torch 2.11.0 and 2.13.0)."""

from __future__ import annotations

from collections.abc import Callable

from torch._logging import trace_structured
from torch._logging._internal import trace_log

__all__ = ["add_to_trace", "is_traced"]


def is_traced() -> bool:
    """Whether somebody reads the trace."""
    return bool(trace_log.handlers)


def add_to_trace(name: str, text: Callable[[], str]) -> None:
    metadata = {"name": name, "encoding": "json"}
    trace_structured("artifact", metadata_fn=lambda: metadata, payload_fn=text, expect_trace_id=False)
