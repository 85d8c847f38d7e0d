"""A body as a C++ function, by Inductor's own scheduler (torch 2.13).

The body is lowered as a graph of its own. What Inductor would launch - kernels, and functions of inner loops - are
statements of one function, its buffers are places in a workspace; kernels are functions of their own, inlined.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
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
from .broadcasting import store_what_is_broadcast
from .composed import composed
from .convolution import convolutions
from .forms import Refused
from .in_place import update_in_place
from .operator import effectful_kernel, loop_kernel
from .own import own_lowering
from .products import PRODUCT, PRODUCTS, Factor, product_statements
from .resampled import resampled
from .rewritten import rewritten
from .scattering import scatters
from .separable import separable
from .sizes import OpenSize, Size, largest, size_of, symbols
from .source import Dense, Function, c_type, computed_dtype, defined, n_bytes, numel, offset_after
from .tapes import TAPE, TAPED_KERNELS
from .vector_math import kernel_proxy

__all__ = ["Lowered", "Lowering", "statements"]

aten = torch.ops.aten

_MULTIPLYING = aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default


@dataclass(frozen=True)
class Lowered:
    """A body, scheduled: Inductor's graph of it, how many elements a call computes besides inner loops, the open sizes
    in it, and the inputs in which it leaves the outputs of the same number.
    """

    body: Subgraph
    graph: Any
    work: Size
    loops: bool
    sizes: tuple[OpenSize, ...]
    in_place: frozenset[int]


def traced(body: Subgraph, mode: Any) -> fx.GraphModule:
    """The body in the operators that Inductor lowers. It marks what eager rounds to half precision."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with mode:
        fakes = [meta.fake(mode) for meta in body.inputs]
        table = decompositions()
        table = {
            **table,
            **composed(),
            **convolutions(),
            **scatters(table),
            **separable(),
            **resampled(),
            **rewritten(table),
        }
        module = make_fx(lambda *args: list(body.module(*args)), decomposition_table=table)(*fakes)
        _check_dtypes(module, body)
    module.graph.eliminate_dead_code()
    store_shared_sources(module.graph)
    module.recompile()
    return module


def _check_dtypes(module: fx.GraphModule, body: Subgraph) -> None:
    """Operators that others take the place of give what they gave: of a result only the bytes are copied."""
    (results,) = module.graph.output_node().args
    for node, meta in zip(results, body.outputs, strict=True):  # type: ignore[arg-type]
        got = node.meta["val"].dtype
        if got != meta.dtype:
            raise Refused(f"an operator is composed of others that give {got} instead of {meta.dtype}")


class Lowering:
    """A body in the operators that Inductor lowers, and scheduled once it is asked for: lanes need ``plain``, and steps
    the same where nothing is to be written in place, or stored.
    """

    def __init__(self, body: Subgraph, options: dict[str, Any]) -> None:
        self.body, self.options = body, options
        self.mode = _torch.new_fake_mode(body.shape_env)

    @functools.cached_property
    def plain(self) -> Lowered:
        """A function of its inputs."""
        with self._around():
            return self._scheduled(self._traced, frozenset())

    def of_steps(self, n_updated: int) -> Lowered:
        """It may write to its first ``n_updated`` inputs what the same outputs are."""
        with self._around():
            module = fx.GraphModule(self._traced, copy.deepcopy(self._traced.graph))
            in_place = update_in_place(module, n_updated, self.mode)
            is_stored = store_what_is_broadcast(module.graph)
            return self._scheduled(module, in_place) if in_place or is_stored else self.plain

    @functools.cached_property
    def _traced(self) -> fx.GraphModule:
        return traced(self.body, self.mode)

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        with _torch.suspended(keep_autocast=False), torch.no_grad(), settings(self.options):
            yield

    def _scheduled(self, module: fx.GraphModule, in_place: frozenset[int]) -> Lowered:
        from torch._inductor.exc import LoweringException, MissingOperatorWithoutDecomp

        work, loops = _work(module)
        fakes = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        graph = _graph_class()(module, example_inputs=fakes, shape_env=self.body.shape_env, is_inference=True)
        graph.mode = self.mode
        try:
            with handlers(graph):
                graph.run(*fakes)
                graph.init_wrapper_code()
                graph._update_scheduler()
        except MissingOperatorWithoutDecomp as error:  # an operator of the user's
            target = str(error).partition("target: ")[2].partition("\n")[0]
            raise Refused(f"Inductor makes no C++ of {target}") from error
        except LoweringException as error:
            raise Refused(_first_line(error)) from error
        if graph.constants:
            raise Refused("its body holds a tensor")
        return Lowered(self.body, graph, work, loops, _sizes(module), in_place)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _sizes(module: fx.GraphModule) -> tuple[OpenSize, ...]:
    values = torch.utils._pytree.tree_leaves([node.meta.get("val") for node in module.graph.nodes])
    found = [size for x in values if isinstance(x, Tensor) for size in x.shape]
    return symbols([*found, *(x for x in values if isinstance(x, torch.SymInt))])


