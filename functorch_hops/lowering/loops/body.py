"""A body as a C++ function, by Inductor's own scheduler (torch 2.13).

The body is lowered as a graph of its own. What Inductor would launch - kernels, and functions of inner loops - are
statements of one function, its buffers are places in a workspace; kernels are functions of their own, inlined.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from ... import _torch
from ...ir.meta import TensorMeta
from ...ir.subgraph import Subgraph
from ..barrier import store_shared_sources
from ..decompositions import decompositions
from .convolution import convolutions
from .forms import Refused
from .operator import loop_kernel
from .own import own_lowering
from .products import PRODUCT, PRODUCTS, Factor, product_statements
from .source import Dense, Function, c_type, computed_dtype, defined, n_bytes, numel, offset_after
from .vector_math import kernel_proxy

__all__ = ["Lowered", "lowered", "statements"]

aten = torch.ops.aten

_MULTIPLYING = aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default


@dataclass(frozen=True)
class Lowered:
    """A body, scheduled: Inductor's graph of it, and how many elements a call computes besides inner loops."""

    body: Subgraph
    graph: Any
    work: int
    loops: bool


def traced(body: Subgraph, mode: Any) -> fx.GraphModule:
    """The body in the operators that Inductor lowers. It marks what eager rounds to half precision."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with mode:
        fakes = [meta.fake(mode) for meta in body.inputs]
        module = make_fx(
            lambda *args: list(body.module(*args)), decomposition_table={**decompositions(), **convolutions()}
        )(*fakes)
    module.graph.eliminate_dead_code()
    store_shared_sources(module.graph)
    module.recompile()
    return module


def lowered(body: Subgraph, options: dict[str, Any]) -> Lowered:
    """``body`` as Inductor schedules it; its inner loops are kernels already."""
    from torch._inductor.exc import LoweringException

    with _torch.suspended(keep_autocast=False), torch.no_grad():
        mode = _torch.new_fake_mode()
        with settings(options):
            module = traced(body, mode)
        work, loops = _work(module)
        fakes = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        with settings(options):
            graph = _graph_class()(module, example_inputs=fakes, is_inference=True)
            graph.mode = mode
            try:
                with handlers(graph):
                    graph.run(*fakes)
                    graph.init_wrapper_code()
                    graph._update_scheduler()
            except LoweringException as error:
                raise Refused(_first_line(error)) from error
            if graph.constants:
                raise Refused("its body holds a tensor")
    return Lowered(body, graph, work, loops)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _work(module: fx.GraphModule) -> tuple[int, bool]:
    """How many elements the operators read, write or multiply, and whether one of them loops."""
    total, loops = 1, False
    for node in module.graph.nodes:
        values = node.meta.get("val")
        metas = [TensorMeta.of(x) for x in torch.utils._pytree.tree_leaves(values) if isinstance(x, Tensor)]
        for meta in metas:
            c_type(meta.dtype)
            if meta.device.type != "cpu":
                raise Refused(f"it computes on {meta.device.type}")
        if node.target is loop_kernel:
            loops = True
        elif node.op == "call_function":
            read = [TensorMeta.of(x.meta["val"]) for x in node.all_input_nodes if isinstance(x.meta["val"], Tensor)]
            inner = read[-1].shape[-2] if node.target in _MULTIPLYING else 1
            total += inner * max(map(numel, metas if inner > 1 else [*metas, *read]), default=0)
    return total, loops


def settings(options: dict[str, Any]) -> Any:
    from torch._inductor import config

    ours = {
        "comprehensive_padding": False,
        "cpp.threads": 1,
        "cpp_wrapper": False,
        "emulate_precision_casts": True,
        "graph_partition": False,
        "implicit_fallbacks": False,
        "inplace_buffers": False,
        "max_autotune": False,
        "size_asserts": False,
    }
    return config.patch({**options, **ours})


def handlers(graph: Any) -> contextlib.ExitStack:
    """What Inductor finds around it in ``compile_fx``."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.virtualized import V

    stack = contextlib.ExitStack()
    stack.enter_context(V.set_graph_handler(graph))
    stack.enter_context(V.set_fake_mode(graph.mode))
    stack.enter_context(V.set_extern_kernel_nodes([]))
    stack.enter_context(V.set_debug_handler(DebugContext()))
    return stack


