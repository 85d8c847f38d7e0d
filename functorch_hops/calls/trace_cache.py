"""Traces that are used again: what must hold for one, and the cache of those that operators make in plain eager.

NOTE [When a trace is valid] A trace stands for a call as long as five things are as they were: the trees, metadata and
static values of the arguments; the ambient settings (gradient mode, autocast, default dtype and device); what the
function reads from closures, globals and modules (``environment``); the metadata of the tensors that it
finds there; and what it asked of tensors (NOTE [A traced value answers as the real one]). The tensors themselves are
operands, fetched anew at each call. A call that leaves other tensors in its environment than it found there - a table
built at first use, a state - is no evidence of what the next one does, which finds them: its trace is for itself only.

``jit`` and :func:`as_graph` share this. They differ in effects. A jitted function is traced once by contract; what it
changed itself while being traced is said in a warning, and watched until a second trace changes it too, as a counter
does. A body that control flow captures in plain eager must do what it does in Python, so a trace is used again only if
running the Python code again would change nothing: nothing was written, and nothing was reached of which this is not
known (``Snapshot.unwatched``).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import _torch, environment
from ..environment.keys import KeyMakers, by_value
from ..errors import warn
from ..ir.meta import Mask, TensorMeta
from ..ir.subgraph import Subgraph
from ..trace.buffers import Buffers, Update
from ..trace.capture import answer, current_capture, tables
from ..trace.speculate import speculate_subgraph
from .arguments import Arguments
from .listening import caller, timed
from .output import Constant, OutputSpec
from .recent import Recent
from .recording import recorded_as_bodies_say
from .returned import Returned
from .traced_call import Assumed, TracedCall, trace_call

__all__ = ["Trace", "as_graph", "count_callback", "effects_of_one", "forget", "kept_trace", "replaced_tensors"]

MOST_TRACES = 128
ATTEMPTS = 3
LARGEST_CONSTANTS = 2**20
"""Bytes of the tensors that a trace itself holds, beyond which it is not kept."""


@dataclass(frozen=True)
class Trace:
    """A captured call."""

    body: Subgraph
    output: OutputSpec
    sources: tuple[environment.Path | Tensor, ...]
    """For each tensor beyond the arguments its path, or itself if tracing made it, or if the trace is for one call."""
    updates: tuple[Update, ...]
    lost: tuple[TensorMeta, ...]
    """Tensors from places that can't be watched."""
    left: tuple[environment.Path, ...]
    """Where other tensors stood after the call than before."""
    assumed: tuple[Assumed, ...]
    returned: Returned | None
    differentiated: Mask

    @classmethod
    def of(cls, call: TracedCall, found: environment.Snapshot, before: environment.Snapshot | None = None) -> Trace:
        """``found``: where the next call finds tensors; ``before``: where this one did, if that may differ."""
        left = () if before is None else _left(before, found, set(map(id, call.lifted)))
        sources: list[environment.Path | Tensor] = []
        lost: list[TensorMeta] = []
        for t in call.lifted:
            path = found.path_of(t)
            sources.append(t if path is None else path)
            if not (left or path is not None or id(t) in call.constants or found.holds_memory_of(t)):
                lost.append(TensorMeta.of(t))
        facts = tuple(call.updates), tuple(lost), left, tuple(call.assumed)
        return cls(call.body, call.output, tuple(sources), *facts, call.returned, call.differentiated)

    @property
    def is_for_one_call(self) -> bool:
        """Whether it stands for no call but the one that made it."""
        return bool(self.lost or self.left)

    def holds_for(self, operands: Sequence[Tensor]) -> bool:
        """Whether the operands, those from the environment included, answer as those did that were traced."""
        return all(answer(asked.question, operands[asked.operand]) == asked.answer for asked in self.assumed)

    @functools.cached_property
    def paths(self) -> tuple[environment.Path, ...]:
        return tuple(source for source in self.sources if isinstance(source, str))

    def operands(self, found: Sequence[Tensor]) -> list[Tensor]:
        """The tensors beyond the arguments, given those at ``paths``."""
        if not self.constants:
            return list(found)
        at_paths = iter(found)
        return [next(at_paths) if isinstance(source, str) else source for source in self.sources]

    @functools.cached_property
    def constants(self) -> list[Tensor]:
        return [source for source in self.sources if isinstance(source, Tensor)]


