"""The operator of a Triton kernel as Inductor runs it: a call in Python (torch 2.13 and 2.11).

A call through torch's dispatcher hands over the source each time, which takes longer than the launch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from sympy import sympify

from ..extern import allocated, contiguous_input, writing_kernel
from ..operator import output_metas
from .operator import Launcher, triton_loop

__all__ = ["register_launches"]


@functools.cache
def register_launches() -> None:
    from torch._inductor.lowering import register_lowering

    class TritonLoop(writing_kernel()):  # type: ignore[misc]
        def __init__(self, inputs: Any, outputs: Any, launch: Sequence[Any], lanes: Any, sizes: Sequence[Any]) -> None:
            super().__init__(inputs, outputs, [lanes, *sizes])
            self.tensors, self.launch, self.lanes, self.sizes = [*inputs, *outputs], launch, lanes, sizes

        def codegen(self, wrapper: Any) -> None:
            name = f"triton_loop_{wrapper.next_kernel_suffix()}"
            module = f"__import__({Launcher.__module__!r}, fromlist=['Launcher'])"  # a branch's code has no imports
            wrapper.define_kernel(name, f"{module}.Launcher{tuple(self.launch)!r}", gpu=False)
            lanes, *sizes = map(wrapper.codegen_sizevar, (self.lanes, *self.sizes))
            tensors = ", ".join(x.codegen_reference() for x in self.tensors)
            wrapper.writeline(f"{name}({lanes}, [{', '.join(sizes)}], {tensors})")

    def lower(
        inputs: Any,
        source: str,
        name: str,
        lanes: Any,
        block: int,
        warps: int,
        sizes: Any,
        ranks: Any,
        shapes: Any,
        dtypes: Any,
        device: torch.device,
    ) -> Any:
        outputs = allocated(output_metas(ranks, shapes, dtypes, device))
        given = [contiguous_input(x) for x in inputs]
        TritonLoop(given, outputs, (source, name, block, warps), sympify(lanes), [*map(sympify, sizes)])
        return outputs

    register_lowering(triton_loop, type_promotion_kind=None)(lower)
