"""What Inductor (torch 2.13, or what a function names) gets wrong of a graph, put right while that graph is compiled.

Faults that its configuration can avoid are avoided there (``inductor``); these need a hand in its code. Each function
says what goes wrong without it. What is wrong with the code of one kernel is put right in ``exact``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves

from .._torch import OpOverload, is_pointwise
from .exact import lowered_by, replaced
from .loops.happening import LOOK

__all__ = ["counted_by_torch", "cured", "graphs_in"]

aten = torch.ops.aten


@contextlib.contextmanager
def cured(module: fx.GraphModule, has_effects: bool) -> Iterator[None]:
    """While Inductor compiles this graph, into which some cures are written. What is wrong with the code that it
    generates is cured by ``exact_arithmetic``.
    """
    from torch._inductor import config

    graphs = graphs_in(module)
    tensors = _tensors_of(graphs)
    # Inductor takes the results of operators that it generates no code for as aligned if their operands are. Of complex
    # tensors these are even the views, and one at an offset known only at run time is not: its assertion fails.
    assume = {"assume_unaligned_fallback_output": True} if any(x.is_complex() for x in tensors) else {}
    kept = _kept() if has_effects else contextlib.nullcontext()
    for part in graphs:
        _unexpand_written(part.graph)
    counted = counted_by_torch() if _is_on_accelerator(tensors) else contextlib.nullcontext()
    with _no_remarks(), _exact_operands(), _separate_loops(), _steps_read(tensors), kept, counted, config.patch(assume):
        yield


@contextlib.contextmanager
def _steps_read(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inductor makes a while loop of a scan, and traces it, which reads the number of the step. Whether numbers may be
    read is a setting for the user's code (``capture_scalar_outputs``), by which torch 2.13 fails here.
    """
    modes = {x.fake_mode for x in tensors if isinstance(x, FakeTensor)}
    outer = [(mode, mode.allow_scalar_outputs) for mode in modes]
    for mode in modes:
        mode.allow_scalar_outputs = True
    try:
        yield
    finally:
        for mode, is_allowed in outer:
            mode.allow_scalar_outputs = is_allowed


@contextlib.contextmanager
def _no_remarks() -> Iterator[None]:
    """Without a line in the log for each operator that C++ calls through torch's dispatcher, which is no fault."""
    log, is_fault = logging.getLogger("torch._inductor.ir"), lambda record: "c-shim" not in str(record.msg)
    log.addFilter(is_fault)
    try:
        yield
    finally:
        log.removeFilter(is_fault)


@contextlib.contextmanager
def _exact_operands() -> Iterator[None]:
    """Give the operands of a branch the strides for which it is compiled: Inductor (torch 2.13) does so for loops only,
    and may store an operand in the layout that suits whoever computes it.
    """
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings
    from torch._inductor.virtualized import V

    def exact(value: Any, node: Any) -> Any:
        if not isinstance(value, ir.TensorBox):
            return value
        return ir.ExternKernel.require_exact_strides(value, node.meta["val"].stride(), allow_padding=False)

    def lower(pred: Any, true_fn: Any, false_fn: Any, operands: Any) -> Any:
        nodes: Any = V.graph.current_node.args[3]
        return original(pred, true_fn, false_fn, [exact(value, node) for value, node in zip(operands, nodes)])

    cond = torch.ops.higher_order.cond
    original = lowerings[cond]
    with lowered_by(cond, lower):
        yield


@contextlib.contextmanager
def _separate_loops() -> Iterator[None]:
    """Keep the memory of a loop in C++ apart from that of its operands (torch 2.13).

    Views among them are named by an expression inside the loop, and for a view of a whole buffer (a squeeze of nothing,
    another dtype) the first step frees the handle: here they are made before it. And a loop that takes no step returns
    its initial carries, which others read and later operators write to: here it copies them, as a loop in Python does.
    """
    from torch._inductor import ir
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu

    def generate(wrapper: Any, loop: Any, *args: Any, **kwargs: Any) -> None:
        carried, constant, views = loop.carried_inputs, loop.additional_inputs, list[str]()

        def named(operand: Any) -> Any:
            if not isinstance(_unboxed(operand), ir.ReinterpretView):
                return operand
            views.append(f"{loop.get_name()}_view{len(views)}")
            wrapper.writeline(f"auto {views[-1]} = {operand.codegen_reference()};")
            return _Named(operand, views[-1])

        loop.carried_inputs, loop.additional_inputs = [*map(named, carried)], [*map(named, constant)]
        own = {output.get_name() for output in loop.outputs}
        try:
            ends, begin = _carried(wrapper, loop), len(wrapper.lines)
            original(wrapper, loop, *args, **kwargs)
            _look_for_signals(wrapper, begin)
            for start, end in zip(loop.carried_inputs, ends):
                if end in own:  # and is no stack that the loop fills
                    wrapper.writeline(_COPIED.format(start=start.codegen_reference(), end=end))
        finally:
            loop.carried_inputs, loop.additional_inputs = carried, constant
        for view in views:
            wrapper.writeline(f"{view}.reset();")

    original: Any = CppWrapperCpu.codegen_while_loop
    with replaced(CppWrapperCpu, "codegen_while_loop", generate):
        yield


