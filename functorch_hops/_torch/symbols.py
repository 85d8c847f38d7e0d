"""Sizes and numbers that a trace leaves open."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .levels import top_interpreter

__all__ = [
    "SHIFT",
    "LiftedSymbols",
    "NewFactError",
    "entry_of",
    "env_around",
    "expression",
    "expression_node",
    "facts",
    "hear_unanswered",
    "inner_sizes_forgotten",
    "is_known",
    "is_shifted",
    "is_unbacked",
    "new_carrier",
    "new_shape_env",
    "new_symbol",
    "no_new_facts",
    "read_open_number",
    "shape_env",
    "shape_of_carrier",
    "size_hint",
    "sizes_forgotten",
    "symbol_entry",
    "symbols_around",
    "unbacked_size",
]


def new_shape_env() -> Any:
    """What the symbols of a trace belong to, and where it records what it assumes about them."""
    return _shape_env_class()(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)


def env_around() -> Any:
    """Where the open sizes of the trace of torch's that goes on here belong, None if there are none."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    mode = None if context is None else context.fake_mode
    mode = mode or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    env = None if mode is None else mode.shape_env
    return env if env is not None and env.var_to_range else None


@functools.cache
def _shape_env_class() -> Any:
    from torch._guards import SLoc
    from torch.fx.experimental.sym_node import SymNode
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

    questions = [SymNode.evaluate.__code__, SymNode.guard_bool.__code__]

    class Env(ShapeEnv):
        """Forward mode asks of each result whether it is empty or broadcast, to lay out its tangent, and batching rules
        ask (torch 2.13, in C++). Of a size that only a run knows the answer is that for sizes in general, which serves
        all. What Python asks is the program's own question, and has none.
        """

        def evaluate_sym_node(self, sym_node: Any, size_oblivious: bool = False, fallback_value: Any = None) -> Any:
            try:
                return super().evaluate_sym_node(sym_node, size_oblivious, fallback_value)
            except GuardOnDataDependentSymNode as error:
                asking = [frame.f_code for frame, _ in itertools.islice(traceback.walk_stack(sys._getframe(1)), 3)]
                if asking[:2] != questions or asking[2] is SymNode.bool_.__code__ or top_interpreter() is None:
                    for note in _hearing:
                        note(error)
                    raise
                return super().evaluate_sym_node(sym_node, size_oblivious=True)

        def _get_stack_summary(self, is_debug: bool = False, framework_loc: str | None = None) -> Any:
            """For logs: which files are not the user's, torch asks Dynamo, and imports it for that."""
            if "torch._dynamo" in sys.modules:
                return super()._get_stack_summary(is_debug, framework_loc)
            return SLoc(framework_loc, None), ""

    return Env


_hearing: list[Callable[[BaseException], None]] = []


def hear_unanswered(note: Callable[[BaseException], None]) -> None:
    """Let ``note`` know the error where Python asks for a size that only a run knows."""
    _hearing.append(note)


def new_symbol(env: Any, value: int, name: str) -> torch.SymInt:
    """An open size, at least 2, that is ``value`` in the call at hand."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    source = ConstantSource(name)
    symbol = env.create_symbol(value, source, DimDynamic.DYNAMIC)
    size: torch.SymInt = env.create_symintnode(symbol, hint=value, source=source)
    return size


def unbacked_size() -> torch.SymInt:
    """A size that only a run knows, in the fake mode that is active.

    Tracing may assume that it is at least 2, so that torch takes the path for sizes in general wherever it asks for an
    empty tensor or for a broadcast; that path is right for 0 and 1 too. Nothing of this reaches compiled code.
    """
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    size: torch.SymInt = mode.shape_env.create_unbacked_symint()
    torch._check(size >= 2)
    return size


@contextlib.contextmanager
def sizes_forgotten() -> Iterator[None]:
    """Where tensors are made for their metadata only: torch would miss sizes that only a run knows in what follows."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    with mode.shape_env.ignore_fresh_unbacked_symbols():
        yield


@contextlib.contextmanager
def inner_sizes_forgotten() -> Iterator[None]:
    """Where torch runs a call on fakes to know its results, sizes that only what is inside has are none of its
    business. Where it records the call, they are.
    """
    keys = torch._C._TorchDispatchModeKey
    mode = torch._C._get_dispatch_mode(keys.FAKE)
    if mode is None or mode.shape_env is None or torch._C._get_dispatch_mode(keys.PROXY) is not None:
        yield
        return
    with mode.shape_env.ignore_fresh_unbacked_symbols():
        yield


SHIFT = 2**40
"""A loop for torch stacks what it reads in each step: so many times the step has to be an offset yet."""


def shape_of_carrier(number: Any) -> tuple[Any, ...]:
    """The shape of the tensor as which an open number travels: of an empty one for an int, which is one of its sizes.
    A size is not negative, and torch asks whether one is 0 or 1: an int of which that is not known travels shifted.
    """
    if isinstance(number, torch.SymFloat):
        return ()
    return (number, 0) if is_known(number >= 2) else (0, number + SHIFT)


