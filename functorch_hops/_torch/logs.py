"""torch's structured trace (``TORCH_TRACE``), for tools such as tlparse (checked against torch 2.11.0 and 2.13.0)."""

from __future__ import annotations

from collections.abc import Callable

from torch._logging import trace_structured
from torch._logging._internal import LazyTraceHandler, trace_log

__all__ = ["add_to_trace", "is_traced"]


def is_traced() -> bool:
    """Whether somebody reads the trace. torch's own handler is there without ``TORCH_TRACE`` too: it has no directory
    then, and goes when it first hears something.
    """
    return any(not isinstance(h, LazyTraceHandler) or h.root_dir is not None for h in trace_log.handlers)


def add_to_trace(name: str, text: Callable[[], str]) -> None:
    metadata = {"name": name, "encoding": "json"}
    trace_structured("artifact", metadata_fn=lambda: metadata, payload_fn=text, expect_trace_id=False)
