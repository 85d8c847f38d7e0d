"""Calls of the library under ``torch.fx.symbolic_trace``.

NOTE [Symbolic leaves] FX runs a model on proxies, which have neither values nor shapes, so a loop is not captured
there: its call is a node, and its functions are graphs of FX's own. A function is run once on proxies, and what this
adds to FX's graph is cut out again, into a ``GraphModule``. All that stays outside is an operand of it, by
``functools.partial``: values of the graph around, parameters, and modules themselves. So the functions have no state of
their own; the traced model has its parameters under their names, its copies are copies, and whoever traces it again
meets the same calls.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from .. import _torch, pytree
from ..errors import CaptureError, LeakedTensorError, message
from ..trace.hooks import SymbolicCalls

__all__ = ["SymbolicLeaves"]

_Function = Callable[..., Any]
_Argument = tuple[str | None, Any]
"""What a function is called with: the name of a parameter, or None, and a value like the one that it will be."""

_LOOP: dict[str, tuple[str, ...]] = {"f": ("init", "xs")}
_PREFIXES: dict[str, tuple[str, ...]] = {"fn": ("elems", "elems")}
_AT: dict[str, tuple[str, ...]] = {"func": ("*primals",)}
_CALLED_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "associative_scan": _PREFIXES,
    "cond": {"true_fn": ("*operands",), "false_fn": ("*operands",)},
    "custom_linear_solve": {
        "matvec": ("b",),
        "solve": ("matvec", "b"),
        "transpose_solve": ("matvec", "b"),
    },
    "custom_root": {"f": ("init",), "solve": ("f", "init"), "tangent_solve": ("f", "init")},
    "fori_loop": {"body_fn": ("lower", "init_val")},
    "jvp": _AT,
    "linearize": _AT,
    "map": {"f": ("xs",)},
    "scan": _LOOP,
    "sharded_associative_scan": _PREFIXES,
    "sharded_scan": _LOOP,
    "switch": {"branches": ("*operands",)},
    "vjp": _AT,
    "while_loop": {"cond_fn": ("init_val",), "body_fn": ("init_val",)},
}
"""The functions that each operation calls, and arguments of its own like those that it calls them with."""


class Held(nn.Module):
    """A module that calls a function which FX can't look into."""

    def __init__(self, function: _Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class SymbolicLeaves(SymbolicCalls):
    """See :class:`SymbolicCalls`, and NOTE [Symbolic leaves]."""

    def operation(self, function: _Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trace = _Trace(function.__name__)
        bound = inspect.signature(function).bind(*args, **kwargs)
        given = dict(bound.arguments)
        for parameter, names in _CALLED_WITH[function.__name__].items():
            value = given.get(parameter)
            if value is None:
                continue
            like = [(None, x) for name in names for x in _named(given, name)]
            one = callable(value)
            traced = [trace.function(f, parameter, like) for f in ((value,) if one else value)]
            bound.arguments[parameter] = traced[0] if one else traced
        return trace.call("call_function", _public(function), bound.args, bound.kwargs)

    def effect(self, function: _Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trace = _Trace(function.__name__)
        given = list(args)
        for i, x in enumerate(args):
            if callable(x) and not isinstance(x, fx.Proxy):
                _refuse_proxies(trace.operation, x)
                given[i] = trace.held(x, _name_of(x))
        return trace.call("call_function", fx.has_side_effect(_public(function)), given, kwargs)

    def transformed(
        self,
        transform: _Function,
        func: _Function,
        options: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        trace = _Trace(transform.__name__)
        like = [*((None, x) for x in args), *kwargs.items()]
        traced = trace.function(func, "func", like, static=int)
        held = {name: trace.held(x, name) if callable(x) else x for name, x in options.items()}
        made = trace.call("call_function", transform, (traced,), held)
        return trace.call("call_method", "__call__", (made, *args), kwargs)

    def jitted(
        self,
        func: _Function,
        jit: Callable[[_Function, int], _Function],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        trace = _Trace("jit")
        like = [*((None, x) for x in args), *kwargs.items()]
        graph, operands = trace.graph(func, "func", like, static=int)
        # Not as a module: FX compiles the graphs of all modules within a GraphModule again, and would undo that.
        name = trace.install(Held(jit(graph.forward, len(operands))), _name_of(func))
        return trace.call("call_module", name, (*operands, *args), kwargs)

    def module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trace = _Trace("jit")
        return trace.call("call_module", trace.tracer.path_of_module(module), args, kwargs)

    def held(
        self, operation: str, function: _Function, parts: Iterable[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        trace = _Trace(operation)
        for part in parts:
            _refuse_proxies(operation, part)
        return trace.call("call_module", trace.install(Held(function), _name_of(function)), args, kwargs)


class _Trace:
    """One call, in the graph that FX makes."""

    def __init__(self, operation: str) -> None:
        tracer = _torch.symbolic_tracer()
        assert tracer is not None
        self.tracer, self.operation = tracer, operation

    def call(self, kind: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.tracer.create_proxy(kind, target, tuple(args), dict(kwargs))

    def held(self, value: Any, name: str) -> Any:
        """An object that FX doesn't take as an argument."""
        return self.call("get_attr", self.install(value, name), (), {})

    def install(self, value: Any, name: str) -> str:
        """Make a value an attribute of the traced model, which the graph finds by name.

        Not as a submodule, which a ``Sequential`` would call, and as long as the graph lives. FX copies it to the
        GraphModule that it makes.
        """
        root = self.tracer.root
        fresh = self.tracer.get_fresh_qualname(f"{name}_")
        root.__dict__[fresh] = value
        weakref.finalize(self.tracer.graph, root.__dict__.pop, fresh, None)
        return fresh

    def function(
        self, func: _Function, parameter: str, like: Sequence[_Argument], static: type | tuple[()] = ()
    ) -> Any:
        """A function as an argument of a node."""
        module, operands = self.graph(func, parameter, like, static)
        attribute = self.held(module, f"{self.operation}_{parameter}")
        return self.call("call_function", functools.partial, (attribute, *operands), {}) if operands else attribute

    def graph(
        self, func: _Function, parameter: str, like: Sequence[_Argument], static: type | tuple[()] = ()
    ) -> tuple[fx.GraphModule, list[fx.Proxy]]:
        """A function as a module, and the operands that it takes before its own arguments."""
        tracer = self.tracer
        before = set(tracer.graph.nodes)
        names = _parameter_names(func, [name for name, _ in like])
        inputs = [tracer.create_proxy("placeholder", name, (), {}) for name in names]
        values = [_taken_apart(value, proxy, static) for (_, value), proxy in zip(like, inputs)]
        positional = [value for value, (name, _) in zip(values, like) if name is None]
        keywords = {name: value for value, (name, _) in zip(values, like) if name is not None}
        accessors = [node for node in tracer.graph.nodes if node not in before and node.op != "placeholder"]
        try:
            out = tracer.create_arg(func(*positional, **keywords))
        except fx.proxy.TraceError as error:
            problem = "torch.fx can't trace a function that it is given"
            remedy = "write it with operations on tensors; a function under torch.fx.wrap, which calls this operation"
            text = message(
                self.operation, problem, parameter=parameter, got=str(error), remedy=f"{remedy}, is not traced"
            )
            raise CaptureError(text) from error
        for node in reversed(accessors):
            if not node.users:
                tracer.graph.erase_node(node)
        segment = [node for node in tracer.graph.nodes if node not in before and node.op != "get_attr"]
        body, outside = self._cut(segment, [p.node for p in inputs], names, out)
        for node in reversed(segment):
            tracer.graph.erase_node(node)
        return fx.GraphModule({}, body, _name_of(func)), [tracer.proxy(node) for node in outside]

    def _cut(
        self, segment: Sequence[fx.Node], inputs: Sequence[fx.Node], names: Sequence[str], out: Any
    ) -> tuple[fx.Graph, list[fx.Node]]:
        """The nodes of a segment as a graph, and the nodes from outside that it takes first."""
        inside = set(segment)
        outside: dict[fx.Node, None] = {}
        modules: dict[str, fx.Node] = {}
        for node in segment:
            if node.op == "call_module" and node.target not in modules:
                modules[str(node.target)] = self.tracer.create_node("get_attr", str(node.target), (), {})
                outside[modules[str(node.target)]] = None
            outside.update((x, None) for x in node.all_input_nodes if x not in inside)
        fx.map_arg(out, lambda x: None if x in inside else outside.update({x: None}))
        for node in outside:
            self._check_lives(node)
        body = fx.Graph(tracer_cls=type(self.tracer))
        taken = set(names)
        copies = {node: body.placeholder(_unique(node.name, taken)) for node in outside}
        copies.update((node, body.placeholder(name)) for node, name in zip(inputs, names))
        for node in segment:
            if node in copies:
                continue
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), copies.__getitem__)
            op, target = node.op, node.target
            if op == "call_module":
                op, target, args = "call_method", "__call__", (copies[modules[str(target)]], *args)
            copies[node] = copy = body.create_node(op, target, args, kwargs, type_expr=node.type)
            copy.meta = dict(node.meta)
        body.output(fx.map_arg(out, copies.__getitem__))
        return body, list(outside)

    def _check_lives(self, node: fx.Node) -> None:
        if _torch.is_erased(node) or node.graph is not self.tracer.graph:
            problem = "a value of another function is used, whose trace by torch.fx has ended"
            raise LeakedTensorError(message(self.operation, problem, got=node.name, remedy="return it from there"))


def _public(function: _Function) -> _Function:
    """The function as users and generated code find it, of which this one is a part."""
    public: _Function = getattr(sys.modules[function.__module__], function.__name__)
    return public


def _named(given: Mapping[str, Any], name: str) -> Iterable[Any]:
    """The arguments of a call under one name, one of several (``*operands``) at a time."""
    return given.get(name.removeprefix("*"), ()) if name.startswith("*") else (given.get(name),)


def _taken_apart(tree: Any, proxy: fx.Proxy, static: type | tuple[()]) -> Any:
    """A tree of proxies like this one: the parts of one proxy. What is neither a number nor a tensor stays itself."""
    leaves, spec = pytree.flatten(tree)
    if spec.is_leaf(strict=False):
        return proxy if _is_part(tree, static) else tree
    try:
        parts = [at(proxy) if _is_part(leaf, static) else leaf for at, leaf in zip(spec.accessors(), leaves)]
    except TypeError:  # a node whose type doesn't say how its parts are reached
        return proxy
    return pytree.unflatten(spec, parts)


def _is_part(leaf: Any, static: type | tuple[()]) -> bool:
    is_value = isinstance(leaf, Tensor | fx.Proxy | int | float | complex) or callable(leaf)
    return is_value and not isinstance(leaf, static)


def _parameter_names(func: _Function, keywords: Sequence[str | None]) -> list[str]:
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = {name for name in keywords if name is not None}
    names = itertools.chain(known, itertools.repeat("arg"))
    return [_unique(next(names), taken) if name is None else name for name in keywords]


def _unique(name: str, taken: set[str]) -> str:
    """The name, or the first one with a number that is free; it is taken then."""
    numbered = (f"{name}_{i}" for i in itertools.count(1))
    found = next(n for n in itertools.chain([name], numbered) if n not in taken)
    taken.add(found)
    return found


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    return name if name.isidentifier() else "function"


def _refuse_proxies(operation: str, part: Any) -> None:
    """A function that stays as it is closes over no value that is yet to be computed."""
    cells = [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
    bound = [*cells, getattr(part, "__defaults__", None), getattr(part, "args", None), getattr(part, "keywords", None)]
    if any(isinstance(leaf, fx.Proxy) for leaf in pytree.flatten(bound)[0]):
        problem = "a function that torch.fx can't look into closes over a value that it traces"
        raise CaptureError(message(operation, problem, got=_name_of(part), remedy="pass the value as an argument"))
