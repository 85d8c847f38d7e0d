"""The operator of a kernel as Inductor runs it: a C++ kernel like those that it writes itself (torch 2.13)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from sympy import sympify

from ...ir.meta import TensorMeta
from .drawing import draw
from .forms import TAPE_META
from .happening import effect
from .operator import effectful_kernel, loop_kernel, output_metas
from .sizes import size_of
from .source import program
from .tapes import effectful_taped_kernel

__all__ = [
    "allocated",
    "contiguous_input",
    "in_turn",
    "lower_taped",
    "plain_input",
    "register_kernels",
    "writing_kernel",
]


def in_turn(operation: Any) -> None:
    """Inductor runs an operation that has effects behind the one before it: it sees no dependence between them."""
    from torch._inductor.virtualized import V

    last = getattr(V.graph, "last_effect", None)
    if last is not None:
        V.graph.additional_buffer_deps[operation.get_operation_name()].add(last)
    V.graph.last_effect = operation.get_outputs()[0].get_name()  # type: ignore[attr-defined]


@functools.cache
def writing_kernel() -> Any:
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    class WritingKernel(ir.ExternKernel):
        """Writes into buffers that were allocated for it, as a user's Triton kernel does."""

        def __init__(self, inputs: Any, outputs: Any, sizes: Sequence[Any] = ()) -> None:
            self.device = outputs[0].get_device() if outputs else torch.device("cpu")
            layout = ir.NoneLayout(device=self.device)
            super().__init__(None, layout, self.unwrap_storage([*outputs, *inputs]), tuple(sizes))
            self.arguments = [x.get_name() for x in (*inputs, *outputs)]
            self.name = V.graph.register_buffer(self)
            V.graph.register_operation(self)
            self.mutation_outputs = [ir.MutationOutput(ir.NoneLayout(device=self.device), x, self) for x in outputs]

        def get_outputs(self) -> Any:
            return list(self.mutation_outputs) or [self]

        def get_device(self) -> torch.device:
            return self.device

        def should_allocate(self) -> bool:
            return False

    return WritingKernel


@functools.cache
def _loop_kernel() -> Any:
    from torch._inductor.virtualized import V

    class LoopKernel(writing_kernel()):  # type: ignore[misc]
        """``tape``: the buffer among its outputs that says where the tape lies which it writes, if it does."""

        tape: str | None = None

        def __init__(
            self,
            inputs: Any,
            outputs: Any,
            sizes: Sequence[Any],
            workspace: Any,
            parts: Sequence[str],
            name: str,
            has_effects: bool = False,
        ) -> None:
            super().__init__(inputs, outputs, [*sizes, workspace])
            self.has_effects = has_effects
            self.sizes, self.workspace = sizes, workspace
            self.parts, self.function = parts, name
            self.dtypes = [x.get_dtype() for x in inputs], [x.get_dtype() for x in outputs]
            self.offsets = [int(x.get_layout().offset) for x in (*inputs, *outputs)]

        def has_side_effects(self) -> bool:
            return self.has_effects

        def codegen(self, wrapper: Any) -> None:
            if hasattr(wrapper, "call_function"):  # the body of another loop, see ``body``
                places = [f"{x} + {offset}" for x, offset in zip(self.arguments, self.offsets)]
                places += [str(size_of(size)) for size in self.sizes]
                wrapper.call_function(self.parts, self.function, size_of(self.workspace), places)
                if self.tape is not None:
                    wrapper.own_tape(self.tape)
                return
            name = f"cpp_loop_{wrapper.next_kernel_suffix()}"
            made = program(self.parts, self.function, len(self.sizes), *self.dtypes, self.offsets)
            of_program = ", ".join(map(repr, made))
            text = made.source(name) if V.graph.cpp_wrapper else f"async_compile.loop_kernel({of_program})\n"
            types = list(made.types)
            declaration = f'extern "C" void {name}({", ".join(types)});\n'
            wrapper.define_kernel(name, text, gpu=False, cpp_definition=declaration)
            arguments = [*self.arguments, *map(wrapper.codegen_sizevar, (*self.sizes, self.workspace))]
            wrapper.generate_kernel_call(name, arguments, triton=False, arg_types=types)

    return LoopKernel


