"""What can hold a value that a function reads: how it is made, read and changed, as text.

In the texts ``N`` is a fresh name, ``V`` and ``W`` are expressions of values, ``H`` is one that gives the holder.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Holder"]


class Holder(NamedTuple):
    name: str
    make: str
    """Statements that bind ``N`` to a holder of ``V``."""
    reads: tuple[str, ...]
    """Expressions for what ``H`` holds."""
    writes: tuple[str, ...]
    """Statements that make ``H`` hold ``W``."""