def as_graph(
    operation: str,
    captured: Callable[..., Any],
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any, ...],
    *static: Hashable,
    observed: bool = False,
) -> Any:
    """``captured(functions, operands, *static)``, which captures ``functions`` as bodies and calls an operator.

    In plain eager the whole call becomes a graph, which runs instead of a further capture as long as it is valid.
    Inside a capture there is nothing to keep: the call becomes a node of that capture. `observed`: a body stands for
    any number of calls of its function, which runs once.
    """
    observers: list[environment.Observer] | None = [] if observed else None
    captured = _told(operation, captured) if observed else captured
    found = kept_trace(operation, captured, functions, operands, *static, observers=observers)
    if found is None:
        with contextlib.ExitStack() as stack:
            for seen in observers or ():
                stack.enter_context(seen)
            result = captured(functions, operands, *static)
        _warn_of_calls(operation, observers or ())
        return result
    trace, flat = found
    with _torch.autocast_off(), recorded_as_bodies_say(trace.body):
        outputs = trace.body(*flat)
    return trace.output.unflatten(outputs)


def kept_trace(
    operation: str,
    captured: Callable[..., Any],
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any, ...],
    *static: Hashable,
    observers: list[environment.Observer] | None = None,
) -> tuple[Trace, list[Tensor]] | None:
    """The trace of ``captured(functions, operands, *static)``, and what it is to be called with.

    None inside a capture, and where it is known that the next call would need another trace. If that is because of
    what a function reads or calls, `observers` gets one that sees it.
    """
    if current_capture() is not None or _torch.foreign_capture_active():
        return None
    arguments = Arguments(operands, {}, static_floats=True, numpy=False)
    first, *others = functions
    root = functools.partial(first, *others, *arguments.objects, *_torch.functions_of_modes())
    before = environment.snapshot(root)
    key = (operation, static, _without_objects(arguments), _torch.ambient_state(), before.statics, _states(before))
    for trace in _traces.of(key):
        flat = [*arguments.operands, *trace.operands([before.tensors[path] for path in trace.paths])]
        if trace.holds_for(flat):
            _traces.use(key, trace)
            return trace, flat
    if before.unwatched and observers is not None:
        observers.append(before.observer())
    if before.unwatched or not _failures.may_try(before):
        return None
    buffers = Buffers(before.buffers, operation, writable=False)
    with timed("capture", operation, caller()):
        call = trace_call(lambda *args: captured(functions, args, *static), arguments, operation, buffers)
    trace = Trace.of(call, before)
    if _is_repeatable(trace, before, environment.snapshot(root)):
        with _torch.one_at_a_time:
            _traces.add(key, trace)
    else:
        _failures.add(before)
    return trace, [*arguments.operands, *call.lifted]


def _left(before: environment.Snapshot, found: environment.Snapshot, read: set[int]) -> tuple[environment.Path, ...]:
    """Where a call left a tensor on which the next one may depend: not where it puts one of the same kind, made anew,
    in the place of one that it never read.
    """

    def is_like(path: environment.Path) -> bool:
        old, new = before.tensors.get(path), found.tensors.get(path)
        if old is None or new is None or id(old) in read:
            return False
        return new in tables and before.path_of(new) is None and TensorMeta.of(old) == TensorMeta.of(new)

    return tuple(path for path in environment.exchanged(before, found) if not is_like(path))


def replaced_tensors(before: environment.Snapshot, found: environment.Snapshot) -> list[environment.Path]:
    """Where a call took a tensor away, or put another one in its place that may not be the same in each call."""

    def is_replaced(path: environment.Path) -> bool:
        new = found.tensors.get(path)
        if path not in before.tensors or new is None:
            return path in before.tensors
        return before.path_of(new) is not None or tables.get(new, not _is_traced(new))

    return [*filter(is_replaced, environment.exchanged(before, found))]


def _added(before: environment.Snapshot, found: environment.Snapshot) -> list[environment.Path]:
    return [path for path, t in found.tensors.items() if path not in before.tensors and not _is_traced(t)]


def _is_traced(t: Tensor) -> bool:
    """Whether the next use of ``t`` is refused, as it has no value."""
    return isinstance(_torch.base_tensor(t), _torch.FakeTensor)


class _Bodies(threading.local):
    """Of the captures of bodies that are under way."""

    callbacks = 0
    """How many callbacks of the user's have run: these change what they change in every step."""
    told: frozenset[tuple[str, str]] | None = None
    """The lines of changes that captures within the innermost one have told of; None outside of all."""


_bodies = _Bodies()


def count_callback() -> None:
    _bodies.callbacks += 1


