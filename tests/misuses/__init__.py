"""Every misuse that the library refuses: test_misuse.py checks what it leaves behind, test_messages.py its words."""

from __future__ import annotations

from misuses import arguments, bodies, derivatives, results, transforms  # noqa: F401 - they register their calls
from misuses.registry import MISUSES, MODES, Misuse

__all__ = ["MISUSES", "MODES", "Misuse"]
