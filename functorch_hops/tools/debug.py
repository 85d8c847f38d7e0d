"""``fh.debug``: print, call back, check and stop in captured and compiled code, in order, in each lane and step."""

from __future__ import annotations

import builtins
import itertools
import linecache
import re
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import pytree
from ..calls.leaf import left_to_python, one_effect, stands_for_another
from ..calls.notes import note_called_back
from ..calls.numbers import as_number, number_as_tensor, symbol_as_tensor
from ..calls.output import OutputSpec
from ..calls.validate import PYTHON_NUMBERS, check_callable, kind_of, order_of
from ..errors import ArgumentTypeError, ArgumentValueError, CaptureError, CheckError, FunctorchHopsError, message
from ..lowering.loops.happening import When
from ..ops.effect.op import Action, EffectParams, effect_op
from ..ops.effect.running import iteration_of
from .find_nan import find_nan, one_or_all

__all__ = ["breakpoint", "callback", "check", "find_nan", "print"]

Lane = tuple[int, ...]


@dataclass(frozen=True)
class _OfCall(Action):
    """An action with arguments: their tree and constants; the values come when it happens."""

    operation: ClassVar[str]
    call: OutputSpec

    def __call__(self, params: EffectParams, values: Sequence[Tensor], lane: Lane) -> None:
        try:
            self.happen(params, values, lane)
        except FunctorchHopsError:  # which says where
            raise
        except Exception as error:
            note_called_back(error, self.operation, params.place, **_place(params, lane))
            raise

    def happen(self, params: EffectParams, values: Sequence[Tensor], lane: Lane) -> None:
        raise NotImplementedError

    def arguments(self, values: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = self.call.unflatten(values)
        return args, kwargs


def _place(params: EffectParams, lane: Lane) -> dict[str, Any]:
    return {"iteration": one_or_all(iteration_of(params)), "lane": one_or_all(lane)}


@dataclass(frozen=True)
class _Print(_OfCall):
    operation: ClassVar[str] = "debug.print"
    fmt: str

    def happen(self, params: EffectParams, values: Sequence[Tensor], lane: Lane) -> None:
        args, kwargs = self.arguments(values)
        builtins.print(_formatted(self.fmt, args, {**_place(params, lane), **kwargs}))

    def __str__(self) -> str:
        return f"print {self.fmt!r}"


@dataclass(frozen=True)
class _Callback(_OfCall):
    operation: ClassVar[str] = "debug.callback"
    function: Callable[..., Any]

    def happen(self, params: EffectParams, values: Sequence[Tensor], lane: Lane) -> None:
        args, kwargs = self.arguments(values)
        self.function(*args, **kwargs)

    def __str__(self) -> str:
        return f"callback {getattr(self.function, '__name__', self.function)}"


@dataclass(frozen=True)
class _Check(_OfCall):
    operation: ClassVar[str] = "debug.check"
    text: str
    when: ClassVar[When] = When.FAILED

    def happen(self, params: EffectParams, values: Sequence[Tensor], lane: Lane) -> None:
        pred, *rest = values
        if bool(pred):
            return
        args, kwargs = self.arguments(rest)
        place = _place(params, lane)
        lines = [_formatted(self.text, args, {**place, **kwargs})]
        lines += [f"  {name}: {value}" for name, value in place.items() if value is not None]
        if params.origin is not None:
            source = linecache.getline(params.origin.file, params.origin.line).strip()
            lines.append(f"  at {params.origin}" + (f": {source}" if source else ""))
        raise CheckError("\n".join(lines), **place)

    def __str__(self) -> str:
        return f"check {self.text!r}"


@dataclass(frozen=True)
class _Breakpoint(_OfCall):
    operation: ClassVar[str] = "debug.breakpoint"

    def happen(self, params: EffectParams, values: Sequence[Tensor], lane: Lane) -> None:
        args, kwargs = self.arguments(values)
        place = _place(params, lane)
        _stop(str(params.origin), args, kwargs, place["iteration"], place["lane"])

    def __str__(self) -> str:
        return "breakpoint"


def _stop(at: str, args: tuple[Any, ...], kwargs: dict[str, Any], iteration: Any, lane: Any) -> None:
    """The debugger stops in this frame, whose variables are what it was given."""
    sys.breakpointhook()  # noqa: T100 - this is what it is for


def _formatted(fmt: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    args, kwargs = pytree.map(lambda x: x.item() if isinstance(x, Tensor) and x.numel() == 1 else x, (args, kwargs))
    return fmt.format(*args, **kwargs)


def _check_format(operation: str, parameter: str, fmt: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse now what would fail in the step that is to be printed."""

    def refuse(problem: str, remedy: str, got: str | None = None) -> None:
        raise ArgumentValueError(message(operation, problem, parameter=parameter, got=got, remedy=remedy))

    if "Traced(" in fmt:
        refuse(
            "a tensor that has no value yet was formatted",
            f"write no f-string: fh.{operation} formats values itself",
            fmt,
        )
    counted = itertools.count()
    try:
        fields = [*_fields(fmt)]
    except ValueError as error:
        refuse(f"no format string: {error}", "write {{ and }} for braces", fmt)
    unread: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for field, spec, conversion in fields:
        first = re.match(r"[^.\[]*", field)[0]  # type: ignore[index]
        key = next(counted) if first == "" else int(first) if first.isdigit() else first
        if not (key < len(args) if isinstance(key, int) else key in kwargs or key in ("iteration", "lane")):
            refuse("the format asks for a value that is not given", "pass it behind the format", f"{{{field}}}")
        value = args[key] if isinstance(key, int) else kwargs.get(key)
        unread.pop(key, None)
        if spec and not conversion and field == first and isinstance(value, Tensor) and value.numel() != 1:
            got = f"{{{field}:{spec}}} for {kind_of(value)}"
            refuse("a tensor of several elements is formatted as a number", "write {} for it, or reduce it", got)
    for name in unread:
        got = f"argument {name}" if isinstance(name, int) else f"{name}="
        refuse("a value is given that the format does not show", _UNREAD.get(name, "write {} where it belongs"), got)


_UNREAD: dict[int | str, str] = {"ordered": "leave it out: the order is always that of Python"}


def _fields(fmt: str) -> Iterator[tuple[str, str, str | None]]:
    """What a format string asks for, how it is formatted, by which conversion; in the order of automatic numbers."""
    for _, field, spec, conversion in string.Formatter().parse(fmt):
        if field is not None:
            yield field, spec or "", conversion
            yield from _fields(spec or "")


def _shown(value: Any) -> Any:
    if stands_for_another(value):
        problem = "an object in compiled code has another state when the graph runs than where it is shown"
        remedy = "show its tensors, or str() of it; without fullgraph=True the code around runs as Python"
        raise CaptureError(message("debug", problem, expected="tensors, numbers and strings", remedy=remedy))
    return symbol_as_tensor(value)


def _happens(make: Callable[[OutputSpec], Action], first: list[Tensor], args: Any, kwargs: Any) -> None:
    tensors, call = OutputSpec.flatten(pytree.map(_shown, (args, kwargs)))
    operands = [x.detach() for x in (*first, *tensors)]
    effect_op(EffectParams(make(call), mapped=((),) * len(operands)), *operands)


@one_effect
def print(fmt: str, /, *args: Any, **kwargs: Any) -> None:
    """Print values, also in captured and compiled code.

    ``print : (str, *a, **b) -> None``. Equivalent to ``print(fmt.format(*args, **kwargs))`` where it stands, in every
    mode: in each step of a loop, in order; under ``vmap`` once for each lane that takes the branch or step, in the
    order of lanes; once under a derivative, also where a checkpoint computes again. (``jacfwd`` and ``hessian`` are
    vmaps: once for each direction.)

    Arguments:
        fmt: a format string. Besides the arguments it may name ``{iteration}``, the step of the loop around it counted
            from 0 (a tuple in nested loops), and ``{lane}`` (a tuple in nested vmaps).
        args, kwargs: values for it, any trees. A tensor of one element is formatted as a number.

    Returns:
        None.

    Raises:
        ArgumentTypeError: ``fmt`` is no string.
        ArgumentValueError: ``fmt`` asks for a value that is not given, does not show one that is, or holds one of a
            tensor that had none yet.

    Cost: what is printed is copied, lane by lane. A kernel of a loop asks Python in each step, and takes
    all lanes of a step before the next one.

    Source: ``jax.debug.print``; asked for in pytorch/pytorch 147115 and jax-ml/jax 19314.

    >>> import torch, functorch_hops as fh
    >>> @fh.jit(backend="eager")
    ... def total(xs):
    ...     def step(c, x):
    ...         fh.debug.print("step {iteration}: {c:.1f} + {x:.1f}", c=c, x=x)
    ...         return c + x, None
    ...
    ...     return fh.scan(step, 0.0, xs)[0]
    >>> _ = total(torch.tensor([1.0, 2.0]))
    step 0: 0.0 + 1.0
    step 1: 1.0 + 2.0
    """
    if not isinstance(fmt, str):
        remedy, got = 'write fh.debug.print("{}", x)', kind_of(fmt)
        text = message(
            "debug.print", "the format is no string", parameter="fmt", expected="a str", got=got, remedy=remedy
        )
        raise ArgumentTypeError(text)
    _check_format("debug.print", "fmt", fmt, args, kwargs)
    _happens(lambda call: _Print(call, fmt), [], args, kwargs)


@left_to_python
def callback(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Call a Python function with values, also in captured and compiled code.

    ``callback : ((*a, **b) -> None, *a, **b) -> None``. Equivalent to ``func(*args, **kwargs)`` where it stands, in
    every mode: in each step of a loop, in order; under ``vmap`` once for each lane that takes the branch or step; once
    under a derivative. To log, to plot, to record; what ``func`` returns is ignored.

    Arguments:
        func: any function. An exception in it ends the call of the compiled function, and arrives there.
        args, kwargs: its arguments, any trees. Tensors are copies, with values, without gradients.

    Returns:
        None.

    Raises:
        ArgumentTypeError: ``func`` is not callable.

    Cost: that of ``func``, and a copy of what it gets; for the kernel of a loop, as :func:`print`.

    Source: ``jax.debug.callback``.

    >>> import torch, functorch_hops as fh
    >>> seen = []
    >>> def step(c, x):
    ...     fh.debug.callback(lambda c: seen.append(c.item()), c)
    ...     return c + x, None
    >>> _ = fh.jit(lambda xs: fh.scan(step, 0.0, xs), backend="eager")(torch.ones(3))
    >>> seen
    [0.0, 1.0, 2.0]
    """
    check_callable("debug.callback", "func", func)
    _happens(lambda call: _Callback(call, func), [], args, kwargs)


@one_effect
def check(pred: Any, text: str, /, *args: Any, **kwargs: Any) -> None:
    """Fail, with a message, where a condition does not hold, also in captured and compiled code.

    ``check : (bool, str, *a, **b) -> None``. Equivalent to ``assert pred, text.format(*args, **kwargs)`` where it
    stands, in every mode, in each step of a loop, in each lane that takes the branch or step.

    Arguments:
        pred: a bool, a number, or a tensor of one element.
        text: what is wrong: a format string as that of :func:`print`.
        args, kwargs: values for it.

    Returns:
        None.

    Raises:
        CheckError: ``pred`` is false. It is raised by the call of the compiled function, names the line of the check,
            the iteration and the lane, and has the latter two as attributes. It is an AssertionError.
        ArgumentTypeError: ``pred`` has several elements, ``text`` is no string.
        ArgumentValueError: ``text`` asks for a value that is not given, or does not show one that is.

    Cost: the predicate is read in each step, in the kernel of a loop without Python. That kernel takes all lanes of a
    step before the next one, see ``"steps"`` of :func:`explain`.

    Source: ``jax.experimental.checkify.check``; ``torch._assert_async``.

    >>> import torch, functorch_hops as fh
    >>> def root(x):
    ...     fh.debug.check(x >= 0, "no root of {}", x)
    ...     return x.sqrt()
    >>> fh.vmap(root)(torch.tensor([1.0, -4.0]))
    Traceback (most recent call last):
    functorch_hops.errors.CheckError: no root of -4.0
      lane: 1
      ...
    """
    if not isinstance(text, str):
        problem = message(
            "debug.check",
            "the message is no string",
            parameter="text",
            expected="a str",
            got=kind_of(text),
            remedy=order_of("debug.check"),
        )
        raise ArgumentTypeError(problem)
    _check_format("debug.check", "text", text, args, kwargs)
    value = pred if isinstance(pred, Tensor) else as_number(pred)
    if not isinstance(value, (Tensor, *PYTHON_NUMBERS)) or (isinstance(value, Tensor) and value.numel() != 1):
        problem = message(
            "debug.check",
            "the predicate is not a single value",
            parameter="pred",
            expected="a bool, a number or a tensor of one element",
            got=kind_of(pred),
            remedy="reduce it with .all() or .any()",
        )
        raise ArgumentTypeError(problem)
    first = value if isinstance(value, Tensor) else number_as_tensor(value)
    _happens(lambda call: _Check(call, text), [first.reshape(())], args, kwargs)


@left_to_python
def breakpoint(*args: Any, **kwargs: Any) -> None:
    """Stop in Python's debugger, also in captured and compiled code.

    ``breakpoint : (*a, **b) -> None``. Equivalent to ``breakpoint()`` where it stands, in each step of a loop and in
    each lane that takes it, in a frame with the variables ``args``, ``kwargs``, ``iteration``, ``lane`` and ``at``.

    Arguments:
        args, kwargs: the values to look at, any trees. (In plain eager, ``up`` leads to the frame that called.)

    Returns:
        None.

    Raises: nothing itself.

    Cost: the patience of who debugs; for the kernel of a loop, as :func:`print`.

    Source: ``jax.debug.breakpoint``.

    >>> import sys, torch, functorch_hops as fh
    >>> sys.breakpointhook = lambda: print("stopped")
    >>> _ = fh.jit(lambda x: (fh.debug.breakpoint(x), x + 1)[1], backend="eager")(torch.ones(2))
    stopped
    >>> sys.breakpointhook = sys.__breakpointhook__
    """
    _happens(_Breakpoint, [], args, kwargs)
