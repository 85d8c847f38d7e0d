"""Autodidax: the core of functorch_hops, rebuilt in some 500 lines of code, and 100 of tests.

This file is a tutorial that runs: ``python docs/autodidax.py``. It is for people who want to change the library, and
it needs nothing but torch. It builds one loop, ``scan``, which ``torch.func`` can batch and differentiate, in any
order and to any depth. Each part ends with an assertion that compares the loop to plain Python.

``scan`` is this loop::

    def scan(f, init, xs):
        carry, ys = init, []
        for x in xs:
            carry, y = f(carry, x)
            ys.append(y)
        return carry, stack(ys)

As it stands, ``torch.func`` can transform it already. But in a compiled or exported program all its steps would be
there, one after another. Such a program should hold one node instead, however many steps there are. That node calls a
*higher-order operator*: an operator that takes a program, the body of the loop, as one of its arguments. torch does
not know how to batch or differentiate it, so we have to say that. This is the whole task:

    1. run a Python function without data and record what it does        fake tensors and proxies
    2. make a closed graph of it, with all that it closes over           Subgraph
    3. an operator that takes such a graph                               scan
    4. what vmap makes of it                                             the batch rule
    5. what forward mode makes of it                                     the jvp rule
    6. split a derivative into forward and backward                      joint graph, partition
    7. what reverse mode makes of it                                     the vjp rule
    8. all of them together                                              vmap(grad(scan))

The rules have a common form. A transform of a scan is again a scan, of a transformed body. So what a rule returns can
be transformed again, by the same rules.

The private functions of torch that are used here were tried with torch 2.13.

The library does more than this file. Each part says what. Some things are left out altogether. Random numbers are
refused. ``no_grad``, autocast, a ``torch.autograd.Function`` and ``torch.autograd.grad`` inside a body may give wrong
results here, without a warning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._C import DispatchKey, _functorch
from torch._functorch import eager_transforms
from torch._functorch import vmap as functorch_vmap
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch._functorch.vmap import restore_vmap, unwrap_batched, wrap_batched
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    PythonKeyTracer,
    disable_proxy_modes_tracing,
    track_tensor_tree,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.testing import assert_close
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

aten = torch.ops.aten
Mask = tuple[bool, ...]
torch.manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Part 1. Fake tensors and proxies: a function becomes a graph
#
# We want to know what a Python function does to tensors, without computing anything. torch has two tools for that.
#
# A *fake tensor* has a shape, a dtype and a device, but no values. Under a FakeTensorMode every operator returns
# fake tensors: it finds out the shape of its result and computes nothing.
#
# A *proxy* stands for a node of a graph. Under a ProxyTorchDispatchMode every operator also adds a node to a graph,
# and the mode remembers which node belongs to which fake tensor. The mode sees the operators at the lowest level of
# torch (ATen), below autograd and below functorch.
#
# So: run the function once, on fake tensors, under both modes. The graph at the end is the *trace* of that run.
#
# What a trace knows of a tensor is its metadata:


class Meta(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")

    @classmethod
    def of(cls, t: Tensor) -> Meta:
        with torch._C.DisableTorchFunction():  # a running trace is not to see this
            return cls(tuple(t.shape), t.dtype, t.device)

    @property
    def is_differentiable(self) -> bool:
        return self.dtype.is_floating_point or self.dtype.is_complex

    def with_leading(self, size: int) -> Meta:
        return self._replace(shape=(size, *self.shape))

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


# A trace may begin anywhere: inside of a vmap, in a backward pass, in the middle of another trace. What the
# function does must not depend on that. So we suspend everything that is active, and the function runs as on a
# fresh thread: no level of functorch (a *level* is one active transform, see part 4), no mode, gradients on.


@contextlib.contextmanager
def below_transforms() -> Iterator[None]:
    has_levels = _functorch.peek_interpreter_stack() is not None
    with temporarily_clear_interpreter_stack() if has_levels else contextlib.nullcontext():
        yield


CLEAN_KEYS = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


@contextlib.contextmanager
def fresh_state() -> Iterator[None]:
    modes = _get_current_function_mode_stack()
    for _ in modes:
        _pop_mode()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(below_transforms())
            stack.enter_context(torch._C._EnableTorchFunction())
            stack.enter_context(_disable_current_modes())
            stack.enter_context(torch._C._ForceDispatchKeyGuard(*CLEAN_KEYS))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_set_fwd_grad_enabled(True))
            yield
    finally:
        for mode in modes:
            _push_mode(mode)


# The recorder holds the graph and makes its inputs. An input is a fake tensor together with a ``placeholder`` node.
# Inputs may be added while the trace runs (part 2 needs this), hence each goes behind the last one.


class Recorder:
    def __init__(self) -> None:
        self.fake_mode = FakeTensorMode()
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        self.tracer = PythonKeyTracer()
        self.tracer.root, self.tracer.graph, self.tracer.tensor_attrs = self.root, self.graph, {}
        self.inputs: list[Meta] = []
        self.storages: set[int] = set()
        self.last_input: fx.Node | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        with fresh_state(), self.fake_mode, ProxyTorchDispatchMode(self.tracer, "fake"):
            yield

    def new_input(self, meta: Meta) -> Tensor:
        last = self.last_input
        place = self.graph.inserting_after(last) if last is not None else self.graph.inserting_before(None)
        with place, torch._C.DisableTorchFunction(), below_transforms(), disable_proxy_modes_tracing(), self.fake_mode:
            fake = meta.empty()
            proxy = self.tracer.create_proxy("placeholder", f"arg{len(self.inputs)}", (), {})
            track_tensor_tree(fake, proxy, constant=None, tracer=self.tracer)
            self.storages.add(storage_of(fake))
        self.last_input = proxy.node
        self.inputs.append(meta)
        return fake

    def proxy_of(self, t: Tensor) -> Any:
        assert t in self.tracer.tensor_tracker, "a tensor that this trace did not make"
        return self.tracer.unwrap_proxy(t)

    def close(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        self.graph.output(tuple(self.proxy_of(t).node for t in outputs))
        return fx.GraphModule(self.root, self.graph)


def storage_of(t: Tensor) -> int:
    return t.untyped_storage()._cdata


# Here is a trace of two operators. No number was computed on the way, and the graph runs on real tensors.


def test_a_function_becomes_a_graph() -> None:
    recorder = Recorder()
    with recorder.recording():
        x = recorder.new_input(Meta((3,), torch.float64))
        y = torch.sin(x) * 2
    assert isinstance(y, FakeTensor)
    graph = recorder.close([y])
    operators = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert operators == [aten.sin.default, aten.mul.Tensor]
    x = random(3)
    assert_close(graph(x)[0], torch.sin(x) * 2)


test_a_function_becomes_a_graph()

# What the library does in addition. It keeps a trace and uses it again as long as it is valid (NOTE [When a trace
# is valid]). It can leave sizes open, so that one trace stands for tensors of many sizes (NOTE [Open sizes]). It
# refuses, with a message in the user's terms, what a trace can't hold: reading a value (``if x > 0``,
# ``x.item()``), a write to an input, and a fake tensor that is used after its trace has ended.


# ---------------------------------------------------------------------------------------------------------------------
# Part 2. Subgraph: a functional graph with lifted free variables
#
# Bodies of loops close over things::
#
#     scan(lambda carry, x: (torch.tanh(weight @ carry + x), carry), init, xs)
#
# ``weight`` is a *free variable* of the body. A derivative with respect to it is wanted, and perhaps an enclosing
# vmap maps over it. So it must not be baked into the graph as a constant. We *lift* it: it becomes one more input
# of the graph, and one more operand of the scan. After that the graph closes over nothing.
#
# To find free variables we watch the calls of torch's functions with a TorchFunctionMode. It stands above
# functorch, so it sees the tensors as the user has them. A tensor that belongs to this trace is let through. Any
# other is lifted: a new input stands for it, and its shape is that which the user sees, without the batch dims of
# enclosing vmaps.
#
# A Subgraph is the result. Four things hold for it (NOTE [Subgraph invariants] has them all):
#
#   - inputs are flat tensors, first the function's own, then the lifted ones;
#   - outputs are flat tensors, which share no memory with an input or with one another;
#   - it is functional: no operator writes to its arguments;
#   - it does not depend on strides: we put ``reshape`` for ``view``, which fails on some layouts.
#
# It never changes. So what is derived from it - its batched form, its derivative - can be kept on it.


class Subgraph:
    def __init__(self, module: fx.GraphModule, inputs: Sequence[Meta], outputs: Sequence[Meta]) -> None:
        self.module, self.inputs, self.outputs = module, tuple(inputs), tuple(outputs)
        self.derived: dict[Any, Any] = {}

    def __call__(self, *operands: Tensor) -> tuple[Tensor, ...]:
        return self.module(*operands)

    def derive(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]


captures: list[Capture] = []  # those that run now, the innermost last


class Capture(Recorder, TorchFunctionMode):
    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)
        Recorder.__init__(self)
        self.lifted: list[Tensor] = []
        self.fake_of: dict[int, Tensor] = {}

    def lift(self, t: Tensor) -> Tensor:
        inner = unwrapped(t)
        if isinstance(inner, FakeTensor) and inner.fake_mode is self.fake_mode:
            return t  # of this trace, or a transform inside of it has wrapped such a tensor
        if id(t) not in self.fake_of:
            self.fake_of[id(t)] = self.new_input(Meta.of(t))
            self.lifted.append(t)
        return self.fake_of[id(t)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.tensor:  # a constant is lifted like any other tensor from outside
            with fresh_state():
                constant = torch.tensor(*args, **kwargs or {})
            return self.lift(constant)
        args, kwargs = tree_map_only(Tensor, self.lift, (args, kwargs or {}))
        return func(*args, **kwargs)

    def run(self, f: Callable[..., Sequence[Tensor]], inputs: Sequence[Meta]) -> fx.GraphModule:
        captures.append(self)
        try:
            with self.recording(), self:
                outputs = f(*[self.new_input(meta) for meta in inputs])
                with torch._C.DisableTorchFunction():
                    return self.close(self.without_aliases(outputs))
        finally:
            captures.pop()

    def without_aliases(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        seen, results = set(self.storages), []
        for t in outputs:
            t = unwrapped(self.lift(t))
            t = t.clone() if storage_of(t) in seen else t
            seen.add(storage_of(t))
            results.append(t)
        return results


# There are two places that no mode sees. ``vmap`` and ``grad`` wrap their arguments in C++. If a body
# differentiates with respect to a free variable, the wrapper would go around a tensor that is not lifted. So we
# hook these two places.


def lifts_first(wrap: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda t, *rest: wrap(captures[-1].lift(t) if captures else t, *rest)


functorch_vmap._add_batch_dim = lifts_first(functorch_vmap._add_batch_dim)
eager_transforms._wrap_for_grad = lifts_first(eager_transforms._wrap_for_grad)


def unwrapped(t: Tensor) -> Tensor:
    """The tensor below everything that functorch has wrapped around it."""
    while _functorch.is_functorch_wrapped_tensor(t):
        t = _functorch.get_unwrapped(t)
    return t


# A body may write to tensors that it made itself (``y.add_(1)``). torch's ``functionalize`` turns such writes into
# new values, so we trace a second time, through it. If a write is left after that, it is one to an input.
#
# ``clean`` mends what would go wrong later, or refuses it. ``aten.copy``, which functionalize makes of a write, has
# no derivative; we say the same by operators that have one.


def capture(f: Callable[..., Sequence[Tensor]], inputs: Sequence[Meta]) -> tuple[Subgraph, list[Tensor]]:
    """The graph of ``f``, and the tensors that ``f`` closes over."""
    first = Capture()
    module, metas = first.run(f, inputs), first.inputs
    if has_writes(module):
        module = Capture().run(torch.func.functionalize(module, remove="mutations"), metas)
        if has_writes(module):
            raise NotImplementedError("the body writes to a tensor that it did not make")
    clean(module)
    outputs = [Meta.of(node.meta["val"]) for node in output_nodes(module)]
    return Subgraph(module, metas, outputs), first.lifted


def has_writes(module: fx.GraphModule) -> bool:
    return any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in module.graph.nodes)


def clean(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise NotImplementedError("bodies that draw random numbers are beyond this tutorial")
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.copy.default:
            node.target = copied
    module.graph.eliminate_dead_code()
    module.recompile()


def copied(target: Tensor, source: Tensor) -> Tensor:
    return source.expand(target.shape).to(target.dtype)


def output_nodes(module: fx.GraphModule) -> Sequence[fx.Node]:
    return module.graph.output_node().args[0]


# Rules will trace functions that call graphs. These close over nothing:


def rewritten(f: Callable[..., Sequence[Tensor]], inputs: Sequence[Meta]) -> Subgraph:
    graph, lifted = capture(f, inputs)
    assert not lifted
    return graph


def test_free_variables_become_inputs() -> None:
    weight = random(3)

    def f(x: Tensor) -> list[Tensor]:
        y = torch.sin(x)
        y.add_(weight)  # a write to what the body has made itself
        return [y * 2, x]

    graph, lifted = capture(f, [Meta((3,), torch.float64)])
    assert len(graph.inputs) == 2 and lifted[0] is weight
    assert not has_writes(graph.module)
    x = random(3)
    results = graph(x, *lifted)
    assert_close(results, tuple(f(x)))
    assert results[1] is not x  # it is a copy: outputs are never inputs


test_free_variables_become_inputs()

# What the library does in addition. It keeps what the ATen level would forget: ``no_grad``, the casts of autocast,
# and the backward of a ``torch.autograd.Function``. Equal graphs are one object, so derived graphs are shared among
# them. A graph that is called in a capture is copied, not traced again. And graphs are simplified: repeats,
# identities, and values that a loop only hands on.


# ---------------------------------------------------------------------------------------------------------------------
# Part 3. scan, a higher-order operator
#
# The operator takes flat tensors, in three groups: the initial *carry*; the *xs*, of which each step gets a slice;
# and the constants, which are the lifted free variables. Its body is a Subgraph
#
#     (carry..., x..., constants...) -> (carry..., y...)
#
# and its outputs are the final carry and the stacked ys. Whatever is not a tensor goes into one object, the
# *parameters*, to which a graph refers by an attribute of its module.


@dataclass(frozen=True)
class Params:
    body: Subgraph
    n_carry: int
    n_xs: int
    length: int
    is_reverse: bool

    @property
    def n_outputs(self) -> int:
        return len(self.body.outputs)

    def like(self, body: Subgraph) -> Params:
        return replace(self, body=body)

    def parts(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        """Carry, xs and constants; ``values`` may be operands or whatever there is one of for each operand."""
        return cut(values, self.n_carry, self.n_xs, len(values) - self.n_carry - self.n_xs)


def cut(values: Sequence[Any], *sizes: int) -> list[Sequence[Any]]:
    """Consecutive pieces of the given sizes."""
    pieces, values = [], list(values)
    assert len(values) == sum(sizes)
    for size in sizes:
        pieces.append(values[:size])
        values = values[size:]
    return pieces


# torch asks an operator what it does in each situation: for each active transform, for autograd, for each mode. The
# answers are registered with ``py_impl``.
#
# How do loops nest? When scan is called in a capture, the mode of part 2 sees that call, as it sees the call of any
# function. It lifts the operands, which may be free variables of the body around it.


class Scan(HigherOrderOperator):
    def __init__(self) -> None:
        super().__init__("autodidax_scan")

    def __call__(self, params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
        return super().__call__(params, *map(plain, operands))


def plain(t: Tensor) -> Tensor:
    """``t`` without a wrapper of a transform that has ended; zeros that are no real tensor become one."""
    t = _functorch.unwrap_if_dead(t)
    return torch.zeros_like(t) if t._is_zerotensor() else t


scan_op = Scan()


# The first answers: the run itself on real tensors; the metadata of the outputs, for fake tensors; and one node,
# for a proxy.


@scan_op.py_impl(DispatchKey.CompositeExplicitAutograd)
def scan_run(params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
    carry, xs, consts = params.parts(operands)
    steps: list[Sequence[Tensor]] = []
    for t in reversed(range(params.length)) if params.is_reverse else range(params.length):
        outs = params.body(*carry, *(x[t] for x in xs), *consts)
        carry, ys = outs[: params.n_carry], outs[params.n_carry :]
        steps.append(ys)
    if params.is_reverse:
        steps.reverse()
    return (*carry, *map(torch.stack, zip(*steps, strict=True)))


@scan_op.py_impl(FakeTensorMode)
def scan_abstract(mode: FakeTensorMode, params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
    n, metas = params.n_carry, params.body.outputs
    with mode:
        return tuple(meta.empty() for meta in (*metas[:n], *(y.with_leading(params.length) for y in metas[n:])))


@scan_op.py_impl(ProxyTorchDispatchMode)
def scan_proxy(mode: ProxyTorchDispatchMode, params: Params, *operands: Tensor) -> Any:
    current = captures[-1]
    name = current.tracer.get_fresh_qualname("scan_")
    setattr(current.root, name, params)
    arguments = current.tracer.create_proxy("get_attr", name, (), {}), *map(current.proxy_of, operands)
    proxy = current.tracer.create_proxy("call_function", scan_op, arguments, {})
    outputs = scan_abstract(current.fake_mode, params, *operands)
    return track_tensor_tree(outputs, proxy, constant=None, tracer=current.tracer)


@scan_op.py_functionalize_impl
def scan_functional(ctx: Any, params: Params, *operands: Any) -> Any:
    with ctx.redispatch_to_next():
        return ctx.wrap_tensors(scan_op(params, *ctx.unwrap_tensors(operands)))


# All of these stand below autograd, which torch asks before. It has work where an operand asks for a gradient: see
# part 7.


@scan_op.py_impl(DispatchKey.Autograd)
def at_autograd(params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in operands):
        raise NotImplementedError("plain forward mode is beyond this tutorial: use torch.func.jvp")
    if asks_for_gradient(params, operands):
        return recorded_call(None, params, operands)
    with torch._C._AutoDispatchBelowAutograd():
        return scan_op(params, *operands)


def asks_for_gradient(params: Params, operands: Sequence[Tensor]) -> bool:
    has_cotangents = any(meta.is_differentiable for meta in params.body.outputs)
    return has_cotangents and torch.is_grad_enabled() and any(t.requires_grad for t in operands)


# The function for users takes trees and returns trees. All their leaves are tensors.


def scan(f: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
    carry, carry_spec = tree_flatten(init)
    slices, xs_spec = tree_flatten(xs)
    length, y_specs = slices[0].shape[0], []
    assert length > 0, "a loop without steps is beyond this tutorial"

    def body(*leaves: Tensor) -> list[Tensor]:
        carry_in, x = cut(leaves, len(carry), len(slices))
        carry_out, y = f(tree_unflatten(carry_in, carry_spec), tree_unflatten(x, xs_spec))
        (new, new_spec), (ys, y_spec) = tree_flatten(carry_out), tree_flatten(y)
        assert new_spec == carry_spec and [*map(Meta.of, new)] == [*map(Meta.of, carry)], "the carry must stay alike"
        y_specs.append(y_spec)
        return [*new, *ys]

    metas = map(Meta.of, slices)
    graph, lifted = capture(body, [*map(Meta.of, carry), *(meta._replace(shape=meta.shape[1:]) for meta in metas)])
    params = Params(graph, len(carry), len(slices), length, is_reverse=False)
    final, ys = cut(scan_op(params, *carry, *slices, *lifted), len(carry), len(graph.outputs) - len(carry))
    return tree_unflatten(final, carry_spec), tree_unflatten(ys, y_specs[0])


# From now on, the oracle of each assertion is this loop, and an assertion is one program run with both.


def loop(f: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
    leaves, spec = tree_flatten(xs)
    carry, ys = init, []
    for x in zip(*(leaf.unbind(0) for leaf in leaves), strict=True):
        carry, y = f(carry, tree_unflatten(x, spec))
        ys.append(y)
    flat, y_specs = zip(*map(tree_flatten, ys), strict=True)
    return carry, tree_unflatten([torch.stack(column) for column in zip(*flat, strict=True)], y_specs[0])


def check(program: Callable[[Any], Any]) -> None:
    assert_close(program(scan), program(loop))


# The example is a recurrent cell, with a step counter in its carry. The counter is an integer: such values have no
# derivative, and rules must do without.

WEIGHT, INIT, XS = random(4, 4), random(4), random(6, 4)


def cell(weight: Tensor) -> Callable[[Any, Any], Any]:
    def step(carry: Any, x: Any) -> Any:
        state, count = carry
        new = torch.tanh(weight @ state + x) / (1 + count)
        return (new, count + 1), {"state": state * x, "count": count}

    return step


def start(state: Tensor) -> tuple[Tensor, Tensor]:
    return state, torch.zeros((), dtype=torch.int64)


def test_scan() -> None:
    check(lambda scan: scan(cell(WEIGHT), start(INIT), XS))
    # one node, however many steps; the weight is an operand of it
    graph, lifted = capture(lambda x: [scan(cell(WEIGHT), start(INIT), x)[0][0]], [Meta.of(XS)])
    nodes = [node for node in graph.module.graph.nodes if node.target is scan_op]
    assert len(nodes) == 1 and any(t is WEIGHT for t in lifted)
    assert_close(graph(XS, *lifted)[0], loop(cell(WEIGHT), start(INIT), XS)[0][0])


test_scan()

# What the library does in addition. A scan may run backwards, take no step, or have an open number of steps. Where
# no graph is needed it is the Python loop of the docstring, and nothing is captured. All operators (while_loop,
# cond, associative_scan, checkpoint, custom rules, the compiled call of ``jit``) share one dispatch class, ``Hop``.
# What is an operator's own is its table of rules. A table with an empty entry can't be made. Besides the rules of
# this tutorial there are rules for dead code, for values that are only handed on, for hoisting, for fission, and
# one that says the operation in torch's own operators, for export and for Inductor.


# ---------------------------------------------------------------------------------------------------------------------
# Part 4. vmap: the batch rule
#
# ``torch.func`` keeps a stack of levels, one for each active transform. In ``vmap(grad(f))`` the level of grad is
# on top while ``f`` runs. A tensor may be wrapped once for each level: at a level of vmap the wrapper says which
# dim is the batch dim, at a level of grad it holds what autograd needs. An operator is handled by the top level,
# which replaces it by operators for the level below (``interpreter.lower()``). So a rule has one level to think of.
#
# The batch rule: ``vmap`` of a scan is a scan over a batched body. Let us write B for the batch size, T for the
# number of steps.
#
#   - xs with a batch dim arrive as (B, T, ...), and the loop needs time in front: (T, B, ...).
#   - The body is batched with its batch dim in front. What is not mapped stays as it is: an unmapped weight is not
#     copied B times.
#   - A carry has one form in all steps. So it is batched from the start if the body makes it so at any step. A
#     carry may become batched by way of another carry, some steps later. We repeat until no more carries are added:
#     the least fixed point. That ends, since each round adds a carry or is the last one.
#
# Which outputs does a set of inputs reach? The graph tells.


def reached(body: Subgraph, sources: Sequence[bool]) -> Mask:
    marked, inputs = set(), iter(sources)
    for node in body.module.graph.nodes:
        if next(inputs) if node.op == "placeholder" else any(n in marked for n in node.all_input_nodes):
            marked.add(node)
    return tuple(node in marked for node in output_nodes(body.module))


def batched_carry(params: Params, mapped: Mask) -> Mask:
    carry, fixed = mapped[: params.n_carry], mapped[params.n_carry :]
    while True:
        found = reached(params.body, (*carry, *fixed))[: params.n_carry]
        grown = tuple(a or b for a, b in zip(carry, found, strict=True))
        if grown == carry:
            return carry
        carry = grown


# ``restore_vmap`` is vmap for rules: it takes and returns batch dims instead of checking them.


def batched(body: Subgraph, mapped: Mask, out: Mask, size: int) -> Subgraph:
    """The body over a batch at dim 0 of the ``mapped`` inputs and of the outputs in ``out``."""

    def run(*args: Tensor) -> list[Tensor]:
        in_dims = tuple(0 if m else None for m in mapped)
        results, dims = restore_vmap(body, in_dims, size, "error")(*args)
        return [at_front(t, dim, size) if o else t for t, dim, o in zip(results, dims, out, strict=True)]

    metas = [meta.with_leading(size) if m else meta for meta, m in zip(body.inputs, mapped, strict=True)]
    return body.derive(("batched", mapped, out, size), lambda: rewritten(run, metas))


def at_front(t: Tensor, dim: int | None, size: int) -> Tensor:
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def scan_batch(params: Params, operands: Sequence[Tensor], mapped: Mask, size: int) -> tuple[list[Tensor], Mask]:
    """Operands are batched at dim 0 where they are ``mapped``; the outputs, and which of them are."""
    n = params.n_carry
    init, xs, consts = params.parts(operands)
    init_mapped, xs_mapped, consts_mapped = params.parts(mapped)
    carry_mapped = batched_carry(params, mapped)
    inside = (*carry_mapped, *xs_mapped, *consts_mapped)
    out = (*carry_mapped, *reached(params.body, inside)[n:])
    grown = [m and not was for m, was in zip(carry_mapped, init_mapped, strict=True)]
    init = [at_front(c, None, size) if g else c for c, g in zip(init, grown, strict=True)]
    xs = [x.movedim(0, 1) if m else x for x, m in zip(xs, xs_mapped, strict=True)]
    outs = scan_op(params.like(batched(params.body, inside, out, size)), *init, *xs, *consts)
    ys = [y.movedim(1, 0) if o else y for y, o in zip(outs[n:], out[n:], strict=True)]
    return [*outs[:n], *ys], out


# Around the rule: unwrap the operands at this level, go one level down, apply the rule, wrap the outputs.

Transform = _functorch.TransformType


@scan_op.py_impl(Transform.Vmap)
def at_vmap(interpreter: Any, params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
    level, size = interpreter.level(), interpreter.batch_size()
    values, dims = unwrap_batched(operands, level)
    with interpreter.lower():
        if all(dim is None for dim in dims):
            return scan_op(params, *values)
        values = [t if dim is None else t.movedim(dim, 0) for t, dim in zip(values, dims, strict=True)]
        outs, out = scan_batch(params, values, tuple(dim is not None for dim in dims), size)
    return wrap_batched(tuple(outs), tuple(0 if o else None for o in out), level)


def test_vmap() -> None:
    states, weights, xs = random(5, 4), random(5, 4, 4), random(5, 6, 4)
    vmap = torch.func.vmap
    check(lambda scan: vmap(lambda s: scan(cell(WEIGHT), start(s), XS))(states))
    check(lambda scan: vmap(lambda w: scan(cell(w), start(INIT), XS))(weights))
    check(lambda scan: vmap(lambda x: scan(cell(WEIGHT), start(INIT), x), in_dims=1)(xs.movedim(0, 1)))
    check(lambda scan: vmap(lambda s: vmap(lambda w: scan(cell(w), start(s), XS))(weights))(states))
    # an unmapped carry that the body makes a batched one in the second step only
    shift = lambda carry, x: ((carry[1], x), carry[0])
    check(lambda scan: vmap(lambda x: scan(shift, (INIT, INIT), x))(xs))


test_vmap()

# What the library does in addition. Random numbers under ``randomness="different"`` count as batched. A ``cond`` or
# a ``while_loop`` whose lanes disagree needs care: a lane that does not take a branch computes along, and what it
# computes must not hurt the others (NOTE [Representative lanes]).


# ---------------------------------------------------------------------------------------------------------------------
# Part 5. Forward mode: the jvp rule
#
# A step is ``c', y = f(c, x, w)`` with carry c, slice x and constants w. Forward mode asks how the results move if
# the inputs, the *primals*, move along given *tangents*. Let us write dc for the tangent of c. By the chain rule
# the tangents of a step follow from those of the step before::
#
#     dc', dy = Df(c, x, w) (dc, dx, dw)
#
# where Df(...) is the derivative of f, a linear map. Df is taken at the primals of that very step, so primals and
# tangents run along together. Hence the jvp of a scan is one scan over pairs. Its step is the jvp of the old step::
#
#     (c, dc), (x, dx), (w, dw)  ->  (c', dc'), (y, dy)
#
# A scan wants its operands as carry, xs and constants. So the order is: c, dc, x, dx, w, dw. Integers have no
# tangent.


def differentiable(metas: Sequence[Meta]) -> Mask:
    return tuple(meta.is_differentiable for meta in metas)


def chosen(values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
    return [v for v, m in zip(values, mask, strict=True) if m]


def filled(mask: Sequence[bool], new: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """``others`` with the values in the places of ``mask`` replaced by the ``new`` ones, in order."""
    fresh = iter(new)
    return [next(fresh) if m else v for v, m in zip(others, mask, strict=True)]


def pair_body(params: Params) -> Subgraph:
    body = params.body
    parts = params.parts(body.inputs)
    groups = [group for part in parts for group in (part, chosen(part, differentiable(part)))]
    active, n, n_moving = differentiable(body.inputs), params.n_carry, sum(differentiable(parts[0]))

    def run(*args: Tensor) -> list[Tensor]:
        c, dc, x, dx, w, dw = cut(args, *map(len, groups))
        values = [*c, *x, *w]
        step = lambda *new: body(*filled(active, new, values))
        outs, tangents = torch.func.jvp(step, tuple(chosen(values, active)), (*dc, *dx, *dw))
        tangents = chosen(tangents, differentiable(body.outputs))
        return [*outs[:n], *tangents[:n_moving], *outs[n:], *tangents[n_moving:]]

    key = ("pairs", params.n_carry, params.n_xs)
    return body.derive(key, lambda: rewritten(run, [meta for group in groups for meta in group]))


def scan_jvp(params: Params, primals: Sequence[Tensor], tangents: Sequence[Any]) -> tuple[Sequence[Tensor], list[Any]]:
    """The outputs and their tangents. A tangent that is None is zero, or the value has none."""
    if all(t is None for t in tangents):
        return scan_op(params, *primals), [None] * params.n_outputs
    metas = params.parts(params.body.inputs)
    tangents = [torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    operands, sizes = [], []
    for values, moves, part in zip(params.parts(primals), params.parts(tangents), metas, strict=True):
        moves = chosen(moves, differentiable(part))
        operands += [*values, *moves]
        sizes.append(len(moves))
    pairs = Params(
        pair_body(params), params.n_carry + sizes[0], params.n_xs + sizes[1], params.length, params.is_reverse
    )
    n, active = params.n_carry, differentiable(params.body.outputs)
    n_ys = params.n_outputs - n
    c, dc, y, dy = cut(scan_op(pairs, *operands), n, sizes[0], n_ys, sum(active[n:]))
    return [*c, *y], filled(active, [*dc, *dy], [None] * params.n_outputs)


# At a level of forward mode a tensor is a *dual*: a primal and, perhaps, a tangent, in one wrapper.


@scan_op.py_impl(Transform.Jvp)
def at_jvp(interpreter: Any, params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
    level = interpreter.level()
    unwrap = lambda t: None if t is None else plain(_functorch._unwrap_for_grad(t, level))
    wrap = lambda t: _functorch._wrap_for_grad(t, level)
    duals = [forward_ad.unpack_dual(t) for t in operands]
    with interpreter.lower():
        outs, tangents = scan_jvp(params, [unwrap(p) for p, _ in duals], [unwrap(t) for _, t in duals])
    outs = [wrap(t) for t in outs]
    return tuple(o if t is None else forward_ad.make_dual(o, wrap(t)) for o, t in zip(outs, tangents, strict=True))


def test_jvp() -> None:
    jvp, primals, tangents = torch.func.jvp, (INIT, WEIGHT, XS), (random(4), random(4, 4), random(6, 4))

    def final(scan: Any, state: Tensor, weight: Tensor, xs: Tensor) -> Any:
        (last, _), ys = scan(cell(weight), start(state), xs)
        return last, ys["state"]

    check(lambda scan: jvp(lambda *args: final(scan, *args), primals, tangents))
    check(lambda scan: jvp(lambda w: final(scan, INIT, w, XS), primals[1:2], tangents[1:2]))
    check(lambda scan: torch.func.jacfwd(lambda w: final(scan, INIT, w, XS))(WEIGHT))  # vmap of jvp


test_jvp()

# What the library does in addition. Here every float has a tangent, if only zeros. There, tangents that are zero by
# the structure of the body are never made: which carries move is again a least fixed point. Plain ``torch.autograd.
# forward_ad`` works as well. Here it is refused.


# ---------------------------------------------------------------------------------------------------------------------
# Part 6. The joint graph, and its partition into forward and backward
#
# Reverse mode goes the other way. It is given the *cotangents* of the outputs - the gradient of some final number
# with respect to them - and computes those of the inputs. It first runs forward to the end, then backward. The
# backward run reads values of the forward run. Such values are called *residuals*. For a loop they are the main
# cost of reverse mode, since there is one of each for every step. So which values to save is worth some thought.
#
# We do not write derivatives ourselves. ``torch.func.vjp`` knows them. We trace a function that does both runs, one
# after the other, for one step. Its graph is the *joint graph*::
#
#     (inputs, cotangents of the outputs) -> (outputs, cotangents of the inputs)


def joint(body: Subgraph) -> Subgraph:
    active, reached = differentiable(body.inputs), differentiable(body.outputs)

    def run(*args: Tensor) -> list[Tensor]:
        inputs, cotangents = cut(args, len(body.inputs), sum(reached))

        def step(*new: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
            outs = body(*filled(active, new, inputs))
            return tuple(chosen(outs, reached)), list(outs)

        _, pull, outs = torch.func.vjp(step, *chosen(inputs, active), has_aux=True)
        return [*outs, *pull(tuple(cotangents))]

    return rewritten(run, [*body.inputs, *chosen(body.outputs, reached)])


# In this graph, what depends on a cotangent is backward. All the rest is forward. Now look at each forward value
# that a backward node reads (NOTE [Partition]):
#
#   - a constant is there in every step: backward gets it again;
#   - an x is there anyway, stacked: backward gets it again;
#   - a value that depends on constants only (``weight.t()``) is computed again, rather than stacked T times;
#   - any other value, the carry included, is a residual.
#
# The forward graph is the joint graph with the residuals as additional outputs and without the gradients. The
# backward graph takes the residuals. To cut a graph out of another we copy every node that follows from the chosen
# inputs. Dead code elimination removes those that the chosen outputs do not need.


class Partition(NamedTuple):
    forward: Subgraph  # inputs -> outputs, residuals
    backward: Subgraph  # residuals, xs, constants, cotangents of the outputs -> cotangents of the inputs


def partition(body: Subgraph, n_carry: int, n_xs: int) -> Partition:
    both = joint(body)
    nodes = list(both.module.graph.nodes)
    inputs, cts = cut([n for n in nodes if n.op == "placeholder"], len(body.inputs), sum(differentiable(body.outputs)))
    results = output_nodes(both.module)
    outputs, grads = results[: len(body.outputs)], results[len(body.outputs) :]
    backward, varying = dependents(nodes, cts), dependents(nodes, inputs[: n_carry + n_xs])
    read = [*(n for node in nodes if node in backward for n in node.all_input_nodes), *grads]
    at_hand = {*backward, *inputs[n_carry:]}
    residuals = list(dict.fromkeys(n for n in read if n in varying and n not in at_hand))
    return Partition(
        forward=extracted(both, inputs, [*outputs, *residuals]),
        backward=extracted(both, [*residuals, *inputs[n_carry:], *cts], grads),
    )


def dependents(nodes: Sequence[fx.Node], sources: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(sources)
    for node in nodes:
        if node.op != "output" and any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def extracted(source: Subgraph, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> Subgraph:
    graph = fx.Graph()
    new = {node: graph.placeholder(f"arg{i}") for i, node in enumerate(inputs)}
    for node in source.module.graph.nodes:
        follows = node.op not in ("placeholder", "output") and all(n in new for n in node.all_input_nodes)
        if follows and node not in new:
            new[node] = graph.node_copy(node, new.__getitem__)
    graph.output(tuple(new[node] for node in outputs))
    graph.eliminate_dead_code()
    metas = [[Meta.of(node.meta["val"]) for node in nodes] for nodes in (inputs, outputs)]
    return Subgraph(fx.GraphModule(source.module, graph), *metas)


def test_partition() -> None:
    def body(c: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
        new = torch.tanh(w @ c + x)
        return [new, new * x]

    inputs = [INIT, XS[0], WEIGHT]
    graph = rewritten(body, [*map(Meta.of, inputs)])
    part = partition(graph, n_carry=1, n_xs=1)
    # Two vectors are saved for each step, the carry and the result of tanh, and no matrix.
    residual_metas = part.forward.outputs[2:]
    assert [meta.shape for meta in residual_metas] == [(4,), (4,)]
    outs, pull = torch.func.vjp(lambda *args: tuple(body(*args)), *inputs)
    results, cotangents = part.forward(*inputs), (random(4), random(4))
    assert_close(results[:2], outs)
    assert_close(part.backward(*results[2:], *inputs[1:], *cotangents), pull(cotangents))


test_partition()

# What the library does in addition. It differentiates with respect to the operands that ask for it only. It chooses
# the residuals by a minimum cut: those of the fewest bytes from which backward follows without computing anything
# costly again. (Here every value that backward reads is saved, even if three of them follow from a fourth at the
# cost of an addition.) Some operators save what has no derivative of its own, such as the mean in a normalisation;
# the library takes that for a constant (NOTE [Constant residuals]), while here a second derivative raises. A random
# number is always saved, so both runs see the same. ``checkpoint`` replaces that choice by a policy of the user's.
# And if a carry after the step is saved anyway, the carry before the step is not saved once more.


# ---------------------------------------------------------------------------------------------------------------------
# Part 7. Reverse mode: scan's vjp is a scan backwards in time
#
# Let us write a bar for cotangents: c_bar is the gradient of the final number, call it L, with respect to c. A scan
# computes, for t = 0, ..., T - 1::
#
#     c[t+1], y[t] = f(c[t], x[t], w)
#
# We are given c_bar[T] and all y_bar[t]. Ask how L depends on c[t]. It does so through step t only, since
# everything after it is computed from c[t+1], and y[t] is its other result. So the chain rule reads::
#
#     (c_bar[t], x_bar[t], w_bar[t]) = f*(c_bar[t+1], y_bar[t])
#
# where f* is the vjp of f at the inputs of step t: the backward graph of part 6. This is a recurrence for c_bar
# that starts at c_bar[T] and runs from t = T - 1 down to 0. The results are::
#
#     gradient of init   c_bar[0], where it ends
#     gradient of xs     x_bar[t] for all t, stacked
#     gradient of w      w_bar[0] + ... + w_bar[T-1], since w takes part in every step
#
# This is itself a scan, in reverse. Its carry is c_bar and the sum of the w_bar. Its xs are the residuals, the old
# xs and the y_bar. Its constants are the old constants. Because it is a scan, all rules apply to it as well: it can
# be batched, and it can be differentiated again.
#
# The forward run has to emit residuals. It is a scan of the forward graph of part 6, in which residuals are more
# ys. We call it the *augmented* scan.


def scan_partition(params: Params) -> Partition:
    n, m = params.n_carry, params.n_xs
    return params.body.derive(("partition", n, m), lambda: partition(params.body, n, m))


def scan_augment(params: Params) -> Params:
    return params.like(scan_partition(params).forward)


def backward_body(params: Params) -> tuple[Subgraph, int]:
    """``(c_bar, sums; residuals, x, y_bar; constants) -> (c_bar, sums; x_bar)``, and how many carries it has."""
    n, body, part = params.n_carry, params.body, scan_partition(params)
    carry, xs, consts = params.parts(body.inputs)
    c_bar, x_bar, w_bar = (chosen(metas, differentiable(metas)) for metas in (carry, xs, consts))
    y_bar = chosen(body.outputs[n:], differentiable(body.outputs[n:]))
    groups = [c_bar, w_bar, part.forward.outputs[len(body.outputs) :], xs, y_bar, consts]

    def run(*args: Tensor) -> list[Tensor]:
        cts, sums, residuals, x, ct_ys, w = cut(args, *map(len, groups))
        grads = part.backward(*residuals, *x, *w, *cts, *ct_ys)
        new, ct_x, ct_w = cut(grads, len(c_bar), len(x_bar), len(w_bar))
        return [*new, *(s + g for s, g in zip(sums, ct_w, strict=True)), *ct_x]

    key = ("backward", params.n_carry, params.n_xs)
    step = body.derive(key, lambda: rewritten(run, [meta for group in groups for meta in group]))
    return step, len(c_bar) + len(w_bar)


def scan_pullback(
    params: Params, operands: Sequence[Tensor], residuals: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """A gradient for each operand; a cotangent that is None is zero."""
    n, body, length = params.n_carry, params.body, params.length
    _, xs, consts = params.parts(operands)
    metas = [*body.outputs[:n], *(meta.with_leading(length) for meta in body.outputs[n:])]
    full = [meta.zeros() if ct is None else ct for ct, meta in zip(cotangents, metas, strict=True)]
    c_bar, y_bar = (chosen(cts, differentiable(m)) for cts, m in ((full[:n], metas[:n]), (full[n:], metas[n:])))
    sums = [meta.zeros() for meta in params.parts(body.inputs)[2] if meta.is_differentiable]
    step, n_carry = backward_body(params)
    xs = [*residuals, *xs, *y_bar]
    backward = Params(step, n_carry, len(xs), length, not params.is_reverse)
    outs = scan_op(backward, *c_bar, *sums, *xs, *consts)
    c_bar, sums, x_bar = cut(outs, len(c_bar), len(sums), len(outs) - n_carry)
    return filled(differentiable(body.inputs), [*c_bar, *x_bar, *sums], [None] * len(operands))


# Last, autograd has to remember the call. This is the task of an ``autograd.Function``, one node for each call and
# level. The interpreter is None where no transform is active, but plain autograd (``loss.backward()``) is.
#
# NOTE [Residuals are outputs] The node computes the augmented scan, and the residuals are real outputs of the node,
# though the caller does not see them. This is what makes second derivatives right. The first backward run reads the
# residuals, so a second derivative depends on them. It arrives at this very node, as cotangents of the residuals.
# Then what has to be differentiated is the augmented scan, with these additional ys. It is an ordinary scan, so it
# has an augmented form of its own.


class ScanNode(_SingleLevelFunction):
    @staticmethod
    def forward(params: Params, interpreter: Any, *operands: Tensor) -> tuple[Tensor, ...]:
        augmented = scan_augment(params)
        with torch.enable_grad(), _set_fwd_grad_enabled(True), below(interpreter):
            outs = scan_op(augmented, *(unwrapped_at(interpreter, t) for t in operands))
        return tuple(wrapped_at(interpreter, t) for t in outs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.params, _, *operands = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, *output[ctx.params.n_outputs :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        params, saved = ctx.params, ctx.saved_tensors
        n_operands, n = len(params.body.inputs), params.n_outputs
        operands, residuals = saved[:n_operands], saved[n_operands:]
        if any(ct is not None for ct in cotangents[n:]):
            params, n = scan_augment(params), len(cotangents)
            residuals = scan_op(scan_augment(params), *operands)[n:]
        return None, None, *scan_pullback(params, operands, residuals, cotangents[:n])


def below(interpreter: Any) -> Any:
    return torch._C._AutoDispatchBelowAutograd() if interpreter is None else interpreter.lower()


def unwrapped_at(interpreter: Any, t: Tensor) -> Tensor:
    return t if interpreter is None else _functorch._unwrap_for_grad(t, interpreter.level())


def wrapped_at(interpreter: Any, t: Tensor) -> Tensor:
    return t if interpreter is None else _functorch._wrap_for_grad(t, interpreter.level())


def recorded_call(interpreter: Any, params: Params, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with enable_single_level_autograd_function():
        return ScanNode.apply(params, interpreter, *operands)[: params.n_outputs]


@scan_op.py_impl(Transform.Grad)
def at_grad(interpreter: Any, params: Params, *operands: Tensor) -> tuple[Tensor, ...]:
    if asks_for_gradient(params, operands):
        return recorded_call(interpreter, params, operands)
    with interpreter.lower():
        outs = scan_op(params, *(unwrapped_at(interpreter, t) for t in operands))
    return tuple(wrapped_at(interpreter, t) for t in outs)


def loss(scan: Any, state: Tensor, weight: Tensor, xs: Tensor) -> Tensor:
    (last, _), ys = scan(cell(weight), start(state), xs)
    return (last**2).sum() + torch.sin(ys["state"]).sum()


def test_grad() -> None:
    grad, arguments = torch.func.grad, (INIT, WEIGHT, XS)
    check(lambda scan: grad(lambda *args: loss(scan, *args), argnums=(0, 1, 2))(*arguments))

    def plain_autograd(scan: Any) -> Any:
        leaves = [t.clone().requires_grad_() for t in arguments]
        first = torch.autograd.grad(loss(scan, *leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**3).sum() for g in first), leaves)
        return [g.detach() for g in first], second

    check(plain_autograd)


test_grad()

# What the library does in addition. Its ``vjp_forward`` and ``vjp_backward`` know which operands ask for a gradient. A
# ``while_loop`` is differentiated as the scan that it turned out to be: it saves what its backward reads, and how
# many steps it took. With ``checkpoints=k`` it saves k carries instead and runs parts of the loop again. ``remat``
# does the same for a scan. An operator without a derivative raises, and never gives zeros (NOTE [Absent derivatives
# raise when they run]).


# ---------------------------------------------------------------------------------------------------------------------
# Part 8. All together
#
# We never wrote a rule for the vmap of a gradient. None is needed. In ``vmap(grad(f))`` the level of grad is on
# top, so the scan meets ``at_grad`` first. That calls the augmented scan one level down, where ``at_vmap`` batches
# it. Later the backward pass calls the backward scan, which is batched the same way. Each rule sees one level, and
# each returns scans.


def test_compositions() -> None:
    vmap, grad, jvp = torch.func.vmap, torch.func.grad, torch.func.jvp
    states, xs = random(5, 4), random(5, 6, 4)
    of_state = lambda scan: lambda state: loss(scan, state, WEIGHT, XS)
    of_weight = lambda scan: lambda weight: loss(scan, INIT, weight, XS)
    per_example = lambda scan: grad(lambda w, s, x: loss(scan, s, w, x))
    check(lambda scan: vmap(per_example(scan), in_dims=(None, 0, 0))(WEIGHT, states, xs))
    check(lambda scan: grad(lambda w: vmap(lambda s: loss(scan, s, w, XS))(states).sum())(WEIGHT))
    check(lambda scan: torch.func.hessian(of_state(scan))(INIT))  # forward over reverse
    check(lambda scan: torch.func.jacrev(torch.func.jacrev(of_state(scan)))(INIT))  # reverse over reverse
    check(lambda scan: grad(lambda s: jvp(of_state(scan), (s,), (INIT,))[1])(INIT))  # reverse over forward
    check(lambda scan: vmap(lambda v: jvp(grad(of_weight(scan)), (WEIGHT,), (v,))[1])(random_directions))


random_directions = random(3, 4, 4)

# A loop in a loop, and a transform in a loop, are traced like anything else. The inner scan is a node in the body
# of the outer one. When the outer body is batched or differentiated, the inner scan meets its rules, in a trace.


def test_nesting() -> None:
    vmap, grad = torch.func.vmap, torch.func.grad

    def nested(scan: Any, weight: Tensor, state: Tensor) -> Tensor:
        def outer(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            inner = lambda c, z: (torch.tanh(weight @ c) * z, c + x)
            last, ys = scan(inner, carry, XS[:3])
            return last, ys.sum(0)

        last, ys = scan(outer, state, XS)
        return (last * ys).sum()

    def descent(scan: Any, state: Tensor) -> Tensor:
        """Steps of gradient descent on a loss that is a loop itself."""
        step = lambda s, x: (s - 0.1 * grad(lambda s: loss(scan, s, WEIGHT, XS[:3]) + (s * x).sum())(s), s.sum())
        return scan(step, state, XS[:2])[0].sum()

    def of_weight(c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """A step that transforms functions of a free variable."""
        return c + grad(lambda w: torch.tanh(w @ c * x).sum())(WEIGHT) @ x, vmap(lambda row: torch.sin(row @ c))(WEIGHT)

    states = random(3, 4)
    check(lambda scan: grad(lambda w, s: nested(scan, w, s), argnums=(0, 1))(WEIGHT, INIT))
    check(lambda scan: vmap(grad(lambda s: nested(scan, WEIGHT, s)))(states))
    check(lambda scan: vmap(grad(lambda s: descent(scan, s)))(states))
    check(lambda scan: torch.func.jacrev(lambda s: scan(of_weight, s, XS))(INIT))
    check(lambda scan: torch.func.jacfwd(grad(lambda s: nested(scan, WEIGHT, s)))(INIT))


test_compositions()
test_nesting()

# This is the core. Where to go on reading: the table of rooms in ``docs/architecture.md``, then the dispatch class
# ``Hop`` with its two notes, then the rules of ``scan``. The terms are explained in ``docs/glossary.md``, and
# ``docs/diagrams.md`` has pictures of how a call travels.

if __name__ == "__main__":
    print("autodidax: every part agrees with plain Python")