def statements(lowered: Lowered, options: dict[str, Any], first_const: int) -> Function:
    """The body as one function: its kernels one after the other. No step changes its inputs from ``first_const`` on."""
    graph, body = lowered.graph, lowered.body
    graph.wrapper_code.constants = graph.graph_input_names[first_const:]
    with _torch.suspended(keep_autocast=False), torch.no_grad(), settings(options), handlers(graph):
        graph.scheduler.codegen()
    code = graph.wrapper_code
    tail, names = _outputs(graph, body)
    offset = 0
    places = []
    for name, (count, dtype) in code.buffers.items():
        if name not in names:
            c = c_type(dtype)
            places.append(f"auto* {name} = reinterpret_cast<{c}*>(workspace + {offset});")
            offset = offset_after(offset, count * dtype.itemsize)
    head = [f"auto* {name} = in_{i};" for i, name in enumerate(graph.graph_input_names)]
    head += [f"auto* {name} = out_{i};" for name, i in names.items()]
    inner = [f"char* const inner = workspace + {offset};"] if code.inner_workspace else []
    return defined(
        "body",
        body.inputs,
        body.outputs,
        [*head, *places, *inner, *code.statements, *tail],
        before="\n".join(code.kernels),
        needs=list(code.needs),
        dense=code.dense,
        calls=code.functions,
        workspace=offset + code.inner_workspace,
        work=lowered.work,
        loops=lowered.loops,
    )


def _outputs(graph: Any, body: Subgraph) -> tuple[list[str], dict[str, int]]:
    """Statements that copy what is no buffer of its own, and the output that each other buffer is."""
    from torch._inductor import ir

    tail, names = [], {}
    buffers = graph.wrapper_code.buffers
    for i, (out, meta) in enumerate(zip(graph.graph_outputs, body.outputs)):
        layout, name = out.get_layout(), out.get_name()
        dense = ir.FlexibleLayout.contiguous_strides(list(map(int, layout.size)))
        assert all(int(a) == int(b) for a, b, size in zip(layout.stride, dense, layout.size) if int(size) != 1)
        if name not in names and buffers.get(name) == (numel(meta), meta.dtype) and layout.offset == 0:
            names[name] = i
        else:
            tail.append(f"std::memcpy(out_{i}, {name} + {layout.offset}, {n_bytes(meta)});")
    return tail, names


def _operator_name(node: Any) -> str:
    return str(getattr(node, "op_overload", None) or getattr(node, "python_kernel_name", None) or type(node).__name__)


