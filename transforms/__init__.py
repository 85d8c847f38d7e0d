"""Transforms over pytrees, compilation and export."""

from functorch_hops.transforms.export import export
from functorch_hops.transforms.gradients import grad, jvp, linearize, value_and_grad, vjp
from functorch_hops.transforms.graph import CapturedGraph, eval_shape, make_graph
from functorch_hops.transforms.jacobians import hessian, jacfwd, jacrev
from functorch_hops.transforms.jit import jit
from functorch_hops.transforms.jitted import CacheInfo, Jitted, Lowered
from functorch_hops.transforms.vmap import vmap

__all__ = [
    "CacheInfo",
    "CapturedGraph",
    "Jitted",
    "Lowered",
    "eval_shape",
    "export",
    "grad",
    "hessian",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "linearize",
    "make_graph",
    "value_and_grad",
    "vjp",
    "vmap",
]