def _work(module: fx.GraphModule) -> tuple[Size, bool]:
    """How many elements the operators read, write or multiply, and whether one of them loops."""
    total: Size = 1
    loops = False
    for node in module.graph.nodes:
        values = node.meta.get("val")
        if isinstance(values, Tensor) and node.meta.get("unbacked_bindings"):
            raise Refused(f"the size of what {node.target} gives depends on values")
        metas = [TensorMeta.of(x) for x in torch.utils._pytree.tree_leaves(values) if isinstance(x, Tensor)]
        for meta in metas:
            c_type(meta.dtype)
            if meta.device.type != "cpu":
                raise Refused(f"it computes on {meta.device.type}")
        if node.target in (loop_kernel, effectful_kernel, *TAPED_KERNELS):
            loops = True
        elif node.op == "call_function":
            operands = [x.meta["val"] for x in node.all_input_nodes if isinstance(x.meta["val"], Tensor)]
            read = [TensorMeta.of(x) for x in operands]
            if isinstance(node.target, _torch.OpOverload) and node.target._schema.is_mutable:
                metas, read = [], read[1:]
            is_product = node.target in _MULTIPLYING
            inner = size_of(read[-1].shape[-2]) if is_product else 1
            total = total + inner * largest(map(numel, metas if is_product else [*metas, *read]))
    return total, loops


@contextlib.contextmanager
def settings(options: dict[str, Any]) -> Iterator[None]:
    """Inductor's configuration. Where it may ask about open sizes or take the way that is right for all, it does the
    latter. What takes 30 operations and is read again is kept: from the 50 that Inductor allows on a CPU on, chains of
    such values (complex ones) are computed thousands of times.
    """
    from torch._inductor import config
    from torch.fx.experimental import _config as sizes

    ours = {
        "comprehensive_padding": False,
        "cpp.threads": 1,
        "cpp_wrapper": False,
        "emulate_precision_casts": True,
        "graph_partition": False,
        "implicit_fallbacks": False,
        "inplace_buffers": False,
        "max_autotune": False,
        "realize_opcount_threshold": 30,
        "size_asserts": False,
    }
    with config.patch({**options, **ours}), sizes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield


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
    tail, names = _outputs(lowered)
    offset: Size = 0
    places = []
    for name, (count, dtype) in code.buffers.items():
        if name not in names:
            c = c_type(dtype)
            places.append(f"auto* {name} = reinterpret_cast<{c}*>(workspace + {offset});")
            offset = offset_after(offset, count * dtype.itemsize)
    head = []
    for i, (name, meta) in enumerate(zip(graph.graph_input_names, body.inputs)):
        place = f"const_cast<{c_type(meta.dtype)}*>(in_{i})" if i in lowered.in_place else f"in_{i}"
        head.append(f"auto* {name} = {place};")
    head += [f"auto* {name} = out_{i};" for name, i in names.items()]
    # What it hands on is the caller's.
    places += [f"fh::TapeOwner owner_of_{name}({name});" for name in code.tapes if name not in names]
    has_inner = isinstance(code.inner_workspace, OpenSize) or code.inner_workspace > 0
    inner = [f"char* const inner = workspace + {offset};"] if has_inner else []
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
        sizes=lowered.sizes,
        in_place=lowered.in_place,
    )


def _outputs(lowered: Lowered) -> tuple[list[str], dict[str, int]]:
    """Statements that copy what is no buffer of its own, and the output that each other buffer is."""
    from torch._inductor import ir

    tail, names, graph = [], {}, lowered.graph
    buffers = graph.wrapper_code.buffers
    for i, (out, meta) in enumerate(zip(graph.graph_outputs, lowered.body.outputs)):
        layout, name = out.get_layout(), out.get_name()
        if i in lowered.in_place:
            assert name == graph.graph_input_names[i] and layout.offset == 0
            continue
        dense = ir.FlexibleLayout.contiguous_strides(layout.size)
        assert 0 in layout.size or all(a == b for a, b, size in zip(layout.stride, dense, layout.size) if size != 1)
        if name not in names and buffers.get(name) == (numel(meta), meta.dtype) and layout.offset == 0:
            names[name] = i
        else:
            tail.append(f"std::memcpy(out_{i}, {name} + {size_of(layout.offset)}, {n_bytes(meta)});")
    return tail, names