def _told(operation: str, captured: Callable[..., Any]) -> Callable[..., Any]:
    """``captured``, with a warning of what the bodies changed meanwhile; under ``jit`` it is a part of that one's. None
    if the operator ran at once, and callbacks with it: a change may be theirs.
    """

    def capture(functions: Sequence[Callable[..., Any]], *rest: Any) -> Any:
        first, *others = functions
        root = functools.partial(first, *others)
        called, around = _bodies.callbacks, _bodies.told
        before = _snapshot(root)
        _bodies.told = frozenset()
        try:
            result = captured(functions, *rest)
        finally:
            told, _bodies.told = _bodies.told or frozenset(), around
        if _bodies.callbacks != called:
            return result
        changes = effects_of_one(operation, lambda: captured(functions, *rest), root, before, before.observer())
        # A body inside of this one says the same of a place, but for the functions that lead to it.
        places = {change: (line, change.rpartition(":")[2]) for change, line in changes.items()}
        changes = {change: line for change, line in changes.items() if places[change] not in told}
        if around is not None:
            _bodies.told = around | told | frozenset(places.values())
        capture_around = current_capture()
        if capture_around is not None and capture_around.outermost().operation == "jit":
            capture_around.session.effects.update(changes)
        else:
            _warn(operation, changes)
        return result

    return capture


def effects_of_one(
    operation: str,
    run: Callable[[], Any],
    root: Callable[..., Any],
    before: environment.Snapshot,
    seen: environment.Observer,
) -> dict[str, str]:
    """What `root` did since `before`, captured by ``run()`` for all the calls that there will be, with the lines.

    Where it left tensors, it runs again for nothing but this: a table that is there is read, a state goes on.
    """
    after = _snapshot(root)
    replaced = replaced_tensors(before, after)
    if _added(before, after):

        def again() -> list[Tensor]:
            run()
            return []

        speculate_subgraph(again, (), operation=operation, parameter="the body")
        later = _snapshot(root)
        replaced += [*replaced_tensors(after, later), *_added(after, later)]
    return environment.effects(before, after, seen, replaced)


def _snapshot(root: Callable[..., Any]) -> environment.Snapshot:
    """Taken in a capture around, which is not to see it."""
    with _torch.without_torch_function():
        return environment.snapshot(root)


def _warn_of_calls(operation: str, observers: Sequence[environment.Observer]) -> None:
    for seen in observers:
        _warn(operation, seen.calls)


def _warn(operation: str, effects: dict[str, str]) -> None:
    """A body is captured once, and may run many times or never."""
    if effects:
        told = ", ".join(f"{effect} ({line})" for effect, line in effects.items())
        what = "does what no graph does, so it is done at the capture and not whenever the body runs"
        warn(f"{operation}: a body {what}: {told}", once=True)


def _without_objects(arguments: Arguments) -> Hashable:
    """The key of the arguments without its objects, which are watched as a part of the environment."""
    objects = set(map(id, arguments.objects))
    return arguments.key[0], tuple(
        type(leaf) if id(leaf) in objects else entry for leaf, entry in zip(arguments.leaves, arguments.key[1:])
    )


def _states(found: environment.Snapshot) -> Hashable:
    return tuple(_torch.tensor_states(found.tensors.values()))


def _is_repeatable(trace: Trace, before: environment.Snapshot, after: environment.Snapshot) -> bool:
    """Whether the graph does all that the Python code did."""
    return (
        not trace.lost
        and before.statics == after.statics
        and all(after.tensors.get(path) is t for path, t in before.tensors.items())
        and all(by_value(leaf.value, KeyMakers()) for leaf in trace.output.leaves if isinstance(leaf, Constant))
        and sum(t.nbytes for t in trace.constants) <= LARGEST_CONSTANTS
    )


class _Failures:
    """Code whose traces could not be used again. After some attempts it is not traced as a whole any more."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Hashable, int] = OrderedDict()

    @staticmethod
    def _code(found: environment.Snapshot) -> Hashable:
        return frozenset(key for key in found.statics.keys if isinstance(key, tuple) and key[0] == "function")

    def may_try(self, found: environment.Snapshot) -> bool:
        return self._counts.get(self._code(found), 0) < ATTEMPTS

    def add(self, found: environment.Snapshot) -> None:
        code = self._code(found)
        with _torch.one_at_a_time:
            self._counts[code] = self._counts.get(code, 0) + 1
            self._counts.move_to_end(code)
            if len(self._counts) > MOST_TRACES:
                self._counts.popitem(last=False)

    def clear(self) -> None:
        with _torch.one_at_a_time:
            self._counts.clear()


_traces = Recent[Trace](MOST_TRACES)
"""They keep graphs and constants, but no tensor and no function of the user's."""
_failures = _Failures()


def forget() -> None:
    """Begin anew, for tests and benchmarks."""
    with _torch.one_at_a_time:
        _traces.clear()
    _failures.clear()
