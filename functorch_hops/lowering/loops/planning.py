"""Each loop of a graph as a kernel, or the reason why it has none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from ...derive.numbers import without_numbers
from ...errors import message
from ...ir.build import add_params, copy_of
from ...ir.subgraph import Params, Subgraph, has_effect, params_of
from ...passes.cleaning import clean
from .around import branches, prefixes, scan_by_lanes, scan_by_steps, while_by_lanes, while_by_steps
from .body import lowered, statements
from .forms import Branches, Form, Prefixes, Refused, Scan, While
from .lanes import lane_body
from .linear import CHECKS
from .masked import is_masked, without_representatives
from .operator import call_arguments, load, loop_kernel
from .source import ENTRY, Function, c_type, numel, program

__all__ = ["LoopReport", "Plan", "planned"]


_LAST_LINES = 5


@dataclass(frozen=True)
class LoopReport:
    """How a loop is lowered. ``taken``: "lanes" (one kernel, a block of lanes runs through all steps), "steps" (one
    kernel, its body a function) or "native" (torch's own operator). ``reason``: what prevented the one before.
    """

    operator: str
    taken: str
    reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """A graph in which loops are kernels where they can be, and what became of each, in the order of the graph."""

    body: Subgraph
    loops: tuple[LoopReport, ...]


def planned(body: Subgraph, options: dict[str, Any]) -> Plan:
    """``body`` with kernels, each compiled. ``options``: those of Inductor."""
    return _plan(body, options, is_inner=False)


def _plan(body: Subgraph, options: dict[str, Any], *, is_inner: bool) -> Plan:
    """``is_inner``: of the body of a loop that is to be a kernel, hence all its loops must be."""
    body = without_numbers(body)
    if not any(params_of(node, body.module) for node in body.module.graph.nodes):
        return Plan(body, ())
    module = copy_of(body)
    clean(module)
    reports: list[LoopReport] = []
    for node in list(module.graph.nodes):
        params = params_of(node, module)
        if params is None:
            continue
        operands = [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
        form, reason = _form(params, operands, is_inner)
        if form is not None and params.has_effects and not node.users:
            form, reason = None, "nobody reads its results"  # and a kernel stays for these only
        if form is not None:
            try:
                kernel, inner = _kernel(form, params.operator.label, options)
                if not is_inner:
                    _compile(kernel, form)
            except Refused as why:
                reason = str(why)
            except Exception as error:  # noqa: BLE001 - whatever Inductor or the C++ compiler raises
                reason = _failed(params.operator.label, error)
            else:
                reports += inner
                _replace(node, kernel, form)
                continue
        if reason is not None:
            reports.append(LoopReport(params.operator.label, "native", reason))
            if is_inner:
                raise Refused(f"{params.operator.label} in its body: {reason}")
        reports += _plan_inside(node, params, module, options, is_inner)
    clean(module)
    return Plan(Subgraph.intern(module, body.inputs, body.outputs), tuple(reports))


def _form(params: Params, operands: Sequence[Any], is_inner: bool) -> tuple[Form | None, str | None]:
    """The loop that a node is, or why there is no kernel of it; neither of what is no loop. A branch outside of loops
    is run once, and stays as it is.
    """
    try:
        form = params.operator.rules.form(params, operands)
        if form is None or (isinstance(form, Branches) and not is_inner):
            return None, None
        if params.random:
            raise Refused("it draws random numbers")
        if not all(target in CHECKS for target in _effects(params)):
            raise Refused("one of its operators checks, prints or does something unknown")
        for meta in (*form.inputs, *form.outputs):
            c_type(meta.dtype)
            numel(meta)
            if meta.device.type != "cpu":
                raise Refused(f"it runs on {meta.device.type}")
    except Refused as why:
        return None, str(why)
    return form, None


def _effects(params: Params) -> Iterator[Any]:
    """The operators in its bodies that do something besides their results."""
    for body in params.bodies:
        for node in body.module.graph.nodes:
            if has_effect(node, body.module):
                inner = params_of(node, body.module)
                yield from [node.target] if inner is None else _effects(inner)


def _plan_inside(
    node: fx.Node, params: Params, module: fx.GraphModule, options: dict[str, Any], is_inner: bool
) -> tuple[LoopReport, ...]:
    """Plan the loops in the bodies of a node that stays."""
    plans = {body: _plan(body, options, is_inner=is_inner) for body in params.run_bodies}
    new = params.with_bodies(lambda body: plans[body].body if body in plans else body)
    if new is not params:
        with module.graph.inserting_before(node):
            node.args = (add_params(module, module.graph, new), *node.args[1:])
    return tuple(report for plan in plans.values() for report in plan.loops)


def _kernel(form: Form, label: str, options: dict[str, Any]) -> tuple[Function, list[LoopReport]]:
    """A loop as one function, and how it and the loops in it are lowered."""
    if isinstance(form, Prefixes):
        scan, reports = _kernel(form.scan, label, options)
        return prefixes(form, scan), reports
    bodies = [*form.branches] if isinstance(form, Branches) else [form.body]
    conds = [form.cond] if isinstance(form, While) else []
    plans = [_plan(body, options, is_inner=True) for body in (*conds, *bodies)]
    inner = [report for plan in plans for report in plan.loops]
    if isinstance(form, Branches):
        functions = [statements(lowered(plan.body, options), options, len(form.inputs)) for plan in plans]
        return branches(form, functions), inner
    try:
        return _by_lanes(form, [plan.body for plan in plans], options), [LoopReport(label, "lanes"), *inner]
    except Refused as why:
        reason = str(why)
    first_const = form.n_carry + (form.n_xs if isinstance(form, Scan) else 0)
    functions = [statements(lowered(plan.body, options), options, first_const) for plan in plans]
    function = scan_by_steps(form, *functions) if isinstance(form, Scan) else while_by_steps(form, *functions)
    return function, [LoopReport(label, "steps", reason), *inner]


def _by_lanes(form: Scan | While, bodies: Sequence[Subgraph], options: dict[str, Any]) -> Function:
    n = form.n_carry
    if isinstance(form, Scan):
        return scan_by_lanes(form, lane_body(lowered(bodies[0], options), n, options, "step", steps=form.length))
    if is_masked(form):
        alone = without_representatives(bodies[1])
        return while_by_lanes(form, None, lane_body(lowered(alone, options), n, options, "step", steps=None))
    cond = lane_body(lowered(bodies[0], options), n, options, "test", steps=None, is_test=True)
    return while_by_lanes(form, cond, lane_body(lowered(bodies[1], options), n, options, "step", steps=None))


def _compile(kernel: Function, form: Form) -> None:
    """Compile before anything depends on it; Inductor finds the library in its cache."""
    inputs, outputs = ([meta.dtype for meta in metas] for metas in (form.inputs, form.outputs))
    load(program(kernel.parts, kernel.name, kernel.workspace, inputs, outputs, ENTRY))


def _failed(label: str, error: Exception) -> str:
    """Warn that a loop runs as torch's own, with the last lines of what Inductor or the C++ compiler said."""
    lines = str(error).strip().splitlines()
    reason = "\n".join([type(error).__name__, *lines[-_LAST_LINES:]])
    problem = f"its kernel could not be made, and torch's own loop runs in its place: {reason}"
    remedy = 'options={"loop_kernels": False} compiles without kernels of loops'
    warnings.warn(message(label, problem, remedy=remedy), RuntimeWarning, stacklevel=2)
    return reason


def _replace(node: fx.Node, kernel: Function, form: Form) -> None:
    """The call of an operator as the call of its kernel."""
    graph = node.graph
    tensors = [x for x in node.args[1:] if isinstance(x, fx.Node)]
    with graph.inserting_before(node):
        new = graph.call_function(loop_kernel, call_arguments(kernel, tensors, form.outputs))
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new)
    graph.erase_node(node)
