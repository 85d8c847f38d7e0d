"""The room of Inductor's private API (checked against torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0).

NOTE [Loops run from C++] A loop that is no kernel of its own (``loops``) is torch's: Inductor compiles its body to
kernels, and the loop around them to a wrapper that launches these: in Python, which costs some microseconds for each
kernel and step, or in C++. A graph with such a loop gets the latter. Four things are left to the former: a loop that
stacks all its carries, which the C++ wrapper of torch 2.13 has no code for, one whose operators check something, since
C++ loses the text of their errors, one that calls Python, at which C++ ends the process, and graphs on other devices,
where this was not measured. With torch 2.11, whose C++ wrapper has no code for a loop that writes to its carries, as a
scan does, all loops are. Python handles no signal while C++ runs, so each step looks for them (``cures``).

NOTE [A loop's memory is its own] Inductor gives the memory of a value that nobody reads any more to a later one, and
lets a kernel write over what it reads for the last time. Around loops it miscounts who reads what (torch 2.13): a loop
that takes no step returns its initial carries, whose memory counts as free by then; carries that start as one value
become one accumulator; and what a loop writes in place is declared a second time by a kernel that writes over it. So in
a graph with a loop of torch's each value has memory of its own, whatever the user's configuration of Inductor says; and
a loop of no step copies, since others read its initial carries still.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import profiler
from torch.torch_version import TorchVersion

from .._torch import collections_paused, compile_lock, is_effectful
from ..ir.subgraph import Params, has_effect, params_of
from .barrier import barriers, copied, optimization_barrier, store_shared_sources, stored
from .cures import cured, graphs_in
from .decompositions import decomposed_above_autograd, decompositions
from .exact import exact_arithmetic, replaced
from .loops.extern import register_kernels
from .loops.forms import NativeLoop
from .loops.happening import effect, raising_again
from .loops.operator import effectful_kernel, loop_kernel
from .loops.probing import note_probes
from .loops.tapes import TAPED_KERNELS
from .loops.triton.extern import register_launches
from .loops.triton.operator import triton_loop
from .packaged import put_kernels
from .stages import Code, generated

__all__ = ["compile_graph", "compiled_around", "exact_code", "mend_inductor"]

aten = torch.ops.aten

_LOWERINGS = 52
"""To be raised when a lowering here changes: Inductor's cache on disk knows the graphs, not how they are lowered."""


def compile_graph(module: fx.GraphModule, fakes: Sequence[Tensor], options: dict[str, Any]) -> Code:
    """Compile a graph whose operators are ours: they become torch's own as AOTAutograd traces it for Inductor.

    The result takes a list of its own, which it may empty, of contiguous tensors of these sizes.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    has_effects = any(has_effect(node, module) for node in module.graph.nodes)
    patches = {**options, **_WITHOUT_FOLDING, **_settings(module, fakes, options, has_effects)}
    patches |= _IN_ORDER if has_effects else {}
    graphs: list[Any] = []

    def compile_inner(*args: Any, **kwargs: Any) -> Any:
        graphs.append(compile_fx_inner(*args, **kwargs))
        return graphs[-1]

    with barriers(), _operands_unasserted(), _compiling_ours(has_effects), decomposed_above_autograd():
        run = compile_fx(
            module,
            list(fakes),
            inner_compile=compile_inner,
            config_patches=patches,
            decompositions=decompositions(),
        )
    assert callable(run)
    return _without_wrappers(run, graphs)


def _operands_unasserted() -> contextlib.AbstractContextManager[None]:
    """Without an assertion in the code for each operand: its sizes and strides were seen to before the call."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    return replaced(PythonWrapperCodegen, "codegen_input_size_asserts", lambda wrapper: None)


def _without_wrappers(run: Callable[..., Any], graphs: Sequence[Any]) -> Code:
    """What Inductor made, without what AOTAutograd and Inductor do around it at each call, some microseconds of Python,
    where AOTAutograd says that all of it comes to nothing.

    What is left is for the caller: no gradient is to be recorded, and autocast is off. The first call goes the whole
    way, for Inductor's caches, and so do those that a profiler records.
    """
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    if len(graphs) != 1 or context is None or not _hands_on(context.fw_metadata):
        return lambda operands: run(*operands)
    (graph,) = graphs
    is_new = True

    def call(operands: list[Tensor]) -> Any:
        nonlocal is_new
        if is_new or profiler._is_profiler_enabled:
            is_new = False
            return run(*operands)
        return graph.current_callable(operands)

    return call


def _hands_on(metadata: Any) -> bool:
    """Whether operands and results are those of Inductor's code: none is written to, a view of another, or hidden."""
    return metadata is not None and not (
        metadata.num_mutated_inp_runtime_indices
        or metadata.mutated_graph_handled_indices_seen_by_autograd
        or metadata.num_outputs_aliased
        or metadata.num_intermediate_bases
        or metadata.num_outputs_rng_offset
        or metadata.num_graphsafe_rng_states
        or metadata.tokens
        or metadata.grad_enabled_mutation is not None
    )


