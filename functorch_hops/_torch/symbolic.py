"""``torch.fx.symbolic_trace``: whether it runs, and what it can't take as an argument.

Checked against torch 2.11.0, 2.13.0 and 2.14.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.fx.experimental.proxy_tensor import PythonKeyTracer
from torch.utils._pytree import tree_leaves

__all__ = ["is_erased", "is_proxied", "symbolic_tracer"]


def symbolic_tracer() -> fx.Tracer | None:
    """The tracer that runs a model on proxies here. Those of make_fx and torch.export run it on tensors."""
    if not is_fx_symbolic_tracing():
        return None
    # A call without a proxy among its arguments has no other way to it: FX patches this method with a closure.
    patched: Callable[..., object] = nn.Module.__getattr__
    cells = dict(zip(patched.__code__.co_freevars, patched.__closure__ or ()))
    tracer = cells["self"].cell_contents if "self" in cells else None
    return tracer if isinstance(tracer, fx.Tracer) and not isinstance(tracer, PythonKeyTracer) else None


def is_proxied(arguments: Any) -> bool:
    """Whether one of the arguments of a call is a proxy, in torch's trees."""
    return any(isinstance(x, fx.Proxy) for x in tree_leaves(arguments))


def is_erased(node: fx.Node) -> bool:
    return node._erased