def allocated(metas: Sequence[TensorMeta]) -> list[Any]:
    """Buffers that a kernel writes."""
    from torch._inductor.lowering import empty_strided

    outputs = [empty_strided(list(meta.shape), None, dtype=meta.dtype, device=meta.device) for meta in metas]
    for out in outputs:
        out.realize()
    return outputs


def _lower(
    inputs: Any,
    sizes: Any,
    workspace: Any,
    parts: Any,
    name: str,
    ranks: Any,
    shapes: Any,
    dtypes: Any,
    has_effects: bool = False,
) -> Any:
    inputs = [contiguous_input(x) for x in inputs]
    outputs = allocated(output_metas(ranks, shapes, dtypes))
    kernel = _loop_kernel()(inputs, outputs, [*map(sympify, sizes)], sympify(workspace), parts, name, has_effects)
    if has_effects:
        in_turn(kernel)
    return outputs


def lower_taped(
    inputs: Any,
    tape: Any,
    sizes: Any,
    workspace: Any,
    parts: Any,
    name: str,
    ranks: Any,
    shapes: Any,
    dtypes: Any,
    has_effects: bool = False,
) -> Any:
    """Of a kernel in a function of C++: there a tape is the place where it lies."""
    metas = output_metas(ranks, shapes, dtypes)
    outputs = allocated(metas if tape is not None else [*metas, TAPE_META])
    given = [contiguous_input(x) for x in (*inputs, *([] if tape is None else [tape]))]
    kernel = _loop_kernel()(given, outputs, [*map(sympify, sizes)], sympify(workspace), parts, name, has_effects)
    if has_effects:
        in_turn(kernel)
    kernel.tape = outputs[-1].get_name() if tape is None else None
    return outputs


@functools.cache
def register_kernels() -> None:
    from torch._inductor import ir
    from torch._inductor.lowering import fallback_handler, register_lowering
    from torch._inductor.virtualized import V, ops

    def lower_by_python(operator: Any, *args: Any) -> Any:
        before = len(V.graph.operations)
        results = fallback_handler(operator, add_to_fallback_set=False)(*args)
        in_turn(next(x for x in V.graph.operations[before:] if isinstance(x, ir.FallbackKernel)))
        return results

    def lower_draw(key: Any, size: Any, kind: str) -> Any:
        key.realize()
        seed, shape = key.make_loader(), [*map(sympify, size)]
        place = ir.FixedLayout(
            key.get_device(), torch.int64, shape, ir.FlexibleLayout.contiguous_strides(shape)
        ).make_indexer()

        def element(index: Any) -> Any:
            count = ops.index_expr(place(index), torch.int64)
            if kind == "bits":
                low, high = (ops.index_expr(sympify(x), torch.int64) for x in (0, 2**63 - 1))
                return ops.randint64(seed([]), count, low, high)
            return getattr(ops, kind)(seed([]), count)

        dtype = torch.int64 if kind == "bits" else torch.float32
        result = ir.Pointwise.create(device=key.get_device(), dtype=dtype, inner_fn=element, ranges=shape)
        result.realize()
        return result

    register_lowering(loop_kernel, type_promotion_kind=None)(_lower)
    register_lowering(effectful_kernel, type_promotion_kind=None)(functools.partial(_lower, has_effects=True))
    for operator in (effect, effectful_taped_kernel):
        register_lowering(operator, type_promotion_kind=None)(functools.partial(lower_by_python, operator))
    register_lowering(draw, type_promotion_kind=None)(lower_draw)


def plain_input(x: Any) -> Any:
    """An input whose memory is its elements, one after the other from the first."""
    from torch._inductor.ir import ExternKernel

    x = contiguous_input(x)
    return ExternKernel.copy_input(x) if x.get_layout().offset != 0 else x


def contiguous_input(x: Any) -> Any:
    """An input whose elements lie one after the other, from a place that is known."""
    from torch._inductor.ir import ExternKernel

    x = ExternKernel.realize_input(x)
    if 0 in x.get_size():
        return x  # nobody reads it, and Inductor does not lay it out anew
    x = ExternKernel.require_contiguous(x)
    return x if getattr(x.get_layout().offset, "is_Integer", True) else ExternKernel.copy_input(x)