class _Ours(threading.local):
    is_active = False
    has_effects = False


_ours = _Ours()


@contextlib.contextmanager
def _compiling_ours(has_effects: bool) -> Iterator[None]:
    """Graphs that are compiled here are ours, whatever is left of our operators in them."""
    _ours.is_active, _ours.has_effects = True, has_effects
    try:
        yield
    finally:
        _ours.is_active = False


@contextlib.contextmanager
def compiled_around() -> Iterator[None]:
    """While Inductor compiles a graph of the user's in which calls of ours are: its forward and its backward graph get
    what they need when their turn comes (``mend_inductor``), the backward graph maybe long after this.
    """
    from torch._inductor import config

    with barriers(), config.patch(_WITHOUT_FOLDING):
        yield


def mend_inductor() -> None:
    """From now on Inductor compiles each graph that has a loop of torch's or an operator of ours in it with its faults
    cured, whoever asked for it: see NOTE [A loop's memory is its own]. To be called once, when Inductor is imported.
    """
    from torch._inductor import compile_fx, config
    from torch._inductor.virtualized import V

    def compile_inner(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        if V.aot_compilation and not _ours.is_active:
            with exact_code(), V.set_aot_compilation(False):
                put_kernels(module)
        targets = {node.target for part in graphs_in(module) for node in part.graph.nodes}
        is_loop, is_ours = not _NATIVE_LOOPS.isdisjoint(targets), not _OPERATORS.isdisjoint(targets)
        if _ours.is_active:
            return _compile_inner(original, _ours.has_effects, module, *args, **kwargs)
        if not (is_loop or is_ours):
            return original(module, *args, **kwargs)
        has_effects = any(isinstance(target, torch._ops.OpOverload) and is_effectful(target) for target in targets)
        patches = dict(_WITHOUT_REUSE) if is_loop else {}
        is_package = V.aot_compilation  # of AOTInductor's, which is C++ in any case
        in_python = not _LOOPS_IN_CPP or has_effects or _STACKING_LOOP in targets
        if not is_package and (not _OF_PYTHON.isdisjoint(targets) or (is_loop and in_python)):
            patches["cpp_wrapper"] = kwargs["cpp_wrapper"] = False
        with config.patch(patches):
            code = _compile_inner(original, has_effects, module, *args, **kwargs)
        if effectful_kernel in targets:
            code.current_callable = raising_again(code.current_callable)
        return code

    def pass_over(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        is_loop = any(node.target in _NATIVE_LOOPS for part in graphs_in(module) for node in part.graph.nodes)
        patches = {**(_WITHOUT_PADDING if is_loop else {}), **(_AS_IN_EAGER if _ours.is_active else {})}
        with config.patch(patches):
            return passes(module, *args, **kwargs)

    original: Any = compile_fx._compile_fx_inner
    passes: Any = compile_fx._recursive_joint_graph_passes
    setattr(compile_fx, "_compile_fx_inner", functools.wraps(original)(compile_inner))  # noqa: B010
    setattr(compile_fx, "_recursive_joint_graph_passes", functools.wraps(passes)(pass_over))  # noqa: B010


_LOOPS_IN_CPP = TorchVersion(torch.__version__) >= "2.13"
"""See NOTE [Loops run from C++]."""
_STACKING_LOOP = torch.ops.higher_order.while_loop_stack_output
_NATIVE_LOOPS = {
    torch.ops.higher_order.while_loop,
    _STACKING_LOOP,
    torch.ops.higher_order.scan,
    torch.ops.higher_order.associative_scan,
}
_OF_PYTHON = {*TAPED_KERNELS, triton_loop}
_OPERATORS = {effect, effectful_kernel, loop_kernel, optimization_barrier, stored, *_OF_PYTHON}


_WITHOUT_FOLDING = {"joint_graph_constant_folding": False}
"""Inductor (torch 2.13) takes a value plus zeros for the value, an expanded one too, and then writes to it in place."""
_WITHOUT_PADDING = {"shape_padding": False}
"""On GPUs products are padded where that is faster, and results are parts of larger ones: they are not laid out as the
carries of a loop any more, as torch's loops ask.
"""
_AS_IN_EAGER = {"emulate_precision_casts": True, "optimize_scatter_upon_const_tensor": False}
"""A cast to half precision before another one is no detour, but rounds; a number written to a place that is none is an
error.
"""
_IN_ORDER = {"reorder_for_peak_memory": False}
"""Effects stay in order: Inductor sees no dependence between them."""
_WITHOUT_REUSE = {"allow_buffer_reuse": False, "inplace_buffers": False, "memory_planning": False}
"""See NOTE [A loop's memory is its own]."""


def _settings(
    module: fx.GraphModule, fakes: Sequence[Tensor], options: dict[str, Any], has_effects: bool
) -> dict[str, Any]:
    """What the loops of a graph ask of Inductor's configuration, if it has any."""
    kinds = [(params, params.operator.rules.native_loop(params)) for params in _operators(module)]
    loops = [(params, kind) for params, kind in kinds if kind is not None]
    of_python = _is_of_python(module)
    if not loops:
        return {"cpp_wrapper": False} if of_python or has_effects else {}
    is_stacking = any(kind is NativeLoop.STACKED_CARRIES for _, kind in loops)
    is_quiet = not has_effects and not any(params.calls_python for params in _operators(module))
    is_on_cpu = all(x.device.type == "cpu" for x in fakes)
    can_run = _LOOPS_IN_CPP and not is_stacking and not of_python and is_quiet and is_on_cpu
    return {"cpp_wrapper": can_run and options.get("cpp_wrapper", True), **_WITHOUT_REUSE}


@contextlib.contextmanager
def exact_code() -> Iterator[None]:
    """While code is generated, for a graph or for the kernel of a loop: our operators are known, and faults cured."""
    with compile_lock():
        with collections_paused():  # Inductor is imported
            _register_operators()
            register_kernels()
            register_launches()
            note_probes()
        with exact_arithmetic():
            yield


def _operators(module: fx.GraphModule) -> Iterator[Params]:
    """The operators of this library in a graph, those in their bodies included."""
    for node in module.graph.nodes:
        params = params_of(node, module)
        if params is not None:
            yield params
            for body in params.bodies:
                yield from _operators(body.module)


def _is_of_python(module: fx.GraphModule) -> bool:
    """Whether a loop is a kernel that code in C++ can't call."""
    if any(node.target in _OF_PYTHON for node in module.graph.nodes):
        return True
    return any(_is_of_python(body.module) for params in _operators(module) for body in params.bodies)


def _compile_inner(
    original: Callable[..., Any], has_effects: bool, module: fx.GraphModule, *args: Any, **kwargs: Any
) -> Any:
    """Compile a graph with Inductor's faults cured."""
    import torch.compiler.config as compiler

    tag = f"{compiler.cache_key_tag} functorch_hops {_LOWERINGS} {'whole' if _ours.is_active else 'around'}"
    tagged = compiler.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    with cured(module, has_effects), exact_code(), _compiled_together(), tagged:
        for part in graphs_in(module):
            store_shared_sources(part.graph)
        code = original(module, *args, **kwargs)
    generated(getattr(code, "source_code", None) or "")
    return code


def _compiled_together() -> contextlib.AbstractContextManager[None]:
    """See NOTE [Kernels compiled together]."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    def write_header(wrapper: Any) -> None:
        original(wrapper)
        wrapper.header.splice(_TOGETHER, strip=True)

    original: Any = PythonWrapperCodegen.write_header
    return replaced(PythonWrapperCodegen, "write_header", write_header)


_TOGETHER = """
    from functorch_hops.lowering.together import AsyncCompile
    async_compile = AsyncCompile()
"""


@functools.cache
def _register_operators() -> None:
    """The barrier as a node that reads the value and what it waits for, and whose result is the value's own memory."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering

    class Barrier(ir.MultiOutput):
        """An extern kernel of no code: Inductor also ends its current group of kernels, and frees memory, there.

        Inductor writes a result over a buffer that it reads for the last time. Of an alias it does so too, and then
        gives the same memory away once more when the aliased buffer is freed; only the aliases that a ``MultiOutput``
        makes are left alone (torch 2.13).
        """

        def __init__(self, view: Any, until: Sequence[Any]) -> None:
            super().__init__(ir.NonOwningLayout(view), view, [])
            self.inputs = [view, *until]
            self.memory: str = view.get_name()

        def get_inputs_that_alias_output(self) -> list[str]:
            return [self.memory]

        def should_allocate(self) -> bool:
            return True  # which for this layout means to name the memory of the view

        def codegen(self, wrapper: Any) -> None:
            pass

    def lower(value: Any, until: Sequence[Any]) -> Any:
        storage, layout = ir.as_storage_and_layout(ir.ExternKernel.realize_input(value))
        view = ir.ReinterpretView(data=storage, layout=layout)
        awaited = ir.InputsKernel.unwrap_storage([ir.ExternKernel.realize_input(x) for x in until])
        return ir.TensorBox.create(Barrier(view, awaited))

    def store(value: Any) -> Any:
        value.realize()
        return value

    register_lowering(optimization_barrier, type_promotion_kind=None)(lower)
    register_lowering(stored, type_promotion_kind=None)(store)
    register_lowering(copied, type_promotion_kind=None)(lowerings[torch.ops.aten.clone.default])