def _look_for_signals(wrapper: Any, begin: int) -> None:
    """In each step of the loop in C++ that was written from line ``begin`` on: nobody else does while it runs."""
    from torch._inductor.virtualized import V

    if V.graph.aot_mode:  # a program without Python
        return
    if not getattr(wrapper, "has_look", False):
        wrapper.header.splice(LOOK)
        wrapper.has_look = True
    wrapper.lines.insert(wrapper.lines.index("while (1) {", begin) + 1, "fh::look();")


def _carried(wrapper: Any, loop: Any) -> list[str]:
    """The variables in which a loop in C++ holds its carries."""
    if hasattr(wrapper, "_get_while_loop_carried_output_names"):
        names: list[str] = wrapper._get_while_loop_carried_output_names(loop)
        return names
    return [output.get_name() for output in loop.outputs]  # torch 2.11


_COPIED = """\
if ({end}.data_ptr() == {start}.data_ptr()) {{
    AtenTensorHandle {end}_copy;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_clone({end}, &{end}_copy));
    {end} = RAIIAtenTensorHandle({end}_copy);
}}"""


class _Named(NamedTuple):
    """An operand that the generated code knows by a name of its own."""

    operand: Any
    name: str

    def get_name(self) -> str:
        return str(self.operand.get_name())

    def codegen_reference(self) -> str:
        return self.name


def _unboxed(value: Any) -> Any:
    from torch._inductor import ir

    while isinstance(value, ir.MutableBox):
        value = value.data
    return value


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Keep loops and branches that nobody reads: Inductor (torch 2.13) does not look into them for effects."""
    from torch._inductor import ir

    branch: Any = getattr(ir, "Switch" if TorchVersion(torch.__version__) >= "2.14" else "Conditional")
    if "has_side_effects" in vars(branch):  # in the middle of another compilation, which keeps them
        yield
        return
    kinds = branch, ir.WhileLoop
    for kind in kinds:
        setattr(kind, "has_side_effects", lambda self: True)  # noqa: B010
    try:
        yield
    finally:
        for kind in kinds:
            delattr(kind, "has_side_effects")


_WRITTEN_IN_PLACE = (
    aten.index_put.default,
    aten._unsafe_index_put.default,
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.diagonal_scatter.default,
    aten.as_strided_scatter.default,
)


def _unexpand_written(graph: fx.Graph) -> None:
    """Inductor (torch 2.13) does these writes in place where nobody else reads the value any more. Where its elements
    share memory, because it is expanded, all of them would change: it goes into memory of its own.
    """
    for node in graph.nodes:
        source = node.args[0] if node.target in _WRITTEN_IN_PLACE else None
        if isinstance(source, fx.Node) and _overlaps_itself(source.meta["val"]):
            with graph.inserting_before(node):
                copy = graph.call_function(aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
            copy.meta["val"] = source.meta["val"].clone(memory_format=torch.contiguous_format)
            node.args = (copy, *node.args[1:])


def _overlaps_itself(x: Tensor) -> bool:
    """Whether elements of a tensor share memory, as far as its sizes and strides are numbers."""
    extent = 1
    layout = [(stride, size) for stride, size in zip(x.stride(), x.shape) if type(stride) is int and type(size) is int]
    for stride, size in sorted(layout):
        if size > 1 and stride < extent:
            return True
        extent += (size - 1) * stride
    return any(
        stride == 0 for stride, size in zip(x.stride(), x.shape) if type(stride) is int and type(size) is not int
    )


def _tensors_of(graphs: list[fx.GraphModule]) -> list[Tensor]:
    values = tree_leaves([node.meta.get("val") for part in graphs for node in part.graph.nodes])
    return [x for x in values if isinstance(x, Tensor)]


def _is_on_accelerator(tensors: list[Tensor]) -> bool:
    return any(x.device.type not in ("cpu", "meta") for x in tensors)


@contextlib.contextmanager
def counted_by_torch() -> Iterator[None]:
    """Leave to torch's operators what a loop of torch's counts on the CPU, beside an accelerator: asking whether it
    goes on waits for nothing there, nor does making and reading the indices of its steps. Inductor (torch 2.13) makes
    C++ of them; for it the first call finds out what the processor can do and compiles headers and some kernels, up to
    a minute of one core.
    """
    from torch._inductor.graph import GraphLowering
    from torch._inductor.lowering import fallback_handler

    def call_function(graph: Any, target: Any, args: Any, kwargs: Any) -> Any:
        if not graph.cpp_wrapper and _computes_numbers(graph.current_node):
            return fallback_handler(target, add_to_fallback_set=False)(*args, **kwargs)
        return original(graph, target, args, kwargs)

    original: Any = GraphLowering.call_function
    with replaced(GraphLowering, "call_function", call_function):
        yield


_MOST_COUNTED = 4096
_OF_COUNTERS = {aten.full.default, aten.select.int, torch.ops.prims.iota.default}


def _computes_numbers(node: fx.Node) -> bool:
    """Whether it makes or reads counters, or the indices of a loop's steps, that nobody writes to."""
    has_operator = is_pointwise(node.target) or node.target in _OF_COUNTERS
    nodes = node, *node.all_input_nodes
    return has_operator and all(map(_is_counted, nodes)) and not any(map(_writes, (node, *_users(nodes))))


def _users(nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
    return (user for node in nodes for user in node.users)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_counted(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return True
    n = value.numel()
    return value.device.type == "cpu" and type(n) is int and n <= _MOST_COUNTED


def graphs_in(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The graph and those of its loops and branches."""
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]
