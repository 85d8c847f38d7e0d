"""Transforms over pytrees."""

from functorch_hops.transforms.gradients import grad, jvp, linearize, value_and_grad, vjp
from functorch_hops.transforms.jacobians import hessian, jacfwd, jacrev
from functorch_hops.transforms.vmap import vmap

__all__ = [
    "vmap",
    "grad",
    "value_and_grad",
    "vjp",
    "jvp",
    "linearize",
    "jacfwd",
    "jacrev",
    "hessian",
]