def _extent(layout: Any) -> Size:
    """The elements of a buffer, those between them included."""
    sizes, strides = map(size_of, layout.size), map(size_of, layout.stride)
    extent: Size = 1
    for size, stride in zip(sizes, strides):
        if size == 0:
            return 0
        extent = extent + (size - 1) * stride
    return extent


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
    from torch.utils._sympy.symbol import SymT, symbol_is_type

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

        def can_fuse(self, node1: Any, node2: Any, *args: Any, **kwargs: Any) -> Any:
            """What an input holds before and behind a write to it is not told apart by Inductor's own rule."""
            nodes = node1, node2
            written = {self._name(x) for node in nodes for out in node.get_outputs() for x in out.get_mutations()}
            touched = [{self._name(x.name) for x in node.read_writes.reads_and_writes()} for node in nodes]
            if written.intersection(V.graph.graph_inputs, *touched):
                return False
            return super().can_fuse(node1, node2, *args, **kwargs)

        def _name(self, name: str) -> str:
            """Of the buffer that is called otherwise since something was written to it."""
            return self.mutation_real_name.get(name, name)

    class Statements(PythonWrapperCodegen):
        """Collects what would be launched as statements of a function."""

        def __init__(self) -> None:
            super().__init__()
            self.statements: list[str] = []
            self.kernels: list[str] = []
            self.functions: list[Function] = []
            self.buffers: dict[str, tuple[Size, torch.dtype]] = {}
            self.inner_workspace: Size = 0
            self.needs: dict[str, None] = {}
            self.dense: list[Dense] = []
            self.constants: Sequence[str] = ()
            self.tapes: list[str] = []

        def writeline(self, line: Any) -> None:
            raise Refused(f"Inductor writes a {type(line).__name__} for it")

        def make_comment(self, line: Any) -> None:
            pass

        def generate_extern_kernel_out(self, node: Any, *args: Any) -> None:
            if node.op_overload not in PRODUCTS:
                self._no_code(node)
            self.statements += product_statements(node, node.inputs, self._dense, self._scratch, self.constants)
            self.needs[PRODUCT] = None

        def _dense(self, matrix: Factor, count: Size, in_panels: bool) -> Factor:
            """A copy, row after row or in panels, made before the first step if no step changes the matrix."""
            rows, columns = matrix.shape
            name, step = matrix.buffer, rows * columns if matrix.step else 0
            place = list(V.graph.graph_input_names).index(name) if name in self.constants else -1
            count = count if matrix.step else 1
            copy = Dense(
                place, matrix.dtype, matrix.offset, count, matrix.step, matrix.shape, matrix.strides, in_panels
            )
            if name not in self.constants:
                target = self._scratch(count * rows * columns, computed_dtype(matrix.dtype))
                self.statements.append(copy.copied(name, target))
            else:
                if copy not in self.dense:
                    self.dense.append(copy)
                target = f"dense_{self.dense.index(copy)}"
            return Factor(target, computed_dtype(matrix.dtype), 0, step, matrix.shape, (columns, 1))

        def _scratch(self, count: Size, dtype: torch.dtype) -> str:
            name = f"scratch_{len(self.buffers)}"
            self.buffers[name] = count, dtype
            return name

        def _no_code(self, node: Any, *args: Any) -> None:
            raise Refused(f"Inductor makes no C++ of {_operator_name(node)}")

        generate_extern_kernel_alloc = generate_fallback_kernel = _no_code
        generate_index_put_fallback = generate_scatter_fallback = _no_code

        def codegen_free(self, buffer: Any) -> None:
            self.freed.add(buffer.get_name())

        def codegen_deferred_alignment_copies(self, names: Any, stream: int = 0) -> None:
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
                self.buffers[name] = _extent(layout), layout.dtype
            else:
                raise Refused(f"a buffer is laid out as {type(layout).__name__}")

        def _alias(self, name: str, view: Any) -> None:
            base = V.graph.try_get_buffer(view.get_name())
            if base is not None and view.get_name() not in V.graph.graph_inputs:
                self.codegen_allocation(base)
            self.statements.append(f"auto* {name} = {view.get_name()} + {size_of(view.get_layout().offset)};")

        def add_statement(self, statement: str, needs: str) -> None:
            self.statements.append(statement)
            self.needs[needs] = None

        def add_kernel(self, args: Any, loops: str) -> None:
            definitions, arguments, _ = args.cpp_argdefs()
            name = f"kernel_{len(self.kernels)}"
            aliases = "".join(f"auto {old} = {new};\n" for old, new in args.aliases())
            head = f"static C10_ALWAYS_INLINE void {name}({', '.join(definitions)})"
            self.kernels.append(f"{head}\n{{\n{aliases}{loops}\n}}")
            self.statements.append(f"{name}({', '.join(arguments)});")

        def ensure_size_computed(self, size: Any) -> None:
            if not symbol_is_type(size, SymT.SIZE):
                raise Refused(f"Inductor computes a size before it: {size}")

        def call_function(self, parts: Sequence[str], name: str, workspace: Size, arguments: Sequence[str]) -> None:
            self.inner_workspace = largest([self.inner_workspace, workspace])
            function = Function(name, tuple(parts), workspace, 0, True)
            self.functions.append(function)
            pointer = "inner" if function.has_workspace else "nullptr"
            self.statements.append(f"{name}({', '.join([*arguments, pointer, 'control'])});")

        def own_tape(self, place: str) -> None:
            self.tapes.append(place)
            self.needs[TAPE] = None

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

        def is_unspec_arg(self, name: str) -> bool:
            return False  # numbers are memory, for Triton too

        def output(self, target: Any, args: Any, kwargs: Any) -> None:
            outs = [ir.ExternKernel.require_contiguous(x) for x in args[0]]
            super().output(target, (outs,), kwargs)  # type: ignore[arg-type]

    return BodyGraph
