"""``fh.debug.find_nan``: the operation that made the first NaN or infinity.

NOTE [One lane, one step] The function runs as the plain Python that it is equivalent to: nothing is captured, batched
or computed again. So the stack tells the line, the step of each loop and the lane; no value is that of another lane.
A function mode looks at the results of each call of torch's; what autograd computes for a call is looked at by a hook
on each of its nodes, at every level, which knows the call. A derivative that has derivatives makes nodes as it
runs: they belong to the same call. Nodes that no call made are those of operators of ours, which know their line, and
those of a rule that is Python: a ``torch.autograd.Function``, ``custom_vjp``. What a node calls that is itself Python
is looked at call by call too, by the same mode, which autograd takes off again with the state of the thread behind each
node. The stack below such a call is that of whoever runs the backward pass; loops and lanes are those of the node.
"""

from __future__ import annotations

import bisect
import functools
import linecache
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .. import _torch, pytree
from ..calls.arguments import P
from ..calls.leaf import left_to_python
from ..calls.spelling import spelled
from ..calls.validate import check_callable
from ..errors import is_internal, user_place
from ..hop.operator import Hop
from ..ir.meta import is_differentiable
from ..ir.subgraph import Params
from ..ops.custom_rule.eager import rule_of
from ..ops.effect.running import plain_loops
from ..ops.mode import stepwise
from .nan_report import NanOrigin, NanReport

__all__ = ["find_nan", "one_or_all"]

_BACKWARD = torch.autograd.grad, torch.autograd.backward, Tensor.backward
_UNSEEN = {
    # What returns memory as it is found,
    *(torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted),
    *(Tensor.new_empty, Tensor.new_empty_strided, Tensor.resize_, Tensor.resize_as_),
    # and what runs nodes of autograd, which are looked at one by one.
    *_BACKWARD,
    *_torch.OF_DUALS,
}


@spelled()
@left_to_python
def find_nan(func: Callable[P, Any]) -> Callable[P, NanReport]:
    """Find the operation that makes the first NaN or infinity, in the values and in the gradients of a function.

    ``find_nan : (a -> b) -> (a -> NanReport)``. Equivalent to calling ``func`` with all of its calls of torch looked
    at, and then the gradient of the sum of its results. It runs as plain Python, operation by operation, whatever is
    jitted: loops step by step, vmaps lane by lane, nothing is computed again. So it sees what plain eager sees; where
    a compiler rounds otherwise, a value at the edge of overflow may differ.

    Arguments:
        func: any function. Its arguments are copied before they are used; what it closes over is not.

    Returns:
        A function of the same arguments, which returns a :class:`NanReport`: data, and text when it is printed. An
        operation makes a NaN where no operand holds one, and an infinity where all operands are finite: a constant
        such as the ``-inf`` of a mask is not reported. Uninitialised memory (``torch.empty``) is not looked at.

    Raises:
        ArgumentTypeError: ``func`` is not callable. What ``func`` raises is raised; what the gradient of its result
            raises is in the report.

    Cost: each call of torch, in each step and lane by itself, takes some tenths of a millisecond more; the memory of
    reverse mode through all of them.

    Source: ``torch.autograd.detect_anomaly``, ``jax.config.jax_debug_nans``, ``jax.experimental.checkify``.

    >>> import torch, functorch_hops as fh
    >>> def halvings(x):
    ...     return fh.scan(lambda c, x: (c / x, None), x, torch.tensor([2.0, 0.0, 2.0]))[0]
    >>> print(fh.debug.find_nan(fh.jit(halvings))(torch.tensor(1.0)))  # doctest: +ELLIPSIS
    halvings: the result holds NaN or infinity; torch.Tensor.div made the first infinity
      at <doctest ...>:2...
      iteration: 1 of scan
      operand 0: 0.5
      operand 1: 0.0
    halvings: the gradient holds NaN or infinity; DivBackward0 of torch.Tensor.div made the first infinity
      ...
    """
    check_callable("debug.find_nan", "func", func)
    name = getattr(func, "__name__", None) or type(func).__name__

    @left_to_python
    def found(*args: P.args, **kwargs: P.kwargs) -> NanReport:
        leaves, spec = pytree.flatten((args, kwargs))
        tracked = [x if not _has_gradient(x) or x.requires_grad else x.detach().requires_grad_() for x in leaves]
        copies = [x.clone() if isinstance(x, Tensor) and x is not old else x for x, old in zip(tracked, leaves)]
        watch = _Watch()
        with _torch.uncompiled(), stepwise(), watch:
            own_args, own_kwargs = pytree.unflatten(spec, copies)
            result = func(*own_args, **own_kwargs)
        value, entered = watch.taken()
        outs = [x for x in pytree.flatten(result)[0] if isinstance(x, Tensor)]
        watch.look_behind(outs)
        inputs = [x for x in tracked if _has_gradient(x)] + watch.closed_over
        pulled, refused = None, None
        try:
            pulled = None if watch.has_pulled else _pulled(outs, inputs)
        except Exception as error:  # noqa: BLE001 - of what was found in the values the user is told all the same
            refused = error
        in_value = any(_torch.nonfinite(x) for x in outs)
        in_gradient = None if pulled is None else any(_torch.nonfinite(x) for x in pulled)
        gradient, summed = watch.taken()
        value, gradient = value or (entered if in_value else None), gradient or (summed if in_gradient else None)
        return NanReport(name, value, gradient, in_value, in_gradient, refused)

    return functools.wraps(func)(found)


