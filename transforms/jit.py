"""``jit``: capture once per signature, compile, and never serve what is stale.

When a trace is valid: see the note in ``calls.trace_cache``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from functorch_hops import _torch, environment, pytree
from functorch_hops.calls.arguments import Arguments, P, R, one_or_several, signature_of
from functorch_hops.calls.recent import Recent
from functorch_hops.calls.static_values import described, static_key
from functorch_hops.calls.trace_cache import Trace
from functorch_hops.calls.traced_call import trace_call
from functorch_hops.calls.validate import check_callable, kind_of
from functorch_hops.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DataDependentError,
    message,
    warn,
)
from functorch_hops.ir.dependence import Through, dependent_outputs
from functorch_hops.ir.printing import print_subgraph
from functorch_hops.ir.sizes import facts_hold
from functorch_hops.ir.subgraph import Subgraph
from functorch_hops.lowering.backends import Backend, Options, OtherSizesError, compiled
from functorch_hops.ops.closed_call.op import ClosedCallParams, closed_call_op
from functorch_hops.ops.mode import is_capturing
from functorch_hops.trace.buffers import Buffers, Update, refuse_history, refuse_update, refuse_write_back
from functorch_hops.trace.capture import current_capture
from functorch_hops.transforms.jitted_module import JittedModule, jitted_inside, module_of

__all__ = ["CacheInfo", "Jitted", "JittedFunction", "Lowered", "jit"]

CAPTURES_BEFORE_WARNING = 8
MOST_NOTES = 6
MOST_TRACES = 128


Result_co = TypeVar("Result_co", covariant=True)
Rest = ParamSpec("Rest")
Owner = TypeVar("Owner")


class Decorator(Protocol):
    """``jit`` with its options."""

    @overload
    def __call__(self, func: nn.Module, /) -> JittedModule: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Jitted[P, R]: ...


class CacheInfo(NamedTuple):
    """What ``cache_info()`` of a jitted function returns, as that of :func:`functools.lru_cache` does.

    Fields:
        hits: calls that found a valid trace.
        misses: calls that captured one.
        maxsize: how many traces are kept: when there are more, the one that was not used for longest is thrown away.
        currsize: how many traces are kept.

    >>> import torch, functorch_hops as fh
    >>> double = fh.jit(lambda x: x * 2, backend="eager")
    >>> double(torch.ones(2)), double(torch.ones(2)), double(torch.ones(3))
    (tensor([2., 2.]), tensor([2., 2.]), tensor([2., 2., 2.]))
    >>> double.cache_info()
    CacheInfo(hits=1, misses=2, maxsize=128, currsize=2)
    """

    hits: int
    misses: int
    maxsize: int
    currsize: int


@runtime_checkable
class Jitted(Protocol[P, Result_co]):
    """What :func:`jit` returns: a function of the same arguments and results, with a cache of compiled traces.

    A type for annotations and for ``isinstance``; only ``jit`` makes such functions. ``Jitted[[Tensor], Tensor]`` is
    one from a tensor to a tensor. Attributes of the function, such as the parameters of a module, are its attributes.

    Methods:
        lower(*args, **kwargs): the captured graph for these arguments, before it is compiled: a :class:`Lowered`.
        cache_info(): how often traces were found and captured: a :class:`CacheInfo`.
        clear_cache(): forget every trace.

    >>> import torch, functorch_hops as fh
    >>> double: fh.Jitted[[torch.Tensor], torch.Tensor] = fh.jit(lambda x: x * 2, backend="eager")
    >>> isinstance(double, fh.Jitted), double(torch.ones(2))
    (True, tensor([2., 2.]))
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result_co: ...

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Jitted[P, Result_co]: ...
    @overload
    def __get__(
        self: Jitted[Concatenate[Owner, Rest], R], instance: Owner, owner: type | None = None
    ) -> Jitted[Rest, R]: ...

    def __getattr__(self, name: str) -> Any: ...

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered[P, Result_co]: ...

    def cache_info(self) -> CacheInfo: ...

    def clear_cache(self) -> None: ...


