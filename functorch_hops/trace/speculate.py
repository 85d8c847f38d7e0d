"""``speculate_subgraph``: run a Python function once on fake tensors and keep what it did as a Subgraph.

A capture runs as on a fresh thread (``_torch.suspended``) under its observers (``lifting``, ``effects``) and torch's
own proxy mode, which records. Modes of the user's for torch's functions are above these: what such a mode makes of a
call is what is captured, as in eager.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from .. import _torch
from ..errors import CaptureError, message
from ..ir.active import state
from ..ir.meta import TensorMeta
from ..ir.sizes import shape_env_of
from ..ir.subgraph import Subgraph
from .buffers import Buffers
from .capture import Capture, current_capture
from .detached import separate_detached
from .effects import Effects
from .history import HistoryAsked, Source, check_carries, check_leaves
from .inplace import has_writes, restride_windows, unwrite_views
from .lifting import Lifting
from .normalize import normalize
from .outliving import make_real
from .refusals import in_our_words
from .regrouping import check_regrouped
from .settings import settings_kept

__all__ = ["capture_function", "lift_operands", "observed", "speculate_subgraph"]

_DEPTH_OF_RECURSION = 8
"""No program nests as deep as this on purpose and exhausts Python's stack by something else."""


def speculate_subgraph(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    *,
    operation: str,
    parameter: str,
    sources: Sequence[Source] = (),
    keep_autocast: bool = True,
) -> tuple[Subgraph, list[Tensor]]:
    """Capture ``function``, called once with fakes of ``inputs``, and the free variables that it used.

    ``function`` takes and returns flat tensors; trees are the caller's matter. The returned graph's inputs are
    ``inputs`` followed by one for each lifted tensor. Everything that was active around the call (transforms,
    modes, autocast, gradient mode) is as before when it returns or raises.

    ``sources``: what each input stands for, where the function is a user's, who may ask it for its history.
    """
    subgraph, capture = capture_function(
        function, inputs, operation=operation, parameter=parameter, sources=sources, keep_autocast=keep_autocast
    )
    if capture.parent is None and keep_autocast:
        _recent_bodies.append(subgraph)
    return subgraph, capture.lifted


_recent_bodies: deque[Subgraph] = deque(maxlen=64)
"""Bodies of the user's that plain eager captured by themselves. They may be captured again at the next call (where they
have effects, see NOTE [When a trace is valid]), and find what was derived from them, since equal graphs are shared."""


def capture_function(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    *,
    operation: str,
    parameter: str,
    sources: Sequence[Source] = (),
    keep_autocast: bool = True,
    buffers: Buffers | None = None,
) -> tuple[Subgraph, Capture]:
    """As :func:`speculate_subgraph`; returns the ended capture, which knows which lifted tensors are constants.

    ``buffers``: of the modules that ``function`` uses, which then may return their new values.
    """
    with _torch.one_at_a_time, _torch.interrupts_held():
        run = functools.partial(_trace, function, inputs, operation, parameter, keep_autocast, sources, buffers)
        depth = 0
        while True:
            try:
                module, capture = run(history_depth=depth)
                break
            except HistoryAsked as asked:
                if current_capture() is not None:
                    raise
                if buffers is not None:
                    buffers.begin_again()
                depth = asked.depth
        return _functional(module, capture), capture


def _functional(module: fx.GraphModule, capture: Capture) -> Subgraph:
    """The subgraph of what a capture recorded, without its writes."""
    with _torch.without_torch_function():  # an enclosing capture is not to see the metadata being read
        unwrite_views(module.graph)
        if has_writes(module.graph):
            restride_windows(module.graph)
            separate_detached(module.graph)
            functional = functionalize(module, remove="mutations")
            again = capture.inputs, capture.operation, capture.parameter
            module, _ = _trace(functional, *again, keep_autocast=False, is_functionalizing=True)
        normalize(module)
        outputs = [TensorMeta.of(n.meta["val"]) for n in module.graph.output_node().args[0]]  # type: ignore[union-attr]
        return Subgraph.intern(module, capture.inputs, outputs)


