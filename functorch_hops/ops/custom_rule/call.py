"""A call of a function with derivatives of its own: as Python, or captured as one node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ... import _torch
from ...calls.trace_cache import as_graph
from ...errors import CaptureError, message
from ...ir.build import with_inputs
from ...ir.meta import TensorMeta
from ...ir.origin import origin_here
from ...ir.subgraph import Subgraph
from ...trace.capture import refusals_left
from ...trace.speculate import capture_function
from ..missing_derivative.op import FailedRule, missing
from ..mode import is_capturing
from .eager import call_in_python
from .flat_rule import FlatRule, Tensors, differentiable_inputs
from .op import custom_rule_op
from .parameters import CustomRule, Layout, Recursion

__all__ = ["as_python_or_graph", "call_custom_rule"]


def runs_as_python() -> bool:
    """Whether the call of a rule runs as Python; else it is captured."""
    return not (is_capturing() or _torch.top_interpreter() is not None or _torch.in_dual_level())


def as_python_or_graph(
    operation: str,
    run: Callable[..., Any],
    functions: Sequence[Callable[..., Any]],
    operands: tuple[Any, ...],
    *static: Hashable,
) -> Any:
    """``run(functions, operands, *static)``, which calls a rule: as Python, or as a graph that is traced once."""
    if runs_as_python():
        return run(functions, operands, *static)
    return as_graph(operation, run, functions, operands, *static)


def call_custom_rule(rule: FlatRule, inputs: Tensors) -> Sequence[Tensor]:
    """The outputs of ``rule`` for ``inputs``, with its derivatives at every level of differentiation."""
    if not runs_as_python():
        return _CapturedCall(rule, inputs).outputs()
    return call_in_python(rule, inputs)


# ---------------------------------------------------------------------------------------------------------------------
# capture

DEPTH = 4
"""How often a rule may call its own function with other arguments inside itself: each is captured in turn."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.calls: list[_CapturedCall] = []


_active = _Active()


class _Graph(NamedTuple):
    """A captured graph; ``keys`` name what it closes over; the last ``n_after`` of its own inputs go behind that."""

    body: Subgraph
    keys: list[Hashable]
    n_after: int