@overload
def jit(
    func: nn.Module,
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> JittedModule: ...
@overload
def jit(
    func: Callable[P, R],
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> Jitted[P, R]: ...
@overload
def jit(
    func: None = None,
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> Decorator: ...
def jit(
    func: Callable[..., Any] | None = None,
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> Any:
    """Compile a function: captured once per signature, compiled, cached.

    ``jit : (a -> b) -> (a -> b)``. Equivalent to ``func``.

    Arguments:
        func: a function or an ``nn.Module``. It may use control flow of this library, close over tensors and
            modules, and apply transforms; the result takes part in every transform and in ``loss.backward()``.
            Without it, ``jit`` is a decorator: ``@fh.jit(backend="eager")``.
        static_argnums, static_argnames: arguments to be taken as hashable constants as a whole; where one of the two
            names an argument, it may be passed either way.
        dynamic: one trace for tensors of all sizes (of one number of dimensions) as far as nothing that was traced
            depends on them: what does, is noticed and captured again. Sizes 0 and 1 have traces of their own.
        backend: as ``torch.compile``'s: ``"inductor"``, ``"aot_eager"``, ``"eager"``, or a callable.
        options: the backend's options.

    Random numbers are fresh in every call. With ``backend="eager"`` they are those of plain eager at the same seed;
    Inductor draws others, reproducibly after ``torch.manual_seed``.

    Tensors and floats among the arguments are traced; ints, bools, strings and other hashables are static: a new value
    is a new capture. A NumPy array is traced too: the function gets it as a tensor (of the same memory and dtype), and
    a NumPy scalar as a Python number. Tensors that the function closes over are live inputs. What it reads from
    closures, globals and modules is watched: a change is a new capture. What can't be watched, and what happens once
    instead of in every call (a counter, Python's random numbers), is named in one RuntimeWarning at the capture;
    ``docs/sharp_bits.md`` says more. Updates of module buffers (``BatchNorm`` in training mode) are written back after
    the call; other writes to inputs are refused, and so is an update in a body or under a transform.

    Returns:
        A function of the same arguments and results as ``func``, with ``cache_info()``, ``clear_cache()`` and
        ``lower()``: a :class:`Jitted`. For a module it is a module too, which shares parameters, submodules, mode and
        attributes with ``func`` under the same names; its copies are jitted, and hooks registered on it run outside
        the graph. ``DistributedDataParallel`` runs as Python around its module, which is jitted.

    Raises:
        ArgumentTypeError: ``func`` is not callable, a static argument is not hashable.
        CaptureError, DataDependentError: ``func`` can't be captured.
        InputMutationError: ``func`` writes to a tensor from outside that is no buffer, or can't be written back to.

    Cost: a call that finds its trace adds some tens of microseconds to the compiled code; after 8 captures of one
    function a warning says what changed.

    Source: ``jax.jit``; ``torch.compile``.

    >>> import torch, functorch_hops as fh
    >>> double = fh.jit(lambda x: x * 2, backend="eager")
    >>> double(torch.ones(2)), double(torch.zeros(2)), double.cache_info().misses
    (tensor([2., 2.]), tensor([0., 0.]), 1)
    """
    with_options: Any = functools.partial(
        jit,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        dynamic=dynamic,
        backend=backend,
        options=options,
    )
    if not isinstance(backend, str):
        check_callable("jit", "backend", backend)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        text = message("jit", "not a dict", parameter="options", expected="a dict, or None", got=kind_of(options))
        raise ArgumentTypeError(text)
    if func is None:
        return with_options
    check_callable("jit", "func", func)
    if isinstance(func, DistributedDataParallel):
        return jitted_inside(func, with_options(func.module))
    numbers, names = _both_ways(func, one_or_several(static_argnums), one_or_several(static_argnames))
    jitted = JittedFunction(func, numbers, names, Backend(backend, Options(options)), dynamic)
    return module_of(jitted) if isinstance(func, nn.Module) else jitted


def _both_ways(
    func: Callable[..., Any], numbers: tuple[int, ...], names: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The static arguments by position and by name: a caller may pass them either way."""
    try:
        parameters = signature_of(func).parameters.values()
    except (TypeError, ValueError):
        return numbers, names
    either = {i: p.name for i, p in enumerate(parameters) if p.kind is p.POSITIONAL_OR_KEYWORD}
    by_name = (i for i, name in either.items() if name in names)
    by_number = (name for i, name in either.items() if i in numbers)
    return tuple(dict.fromkeys((*numbers, *by_name))), tuple(dict.fromkeys((*names, *by_number)))


class _Entry:
    """A compiled trace, and what must hold for it to be used."""

    def __init__(self, trace: Trace, params: ClosedCallParams, found: environment.Snapshot) -> None:
        self.trace, self.params = trace, params
        self.watch(found)
        self._states = self.guard.states

    def watch(self, found: environment.Snapshot) -> None:
        """Hold on to an environment that is equal to the one of the trace."""
        self.statics, self.guard = found.statics, found.guard(self.trace.paths)
        bound = {update.path for update in self.trace.updates if update.operand is None}
        self.places = {path: (mapping, name) for path, mapping, name in found.buffers if path in bound}

    def is_for(self, found: environment.Snapshot, ignored: frozenset[environment.Path]) -> bool:
        """Whether the trace is valid in this environment, found again."""
        if self.statics.without(ignored) != found.statics or not found.tensors.keys() >= set(self.trace.paths):
            return False
        states = found.guard().states
        return all(states.get(path, state) == state for path, state in self._states.items())

    def allows(self, operands: Sequence[Tensor]) -> bool:
        """Whether all that was assumed about open sizes holds for these arguments."""
        body = self.params.body
        return body.shape_env is None or facts_hold(body.shape_env, body.bind(operands))

    def operands(self, given: list[Tensor]) -> list[Tensor] | None:
        """The arguments and the tensors that the function closes over, as they are now; None if this trace is not
        valid.
        """
        tensors = self.guard()
        if tensors is None:
            return None
        operands = [*given, *self.trace.operands(tensors)]
        return operands if not self.trace.assumed or self.trace.holds_for(operands) else None

    def call(self, operands: list[Tensor]) -> Sequence[Tensor]:
        return self._call_with_updates(operands) if self.trace.updates else closed_call_op(self.params, *operands)

    def _call_with_updates(self, operands: list[Tensor]) -> Sequence[Tensor]:
        """The call, after which the new values of buffers are written back as the function did.

        The graph works on copies, so that what it saved for reverse mode is not written to.
        """
        body, updates = self.trace.body, self.trace.updates
        if _torch.top_interpreter() is not None or _torch.foreign_capture_active() or current_capture() is not None:
            raise refuse_update("jit", updates[0].path, "is updated")
        first_closed = len(operands) - len(self.trace.sources)
        buffers = [None if u.operand is None else operands[first_closed + u.operand] for u in updates]
        _check_buffers(operands, updates, buffers)
        active = tuple(x.requires_grad for x in operands)
        copies = [x.clone() if any(x is b for b in buffers) else x for x in operands]
        outputs = closed_call_op(self.params, *copies)
        n = len(outputs) - len(updates)
        has_history = dependent_outputs(body, active, Through.GRADIENT)[n:]
        for update, buffer, value, keeps in zip(updates, buffers, outputs[n:], has_history):
            value = value if keeps and torch.is_grad_enabled() else value.detach()
            if buffer is not None:
                buffer.copy_(value)
            else:
                mapping, name = self.places[update.path]
                mapping[name] = value
        return outputs[:n]


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
        self._entries = Recent[_Entry](MOST_TRACES)
        self._ignored: frozenset[environment.Path] = frozenset()
        self._written: frozenset[environment.Path] = frozenset()
        self._static_floats = False
        self._hits = self._misses = 0
        self._last: tuple[Hashable, environment.Fingerprint] | None = None
        functools.update_wrapper(self, func, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if is_capturing():
            func, rest, keywords, _ = self._without_static(args, kwargs)
            arguments = Arguments(rest, keywords)
            if self._dynamic or arguments.has_symbols():  # those of the graph around it
                rest, keywords = _rebuilt(arguments)
                return func(*rest, **keywords)
        entry, operands = self._find(args, kwargs)
        try:
            outputs = entry.call(operands)
        except OtherSizesError:
            # A transform that met the trace just now assumed what does not hold here; the trace has noted it.
            entry, operands = self._find(args, kwargs)
            outputs = entry.call(operands)
        result: R = entry.trace.output.unflatten(outputs)
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

    @property
    def _options(self) -> tuple[Any, ...]:
        return self._static_argnums, self._static_argnames, self._backend, self._dynamic

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._func, name)

    def __repr__(self) -> str:
        return f"jit({self._func!r})"

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
            self._last = None

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Entry, list[Tensor]]:
        """The valid trace for a call, captured now if there is none, and its operands."""
        func, args, kwargs, static = self._without_static(args, kwargs)
        arguments = Arguments(args, kwargs, self._static_floats, self._dynamic)
        statics = tuple((place, static_key(v)) for place, v in static.items())
        ambient = _torch.ambient_state()
        if self._backend.name == "inductor":
            ambient = (*ambient, _torch.compiler_settings("inductor")[-1])
        key = (arguments.key, statics, ambient)
        for entry in self._entries.of(key):
            operands = entry.operands(arguments.operands) if entry.allows(arguments.operands) else None
            if operands is not None:
                self._hits += 1
                self._entries.use(key, entry)
                return entry, operands
        with _torch.one_at_a_time:
            return self._find_slowly(func, arguments, list(static.values()), key)

    def _find_slowly(
        self, func: Callable[..., Any], arguments: Arguments, static: list[Any], key: Hashable
    ) -> tuple[_Entry, list[Tensor]]:
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
    ) -> tuple[_Entry, list[Tensor]]:
        self._misses += 1
        self._warn_if_repeated(key, before)
        with before.observer() as seen:
            try:
                call = trace_call(func, arguments, "jit", _buffers(before))
            except DataDependentError:
                if self._static_floats or float not in arguments.key:
                    raise
                self._static_floats = True
                arguments = Arguments(*_rebuilt(arguments), static_floats=True, dynamic=self._dynamic)
                key = (arguments.key, *key[1:])
                call = trace_call(func, arguments, "jit", _buffers(before))
        after = environment.snapshot(root, ignore=self._ignored)
        effects = {f"changes {place}, which is a copy": "" for place in call.changed}
        effects.update(environment.effects(before, after, seen))
        self._warn_of_effects(effects, environment.not_seen(after, seen))
        changed = environment.written(before, after)
        # What a function sets once is watched; what each capture sets anew would never stay.
        if changed & self._written:
            self._ignored |= changed & self._written
            after = environment.snapshot(root, ignore=self._ignored)
        self._written |= changed
        self._last = (key, after.statics)
        entry = self._new_entry(Trace.of(call, after), after)
        if not entry.trace.lost:
            self._entries.add(key, entry)
        return entry, [*arguments.operands, *call.lifted]

    def _new_entry(self, trace: Trace, found: environment.Snapshot) -> _Entry:
        if trace.lost:
            self._warn(
                f"reads {len(trace.lost)} tensor(s) from a place that can't be watched (first: {trace.lost[0]}), "
                "so it is captured again at every call; pass them as arguments"
            )
        return _Entry(trace, ClosedCallParams.of(trace.body, self._backend.now()), found)

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
            text = message("jit", "a static argument is not hashable", parameter="static_argnums", got=str(error))
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
        old_key, old = self._last
        reasons = environment.difference(old, now)
        if key[0] != old_key[0]:  # type: ignore[index]
            reasons.append(f"arguments changed from {_described(old_key[0])} to {_described(key[0])}")  # type: ignore[index]
        if key[1] != old_key[1]:  # type: ignore[index]
            old_static, new_static = map(_described_static, (old_key[1], key[1]))  # type: ignore[index]
            reasons.append(f"static arguments changed from {old_static} to {new_static}")
        if key[2] != old_key[2]:  # type: ignore[index]
            reasons.append("gradient mode, autocast, default dtype, default device or choice of kernels changed")
        self._warn(
            f"was captured {self._misses} times; last because {'; '.join(reasons) or 'a tensor changed its kind'}; "
            "if sizes change, pass dynamic=True; if a number changes, pass it as a tensor"
        )

    def _warn_of_effects(self, effects: dict[str, str], not_seen: dict[str, str]) -> None:
        """One warning for a capture: what it did once and for all, and what it reads unwatched."""
        told = []
        if effects:
            told.append(f"does what no graph does, so it is done now and not in every call: {_listed(effects)}")
        if not_seen:
            told.append(f"reads what can't be watched, so that a change goes unnoticed: {_listed(not_seen)}")
        if told:
            self._warn("; it ".join(told))

    def _warn(self, text: str) -> None:
        warn(f"jit: {getattr(self._func, '__name__', type(self._func).__name__)} {text}")


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


def _check_buffers(operands: Sequence[Tensor], updates: Sequence[Update], buffers: Sequence[Tensor | None]) -> None:
    """The graph has a copy of each updated buffer, without its history; no other operand sees what is written to it."""
    storages = list(map(_torch.storage_key, operands))
    for update, buffer in zip(updates, buffers):
        if buffer is None:
            continue
        if buffer.requires_grad:
            raise refuse_history("jit", update.path)
        if storages.count(_torch.storage_key(buffer)) > 1:
            problem = "shares memory with another tensor that the function reads"
            raise refuse_write_back("jit", update.path, problem, "pass a clone()")


def _buffers(found: environment.Snapshot) -> Buffers:
    return Buffers(found.buffers, "jit", writable=True)


def _listed(notes: dict[str, str]) -> str:
    """Notes with their lines; of many, the first."""
    texts = [f"{note} ({line})" if line else note for note, line in notes.items()]
    more = [f"and {len(texts) - MOST_NOTES} more"] if len(texts) > MOST_NOTES else []
    return ", ".join([*texts[:MOST_NOTES], *more])


def _position(number: int, count: int) -> int:
    return number % count if count else number


def _rebuilt(arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = pytree.unflatten(arguments.spec, arguments.leaves)
    return args, kwargs


def _described(key: tuple[Any, ...]) -> str:
    """The leaves of an argument key, short."""
    return f"({', '.join(map(described, key[1:]))})"


def _described_static(key: tuple[Any, ...]) -> str:
    return f"({', '.join(f'{place}: {described(entry)}' for place, entry in key)})"


class Lowered(Generic[P, Result_co]):
    """What ``jit(f).lower(*args)`` returns: one captured call, before it is compiled.

    Attributes:
        graph: the graph, a ``torch.fx.GraphModule`` with the bodies of loops and branches as sub-modules. It works on
            flat tensors: its inputs are the tensors and floats of the call, in the order of their leaves, then the
            tensors that the function closes over; its output is a tuple. (:func:`make_graph` returns a graph that is
            called like the function.)

    Methods:
        as_text(): the graph as text, nested bodies included.
        compile(): compile now. The result is called like the function, with arguments of the same signature: trees,
            shapes, dtypes, devices and static values. Others are an ArgumentValueError.

    >>> import torch, functorch_hops as fh
    >>> lowered = fh.jit(lambda x: x.sin() + 1, backend="eager").lower(torch.zeros(2))
    >>> print(lowered.as_text())
    <lambda>(%arg0: float32[2]):
      %sin: float32[2] = sin(%arg0)
      %add: float32[2] = add.Tensor(%sin, 1)
      return (%add)
    >>> lowered.compile()(torch.zeros(2)), lowered.graph(torch.zeros(2))
    (tensor([1., 1.]), (tensor([1., 1.]),))
    """

    def __init__(self, jitted: JittedFunction[P, Result_co], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._jitted = jitted
        self._entry, _ = jitted._find(args, kwargs)
        self._key = self._key_of(args, kwargs)

    @property
    def graph(self) -> fx.GraphModule:
        """The graph, its bodies as sub-modules. Inputs: the tensors and floats of the call, then what it closes
        over.
        """
        return self._body.module

    @property
    def _body(self) -> Subgraph:
        return self._entry.trace.body

    def as_text(self) -> str:
        """The graph as text, nested bodies included."""
        return print_subgraph(self._body, getattr(self._jitted, "__name__", "main"))

    def _key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return Arguments(args, kwargs, self._jitted._static_floats, self._jitted._dynamic).key

    def compile(self) -> Callable[P, Result_co]:
        """Compile now; the result takes arguments of the same signature."""
        compiled(self._body, self._entry.params.backend)

        def call(*args: P.args, **kwargs: P.kwargs) -> Result_co:
            if self._key_of(args, kwargs) != self._key:
                text = message(
                    "jit",
                    "the compiled function was called with another signature",
                    expected=_described(self._key),
                    got=_described(Arguments(args, kwargs).key),
                    remedy="lower it for these arguments, or call the jitted function itself",
                )
                raise ArgumentValueError(text)
            return self._jitted(*args, **kwargs)

        return call