def _trace(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    operation: str,
    parameter: str,
    keep_autocast: bool,
    sources: Sequence[Source] = (),
    buffers: Buffers | None = None,
    is_functionalizing: bool = False,
    history_depth: int = 0,
) -> tuple[fx.GraphModule, Capture]:
    parent = current_capture()
    env = shape_env_of(meta.shape for meta in inputs) or _torch.env_around()  # what is closed over may be open, too
    capture = Capture(operation, parameter, parent, env, buffers)
    capture.lifting = Lifting(capture)
    capture.is_functionalizing, capture.is_of_user = is_functionalizing, keep_autocast
    capture.session.history_depth = max(capture.session.history_depth, history_depth)
    enabled = not keep_autocast or torch.is_grad_enabled()  # a graph holds the user's no_grad
    modes = _torch.observers() if keep_autocast else ()
    try:
        with _torch.modes_restored(), _torch.suspended(keep_autocast=keep_autocast), _observers(capture):
            fakes = [capture.new_input(*pair) for pair in itertools.zip_longest(inputs, sources)]
            own = capture.outermost().buffers if parent is not None else None
            bound = own.bound() if own is not None else []
            with (
                in_our_words(capture.context),
                _recursion_refused(capture),
                torch.set_grad_enabled(enabled),
                _torch.observing(modes),
                settings_kept(capture.context),
            ):
                outputs = function(*fakes)
                capture.check_refusals()
            if own is not None:
                own.check_bound(bound, operation)
            with _torch.without_torch_function():
                check_carries(capture.history, outputs)
                if keep_autocast:
                    check_leaves(capture, outputs)
                    check_regrouped(capture, outputs)
                module = capture.finish(outputs)
        capture.symbols.make_carriers()
        if keep_autocast:
            del outputs, fakes
            make_real(capture)
        return module, capture
    except HistoryAsked:
        make_real(capture)
        raise
    except Exception as error:
        if keep_autocast:  # the next call finds what this one has built
            make_real(capture)
        if parent is not None:
            parent.note_refusal(error)
        raise
    finally:
        state.capture = parent
        capture.session.ended.append((capture.context, capture.tracer.tensor_tracker))
        if parent is not None:
            parent.constants |= capture.constants
        if parent is None:
            capture.session.close()


@contextlib.contextmanager
def _observers(capture: Capture) -> Iterator[None]:
    outer = state.capture
    state.capture = capture
    try:
        with (
            capture.session.fake_mode,
            capture.recorder.mode,
            Effects(capture),
            capture.lifting,
            _torch.dynamo_silent(),
        ):
            yield
    finally:
        state.capture = outer


def observed() -> contextlib.AbstractContextManager[Any]:
    """In a backward pass: torch runs it without the function mode that saw its call, but it is part of the capture."""
    capture = current_capture()
    if capture is None or capture.lifting in _torch.function_modes():
        return contextlib.nullcontext()
    return capture.lifting


@contextlib.contextmanager
def _recursion_refused(capture: Capture) -> Iterator[None]:
    """A function that calls itself in a branch: captured, it has no end, since both branches are."""
    try:
        yield
    except RecursionError as error:
        # Reported by the outermost control flow: which one runs out of stack is chance.
        if capture.depth != 2 or capture.session.deepest < _DEPTH_OF_RECURSION:
            raise
        raise CaptureError(
            message(
                capture.operation,
                "captured control flow is nested without end",
                parameter=capture.parameter,
                expected="a recursion that ends although every branch is captured",
                got="a stack of captures as deep as Python's recursion limit",
                remedy="write it as fh.while_loop, or decide by a Python bool",
            )
        ) from error


def lift_operands(operands: Sequence[Any]) -> list[Any]:
    """Operands of a HOP call as values of the innermost capture, if one runs."""
    capture = current_capture()
    if capture is None:
        return list(operands)
    return [capture.rows.fresh(capture.lift(x)) if isinstance(x, Tensor) else x for x in operands]
