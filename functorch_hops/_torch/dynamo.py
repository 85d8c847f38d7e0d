"""Dynamo's private API (checked against torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0): how it traces a call of this library.

Imported when Dynamo first meets such a call, never before: Dynamo takes a second to import.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, fx
from torch._dynamo.exc import ObservedException, TorchRuntimeError, Unsupported, UserError
from torch._dynamo.source import GlobalSource
from torch._dynamo.trace_rules import _force_inline
from torch._dynamo.utils import get_unique_name_wrt
from torch._dynamo.variables import higher_order_ops
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.builder import VariableBuilder, wrap_fx_proxy
from torch._dynamo.variables.ctx_manager import GradModeVariable, WithExitFunctionVariable
from torch._dynamo.variables.functions import (
    FunctoolsPartialVariable,
    NestedUserFunctionVariable,
    UserFunctionVariable,
    UserMethodVariable,
)
from torch._dynamo.variables.lazy import LazyVariableTracker
from torch._dynamo.variables.lists import TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack, temporarily_restore_interpreter_stack
from torch._guards import TracingContext
from torch.overrides import TorchFunctionMode

from .autograd import inputs_stay
from .compilers import is_exporting
from .dispatch import suspended
from .dynamo_functions import backward_with_gradients
from .dynamo_graphs import copy_written_inputs, is_open, made_to_run
from .dynamo_library import Compiler, Library, as_unsupported
from .dynamo_objects import Objects, type_of, value_of
from .levels import below_transforms
from .symbols import SHIFT, is_shifted, new_carrier, read_open_number, shape_of_carrier

__all__ = ["OpenNumber", "register"]


def register(operator: Any, library: Library) -> None:
    """Dynamo traces a call of `operator`, on a function of the library and its arguments, by a capture of that call."""
    kind: Any = type("LeafCallVariable", (_LeafCallVariable,), {"library": library})
    higher_order_ops._hop_name_to_variable_class[operator.__name__] = kind


class _LeafCallVariable(higher_order_ops.TorchHigherOrderOperatorVariable):
    _HOP_NAME = "functorch_hops"
    _ALLOW_FALLBACK_TO_EAGER = True
    library: Library

    def call_function(self, tx: Any, args: Any, kwargs: Any) -> VariableTracker:
        """A call is no function of torch's: modes see what the user's functions call, as in Python. Dynamo would call
        the mode with the operator, and trace the functions without it.
        """
        return self._call_function(tx, args, kwargs)

    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> VariableTracker:
        function, positional, keywords = LazyVariableTracker.realize_all(list(args))
        return _Call(tx, self.value, self.library).trace(function.as_python_constant(), positional, keywords)


_FAILED_ASSERTS = {
    "Data-dependent assertion failed (cannot compile partial graph)",
    "Assertion failed on symbolic shapes",
}
"""What Dynamo calls an ``assert`` of a value that it knows."""


class _AnyIndex(TorchFunctionMode):
    """While Dynamo runs operators to know their results' shapes: a traced index has no value, and any will do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ or func is Tensor.__setitem__:
            values, index, *rest = args
            places = index if isinstance(index, tuple) else (index,)
            any_place = _any_place if func is Tensor.__getitem__ else _any_place_or_all
            args = values, tuple(map(any_place, places)), *rest
        return func(*args, **kwargs or {})


def _any_place(place: Any) -> Any:
    is_number = isinstance(place, Tensor) and not place.dim() and place.dtype is not torch.bool
    return 0 if is_number and not (place.dtype.is_floating_point or place.dtype.is_complex) else place


def _any_place_or_all(place: Any) -> Any:
    """What is written at a mask of no dimensions is written, or not, whatever the shape of the table."""
    is_mask = isinstance(place, Tensor) and not place.dim() and place.dtype is torch.bool
    return True if is_mask else _any_place(place)


@contextlib.contextmanager
def _floats_read_outside(output: Any) -> Iterator[None]:
    """Dynamo makes an open number of a float that a function reads: the ``item`` of an input, in the graph at hand. It
    keeps the number for all that read the float later, so it has to be one of the outermost graph.
    """
    wrap: Any = VariableBuilder.wrap_symfloat

    def wrapped_outside(builder: VariableBuilder, value: float) -> VariableTracker:
        tracers, output.tracers = output.tracers, [output.root_tracer]
        try:
            return wrap(builder, value)
        finally:
            output.tracers = tracers

    VariableBuilder.wrap_symfloat = wrapped_outside  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        VariableBuilder.wrap_symfloat = wrap  # type: ignore[method-assign]


