"""The function that ``jit`` makes: it finds the trace of a call, or captures it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic

import torch
from torch import Tensor, nn

from functorch_hops import _torch, environment, pytree
from functorch_hops.calls.arguments import Arguments, P, R, signature_of
from functorch_hops.calls.leaf import traced_through
from functorch_hops.calls.leaving import leaving, prepare
from functorch_hops.calls.listening import is_heard, timed
from functorch_hops.calls.recent import Recent
from functorch_hops.calls.recording import in_mode_of_program
from functorch_hops.calls.static_values import described, described_arguments, static_key
from functorch_hops.calls.trace_cache import Trace, replaced_tensors
from functorch_hops.calls.traced_call import trace_call
from functorch_hops.errors import ArgumentTypeError, DataDependentError, message, warn
from functorch_hops.ir.origin import Origin, made_for
from functorch_hops.lowering.backends import Backend, Options, OtherSizesError
from functorch_hops.ops.closed_call.op import ClosedCallParams, gradients_returned
from functorch_hops.ops.mode import is_capturing, is_jit_disabled
from functorch_hops.trace.buffers import Buffers
from functorch_hops.trace.capture import current_capture
from functorch_hops.trace.hooks import handlers, is_symbolic
from functorch_hops.trace.refusals import check_tensor_class
from functorch_hops.trace.session import is_left_over, refuse_state
from functorch_hops.transforms.compiled_trace import CompiledTrace
from functorch_hops.transforms.jitted import CacheInfo, Lowered
from functorch_hops.transforms.quick_call import QuickCall, quick_call

__all__ = ["JittedFunction"]

CAPTURES_BEFORE_WARNING = 8
MOST_TRACES = 128
MOST_QUICK_CALLS = 8


class JittedFunction(Generic[P, R]):
    """The function that :func:`jit` makes."""

    # What another jitted function reads of this one: the function, not its cache.
    __environment__ = ("__wrapped__",)

    def __init__(
        self,
        func: Callable[P, R],
        static_argnums: tuple[int, ...],
        static_argnames: tuple[str, ...],
        backend: Backend,
        dynamic: bool,
    ) -> None:
        self._func, self._dynamic = func, dynamic
        self._static_argnums, self._static_argnames = static_argnums, static_argnames
        self._backend = backend
        self._entries = Recent[CompiledTrace](MOST_TRACES)
        self._ignored: frozenset[environment.Path] = frozenset()
        self._written: frozenset[environment.Path] = frozenset()
        self._static_floats = False
        self._hits = self._misses = 0
        self._quick: tuple[QuickCall, ...] = ()
        self._lanes = Recent[None](MOST_TRACES)
        self._last: tuple[Hashable, environment.Fingerprint, tuple[environment.Path, ...]] | None = None
        functools.update_wrapper(self, func, updated=())
        if isinstance(func, nn.Module):  # of which this is ``forward``
            self.__doc__, self.__signature__ = func.forward.__doc__, signature_of(func.forward)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return self._func(*args, **kwargs)
        if is_symbolic():
            result: R = handlers.symbolic.jitted(self._func, self._after, args, kwargs)
            return result
        try:
            return self._call(args, kwargs)
        except Exception as error:
            prepare(error)
            raise

    @traced_through
    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        quick = self._quick
        try:
            for call in quick:
                answer = call(args, kwargs)
                if answer is not None:
                    self._hits += 1
                    if call is not quick[0]:
                        self._quick = (call, *(other for other in quick if other is not call))
                    result: R = answer[0]
                    return result
        except OtherSizesError:  # what was assumed since then for a transform does not hold here
            pass
        with in_mode_of_program():
            return self._call_slowly(args, kwargs)

    def _call_slowly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        if is_capturing() or is_jit_disabled():
            func, rest, keywords, _ = self._without_static(args, kwargs)
            arguments = Arguments(rest, keywords)
            if is_jit_disabled() or self._dynamic or arguments.has_symbols():  # those of the graph around it
                rest, keywords = _rebuilt(arguments)
                return func(*rest, **keywords)
        entry, operands = self._find(args, kwargs)
        try:
            outputs = entry.call(operands)
        except OtherSizesError:
            # A transform that met the trace just now assumed what does not hold here; the trace has noted it.
            entry, operands = self._find(args, kwargs)
            outputs = entry.call(operands)
        if _torch.top_interpreter() is not None and any(map(_torch.is_batched, operands)):
            self._note_lanes(_torch.numbers_of_lanes())
        result: R = entry.trace.output.unflatten(entry.results(operands, outputs))
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: one compiled function per instance. What Python does not bind, this does not either."""
        if instance is None or not hasattr(self._func, "__get__"):
            return self
        methods = _Methods.of(instance, self.__name__)
        if self not in methods.compiled:
            numbers, *options = self._options
            rest = tuple(n - 1 if n > 0 else n for n in numbers if n != 0)  # the object itself is argument 0
            methods.compiled[self] = JittedFunction(self._func.__get__(instance, owner), rest, *options)
        return methods.compiled[self]

    def __reduce__(self) -> Any:
        """A copy has a cache of its own; what a module has under its name is that."""
        name = getattr(self, "__qualname__", None)
        if name is not None and _is_at(self.__module__, name, self):
            return name
        return JittedFunction, (self._func, *self._options)

    def around(self, func: Callable[P, R]) -> JittedFunction[P, R]:
        """Another function, jitted with the same options."""
        return JittedFunction(func, *self._options)

    def _after(self, func: Callable[..., R], first: int) -> JittedFunction[..., R]:
        """A function with the same options, which takes `first` operands before the arguments."""
        numbers, *options = self._options
        return JittedFunction(func, tuple(n + first if n >= 0 else n for n in numbers), *options)

    @property
    def _options(self) -> tuple[Any, ...]:
        return self._static_argnums, self._static_argnames, self._backend, self._dynamic

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._func, name)

    def __repr__(self) -> str:
        return f"jit({self._func!r})"

    @leaving
    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered[P, R]:
        """The captured graph for these arguments, before compilation."""
        return Lowered(self, args, kwargs)

    def cache_info(self) -> CacheInfo:
        """``(hits, misses, maxsize, currsize)``; a miss is a capture."""
        return CacheInfo(self._hits, self._misses, self._entries.maxsize, len(self._entries))

    def clear_cache(self) -> None:
        """Forget every trace."""
        with _torch.one_at_a_time:
            self._entries.clear()
            self._hits = self._misses = 0
            self._quick = ()
            self._lanes.clear()
            self._last = None

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CompiledTrace, list[Tensor]]:
        """The valid trace for a call, captured now if there is none, and its operands."""
        given = args, kwargs
        func, args, kwargs, static = self._without_static(args, kwargs)
        arguments = Arguments(args, kwargs, self._static_floats, self._dynamic)
        statics = tuple((place, static_key(v)) for place, v in static.items())
        ambient = self._ambient()
        key = (arguments.key, statics, ambient)
        modes = _torch.functions_of_modes()
        for entry in () if modes else self._entries.of(key):  # an entry watches the modes that it found last
            operands = entry.operands(arguments.operands) if entry.allows(arguments.operands) else None
            if operands is not None:
                self._hits += 1
                self._entries.use(key, entry)
                if entry.found_often():
                    self._add_quick_call(quick_call(entry, *given, static, self._static_floats, operands), ambient)
                return entry, operands
        with _torch.one_at_a_time:
            return self._find_slowly(func, arguments, [*static.values(), *modes], key)

    def _ambient(self) -> tuple[Any, ...]:
        ambient = _torch.ambient_state()
        if self._backend.name == "inductor":
            ambient = (*ambient, _torch.compiler_settings("inductor")[-1])
        return ambient

    def _add_quick_call(self, made: QuickCall | None, ambient: tuple[Any, ...]) -> None:
        """It compares settings to those of the moment at which it was made, which another thread may have changed."""
        if made is not None and self._ambient() == ambient:
            self._quick = (made, *self._quick[: MOST_QUICK_CALLS - 1])

    def _find_slowly(
        self, func: Callable[..., Any], arguments: Arguments, static: list[Any], key: Hashable
    ) -> tuple[CompiledTrace, list[Tensor]]:
        """Objects may have been replaced by equal ones: compare what they hold before capturing again."""
        objects = [*arguments.objects, *static]
        root = functools.partial(self._func, *objects) if objects else self._func
        now = environment.snapshot(root, ignore=self._ignored)
        for entry in self._entries.of(key):
            if not entry.allows(arguments.operands):
                continue
            if entry.is_for(now, self._ignored):
                entry.watch(now)
                operands = entry.operands(arguments.operands)
                if operands is not None:
                    self._hits += 1
                    self._entries.use(key, entry)
                    return entry, operands
        return self._capture(func, root, arguments, key, now)

    def _capture(
        self, func: Callable[..., Any], root: Callable[..., Any], arguments: Arguments, key: Any, before: Any
    ) -> tuple[CompiledTrace, list[Tensor]]:
        self._misses += 1
        for t in before.tensors.values():  # hooks of ``fully_shard`` would communicate, and keep what is traced
            if _torch.is_distributed_tensor(t):
                check_tensor_class("jit", t)
        self._warn_if_repeated(key, before)
        reasons = self._reasons(key, before) if is_heard() else []
        with timed("capture", self._name, str(self._origin), reasons, self), before.observer() as seen:
            try:
                call = trace_call(func, arguments, "jit", _buffers(before), may_share=True)
            except DataDependentError:
                if self._static_floats or float not in arguments.key:
                    raise
                self._static_floats = True
                arguments = Arguments(*_rebuilt(arguments), static_floats=True, dynamic=self._dynamic)
                key = (arguments.key, *key[1:])
                call = trace_call(func, arguments, "jit", _buffers(before), may_share=True)
        after = environment.snapshot(root, ignore=self._ignored)
        around = current_capture()
        for path, tensor in after.tensors.items():
            if is_left_over(tensor, None if around is None else around.session):
                refuse_state("jit", path)
        effects = {f"changes {place}, which is a copy": "" for place in call.changed}
        trace = Trace.of(call, after, before)
        replaced = set(replaced_tensors(before, after)).difference(trace.left)
        effects.update(environment.effects(before, after, seen, replaced))
        effects.update({effect: line for effect, line in call.effects.items() if line not in effects.values()})
        self._warn_of_effects(effects, environment.not_seen(after, seen))
        if trace.is_for_one_call:
            read = set(map(id, call.lifted))
            self._warn_of_state(trace, [path for path in trace.left if id(before.tensors.get(path)) in read])
        else:
            changed = environment.written(before, after)
            # What a function sets once is watched; what each capture sets anew would never stay.
            if changed & self._written:
                self._ignored |= changed & self._written
                after = environment.snapshot(root, ignore=self._ignored)
                trace = Trace.of(call, after)
            self._written |= changed
        self._last = (key, after.statics, trace.left)
        entry = self._new_entry(trace, after)
        if not trace.is_for_one_call:
            self._entries.add(key, entry)
        return entry, [*arguments.operands, *call.lifted]

    def _new_entry(self, trace: Trace, found: environment.Snapshot) -> CompiledTrace:
        # Nothing is compiled for a single call.
        backend = Backend("eager", Options({})) if trace.is_for_one_call else self._backend.now()
        with made_for(self._origin):
            differentiated = gradients_returned(trace.body, trace.differentiated)
            params = ClosedCallParams.of(trace.body, backend, differentiated)
        return CompiledTrace(trace, params, found)

    def _warn_of_state(self, trace: Trace, replaced: list[environment.Path]) -> None:
        """What is built once is a table; what takes the place of another tensor that was read does so in each call."""
        if trace.lost:
            what = f"reads {len(trace.lost)} tensor(s) from a place that can't be watched (first: {trace.lost[0]})"
            self._warn(f"{what}, so it is captured again at every call; pass them as arguments")
        elif replaced:
            self._warn(
                f"puts another tensor in the place of {_places(replaced)}, so it is captured again at "
                "every call; register buffers of a module, or pass the tensors and return the new ones"
            )

    def _without_static(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[int | str, Any]]:
        """Take the arguments that were declared static out of the call."""
        if not self._static_argnums and not self._static_argnames:
            return self._func, args, kwargs, {}
        places = {_position(n, len(args)): args[n] for n in self._static_argnums if -len(args) <= n < len(args)}
        named = {name: kwargs[name] for name in self._static_argnames if name in kwargs}
        static: dict[int | str, Any] = dict([*sorted(places.items()), *named.items()])
        try:
            hash(tuple(static.values()))
        except TypeError as error:
            remedy = "pass a tuple in the place of a list, or leave the argument out of static_argnums"
            text = message(
                "jit", "a static argument is not hashable", parameter="static_argnums", got=str(error), remedy=remedy
            )
            raise ArgumentTypeError(text) from error
        func = self._func

        def partially(*rest: Any, **keywords: Any) -> Any:
            values = iter(rest)
            full = [places[i] if i in places else next(values) for i in range(len(args))]
            return func(*full, **named, **keywords)

        partially.__name__ = getattr(func, "__name__", "func")
        rest = tuple(a for i, a in enumerate(args) if i not in places)
        return partially, rest, {k: v for k, v in kwargs.items() if k not in named}, static

    def _warn_if_repeated(self, key: Any, now: environment.Snapshot) -> None:
        if self._misses <= CAPTURES_BEFORE_WARNING or self._last is None:
            return
        self._warn(
            f"was captured {self._misses} times; last because {'; '.join(self._reasons(key, now))}; "
            "if sizes change, pass dynamic=True; if a number changes, pass it as a tensor"
        )

    def _reasons(self, key: Any, now: environment.Snapshot) -> list[str]:
        """What is not as it was at the last capture; nothing if this is the first one."""
        if self._last is None:
            return []
        old_key, old, left = self._last
        reasons = environment.difference(old, now)
        if left:
            reasons.append(f"the call before left other tensors at {_places(left)}")
        if key[0] != old_key[0]:  # type: ignore[index]
            reasons.append(f"arguments changed from {described_arguments(old_key[0])} to {described_arguments(key[0])}")  # type: ignore[index]
        if key[1] != old_key[1]:  # type: ignore[index]
            old_static, new_static = map(_described_static, (old_key[1], key[1]))  # type: ignore[index]
            reasons.append(f"static arguments changed from {old_static} to {new_static}")
        if key[2] != old_key[2]:  # type: ignore[index]
            reasons.append("gradient mode, autocast, default dtype, default device or choice of kernels changed")
        return reasons or ["a tensor changed its kind"]

    def _note_lanes(self, numbers: tuple[Any, ...]) -> None:
        """A transformed trace is derived and compiled for each number of lanes."""
        if self._lanes.of(numbers):
            return
        with _torch.one_at_a_time:
            self._lanes.add(numbers, None)
        if len(self._lanes) > CAPTURES_BEFORE_WARNING:
            last = ", ".join(map(str, numbers))
            self._warn(
                f"was compiled for {len(self._lanes)} batch sizes of the vmap around it, last {last}; "
                "if they change, put vmap inside: jit(vmap(f), dynamic=True); or fill batches up to a few sizes"
            )

    def _warn_of_effects(self, effects: dict[str, str], not_seen: dict[str, str]) -> None:
        """One warning for a capture: what it did once and for all, and what it reads unwatched."""
        told = []
        if effects:
            done = environment.listed(effects)
            told.append(f"does what no graph does, so it is done now and not in every call: {done}")
        if not_seen:
            told.append(f"reads what can't be watched, so that a change goes unnoticed: {environment.listed(not_seen)}")
        if told:
            self._warn("; it ".join(told))

    def _warn(self, text: str) -> None:
        warn(f"jit: {self._name} {text}")

    @property
    def _name(self) -> str:
        return getattr(self._func, "__name__", type(self._func).__name__)

    @property
    def _origin(self) -> Origin:
        """Where the function is defined."""
        inner: Any = inspect.unwrap(self._func)
        inner = inner.forward if isinstance(inner, nn.Module) else inner
        code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
        file, line = ("<unknown>", 0) if code is None else (code.co_filename, code.co_firstlineno)
        return Origin(file, line, self._name)