class _CapturedCall:
    """A call becoming a node: its graphs, and what they close over, in one list for all of them."""

    def __init__(self, rule: FlatRule, inputs: Tensors) -> None:
        self.rule, self.inputs = rule, inputs
        self.metas = [TensorMeta(tuple(x.shape), x.dtype, x.device) for x in inputs]
        self.differentiable_inputs = differentiable_inputs(inputs)
        self.gradients = self.differentiable_inputs
        self.binder = len(_active.calls)
        self.closed: dict[Hashable, tuple[Tensor, TensorMeta]] = {}
        self.is_recursive = False
        self.failed_reverse: FailedRule | None = None
        self.failed_tangent: FailedRule | None = None

    def outputs(self) -> Sequence[Tensor]:
        for outer in _active.calls:
            if outer.rule.identity == self.rule.identity and outer.metas == self.metas:
                self.rule.learned = outer.rule.learned
                return custom_rule_op(outer.recursion(), *self.inputs, *outer.closed_over())
        return custom_rule_op(self.params(), *self.inputs, *self.closed_over())

    def closed_over(self) -> list[Tensor]:
        return [t for t, _ in self.closed.values()]

    def recursion(self) -> Recursion:
        """This call inside its own derivatives (see NOTE [Recursion])."""
        self.is_recursive = True
        return Recursion(self.arranged(self.function), self.binder)

    def params(self) -> CustomRule:
        rule = self.rule
        self.function = self.capture(rule.primal, self.metas, "the function")
        outputs = self.function.body.outputs
        self.differentiable = tuple(rule.is_differentiable(i, meta.dtype) for i, meta in enumerate(outputs))
        is_deep = sum(outer.rule.identity[0] == rule.identity[0] for outer in _active.calls) >= DEPTH
        graphs = [self.function] if is_deep else self.with_derivatives()
        layout = self.layout(is_deep)
        function, *derivatives = map(self.arranged, graphs)
        key = ("custom rule", tuple(derivatives), self.binder, layout, origin_here())
        return function.derive(key, lambda: CustomRule(function, tuple(derivatives), self.binder, layout))

    def with_derivatives(self) -> list[_Graph]:
        """The graphs of the function, of reverse and of forward mode. If a rule calls its own function, the rules are
        captured a second time: the first pass may have found closed-over tensors that the inner call must pass too.
        """
        _active.calls.append(self)
        try:
            graphs = self.graphs()
            known = len(self.closed)
            if self.is_recursive and known > len(self.function.keys):
                graphs = self.graphs()
                if len(self.closed) > known:
                    raise self.unstable()
            return graphs
        finally:
            _active.calls.pop()

    def graphs(self) -> list[_Graph]:
        """Those of modes whose rule fails are left out: nobody may ask for that derivative."""
        reverse, self.failed_reverse = self.attempt(self.reverse_graphs)
        tangent, self.failed_tangent = self.attempt(self.tangent_graph)
        return [self.function, *reverse, *tangent]

    def attempt(self, capture: Callable[[], list[_Graph]]) -> tuple[list[_Graph], FailedRule | None]:
        try:
            with refusals_left():
                return capture(), None
        except Exception as error:  # noqa: BLE001  it is raised where the derivative is asked for
            return [], FailedRule.of(self.rule.name, error)

    def unstable(self) -> CaptureError:
        return CaptureError(
            message(
                self.rule.name,
                "its derivative rule closes over other tensors each time that it is traced",
                remedy="make the tensors once, outside of the rule",
            )
        )

    def reverse_graphs(self) -> list[_Graph]:
        rule, n, n_outputs = self.rule, len(self.metas), len(self.differentiable)
        if not rule.has_backward:
            return []
        places: list[int] = []  # of the residuals among the inputs and the emitted ones

        def forward(*inputs: Tensor) -> Tensors:
            outs, residuals = rule.forward(*inputs)
            table = {id(x): i for i, x in enumerate(inputs)}
            emitted: list[Tensor] = []
            for r in residuals:
                if id(r) not in table:
                    table[id(r)] = n + len(emitted)
                    emitted.append(r)
            places[:] = [table[id(r)] for r in residuals]
            return [*outs, *emitted]

        def backward(*flat: Tensor) -> Tensors:
            emitted, inputs, cts = flat[:n_emitted], flat[n_emitted : n_emitted + n], flat[n_emitted + n :]
            values = (*inputs, *emitted)
            grads = iter(rule.backward([values[p] for p in places], cts))
            given = [next(grads) if m else None for m in self.differentiable_inputs]
            self.gradients = tuple(g is not None for g in given)
            return [g for g in given if g is not None]

        forward_graph = self.capture(forward, self.metas, "fwd")
        residuals = forward_graph.body.outputs[n_outputs:]
        n_emitted = len(residuals)
        cts = [m for m, d in zip(self.function.body.outputs, self.differentiable) if d]
        return [forward_graph, self.capture(backward, [*residuals, *self.metas, *cts], "bwd", len(cts))]

    def tangent_graph(self) -> list[_Graph]:
        rule, n = self.rule, len(self.metas)
        if not rule.has_tangent:
            return []

        def tangent(*flat: Tensor) -> Tensors:
            outs, tangents = rule.tangent(flat[:n], flat[n:])
            return [*outs, *tangents]

        tangents = [m for m, d in zip(self.metas, self.differentiable_inputs) if d]
        return [self.capture(tangent, [*self.metas, *tangents], "rule", len(tangents))]

    def capture(
        self, function: Callable[..., Tensors], metas: Sequence[TensorMeta], parameter: str, n_after: int = 0
    ) -> _Graph:
        body, capture = capture_function(function, metas, operation=self.rule.name, parameter=parameter)
        known = {id(t): key for key, (t, _) in self.closed.items()}
        keys: list[Hashable] = []
        n_constants = 0
        for t, meta in zip(capture.lifted, body.inputs[len(metas) :]):
            key: Hashable = known.get(id(t), id(t))
            if id(t) in capture.constants:
                # Each capture makes the constants of a function anew; they are known by their order.
                key, n_constants = (parameter, n_constants), n_constants + 1
            self.closed.setdefault(key, (t, meta))
            keys.append(key)
        return _Graph(body, keys, n_after)

    def arranged(self, graph: _Graph) -> Subgraph:
        """The graph with all that the call closes over, in one order for all graphs."""
        order = {key: i for i, key in enumerate(self.closed)}
        metas = graph.body.inputs[: len(graph.body.inputs) - len(graph.keys)]
        n = len(metas) - graph.n_after
        before, after = range(n), range(n + len(order), len(metas) + len(order))
        places = [*before, *after, *(n + order[key] for key in graph.keys)]
        return with_inputs(graph.body, places, [*metas[:n], *(meta for _, meta in self.closed.values()), *metas[n:]])

    def layout(self, is_deep: bool) -> Layout:
        rule = self.rule
        transposes = rule.transposes_tangent and rule.has_tangent and not rule.has_backward
        deep = f"its derivatives call it with new arguments more than {DEPTH} times over", "differentiate less often"
        alone = rule.untransposable if transposes else ("it has no reverse-mode derivative", rule.reverse_remedy)
        reverse = deep if is_deep else alone
        tangent = deep if is_deep else ("it has no forward-mode derivative", rule.forward_remedy)
        failed_reverse = self.failed_tangent if transposes else self.failed_reverse
        return Layout(
            name=rule.name,
            n_inputs=len(self.metas),
            differentiable_inputs=self.differentiable_inputs,
            gradients=self.gradients,
            differentiable=self.differentiable,
            has_backward=rule.has_backward and not is_deep and failed_reverse is None,
            has_tangent=rule.has_tangent and not is_deep and self.failed_tangent is None,
            constant_closure=rule.constant_closure,
            knows_absence=rule.knows_absence,
            missing_reverse=failed_reverse or missing(rule.name, *reverse),
            missing_tangent=self.failed_tangent or missing(rule.name, *tangent),
            transposes_tangent=transposes and not is_deep and failed_reverse is None,
            vmap=rule.vmap,
        )
