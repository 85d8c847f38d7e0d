"""The room of Inductor's private API (checked against torch 2.13.0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

__all__ = ["compile_graph"]


def compile_graph(module: fx.GraphModule, fakes: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph whose operators are ours: they become torch's own as AOTAutograd traces it for Inductor."""
    from torch._inductor.compile_fx import compile_fx

    run = compile_fx(module, list(fakes), config_patches=options or None)
    assert callable(run)
    return run
