"""The intermediate representation: one functional ATen graph per captured body.

NOTE [Subgraph invariants]
 1. Inputs are flat tensors: the body's own leaves first, then the lifted free variables in order of first use.
 2. Outputs are flat tensors that alias neither an input nor one another.
 3. The graph is functional: no operator writes to an argument (in-place work of the body was functionalised).
 4. The graph holds what the ATen level would forget: work done under ``no_grad`` is detached, the casts of autocast
    are operators, a custom ``autograd.Function`` is a node of its own. It therefore runs with autocast off.
 5. Strides are no part of the meaning: ``view`` was replaced by ``reshape``, and inputs may come in any layout.
 6. No value is lazy: none is zero, negated or conjugated by a mark that its readers must know.
 7. It is immutable, and equal ones are the same object, so what rules derive from it is cached on it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, fx

from .._torch import OpOverload, facts, is_effectful, one_at_a_time, released, run_of, without_torch_function
from .active import state
from .first_nan import looked_at
from .meta import Mask, TensorMeta
from .nodes import bernoulli_like, frozen
from .origin import Origin, Scope, made_for, origin_here
from .sizes import Binding, SymbolPlaces, facts_hold, shape_env_of, size_key

__all__ = ["P", "Params", "Subgraph", "has_effect", "is_pinned", "is_random_node", "params_of"]

T = TypeVar("T")


class _Compiling(threading.local):
    depth = 0


_compiling = _Compiling()
_compiled = threading.Condition(one_at_a_time)


@dataclass(frozen=True, eq=False)
class _Deriving:
    """Something immutable that keeps what is derived from it."""

    _derived: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)
    _making: set[Hashable] = field(init=False, repr=False, default_factory=set)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def derive(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()``, computed once per ``key`` and kept as long as this object lives."""
        found: T | None = self._derived.get(key)
        if found is not None:
            return found
        with one_at_a_time:
            if key not in self._derived:
                with without_torch_function():  # no capture that runs meanwhile is to see the metadata being read
                    self._derived[key] = make()
            result: T = self._derived[key]
            return result

    def has_derived(self, key: Hashable) -> bool:
        """Whether :meth:`derive` has made this."""
        return key in self._derived

    def derive_apart(self, key: Hashable, make: Callable[[], T]) -> T:
        """As :meth:`derive`, for a ``make`` that runs a compiler: see NOTE [One lock]. Other threads that ask for the
        same ``key`` wait, but not one that compiles itself: two such could wait for one another.
        """
        if key in self._derived:
            found: T = self._derived[key]
            return found
        with one_at_a_time:
            while key in self._making and not _compiling.depth:
                _compiled.wait()
            if key in self._derived:
                return self._derived[key]
            self._making.add(key)
        _compiling.depth += 1
        try:
            with released():
                made = self._derived[key] = make()
            return made
        finally:
            _compiling.depth -= 1
            with one_at_a_time:
                self._making.discard(key)
                _compiled.notify_all()


