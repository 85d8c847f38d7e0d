"""What torch does in its own way, as a capture sees it: ``torch.autograd.Function``, ``torch.library``, control flow,
recurrent layers, and calls that its vmap refuses.
"""

from .. import _torch
from ..trace.hooks import handlers
from .autograd_function import call_autograd_function
from .dynamo import leaf_call, register_leaf
from .library_operator import call_library_operator
from .recurrent import LAYERS
from .symbolic import SymbolicLeaves
from .torch_operators import OPERATORS
from .vmap_refusals import call_on_lanes

__all__ = ["install"]


def _mend_inductor() -> None:
    from ..lowering.inductor import mend_inductor

    mend_inductor()


def install() -> None:
    """Let captures hand over to this room what they see of torch's."""
    handlers.function = call_autograd_function
    handlers.operator = call_library_operator
    handlers.control_flow = OPERATORS
    handlers.layers = LAYERS
    handlers.on_lanes = call_on_lanes
    handlers.register_leaf, handlers.leaf = register_leaf, leaf_call
    handlers.symbolic = SymbolicLeaves()
    _torch.silence_dynamo_at_its_import()
    # An exported program that AOTInductor compiles holds loops of torch's, and nothing that would call this library.
    _torch.when_inductor_is_imported(_mend_inductor)