def _has_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and is_differentiable(x.dtype)


def _pulled(outs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """The gradients of the sum of all results."""
    tracked = [x for x in outs if x.requires_grad]
    inputs = [*{id(x): x for x in inputs if x.requires_grad}.values()]
    if not tracked or not inputs:
        return None
    grads = torch.autograd.grad(tracked, inputs, [*map(torch.ones_like, tracked)], allow_unused=True)
    return [g for g in grads if g is not None]


def _flat(values: Any) -> Iterator[Any]:
    """The tensors and numbers among the arguments of a call, or its results."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, dict):
        yield from _flat([*values.values()])
    elif isinstance(values, (Tensor, float, complex, int)) and type(values) is not bool:
        yield values


def _kind(value: Any) -> str | None:
    if isinstance(value, Tensor):
        return _torch.nonfinite(value)
    if isinstance(value, complex):
        return _kind(value.real) or _kind(value.imag)
    if not isinstance(value, float) or math.isfinite(value):
        return None
    return "nan" if math.isnan(value) else "inf"


@dataclass(frozen=True)
class _WatchedCall:
    """A call of torch's, or of an operator of ours by name, and where it stands."""

    func: Any
    operands: tuple[Any, ...]
    versions: tuple[int | None, ...]
    place: tuple[str, int, str] | None
    loops: tuple[tuple[str, int], ...]
    lane: tuple[int, ...]

    node: str | None = None
    """The node of autograd that made it, where that is all there is to name it by."""

    @classmethod
    def of(cls, func: Any, operands: Sequence[Any], inside: _Inside | None) -> _WatchedCall:
        versions, place = tuple(map(_version, operands)), user_place(within=_torch.BACKWARD_PASS)
        if inside is None:
            of, name = func, None
            if isinstance(func, _torch.OpOverload) and (operator := _operator_here()) is not None:
                of, name = operator.public_name, f"{_name(func)} in the graph"
            return cls(of, tuple(operands), versions, place, _loops_here(), _torch.lane_here(), name)
        outer, name = inside.call, None
        if place is None:  # a graph: what is known is the call that it belongs to
            func, place, name = outer.func, outer.place, f"{_name(func)} in the {inside.node}"
        loops = outer.loops + _loops_here()[inside.n_loops :]
        return cls(
            func, tuple(operands), versions, place, loops, outer.lane + _torch.lane_here()[inside.n_lanes :], name
        )

    def origin(
        self, found: str, *, is_made: bool, node: str | None = None, cotangents: Sequence[Tensor] = ()
    ) -> NanOrigin:
        file, line, _ = self.place or (None, None, None)
        return NanOrigin(
            found=found,
            is_made=is_made,
            operation=_name(self.func),
            node=self.node if node is None else node,
            file=file,
            line=line,
            source="" if file is None or line is None else linecache.getline(file, line).strip(),
            loops=tuple(operation for operation, _ in self.loops),
            iteration=one_or_all([step for _, step in self.loops]),
            lane=one_or_all(self.lane),
            operands=tuple(map(_kept, self.operands, self.versions)),
            cotangents=tuple(_kept(ct, _version(ct)) for ct in cotangents),
        )


@dataclass(frozen=True)
class _Inside:
    """A node of autograd that runs Python: its call, its name, and how many loops and vmaps are around the backward
    pass.
    """

    call: _WatchedCall
    node: str
    n_loops: int
    n_lanes: int


def _loops_here() -> tuple[tuple[str, int], ...]:
    return tuple((loop.operation, loop.steps) for loop in plain_loops())


def _operator_here() -> Params | None:
    """The operator of ours whose rule makes this call, by the stack: what it runs is a graph."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        if frame.f_code is Hop.__call__.__code__:
            params: Params = frame.f_locals["params"]
            return params
        frame = frame.f_back
    return None


def _known_by(func: Any, args: Sequence[Any]) -> Any:
    """The function itself, or a name of what the user calls by it."""
    if func is _torch.custom_function_call:
        return args[0].__name__
    return args[0].public_name if isinstance(func, Hop) else func


def _name(func: Any) -> str:
    return func if isinstance(func, str) else _torch.function_name(func)


def one_or_all(numbers: Sequence[int]) -> int | tuple[int, ...] | None:
    """None for no number, one number as it is, several as a tuple."""
    return None if not numbers else numbers[0] if len(numbers) == 1 else tuple(numbers)


def _version(x: Any) -> int | None:
    """How often a tensor was written to, as far as torch counts."""
    return _torch.n_writes(_torch.base_tensor(x)) if isinstance(x, Tensor) else None


def _kept(value: Any, version: int | None) -> Any:
    """A copy, of a tensor as it was then, or what is to be said if it was written to since."""
    if not isinstance(value, Tensor):
        return value
    if _version(value) != version:
        return f"{tuple(value.shape)}, written to since"
    with _torch.without_torch_function(), _torch.below_transforms(), torch.no_grad():
        return _torch.base_tensor(value).detach().clone()


_NO_CALL = _WatchedCall("", (), (), None, (), ())


class _Watch(_torch.CallMode):
    """``closed_over``: tensors with gradients that the function reads, and did not make; ``has_pulled``: it ran a
    backward pass of plain autograd.
    """

    def __init__(self) -> None:
        super().__init__()
        self.closed_over: list[Tensor] = []
        self.has_pulled = False
        self._known: set[int] = set()
        self._begin = _torch.next_node()
        self._made: NanOrigin | None = None
        self._entered: NanOrigin | None = None
        self._inside: list[_Inside] = []
        self._calls: list[_WatchedCall] = []
        self._numbers: list[int] = []
        """Of the node that autograd would have made after each of these calls."""

    def taken(self) -> tuple[NanOrigin | None, NanOrigin | None]:
        """What was found since: what an operation made, and what came to one that nothing seen had made."""
        found, self._made, self._entered = (self._made, self._entered), None, None
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = list(_flat((args, kwargs)))
        if func in _BACKWARD:
            self.has_pulled |= _torch.top_interpreter() is None
            self.look_behind([x for x in operands if isinstance(x, Tensor)])
        is_write = _torch.is_write(func, kwargs)
        if is_write:
            operands = [_kept(x, _version(x)) for x in operands]
        inside = len(self._inside)
        try:
            result = func(*args, **kwargs)
        finally:
            del self._inside[inside:]  # nodes that failed
        outs = [x for x in _flat([args[:1] if is_write else (), result]) if isinstance(x, Tensor)]
        if outs and func not in _UNSEEN:
            call = _WatchedCall.of(_known_by(func, args), operands, self._inside[-1] if self._inside else None)
            self._numbers.append(_torch.next_node())
            self._calls.append(replace(call, operands=(), versions=()))
            self._look(call, outs)
        return result

    def _look(self, call: _WatchedCall, outs: Sequence[Tensor]) -> None:
        given = [x for x in call.operands if isinstance(x, Tensor)]
        for x in given:
            self._close_over(x)
            self._hook_unmade(x)
        self._hook_all(call, outs)
        if self._made is None:
            self._judge(call, outs, call.operands)
        self._judge_tangents(call, outs, call.operands, "tangent")

    def _judge_tangents(
        self, call: _WatchedCall, results: Sequence[Tensor], operands: Sequence[Any], node: str
    ) -> None:
        tangents = [t for x in results for t in _torch.tangents_of(x)]
        if tangents and self._made is None:
            given = [t for x in operands if isinstance(x, Tensor) for t in _torch.tangents_of(x)]
            self._judge(call, tangents, [*operands, *given], node)

    def _judge(
        self,
        call: _WatchedCall,
        results: Sequence[Any],
        operands: Sequence[Any],
        node: str | None = None,
        cotangents: Sequence[Tensor] = (),
    ) -> None:
        found = next(filter(None, map(_kind, results)), None)
        if found is None:
            return
        before = [*map(_kind, operands), *map(_kind, cotangents)]
        if "nan" not in before if found == "nan" else not any(before):
            self._made = call.origin(found, is_made=True, node=node, cotangents=cotangents)
        elif self._entered is None:
            self._entered = call.origin(found, is_made=False, node=node, cotangents=cotangents)

    def _close_over(self, x: Tensor) -> None:
        if x.is_leaf and x.requires_grad and not _torch.is_wrapped(x) and id(x) not in self._known:
            self._known.add(id(x))
            self.closed_over.append(x)

    def _hook_all(self, call: _WatchedCall, results: Sequence[Tensor]) -> None:
        for x in results:
            for value in (x, *_torch.tangents_of(x)):
                for node in _torch.new_nodes(value, self._begin):
                    self._hook(call, node)

    def look_behind(self, outs: Sequence[Tensor]) -> None:
        """Tensors of which a backward pass is about to begin, whether a call has read them or not."""
        for x in outs:
            self._hook_unmade(x)

    def _hook_unmade(self, x: Tensor) -> None:
        """The nodes behind ``x`` that no call has made. A ``torch.autograd.Function`` has its node before it calls
        anything, a rule of ours after that.
        """
        for node in _torch.new_nodes(x, self._begin):
            following = bisect.bisect_right(self._numbers, node._sequence_nr())
            i = max(following - 1, 0) if rule_of(node) else min(following, len(self._calls) - 1)
            self._hook(_of_operator(self._calls[i] if self._calls else _NO_CALL, node), node)

    def _hook(self, call: _WatchedCall, node: Any) -> None:
        is_python = _is_python(node)
        name = "backward pass" if is_python else node.name()
        if is_python:
            node.register_prehook(functools.partial(self._before, call, name))
        node.register_hook(functools.partial(self._after, call, name, is_python))

    def _before(self, call: _WatchedCall, name: str, cotangents: Sequence[Any]) -> None:
        self._inside.append(_Inside(call, name, len(_loops_here()), len(_torch.lane_here())))
        self.__enter__()

    def _after(
        self, call: _WatchedCall, name: str, is_python: bool, grads: Sequence[Any], cotangents: Sequence[Any]
    ) -> None:
        if is_python:
            self.__exit__(None, None, None)
            self._inside.pop()
        grads, cotangents = ([x for x in values if isinstance(x, Tensor)] for values in (grads, cotangents))
        if self._made is None:
            self._judge(call, grads, call.operands, name, cotangents)
            self._judge_tangents(call, grads, [*call.operands, *cotangents], f"tangent of {name}")
        self._hook_all(call, grads)


def _of_operator(call: _WatchedCall, node: Any) -> _WatchedCall:
    """The call that made a node, given one in the same step and lane."""
    params = getattr(node, "params", None)
    if isinstance(params, Params):
        origin = params.origin
        place = None if origin is None else (origin.file, origin.line, origin.function)
        return replace(call, func=params.public_name, operands=(), versions=(), place=place, node=None)
    of_function = type(node).__name__.removesuffix("Backward") if _is_python(node) else "an unknown operation"
    rule, place = rule_of(node) or (of_function, None)
    return replace(call, func=rule, operands=(), versions=(), place=place, node=None)


def _is_python(node: Any) -> bool:
    return isinstance(node, torch.autograd.function.BackwardCFunction)
