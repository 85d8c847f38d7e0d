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

import operator
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, fx

from .._torch import FakeTensorMode, OpOverload, facts, run_of, without_gradients, without_torch_function
from .current import state
from .sizes import Binding, SymbolPlaces, facts_hold, open_size, same_sizes, shape_env_of, size_key, size_value

__all__ = [
    "Mask",
    "StaticParameters",
    "Subgraph",
    "TensorMeta",
    "detached",
    "frozen",
    "is_differentiable",
    "is_random_node",
    "static_of",
    "untracked",
]

T = TypeVar("T")
Mask = tuple[bool, ...]


_DIFFERENTIABLE = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
)


def is_differentiable(dtype: torch.dtype) -> bool:
    """Whether values of ``dtype`` have tangents."""
    return dtype in _DIFFERENTIABLE


def untracked(x: Tensor) -> Tensor:
    """What ``torch.no_grad`` makes of a result, as a node: reverse mode stops here, forward mode does not."""
    with torch.no_grad():
        return torch.ops.aten.alias.default(x)


def detached(x: Tensor) -> Tensor:
    """What ``detach`` makes of a tensor, as a node by whose result functionalization lets one write to ``x``: of a view
    that it knows as ``detach`` it would detach what is written as well.
    """
    with without_gradients():
        return torch.ops.aten.alias.default(x)


class TensorMeta(NamedTuple):
    """What a capture knows of a tensor. A size may be open, see NOTE [Open sizes]; equality is that of form."""

    shape: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t: Tensor) -> TensorMeta:
        return cls(tuple(t.shape), t.dtype, t.device)

    def _form(self) -> Hashable:
        return tuple(map(size_key, self.shape)), self.dtype, self.device

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorMeta) and self._form() == other._form()

    def __hash__(self) -> int:
        return hash(self._form())

    def agrees(self, other: TensorMeta) -> bool:
        """Whether tensors of both kinds can stand for one another."""
        return self[1:] == other[1:] and same_sizes(self.shape, other.shape)

    def opened(self, env: Any, name: str) -> TensorMeta:
        """The same with every size from 2 on left open."""
        sizes = (open_size(env, size, f"{name}_{d}") for d, size in enumerate(self.shape))
        return TensorMeta(tuple(sizes), self.dtype, self.device)

    def at(self, binding: Binding) -> TensorMeta:
        """The same with numbers for the open sizes."""
        return TensorMeta(tuple(size_value(s, binding) for s in self.shape), self.dtype, self.device)

    def empty(self) -> Tensor:
        """An uninitialised tensor of this kind (a fake one under a fake mode)."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def fake(self, mode: FakeTensorMode) -> Tensor:
        with mode:
            return self.empty()

    def with_leading(self, size: Any) -> TensorMeta:
        return TensorMeta((size, *self.shape), self.dtype, self.device)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}[{', '.join(map(str, self.shape))}]@{self.device}"


class _Deriving(torch.nn.Module):
    """Something immutable that keeps what is derived from it."""

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def derive(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()``, computed once per ``key`` and kept as long as this object lives."""
        found: T | None = self._derived.get(key)
        if found is not None:
            return found
        with self._lock:
            if key not in self._derived:
                with without_torch_function():  # no capture that runs meanwhile is to see the metadata being read
                    self._derived[key] = make()
            result: T = self._derived[key]
            return result