class _Leaf:
    __fh_leaf__ = True


class _Opaque(_Leaf):
    """What the library only hands on: it stands for a value of Dynamo's."""

    def __init__(self, call: _Call, variable: VariableTracker) -> None:
        self.call, self.variable = call, variable
        self.__name__ = getattr(value_of(variable), "__name__", "func")

    def __fh_itself__(self) -> Any:
        """The object that Python gets when the graph runs."""
        return self.call.objects.of(self.variable, self.__name__)


class _Stub(_Opaque):
    """A function of the user's, as the library calls it while it captures."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call.run(self.variable, args, kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return self.call.signature(self.variable)


class OpenNumber(_Leaf):
    """A number that Dynamo leaves open. It travels as a tensor: an int as the size of an empty one."""

    def __init__(self, carrier: Tensor, variable: VariableTracker) -> None:
        self.carrier, self.variable = carrier, variable
        self.read_as: Any = None

    def read(self, carrier: Tensor) -> Any:
        """The number as an argument, in a capture that knows its tensor as this one."""
        self.read_as = read_open_number(carrier)
        return self.read_as


class _Output(_Leaf):
    """The place of a tensor among the outputs of a graph."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Body(NamedTuple):
    """Dynamo's graph of a function, the values that it closes over, and the tree of its result."""

    graph: fx.GraphModule
    lifted: list[Any]
    tree: Any


