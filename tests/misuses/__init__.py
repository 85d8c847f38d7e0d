"""Every misuse that the library refuses: test_messages.py checks its words, and that it leaves nothing behind."""

from __future__ import annotations

from misuses import arguments, bodies, derivatives, results, tools, transforms  # noqa: F401 - they register their calls
from misuses.registry import MISUSES, MODES, Misuse

__all__ = ["MISUSES", "MODES", "Misuse"]