def new_carrier(shape: Sequence[Any], number: Any) -> torch.Tensor:
    """The tensor of this shape as which an open number travels."""
    return torch.empty(shape, dtype=torch.bool) if shape else torch.scalar_tensor(number, dtype=torch.float64)


def is_shifted(shape: Sequence[Any]) -> bool:
    return isinstance(shape[1], torch.SymInt) or shape[1] != 0


def read_open_number(carrier: torch.Tensor) -> Any:
    """The number that travels as this tensor."""
    if not carrier.dim():
        return torch.ops.aten._local_scalar_dense.default(carrier)
    return carrier.shape[1] - SHIFT if is_shifted(carrier.shape) else carrier.shape[0]


def shape_env(size: torch.SymInt) -> Any:
    return size.node.shape_env


def expression(size: torch.SymInt) -> Any:
    """The sympy expression of a size, as it was written: later facts change nothing in it."""
    return size.node._expr


def expression_node(graph: torch.fx.Graph, expression: Any, known: dict[Any, torch.fx.Node]) -> torch.fx.Node:
    """Nodes that compute an expression of symbols; ``known``: the node of each. Returns the last one."""
    from torch.fx.proxy import GraphAppendingTracer
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

    class Tracer(GraphAppendingTracer):
        def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
            node = super().create_node(*args, **kwargs)
            target: Any = node.target
            node.meta["val"] = target(*torch.fx.map_arg(node.args, lambda x: x.meta["val"]))
            return node

    tracer = Tracer(graph)
    proxies = {symbol: torch.fx.Proxy(node, tracer) for symbol, node in known.items()}
    result: torch.fx.Node = sympy_interp(PythonReferenceAnalysis, proxies, expression).node
    return result


def facts(env: Any) -> list[Any]:
    """What was assumed about the symbols of a trace, in the order of its recording."""
    return [guard.expr for guard in env.guards]


class NewFactError(Exception):
    """A trace would have to assume something new about its sizes."""


@contextlib.contextmanager
def no_new_facts(env: Any) -> Iterator[None]:
    """Raise NewFactError where the trace of ``env`` would have to assume something new about its sizes."""
    if env is None or "_check_frozen" in vars(env):
        yield
        return

    def refuse(fact: Any, value: Any) -> None:
        raise NewFactError(f"{fact} is {value}")

    env._check_frozen = refuse
    logs = [logging.getLogger(name) for name in _LOGGING_FACTS]
    for log in logs:
        log.addFilter(_dropped)
    try:
        yield
    finally:
        del env._check_frozen
        for log in logs:
            log.removeFilter(_dropped)


_LOGGING_FACTS = "torch.fx.experimental.symbolic_shapes", "torch._inductor.scheduler"
"""These log where an error passes through, which is none here."""


def _dropped(record: logging.LogRecord) -> bool:
    return False


def size_hint(size: Any) -> int:
    """An open size as it is in the call for which it was traced; of one that depended on values, the number that it
    was found to be.
    """
    if not isinstance(size, torch.SymInt):
        known: int = size
        return known
    expression = size.node.expr
    hint: int = int(expression) if expression.is_number else size.node.hint
    return hint


def is_known(fact: Any) -> bool:
    """Whether ``fact`` about open sizes holds, whatever they are: nothing is assumed for it."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(fact)


def is_unbacked(size: Any) -> bool:
    """Whether a size depends on values that only a run knows."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))


def symbols_around() -> Any | None:
    """The table of symbols of torch's trace that goes on here."""
    mode = get_proxy_mode()
    return None if mode is None else mode.tracer.sympy_expr_tracker


class LiftedSymbols(dict[Any, Any]):
    """A tracer's table of symbols that asks ``lift`` for what it does not know: a number of an enclosing capture, or
    what was computed from such numbers there. torch builds the latter itself, but (2.13) no powers, to which sympy
    makes equal factors, and no products of three.
    """

    def __init__(self, lift: Callable[[Any], Any | None]) -> None:
        super().__init__()
        self.lift = lift

    def get(self, key: Any, default: Any = None) -> Any:
        if not super().__contains__(key) and key.free_symbols:
            found = self.lift(key)
            if found is not None:
                self[key] = found
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def __missing__(self, key: Any) -> Any:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found


def symbol_entry(proxy: torch.fx.Proxy, value: Any) -> Any:
    """What a tracer's table of symbols holds."""
    from torch.fx.experimental.proxy_tensor import _SympyExprTrackerValue
    from torch.utils._thunk import Thunk

    return _SympyExprTrackerValue(Thunk(lambda: proxy), value)


def entry_of(expression: Any, tracer: Any) -> Any | None:
    """The entry for a number that a tracer knows as a whole, as the size of a tensor."""
    from torch.fx.experimental.proxy_tensor import _SympyExprTrackerValue

    numbers = tracer.symnode_tracker.sym_node_dict.items()
    found = (_SympyExprTrackerValue(proxy, torch.SymInt(node)) for node, proxy in numbers if node.expr == expression)
    return next(found, None)