class _Backend:
    """A backend of Dynamo's, for graphs with calls of the library."""

    def __init__(self, backend: Any, library: Library) -> None:
        self.backend, self.library, self.compiler = backend, library, Compiler.of(backend)
        self.__name__ = getattr(backend, "__name__", self.compiler.name)
        self.proxies: dict[int, tuple[Any, fx.Proxy]] = {}
        """The values of Dynamo's that the library got, by identity, and their proxies."""
        self.attributes: dict[Any, tuple[Any, fx.Proxy]] = {}
        """Those among them that are an attribute of another value, by that value and the name."""
        self.numbers: dict[tuple[Any, fx.Node], OpenNumber] = {}
        """Open numbers, by the graph that their carriers are made in and their nodes: a function that is traced twice
        closes over the same carriers.
        """

    def __call__(self, module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        self.proxies.clear()
        self.attributes.clear()
        self.numbers.clear()
        stay = not is_exporting() and copy_written_inputs(module, self.library.copied)
        with self.library.compiling(self.compiler), inputs_stay() if stay else contextlib.nullcontext():
            return self.backend(module, *args, **kwargs)


class _Call:
    """One call of the library in a trace of Dynamo's."""

    def __init__(self, tx: Any, operator: Any, library: Library) -> None:
        self.tx, self.operator, self.library = tx, operator, library
        if not isinstance(tx.output.compiler_fn, _Backend):
            tx.output.compiler_fn = _Backend(tx.output.compiler_fn, library)
        self.backend: _Backend = tx.output.compiler_fn
        with temporarily_clear_interpreter_stack() as levels:
            self.levels = levels
        self.objects = Objects(tx, library.is_same_function, self.unknown_object)
        self.failure: Exception | None = None
        """Why a function could not be traced. The library may go on without it, as it does where a rule fails."""

    def trace(self, function: Any, args: VariableTracker, kwargs: VariableTracker) -> VariableTracker:
        tx = self.tx
        positional, keywords = self.to_python(args, self.known), self.to_python(kwargs, self.known)
        self.operation = self.library.operation(function, positional)
        try:
            with self.library.tracing(TracingContext.extract_stack), self.in_mode_of_program():
                captured = self.library.capture(function, positional, keywords, self.backend.compiler, self.said())
        except self.library.errors as error:
            self.failure = self.failure or as_unsupported(error)
        if self.failure is not None:
            # In the frame of the call itself there is nothing to go on with.
            if isinstance(self.failure, Unsupported):
                self.failure.skip_frame = self.library.is_entry(tx.output.root_tx.f_code)
            raise self.failure
        name = get_unique_name_wrt(f"fh_{self.operation}".replace(".", "_"), tx.output.nn_modules, requires_suffix=True)
        tx.output.nn_modules[name] = captured.call
        call = tx.output.create_proxy("get_attr", name, (), {})
        call.node.meta["example_value"] = captured.call
        operands = map(self.proxy_of, captured.operands)
        node = tx.output.create_proxy("call_function", self.operator, (call, *operands), {}, name=name)
        return self.to_dynamo(captured.result(wrap_fx_proxy(tx, node).unpack_var_sequence(tx)))

    def said(self) -> list[dict[str, Any]]:
        """What annotated functions around the call say of it, the outermost first."""
        said = list[dict[str, Any]]()
        frame = self.tx
        while frame is not None:
            if frame.f_code is self.library.annotated_code:
                values = frame.symbolic_locals
                said.insert(0, {key: values[key].as_python_constant() for key in self.library.annotations})
            frame = frame.parent
        return said

    def in_mode_of_program(self) -> contextlib.AbstractContextManager[object]:
        """``no_grad`` around the whole of an export is no part of the program."""
        tx = self.tx
        _, had_gradients = tx.output.tracing_context.global_context.global_state["grad_enabled"]
        if torch.is_grad_enabled() or had_gradients or not is_exporting():
            return contextlib.nullcontext()
        codes, frame = list(tx.output.traced_code), tx
        while frame is not None:
            codes.append(frame.f_code)
            switches: list[Any] = [x.ctx for x in frame.stack if isinstance(x, WithExitFunctionVariable)]
            switches.append(getattr(getattr(frame, "funcvar", None), "context", None))  # of a decorated function
            if any(isinstance(x, GradModeVariable) for x in switches):
                return contextlib.nullcontext()
            frame = frame.parent
        if any("set_grad_enabled" in code.co_names for code in codes):
            # Dynamo makes no node of a switch that changes nothing.
            with self.library.tracing(TracingContext.extract_stack):
                self.library.mode_unknown(self.operation)
        return torch.enable_grad()

    def proxy_of(self, x: Tensor) -> fx.Proxy:
        known = self.backend.proxies.get(id(x))
        if known is not None:
            return known[1]
        return self.as_global(x).as_proxy()  # a table that the function makes

    # -- functions of the user's

    def run(self, function: VariableTracker, args: Any, kwargs: Any) -> Any:
        """A call by the library, in a capture: Dynamo's graph of the function, run on the values of the capture."""
        leaves, spec = self.library.flatten((args, kwargs))
        inputs = [*{id(x): x for x in leaves if isinstance(x, _INPUTS)}.values()]  # one object is one inside, too
        metas = [(tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else x for x in inputs]
        try:
            with self.as_around():
                body = self.speculate(function, leaves, spec, metas)
        except Exception as error:
            failure = self.in_words(error)
            self.failure = self.failure or failure
            if failure is error:
                raise
            raise failure from error
        lifted = [read_open_number(x.carrier) if isinstance(x, OpenNumber) else x for x in body.lifted]
        outputs = body.graph(*inputs, *lifted)
        leaves, spec = self.library.flatten(body.tree)
        return self.library.unflatten(spec, [outputs[x.index] if isinstance(x, _Output) else x for x in leaves])

    def unknown_object(self, name: str) -> Exception:
        return self.library.unknown_object(self.operation, name)

    def in_words(self, error: Exception) -> Exception:
        """What Dynamo can't trace, and what the user's function raises and nothing around catches, as an error of the
        library's too; anything else is for Dynamo to handle.
        """
        if isinstance(error, IndentationError) and isinstance(error.__context__, Unsupported):
            error = error.__context__  # whose graph, which holds no operation yet, torch (2.13) fails to print
        refusals = Unsupported, UserError, TorchRuntimeError, ObservedException
        if not isinstance(error, refusals) or isinstance(error, self.library.errors):
            return error
        if isinstance(error, ObservedException) and self.may_be_caught():
            return error
        with self.library.tracing(lambda: error.real_stack):
            return as_unsupported(self.as_own(error), error)

    def as_own(self, error: Any) -> Exception:
        if isinstance(error, ObservedException):
            return self.library.raised(self.operation, self.tx.exn_vt_stack._current_exception.debug_repr())
        if isinstance(error, TorchRuntimeError):  # of an operator on fakes
            return self.library.raised(self.operation, error.msg.partition(": got ")[2].partition("\n")[0] or error.msg)
        kind = error.gb_type if isinstance(error, Unsupported) else error.error_type.name
        if kind in _FAILED_ASSERTS:
            return self.library.raised(self.operation, "AssertionError")
        return self.library.refused(self.operation, kind or "", error.msg)

    def may_be_caught(self) -> bool:
        """Whether the call of the library stands in a ``try`` or ``with``."""
        frame = self.tx
        while frame is not None and frame.current_instruction.exn_tab_entry is None:
            frame = frame.parent
        return frame is not None

    @contextlib.contextmanager
    def as_around(self) -> Iterator[None]:
        """What was active around the call of the library, while it captures."""
        enabled = torch.is_grad_enabled()
        with (
            self.library.outside(),
            suspended(keep_autocast=True),
            torch.set_grad_enabled(enabled),
            temporarily_restore_interpreter_stack(self.levels),
            _AnyIndex(),
        ):
            yield

    def speculate(self, function: VariableTracker, leaves: list[Any], spec: Any, metas: Sequence[Any]) -> _Body:
        tx = self.tx
        with higher_order_ops.discard_graph_changes(tx):
            samples = [self.sample(*meta) if isinstance(meta, tuple) else self.sample_of_int(meta) for meta in metas]
        flat = _Flat(self, function, leaves, spec)
        with _floats_read_outside(tx.output), backward_with_gradients():
            _, graph, lifted = higher_order_ops.speculate_subgraph(
                tx,
                flat,
                samples,
                {},
                "functorch_hops",
                source_target=self.operator,
                set_subgraph_inputs="flatten_manual",
                restore_side_effects=False,
                supports_input_mutation=True,
                supports_aliasing=True,
            )
        inputs = graph.find_nodes(op="placeholder")[len(samples) :]
        values = [self.value_of(p) if is_open(node) else _constant(p) for p, node in zip(lifted, inputs, strict=True)]
        module = made_to_run(fx.GraphModule(dict(tx.output.nn_modules), graph), len(self.levels))
        return _Body(module, values, flat.tree)

    def sample(self, shape: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> VariableTracker:
        """A tensor for which Dynamo traces a function. It has a gradient wherever it may: Dynamo forgets the backward
        of an ``autograd.Function`` that is called without one.
        """
        proxy = self.tx.output.create_proxy("call_function", torch.empty, ((0,),), {})
        with self.tx.fake_mode, below_transforms():
            value = torch.empty(shape, dtype=dtype, device=device)
            if torch.is_grad_enabled() and (dtype.is_floating_point or dtype.is_complex):
                value = value.requires_grad_().clone()  # which may be written to
        return wrap_fx_proxy(self.tx, proxy, example_value=value)

    def sample_of_int(self, number: torch.SymInt) -> VariableTracker:
        proxy = self.tx.output.create_proxy("call_function", operator.add, (0, 0), {})
        return wrap_fx_proxy(self.tx, proxy, example_value=number)

    def signature(self, function: VariableTracker) -> inspect.Signature:
        """Of a function of the user's. Its defaults are values of Dynamo's."""
        found: Any = function.realize()
        if isinstance(found, FunctoolsPartialVariable):
            given = [self.to_python(x, self.known) for x in found.args]
            named = {name: self.to_python(x, self.known) for name, x in found.keywords.items()}
            return inspect.signature(functools.partial(_Stub(self, found.func), *given, **named))
        if isinstance(found, NestedUserFunctionVariable):
            written = self.tx.output.side_effects
            if written.has_pending_mutation_of_attr(found, "__wrapped__"):  # by functools.wraps
                return self.signature(written.load_attr(found, "__wrapped__"))
            code, defaults, of_names = found.get_code(), found.defaults, found.kwdefaults
            cells = tuple(CellType() for _ in code.co_freevars)
            made = FunctionType(code, {}, code.co_name, closure=cells)
            made.__defaults__ = None if defaults is None else tuple(self.to_python(defaults, self.known))
            made.__kwdefaults__ = None if of_names is None else self.to_python(of_names, self.known)
            return inspect.signature(made)
        if isinstance(found, UserMethodVariable):
            value: Any = MethodType(found.get_function(), found)
        else:
            value = found.get_function() if isinstance(found, UserFunctionVariable) else value_of(found)
        signature = self.library.signature(value)
        if all(p.default is p.empty for p in signature.parameters.values()):
            return signature
        read: Any = self.library.defaults
        with self.as_around(), _force_inline():
            defaults = self.tx.inline_user_function_return(UserFunctionVariable(read), [found], {})
            values = self.to_python(defaults, self.known)
        parameters = zip(signature.parameters.values(), values, strict=True)
        return signature.replace(parameters=[p.replace(default=x) for p, x in parameters])

    # -- values

    def known(self, variable: VariableTracker) -> Any:
        """What the library gets for a tensor or an open number."""
        proxy = variable.as_proxy()
        value = proxy.node.meta["example_value"]
        return self.predicate(proxy, value) if isinstance(value, torch.SymBool) else self.value_of(proxy)

    def predicate(self, truth: fx.Proxy, value: torch.SymBool) -> Tensor:
        """What is asked of an open size, as a tensor: its answer is another in each call."""
        node = self.tx.output.create_proxy("call_function", torch.sym_ite, (truth, 1, 0), {})
        node.node.meta["example_value"] = number = torch.sym_ite(value, 1, 0)
        proxy = self.tx.output.create_proxy("call_function", torch.scalar_tensor, (node,), {"dtype": torch.bool})
        with self.tx.fake_mode:
            made = wrap_fx_proxy(self.tx, proxy, example_value=torch.scalar_tensor(number, dtype=torch.bool))
        return self.value_of(made.as_proxy())

    def value_of(self, proxy: fx.Proxy) -> Any:
        value = proxy.node.meta["example_value"]
        if isinstance(value, torch.SymBool):
            return bool(value)
        if not isinstance(value, Tensor):
            numbers, key = self.backend.numbers, (self.tx.output.current_tracer, proxy.node)
            if key not in numbers:
                numbers[key] = self.open_number(proxy, value)
            return numbers[key]
        if proxy.node.target is getattr:  # ``x.T``: a node of the graph around, made again for each trace
            value, proxy = self.backend.attributes.setdefault(proxy.node.args, (value, proxy))
        self.backend.proxies[id(value)] = value, proxy
        return value

    def open_number(self, number: fx.Proxy, value: Any) -> OpenNumber:
        create, shape = self.tx.output.create_proxy, shape_of_carrier(value)
        variable = SymNodeVariable(number, value)
        if shape and is_shifted(shape):
            number = create("call_function", operator.add, (number, SHIFT), {})
            number.node.meta["example_value"] = shape[1]
        if shape:
            sizes = [size if isinstance(size, int) else number for size in shape]
            proxy = create("call_function", torch.empty, (sizes,), {"dtype": torch.bool})
        else:
            # AOTAutograd makes a tensor of a float that its graph multiplies by; ``scalar_tensor`` asks for the value.
            one = create("call_function", torch.ones, ((),), {"dtype": torch.float64})
            proxy = create("call_function", torch.mul, (one, number), {})
        with self.tx.fake_mode:
            carrier = wrap_fx_proxy(self.tx, proxy, example_value=new_carrier(shape, value))
        return OpenNumber(self.known(carrier), variable)

    # -- trees

    def to_python(self, variable: VariableTracker, tensor: Callable[[VariableTracker], Any]) -> Any:
        """A tree of Dynamo's as the library gets it; functions in it are stubs. ``tensor``: for tensors, and numbers
        that are open.
        """
        variable = variable.realize()
        if isinstance(variable, (TensorVariable, SymNodeVariable)):
            return tensor(variable)
        kind = type_of(variable)
        if kind in (tuple, list, torch.Size):
            make_sequence: Any = list if kind is list else tuple  # a size holds no open numbers
            return make_sequence(self.to_python(x, tensor) for x in variable.unpack_var_sequence(self.tx))
        value = value_of(variable)
        if self.library.is_own(value):
            return value
        if kind is not type(None) and self.library.is_node(kind):
            take, make = _NODES.get(kind) or self.functions_of(kind)
            function: Any = take
            with _force_inline():
                taken = self.tx.inline_user_function_return(UserFunctionVariable(function), [variable], {})
            children, metadata = taken.unpack_var_sequence(self.tx)
            values = [self.to_python(x, tensor) for x in children.unpack_var_sequence(self.tx)]
            return make(metadata.as_python_constant(), values)
        if variable.is_python_constant() and (not callable(value) or isinstance(value, type)):
            return value
        return _Stub(self, variable)

    def to_dynamo(self, tree: Any) -> VariableTracker:
        """A tree of the library's as Dynamo goes on with it; leaves may be Dynamo's already."""
        if isinstance(tree, VariableTracker):
            return tree
        if isinstance(tree, _Opaque):
            return tree.variable
        if isinstance(tree, torch.SymFloat):  # Dynamo has its value, where its graph asks for that
            given = [x.variable for x in self.backend.numbers.values() if x.read_as is tree]
            return given[0] if given else VariableTracker.build(self.tx, tree)
        kind = type(tree)
        if kind is tuple:
            return TupleVariable([self.to_dynamo(x) for x in tree])
        if self.library.is_own(tree):
            return self.as_global(tree)
        if tree is None or not self.library.is_node(kind):
            return VariableTracker.build(self.tx, tree)
        take, make = _NODES.get(kind) or self.functions_of(kind)
        children, metadata = take(tree)
        arguments = [VariableTracker.build(self.tx, metadata), TupleVariable([self.to_dynamo(x) for x in children])]
        return self.as_global(make).call_function(self.tx, arguments, {})

    def as_global(self, value: Any) -> VariableTracker:
        """An object that Dynamo may refer to where it goes on: what can't be made again must have a name."""
        name = self.tx.output.install_global_by_id("__functorch_hops", value)
        return VariableTracker.build(self.tx, value, source=GlobalSource(name))

    def functions_of(self, kind: type) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
        """What takes a node of this type apart, into its children and all else, and what puts it together."""
        if optree.is_namedtuple_class(kind):
            return lambda node: (tuple(node), kind), lambda kind, children: kind(*children)
        node: Any = optree.register_pytree_node.get(kind, namespace=self.library.namespace)
        take, make = node.flatten_func, node.unflatten_func

        def children_and_metadata(node: Any) -> tuple[Any, Any]:
            children, metadata, *_ = take(node)
            return tuple(children), metadata

        return children_and_metadata, make


def _constant(number: fx.Proxy) -> float:
    """An open number as what it is in this call, which Dynamo guards."""
    return float(number.node.meta["example_value"])


def _items(node: Any) -> tuple[Any, Any]:
    return tuple(node.values()), tuple(node.keys())


_NODES: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    list: (lambda node: (tuple(node), None), lambda _, children: list(children)),
    dict: (_items, lambda keys, children: dict(zip(keys, children))),
    OrderedDict: (_items, lambda keys, children: OrderedDict(zip(keys, children))),
    defaultdict: (
        lambda node: (tuple(node.values()), (node.default_factory, tuple(node.keys()))),
        lambda metadata, children: defaultdict(metadata[0], zip(metadata[1], children)),
    ),
    deque: (lambda node: (tuple(node), node.maxlen), lambda maxlen, children: deque(children, maxlen)),
}
"""The functions of optree's own types, written for Dynamo to trace them."""


_INPUTS = Tensor, torch.SymInt
"""What the graph of a function takes as inputs. An open float is closed over, as its value may be asked for."""


class _Flat(VariableTracker):
    """A call of a user's function as one from tensors to tensors, of which Dynamo makes a graph."""

    def __init__(self, call: _Call, function: VariableTracker, leaves: list[Any], spec: Any) -> None:
        super().__init__()
        self.call, self.function, self.leaves, self.spec = call, function, leaves, spec
        self.tree: Any = None

    def call_function(self, tx: Any, args: Any, kwargs: Any) -> VariableTracker:
        call, outputs = self.call, list[VariableTracker]()
        inputs = dict(zip(dict.fromkeys(id(x) for x in self.leaves if isinstance(x, _INPUTS)), args, strict=True))
        leaves = [inputs[id(x)] if isinstance(x, _INPUTS) else x for x in self.leaves]
        positional, keywords = call.library.unflatten(self.spec, leaves)
        named = {name: call.to_dynamo(x) for name, x in keywords.items()}
        result = self.function.call_function(tx, [call.to_dynamo(x) for x in positional], named)

        def output(variable: VariableTracker) -> Any:
            if isinstance(variable, SymNodeVariable) and isinstance(variable.sym_num, torch.SymFloat):
                return _constant(variable.as_proxy())  # no output of a graph
            outputs.append(variable)
            return _Output(len(outputs) - 1)

        self.tree = call.to_python(result, output)
        return TupleVariable(outputs)