@functools.cache
def _graph_class() -> Any:
    from torch._inductor import ir
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import Scheduler
    from torch._inductor.virtualized import V

    class Scheduling(CppScheduling):
        """Hands a finished kernel on as a C++ function."""

        kernel_proxy_cls = kernel_proxy()

        def flush(self) -> None:
            group = self.kernel_group
            group.stack.close()
            if group.scheduled_nodes:
                wrapper: Any = V.graph.wrapper_code
                wrapper.add_kernel(group.args, group.loops_code.getvalue())
            self.reset_kernel_group()
            self._set_flush_status(False)

    class BodyScheduler(Scheduler):
        def create_backend(self, device: torch.device) -> Any:
            V.graph.add_device_info(device)
            return Scheduling(self)

    class Statements(PythonWrapperCodegen):
        """Collects what would be launched as statements of a function."""

        def __init__(self) -> None:
            super().__init__()
            self.statements: list[str] = []
            self.kernels: list[str] = []
            self.functions: list[Function] = []
            self.buffers: dict[str, tuple[int, torch.dtype]] = {}
            self.inner_workspace = 0
            self.needs: dict[str, None] = {}
            self.dense: list[Dense] = []
            self.constants: Sequence[str] = ()

        def writeline(self, line: Any) -> None:
            raise Refused(f"Inductor writes a {type(line).__name__} for it")

        def make_comment(self, line: Any) -> None:
            pass

        def generate_extern_kernel_out(self, node: Any, *args: Any) -> None:
            if node.op_overload not in PRODUCTS:
                self._no_code(node)
            self.statements += product_statements(node, node.inputs, self._dense, self._scratch, self.constants)
            self.needs[PRODUCT] = None

        def _dense(self, matrix: Factor, count: int) -> Factor:
            """A copy, row after row, made before the first step if no step changes the matrix."""
            rows, columns = matrix.shape
            name, step = matrix.buffer, rows * columns if matrix.step else 0
            place = list(V.graph.graph_input_names).index(name) if name in self.constants else -1
            count = count if matrix.step else 1
            copy = Dense(place, matrix.dtype, matrix.offset, count, matrix.step, matrix.shape, matrix.strides)
            if name not in self.constants:
                target = self._scratch(count * rows * columns, computed_dtype(matrix.dtype))
                self.statements.append(copy.copied(name, target))
            else:
                if copy not in self.dense:
                    self.dense.append(copy)
                target = f"dense_{self.dense.index(copy)}"
            return Factor(target, computed_dtype(matrix.dtype), 0, step, matrix.shape, (columns, 1))

        def _scratch(self, count: int, dtype: torch.dtype) -> str:
            name = f"scratch_{len(self.buffers)}"
            self.buffers[name] = count, dtype
            return name

        def _no_code(self, node: Any, *args: Any) -> None:
            raise Refused(f"Inductor makes no C++ of {_operator_name(node)}")

        generate_extern_kernel_alloc = generate_fallback_kernel = _no_code
        generate_index_put_fallback = generate_scatter_fallback = _no_code

        def codegen_free(self, buffer: Any) -> None:
            self.freed.add(buffer.get_name())

        def codegen_deferred_alignment_copies(self, names: Any) -> None:
            pass

        def register_alignment_check_inputs(self) -> None:
            pass

        def codegen_allocation(self, buffer: Any) -> None:
            name, layout = buffer.get_name(), buffer.get_output_spec()
            if name in V.graph.removed_buffers or name in self.allocated or isinstance(buffer, ir.InputBuffer):
                return
            self.allocated.add(name)
            if isinstance(layout, (ir.NoneLayout, ir.MutationLayoutSHOULDREMOVE)):
                return
            if isinstance(layout, ir.NonOwningLayout):
                self._alias(name, layout.view)
            elif isinstance(layout, ir.Layout):
                steps = zip(map(int, layout.size), map(int, layout.stride))
                self.buffers[name] = 1 + sum((size - 1) * stride for size, stride in steps), layout.dtype
            else:
                raise Refused(f"a buffer is laid out as {type(layout).__name__}")

        def _alias(self, name: str, view: Any) -> None:
            base = V.graph.try_get_buffer(view.get_name())
            if base is not None and view.get_name() not in V.graph.graph_inputs:
                self.codegen_allocation(base)
            self.statements.append(f"auto* {name} = {view.get_name()} + {int(view.get_layout().offset)};")

        def add_statement(self, statement: str, needs: str) -> None:
            self.statements.append(statement)
            self.needs[needs] = None

        def add_kernel(self, args: Any, loops: str) -> None:
            definitions, arguments, _ = args.cpp_argdefs()
            if args.sizevars:
                raise Refused("a size is open")
            name = f"kernel_{len(self.kernels)}"
            aliases = "".join(f"auto {old} = {new};\n" for old, new in args.aliases())
            head = f"static C10_ALWAYS_INLINE void {name}({', '.join(definitions)})"
            self.kernels.append(f"{head}\n{{\n{aliases}{loops}\n}}")
            self.statements.append(f"{name}({', '.join(arguments)});")

        def call_function(self, parts: Sequence[str], name: str, workspace: int, arguments: Sequence[str]) -> None:
            self.inner_workspace = max(self.inner_workspace, workspace)
            self.functions.append(Function(name, tuple(parts), workspace, 0, True))
            pointer = "inner" if workspace else "nullptr"
            self.statements.append(f"{name}({', '.join([*arguments, pointer, 'control'])});")

    class BodyGraph(GraphLowering):
        """Inductor's graph of a body, traced in ``mode``. ``local_dtypes``: of buffers that a block of lanes has
        besides (``lanes``).
        """

        mode: Any
        local_dtypes: Mapping[str, torch.dtype] = MappingProxyType({})

        def init_wrapper_code(self, *args: Any, **kwargs: Any) -> None:
            super().init_wrapper_code(*args, **kwargs)
            self.wrapper_code = Statements()

        def _update_scheduler(self) -> None:
            self.scheduler = BodyScheduler(self.operations)

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            lower = own_lowering(self.current_node)
            return super().call_function(target, args, kwargs) if lower is None else lower(*args, **kwargs)

        def get_dtype(self, name: str) -> torch.dtype:
            local = self.local_dtypes.get(name)
            return super().get_dtype(name) if local is None else local

        def output(self, target: Any, args: Any, kwargs: Any) -> None:
            outs = [ir.ExternKernel.require_contiguous(x) for x in args[0]]
            super().output(target, (outs,), kwargs)  # type: ignore[arg-type]

    return BodyGraph
