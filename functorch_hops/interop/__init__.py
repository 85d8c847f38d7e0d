"""torch's own ways to give derivatives, seen by a capture: ``torch.autograd.Function`` and ``torch.library``."""

from ..trace.hooks import handlers
from .autograd_function import call_autograd_function
from .library_operator import call_library_operator

__all__ = ["install"]


def install() -> None:
    """Let captures hand over to this room what they see of torch's."""
    handlers.function = call_autograd_function
    handlers.operator = call_library_operator