@dataclass(frozen=True, eq=False)
class Params(_Deriving):
    """What an operator takes besides tensors: bodies, and values that are hashable.

    A subclass, a dataclass too, is the signature of one operator: its fields are the parameters, and its docstring says
    what operands and outputs are. A field is a body, a tuple of bodies, or holds none. FX refers to the whole by
    ``get_attr``. Equal parameters are not shared; the bodies in them are.
    """

    operator: ClassVar[Any]
    """The operator that takes these parameters (``hop.rules.operator_of``); it says so when it is made."""

    is_effect: ClassVar[bool] = False
    """Whether it is an effect of the user's (``fh.debug``)."""

    calls_python: ClassVar[bool] = False
    """Whether it calls a Python function of the user's for its results."""

    is_native: ClassVar[bool] = False
    """Whether it is an operator of torch's own in a program that is exported; any other dissolves."""

    trains_otherwise: ClassVar[bool] = False
    """Whether torch's derivative of what it is in such a program is right for a form of it only."""

    origin: Origin | None = field(init=False, repr=False, default_factory=origin_here)
    """Whose call this is, see NOTE [Origins]."""

    @property
    def n_outputs(self) -> int:
        raise NotImplementedError

    @property
    def public_name(self) -> str:
        """What a user knows the call as."""
        name: str = self.operator.label
        return name

    @property
    def operand_name(self) -> str | None:
        """The name that the operator gives its operand, if that is all that it does."""
        return None

    @property
    def lost_when_exported(self) -> str | None:
        """Why torch's derivative of what it is in such a program is another than its own, in any form."""
        return None

    @property
    def scope(self) -> Scope:
        """What was said of it by ``fh.annotate``."""
        return Scope() if self.origin is None else self.origin.scope

    def _values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @property
    def bodies(self) -> tuple[Subgraph, ...]:
        return tuple(body for value in self._values().values() for body in _bodies_in(value))

    def recorded(self, active: Mask) -> Params:
        """The parameters of the call that plain autograd remembers, where nothing else is active."""
        return self

    def transformed(self, active: Mask) -> Params:
        """The parameters of the call that autograd remembers elsewhere."""
        return self

    def trip_count(self, operands: Sequence[Any]) -> int | None:
        """How many steps a call takes, of a loop for which that is known from its operands."""
        return None

    def steady(self, operands: Sequence[Any]) -> Sequence[Any]:
        """For each input of the bodies the operand that it is in every run of them, or None; nothing if the bodies have
        inputs of other kinds.
        """
        return ()

    @property
    def run_bodies(self) -> tuple[Subgraph, ...]:
        """The bodies that a run of the operator may run."""
        return self.bodies

    @property
    def attributes(self) -> dict[str, Any]:
        """The parameters that are no bodies."""
        return {name: value for name, value in self._values().items() if not _bodies_in(value)}

    def with_bodies(self, change: Callable[[Subgraph], Subgraph]) -> Self:
        """The same attributes over changed bodies."""
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, Subgraph) else tuple(map(change, value))
            for name, value in self._values().items()
            if _bodies_in(value)
        }
        with made_for(self.origin):
            new = replace(self, **changed)
        return self if new.bodies == self.bodies else new

    def in_parts(self, change: Callable[[Subgraph], Subgraph], is_complex: Mask) -> Self | None:
        """The call with two real operands for each that ``is_complex``, over bodies changed alike; None where it takes
        its operands as they are.
        """
        return None

    def key(self) -> Hashable:
        attributes = (v.key() if isinstance(v, Params) else size_key(v) for v in self.attributes.values())
        return type(self), tuple(map(id, self.bodies)), tuple(attributes)

    @property
    def bytes_returned(self) -> int:
        """The bytes of what its bodies return, in a loop for each step, as far as they are known."""
        return sum(meta.nbytes for body in self.run_bodies for meta in body.outputs)

    @property
    def random(self) -> bool:
        """Whether it draws from the generator: then it keeps its place."""
        return any(body.random for body in self.bodies)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, from the generator or from a state of it: then lanes may differ."""
        return self.random or any(body.draws for body in self.bodies)

    @property
    def has_effects(self) -> bool:
        return any(body.has_effects for body in self.bodies)

    @property
    def holds_effects(self) -> bool:
        """Whether it is an effect of the user's, or has one in its bodies: then lanes differ, if in nothing else."""
        return self.is_effect or any(body.holds_effects for body in self.bodies)


P = TypeVar("P", bound=Params)
"""The parameters of one operator."""


def _bodies_in(value: object) -> tuple[Subgraph, ...]:
    """The bodies that a parameter consists of."""
    values = value if isinstance(value, tuple) else (value,)
    return values if all(isinstance(v, Subgraph) for v in values) else ()