class _Methods:
    """The compiled methods of one object, kept in its ``__dict__``, so that they live as long as it does.

    A copy of the object gets this one too, but does not use it: its own methods are others.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.compiled: dict[JittedFunction[..., Any], JittedFunction[..., Any]] = {}

    @classmethod
    def of(cls, instance: Any, name: str) -> _Methods:
        attributes = getattr(instance, "__dict__", None)
        if attributes is None:
            raise ArgumentTypeError(
                message(
                    "jit",
                    f"{name} is a method of an object that can't keep what is compiled for it",
                    expected="an object with a __dict__",
                    got=f"an instance of {type(instance).__name__}, which has __slots__ only",
                    remedy="add '__dict__' to its __slots__, or jit a function of its tensors",
                )
            )
        found = attributes.get(_METHODS)
        if found is None or getattr(found.owner, "__dict__", None) is not attributes:
            found = attributes[_METHODS] = cls(instance)
        return found

    def __reduce__(self) -> Any:
        return _Methods, (None,)


_METHODS = "__jitted_methods__"


def _is_at(module: str, qualified_name: str, value: Any) -> bool:
    found: Any = sys.modules.get(module)
    for name in qualified_name.split("."):
        found = getattr(found, name, None)
    return found is value


def _buffers(found: environment.Snapshot) -> Buffers:
    return Buffers(found.buffers, "jit", writable=True)


def _places(paths: Sequence[environment.Path]) -> str:
    return ", ".join(map(environment.quoted, paths[: environment.MOST_NOTES]))


def _position(number: int, count: int) -> int:
    return number % count if count else number


def _rebuilt(arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = pytree.unflatten(arguments.spec, arguments.leaves)
    return args, kwargs


def _described_static(key: tuple[Any, ...]) -> str:
    return f"({', '.join(f'{place}: {described(entry)}' for place, entry in key)})"
