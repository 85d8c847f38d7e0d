"""JAX-style control flow and transforms for PyTorch."""

import sys
from typing import TYPE_CHECKING, NoReturn

from . import interop
from .calls.arguments import TensorSpec
from .calls.listening import CaptureEvent
from .calls.spelling import named
from .calls.tracebacks import full_tracebacks
from .errors import (
    AnomalyError,
    ArgumentTypeError,
    ArgumentValueError,
    CaptureError,
    CheckError,
    DataDependentError,
    FunctorchHopsError,
    InfiniteLoopError,
    InputMutationError,
    LeakedTensorError,
    MetadataMismatchError,
    MissingPackageError,
    TooManyCapturesError,
    TreeMismatchError,
)
from .ops.associative_scan.api import associative_scan
from .ops.callback.api import pure_callback
from .ops.checkpoint import policies as checkpoint_policies
from .ops.checkpoint.api import checkpoint
from .ops.checkpoint_name.api import checkpoint_name
from .ops.cond.api import cond, switch
from .ops.custom_rule.api import custom_jvp, custom_vjp
from .ops.fori_loop.api import fori_loop
from .ops.implicit.api import custom_linear_solve, custom_root
from .ops.map.api import map
from .ops.mode import disable_jit, eager_capture
from .ops.scan.api import scan
from .ops.sharded.api import sharded_associative_scan, sharded_scan
from .ops.while_loop.api import while_loop
from .tools import debug
from .tools.annotate import annotate
from .tools.captures import assert_max_captures, log_captures
from .tools.draw import draw
from .tools.explain import Explanation, LoopExplanation, explain
from .tools.nan_report import NanOrigin, NanReport
from .tools.progress import Progress, progress
from .transforms import (
    CacheInfo,
    CapturedGraph,
    Jitted,
    Lowered,
    eval_shape,
    export,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jit,
    jvp,
    linearize,
    make_graph,
    value_and_grad,
    vjp,
    vmap,
)

interop.install()

__version__ = "0.1.0"

__all__ = [
    "AnomalyError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "CacheInfo",
    "CaptureError",
    "CaptureEvent",
    "CapturedGraph",
    "CheckError",
    "DataDependentError",
    "Explanation",
    "FunctorchHopsError",
    "InfiniteLoopError",
    "InputMutationError",
    "Jitted",
    "LeakedTensorError",
    "LoopExplanation",
    "Lowered",
    "MetadataMismatchError",
    "MissingPackageError",
    "NanOrigin",
    "NanReport",
    "Progress",
    "TensorSpec",
    "TooManyCapturesError",
    "TreeMismatchError",
    "annotate",
    "assert_max_captures",
    "associative_scan",
    "checkpoint",
    "checkpoint_name",
    "checkpoint_policies",
    "cond",
    "custom_jvp",
    "custom_linear_solve",
    "custom_root",
    "custom_vjp",
    "debug",
    "disable_jit",
    "draw",
    "eager_capture",
    "eval_shape",
    "explain",
    "export",
    "fori_loop",
    "full_tracebacks",
    "grad",
    "hessian",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "linearize",
    "log_captures",
    "make_graph",
    "map",
    "progress",
    "pure_callback",
    "scan",
    "sharded_associative_scan",
    "sharded_scan",
    "switch",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> NoReturn:
        raise named(name, sys.modules[__name__])