class Subgraph(_Deriving):
    """A captured body: an immutable functional graph with the metadata of its inputs and outputs.

    Make one with :func:`Subgraph.intern`, which returns the existing object if an equal graph was captured before.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[TensorMeta], outputs: Sequence[TensorMeta]) -> None:
        super().__init__()
        self.module = module
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.random = any(is_random_node(node, module) for node in module.graph.nodes)
        called = [params for node in module.graph.nodes if (params := params_of(node, module)) is not None]
        self.draws = self.random or any(params.draws for params in called)
        self.holds_effects = any(params.holds_effects for params in called)
        self.has_effects = any(has_effect(node, module) for node in module.graph.nodes)
        self._run: Callable[..., tuple[Tensor, ...]] | None = None
        shapes = [meta.shape for meta in self.inputs]
        self.shape_env = shape_env_of(shapes)
        self._symbols = SymbolPlaces(shapes) if self.shape_env is not None else None
        self._n_facts = len(facts(self.shape_env)) if self.shape_env is not None else 0

    @staticmethod
    def intern(module: fx.GraphModule, inputs: Sequence[TensorMeta], outputs: Sequence[TensorMeta]) -> Subgraph:
        with without_torch_function():  # as in `derive`
            key = _graph_key(module, inputs)
        with one_at_a_time:
            existing = _interned.get(key)
            if existing is None:
                existing = _interned[key] = Subgraph(module, inputs, outputs)
            return existing

    def __call__(self, *operands: Tensor) -> tuple[Tensor, ...]:
        if state.capture is not None:
            copied = state.capture.inline(self, operands)
            return tuple(self._run_once(operands) if copied is None else copied)
        if state.stops_at_nan:
            return tuple(looked_at(self.module, operands))
        if self._run is None:
            self._run = run_of(self.module)
        return self._run(*operands)

    def _run_once(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """Node by node: to write the code of a graph and to compile it takes as long as to record it."""
        values: dict[fx.Node, Any] = dict(zip(self.input_nodes(), operands, strict=True))

        def of(a: Any) -> Any:
            if isinstance(a, fx.Node):
                return values[a]
            if isinstance(a, (tuple, list)):
                return tuple(map(of, a)) if isinstance(a, tuple) else list(map(of, a))
            return slice(of(a.start), of(a.stop), of(a.step)) if isinstance(a, slice) else a

        for node in self.module.graph.nodes:
            if node.op == "call_function":
                values[node] = node.target(*map(of, node.args), **{k: of(a) for k, a in node.kwargs.items()})
            elif node.op == "get_attr":
                values[node] = getattr(self.module, node.target)
        return [values[node] for node in self.output_nodes()]

    def bind(self, operands: Sequence[Tensor]) -> Binding:
        """What the open sizes are in a call with these operands."""
        return {} if self._symbols is None else self._symbols.bind(operands)

    def allows(self, binding: Binding) -> bool:
        """Whether this graph stands for what was traced at these sizes too."""
        return self.shape_env is None or facts_hold(self.shape_env, binding, self._n_facts)

    def input_nodes(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "placeholder"]

    def output_nodes(self) -> Sequence[fx.Node]:
        (outputs,) = self.module.graph.output_node().args
        return outputs  # type: ignore[return-value]

    def pinned_nodes(self) -> list[fx.Node]:
        """The nodes that stay in a graph, read or not."""
        return [node for node in self.module.graph.nodes if is_pinned(node, self.module)]


_interned: weakref.WeakValueDictionary[Hashable, Subgraph] = weakref.WeakValueDictionary()
_SMALL_CONSTANT = 64


def params_of(node: fx.Node, module: torch.nn.Module) -> Params | None:
    """The parameters of the operator that a node calls, None for any other node."""
    first = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(first, fx.Node) or first.op != "get_attr":
        return None
    value = getattr(module, str(first.target))
    return value if isinstance(value, Params) else None


def is_random_node(node: fx.Node, module: torch.nn.Module) -> bool:
    if isinstance(node.target, OpOverload):
        return torch.Tag.nondeterministic_seeded in node.target.tags and not _drops_nothing(node)
    params = params_of(node, module)
    return node.target is bernoulli_like or (params is not None and params.random)


def _drops_nothing(node: fx.Node) -> bool:
    """Whether it is attention without dropout, which torch counts as random for the sake of that."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == "dropout_p":
            given = node.args[i] if i < len(node.args) else node.kwargs.get("dropout_p", argument.default_value)
            return bool(given == 0)
    return False


def has_effect(node: fx.Node, module: torch.nn.Module) -> bool:
    """Whether a node does something besides its results: it checks, prints, or calls a custom operator that may."""
    if isinstance(node.target, OpOverload):
        return is_effectful(node.target)
    params = params_of(node, module)
    return params is not None and params.has_effects


def is_pinned(node: fx.Node, module: torch.nn.Module) -> bool:
    """Whether a node stays where it is, read or not: a draw keeps its place in the stream, an effect its turn."""
    return is_random_node(node, module) or has_effect(node, module)


def _graph_key(module: fx.GraphModule, inputs: Sequence[TensorMeta]) -> Hashable:
    index: dict[fx.Node, int] = {}
    rows = []
    for node in module.graph.nodes:
        index[node] = len(index)
        target = _attribute_key(getattr(module, node.target)) if node.op == "get_attr" else node.target
        if node.op == "placeholder":
            target = None
        arguments = frozen(node.args, index), frozen(node.kwargs, index)
        rows.append((node.op, target, *arguments, _dtypes(node.meta.get("val"))))
    return tuple(rows), tuple(inputs)


def _dtypes(value: Any) -> Hashable:
    """The dtypes of a node's result: with a default dtype in their arguments, equal nodes may differ in them."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_dtypes, value))
    return getattr(value, "dtype", None)


def _attribute_key(value: object) -> Hashable:
    if isinstance(value, Params):
        return value.key(), value.origin
    if isinstance(value, Tensor) and value.numel() <= _SMALL_CONSTANT and value.device.type == "cpu":
        return value.dtype, tuple(value.shape), repr(value.tolist())
    return id(value)