class StaticParameters(_Deriving):
    """What a HOP takes besides tensors: bodies and attributes, as one module, which FX refers to by ``get_attr``.

    Equal parameters are not shared; the bodies in them are.
    """

    def __init__(self, hop: str, bodies: Sequence[Subgraph], **attributes: Hashable) -> None:
        super().__init__()
        self.hop = hop
        self.bodies = tuple(bodies)
        for i, body in enumerate(self.bodies):
            self.add_module(f"body_{i}", body)
        self.attributes = attributes

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]

    def with_bodies(self, change: Callable[[Subgraph], Subgraph]) -> StaticParameters:
        """The same attributes over changed bodies."""
        bodies = [change(body) for body in self.bodies]
        return (
            self
            if all(a is b for a, b in zip(bodies, self.bodies))
            else type(self)(self.hop, bodies, **self.attributes)
        )

    def key(self) -> Hashable:
        attributes = [
            (n, v.key() if isinstance(v, StaticParameters) else size_key(v)) for n, v in self.attributes.items()
        ]
        return type(self), self.hop, tuple(id(body) for body in self.bodies), tuple(sorted(attributes))

    @property
    def random(self) -> bool:
        return any(body.random for body in self.bodies)


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
        self._run: Callable[..., tuple[Tensor, ...]] | None = None
        shapes = [meta.shape for meta in self.inputs]
        self.shape_env = shape_env_of(shapes)
        self._symbols = SymbolPlaces(shapes) if self.shape_env is not None else None
        self._n_facts = len(facts(self.shape_env)) if self.shape_env is not None else 0

    @staticmethod
    def intern(module: fx.GraphModule, inputs: Sequence[TensorMeta], outputs: Sequence[TensorMeta]) -> Subgraph:
        with without_torch_function():  # as in `derive`
            key = _graph_key(module, inputs)
        with _interned_lock:
            existing = _interned.get(key)
            if existing is None:
                existing = _interned[key] = Subgraph(module, inputs, outputs)
            return existing

    def __call__(self, *operands: Tensor) -> tuple[Tensor, ...]:
        if state.capture is not None:
            copied = state.capture.inline(self, operands)
            if copied is not None:
                return tuple(copied)
        if self._run is None:
            self._run = run_of(self.module)
        return self._run(*operands)

    def reached(self, sources: Sequence[bool], *, by: str) -> Mask:
        """Which outputs the marked inputs reach.

        ``by="value"``: through any operator; random operators count as sources too where ``by="lane"`` (each lane of
        a vmap draws its own numbers); ``by="gradient"`` and ``by="tangent"``: through differentiable values only, which
        ``detach`` stops, and for gradients ``no_grad`` too.
        """
        key = ("reached", tuple(sources), by)
        return self.derive(key, lambda: self._reached(tuple(sources), by))

    def _reached(self, sources: Mask, by: str) -> Mask:
        marked: dict[fx.Node, bool | Mask] = {}
        inputs = iter(sources)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                marked[node] = next(inputs) and _passes(node, by)
            elif node.op != "output":
                marked[node] = self._reached_through(node, marked, by)
        return tuple(isinstance(out, fx.Node) and bool(marked[out]) for out in self.output_nodes())

    def _reached_through(self, node: fx.Node, marked: dict[fx.Node, bool | Mask], by: str) -> bool | Mask:
        """Whether a node is reached, or which of its outputs are, if its operator has a rule for that."""
        static = static_of(node, self.module)
        if static is not None:
            mask = tuple(isinstance(a, fx.Node) and bool(marked[a]) for a in node.args[1:])
            return node.target.rules.reached(static, mask, by)  # type: ignore[union-attr]
        if node.target is operator.getitem:
            source, index = node.args
            whole = marked[source]  # type: ignore[index]
            hit = whole[index] if isinstance(whole, tuple) else whole  # type: ignore[index]
        else:
            hit = any(marked[n] for n in node.all_input_nodes)
            hit = hit or (by == "lane" and is_random_node(node, self.module))
        return hit and _passes(node, by)

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

    def as_text(self, name: str = "body", indent: str = "") -> str:
        """The graph as text, bodies of the nodes in it nested below their node."""
        from .printing import print_subgraph

        return print_subgraph(self, name, indent)


_BARRIERS = {
    "gradient": (torch.ops.aten.detach.default, untracked),
    "tangent": (torch.ops.aten.detach.default,),
}
_interned: weakref.WeakValueDictionary[Hashable, Subgraph] = weakref.WeakValueDictionary()
_interned_lock = threading.Lock()
_SMALL_CONSTANT = 64


def _passes(node: fx.Node, by: str) -> bool:
    """Whether what reaches a node goes on from there."""
    if by not in _BARRIERS:
        return True
    value = node.meta.get("val")
    carries = is_differentiable(value.dtype) if isinstance(value, Tensor) else isinstance(value, (tuple, list))
    return carries and node.target not in _BARRIERS[by]


def static_of(node: fx.Node, module: fx.GraphModule) -> StaticParameters | None:
    """The static parameters of the operator that a node calls, None for any other node."""
    first = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(first, fx.Node) or first.op != "get_attr":
        return None
    value = getattr(module, str(first.target))
    return value if isinstance(value, StaticParameters) else None


def is_random_node(node: fx.Node, module: fx.GraphModule) -> bool:
    if isinstance(node.target, OpOverload):
        return torch.Tag.nondeterministic_seeded in node.target.tags
    static = static_of(node, module)
    return static is not None and static.random


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


def frozen(a: Any, index: dict[fx.Node, int] | None = None) -> Hashable:
    """Arguments of a node as a key; other nodes by their place in ``index``, or as they are."""
    if isinstance(a, fx.Node):
        return ("%", a if index is None else index[a])
    if isinstance(a, (tuple, list)):
        return ("seq", *(frozen(v, index) for v in a))
    if isinstance(a, dict):
        return ("map", *((k, frozen(v, index)) for k, v in a.items()))
    if isinstance(a, slice):
        return ("slice", frozen(a.start, index), frozen(a.stop, index), frozen(a.step, index))
    return (type(a), repr(a) if isinstance(a, (float, complex)) else a)


def _dtypes(value: Any) -> Hashable:
    """The dtypes of a node's result: with a default dtype in their arguments, equal nodes may differ in them."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_dtypes, value))
    return getattr(value, "dtype", None)


def _attribute_key(value: object) -> Hashable:
    if isinstance(value, StaticParameters):
        return value.key()
    if isinstance(value, Tensor) and value.numel() <= _SMALL_CONSTANT and value.device.type == "cpu":
        return value.dtype, tuple(value.shape), repr(value.tolist())
    return id(value)


def count(mask: Iterable[bool]) -> int:
    return sum(map(bool, mask))
