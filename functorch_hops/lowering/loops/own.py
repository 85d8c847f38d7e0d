"""Operators inside a loop that Inductor makes no C++ of: statements of our own (torch 2.13)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ...ir.meta import TensorMeta
from .extern import in_turn, lower_taped, plain_input, writing_kernel
from .forms import Refused
from .happening import EVENTS, HAPPENING_STATEMENTS
from .lapack import LAPACK, LAPACK_STATEMENTS
from .linear import LINEAR, LINEAR_STATEMENTS
from .ordering import ORDERING, ORDERING_STATEMENTS
from .scattering import SCATTERING, SCATTERING_STATEMENTS
from .sizes import expression_of, size_of
from .source import c_type, numel
from .tapes import TAPED_KERNELS, effectful_taped_kernel

__all__ = ["own_lowering"]

Statement = Callable[..., str]
"""``(node, its tensors, the names of their buffers and of those of its results)``: all contiguous."""


def own_lowering(node: fx.Node) -> Callable[..., Any] | None:
    """How Inductor lowers a node inside a loop, if it is one of these operators."""
    if node.target in TAPED_KERNELS:
        return functools.partial(lower_taped, has_effects=node.target is effectful_taped_kernel)
    for statements, part in _STATEMENTS:
        if node.target in statements:
            return functools.partial(_lower, node, statements[node.target], part)
    return None


_STATEMENTS = (
    (LINEAR_STATEMENTS, LINEAR),
    (LAPACK_STATEMENTS, LAPACK),
    (ORDERING_STATEMENTS, ORDERING),
    (SCATTERING_STATEMENTS, SCATTERING),
    (HAPPENING_STATEMENTS, EVENTS),
)


def _lower(node: fx.Node, statement: Statement, part: str, *args: Any, **kwargs: Any) -> Any:
    from torch._inductor import ir
    from torch._inductor.lowering import empty_strided

    nodes = [x for x in tree_leaves(node.args) if isinstance(x, fx.Node)]
    tensors = [x.meta["val"] for x in nodes if isinstance(x.meta["val"], Tensor)]
    value = node.meta.get("val")
    results = _results_of(value)
    is_done = bool(results) and not any(map(_has_elements, results))
    if not is_done and not all(map(_has_elements, tensors)):
        raise Refused(f"{node.target} of an empty tensor")
    inputs = [plain_input(x) for x in tree_leaves(args) if isinstance(x, ir.TensorBox)]
    outputs = []
    for result in results:
        c_type(result.dtype)
        shape = [expression_of(size_of(size)) for size in result.shape]
        out = empty_strided(shape, None, dtype=result.dtype, device=result.device)
        out.realize()
        outputs.append(out)
    if is_done:
        return outputs[0] if isinstance(value, Tensor) else tuple(outputs)
    kernel = _own_kernel()(inputs, outputs)
    kernel.statement, kernel.part = statement(node, tensors, results, *kernel.arguments), part
    if kernel.has_side_effects():
        in_turn(kernel)
    return outputs[0] if isinstance(value, Tensor) else tuple(outputs)


def _has_elements(x: Tensor) -> bool:
    return numel(TensorMeta.of(x)) != 0


def _results_of(value: Any) -> Sequence[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


@functools.cache
def _own_kernel() -> Any:
    class OwnKernel(writing_kernel()):  # type: ignore[misc]
        statement: str
        part: str

        def has_side_effects(self) -> bool:
            return not self.mutation_outputs

        def codegen(self, wrapper: Any) -> None:
            wrapper.add_statement(self.statement, needs=self.part)

    return OwnKernel
