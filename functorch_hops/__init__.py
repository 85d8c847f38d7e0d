"""JAX-style control flow and transforms for PyTorch."""

from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CaptureError,
    DataDependentError,
    FunctorchHopsError,
    InfiniteLoopError,
    InputMutationError,
    LeakedTensorError,
    MetadataMismatchError,
    TreeMismatchError,
)
from .ops.associative_scan.api import associative_scan
from .ops.cond.api import cond, switch
from .ops.map.api import map
from .ops.mode import eager_capture
from .ops.scan.api import scan
from .ops.while_loop.api import fori_loop, while_loop
from .transforms import grad, hessian, jacfwd, jacrev, jvp, linearize, value_and_grad, vjp, vmap

__version__ = "0.1.0"

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "CaptureError",
    "DataDependentError",
    "FunctorchHopsError",
    "InfiniteLoopError",
    "InputMutationError",
    "LeakedTensorError",
    "MetadataMismatchError",
    "TreeMismatchError",
    "associative_scan",
    "cond",
    "eager_capture",
    "fori_loop",
    "grad",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "map",
    "scan",
    "switch",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]
