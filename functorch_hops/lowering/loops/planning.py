"""Each loop of a graph as a kernel, or the reason why it has none."""

from __future__ import annotations

import functools
import logging
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx

from ... import _torch
from ...derive.numbers import without_numbers
from ...ir.build import add_params, copy_of
from ...ir.meta import TensorMeta
from ...ir.nodes import meta_of
from ...ir.sizes import size_key
from ...ir.subgraph import Params, Subgraph, has_effect, params_of
from ...passes.cleaning import clean
from ..stages import COMPILED, generated, keep_named, stage
from .around import branches, prefixes, scan_by_lanes, scan_by_steps, scan_of_tape, while_by_lanes, while_by_steps
from .body import Lowering, statements
from .drawing import keyed, keyed_body
from .eligible import effects_of_user, form_of, unknown_effects
from .forms import TAPE_META, Branches, Form, Prefixes, Refused, Scan, While
from .graph_sizes import GraphSizes
from .kept import Library
from .lane_steps import Body
from .lanes import lane_body, lane_count
from .late import Late, late_reductions
from .libraries import load, source_of
from .masked import is_masked, without_representatives
from .operator import call_arguments, effectful_kernel, loop_kernel
from .plans import LoopReport, Plan, Whole, failed
from .sinking import sunk, sunk_products
from .sizes import Size, size_of
from .source import Function, Program, check_metas, program
from .stacks import Place, shifted, with_leads
from .sums import NO_SUMS, Sums, put_sums, summed
from .systems import Bodies, systems
from .tapes import Reader, effectful_taped_kernel, erase, has_kernels, layout_of, reader_of, taped_kernel
from .triton.around import Launch
from .triton.operator import compile_launch
from .triton.planning import is_on_cuda, launch_of, launched
from .triton.tapes import TAKEN, counted, put_stacks
from .whole import whole

__all__ = ["loops_of_whole", "planned", "planned_whole"]

_log = logging.getLogger("functorch_hops")


class _Task(NamedTuple):
    """What becomes of a graph. ``options``: those of Inductor; ``compiled``: compiles a kernel, None in the body of a
    loop that is to be one, hence all its loops must be; ``is_draft``: the kernels have names, and no code.
    """

    options: dict[str, Any]
    compiled: Callable[[Program], Any] | None = None
    is_draft: bool = False

    @property
    def is_inner(self) -> bool:
        return self.compiled is None


class _Graph(NamedTuple):
    """A graph whose loops become kernels."""

    module: fx.GraphModule
    task: _Task
    sizes: GraphSizes


class _Stacking(NamedTuple):
    """A while loop that stacks values for its gradient, the operands of its kernel, and the loop that reads the
    stacks. ``params`` and ``again``: of the two operators.
    """

    node: fx.Node
    form: While
    operands: Sequence[fx.Node]
    params: Params
    reader: Reader
    again: Params


def planned(body: Subgraph, options: dict[str, Any]) -> Plan:
    """``body`` with kernels, all compiled. ``options``: those of Inductor."""
    programs = list[Program]()
    plan = _plan(body, _Task(options, programs.append))
    try:
        load(programs)
    except Exception:  # noqa: BLE001 - whatever the C++ compiler raises: which one it was shows when each is by itself
        return _plan(body, _Task(options, _compile_alone))
    return plan


def loops_of_whole(body: Subgraph, options: dict[str, Any]) -> tuple[LoopReport, ...]:
    """What became of the loops of a graph that is one kernel."""
    return _plan(_seeded(body), _Task(options)).loops


def planned_whole(body: Subgraph, options: dict[str, Any]) -> Whole | None:
    """``body`` as one kernel, if it has loops and can be: NOTE [Whole graphs]. What can't be is no fault, and the log
    says why; what went wrong in a loop shows when the graph is planned loop by loop.
    """
    if body.shape_env is not None or unknown_effects([body]):
        return None
    try:
        check_metas((*body.inputs, *body.outputs))
        if is_on_cuda(body):
            return None
        plan = _plan(_seeded(body), _Task(options))
        if not (plan.loops or has_kernels(body)):
            return None
        made, workspace = whole(Lowering(plan.body, options).plain, options)
        kernel = load([made])[made]
        return Whole(Library(kernel, workspace, len(source_of([made])), body.random), plan.loops)
    except Exception as error:  # noqa: BLE001 - whatever Inductor or the C++ compiler raises
        _log.debug("loops are kernels apart from the graph around them: %s: %s", type(error).__name__, error)
        return None


def _seeded(body: Subgraph) -> Subgraph:
    """The graph with numbers by count, whose key is its last operand, if it draws any."""
    return keyed_body(body, len(body.inputs))[0] if body.random else body


def _plan(body: Subgraph, task: _Task) -> Plan:
    body = without_numbers(body)
    if not any(params_of(node, body.module) for node in body.module.graph.nodes):
        return Plan(body, ())
    with _torch.no_new_facts(body.shape_env):
        return _plan_loops(body, task)


def _plan_loops(body: Subgraph, task: _Task) -> Plan:
    module = copy_of(body)
    clean(module)
    options, is_inner = task.options, task.is_inner
    within = _Graph(module, task, sizes := GraphSizes(module, body.inputs))
    reports: list[LoopReport] = []
    kernels: dict[str, Form] = {}
    done: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        params = params_of(node, module)
        if params is None or node in done:
            continue
        operands = [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
        trips = params.trip_count(operands)
        form, reason = form_of(params, operands, is_inner)
        if form is not None:
            seeds: list[fx.Node] = []
            try:
                tensors = [x for x in node.args[1:] if isinstance(x, fx.Node) and isinstance(x.meta["val"], Tensor)]
                places = {user: Place(int(user.args[1])) for user in node.users}
                reader = None
                if isinstance(form, While) and form.flags:
                    if task.is_draft:
                        raise Refused("it stacks values for a gradient, and its lanes take turns")
                    reader = reader_of(form, node, module)
                if params.random:
                    form, tensors = keyed(form, node, tensors, seeds)
                if isinstance(form, Scan):
                    form, places = with_leads(form, node)
                    form, tensors = sunk_products(form, node, tensors)
                    form, tensors = shifted(*sunk(form, node, tensors, module))
                if reader is not None and isinstance(form, While):
                    again = params_of(reader.node, module)
                    assert again is not None
                    plan = _plan_counted if is_on_cuda(form) else _plan_tape
                    reports += plan(_Stacking(node, form, tensors, params, reader, again), within)
                    done.add(reader.node)
                    continue
                late, only_summed = None, NO_SUMS
                label, lowering = params.operator.label, _lowerings(options)
                if task.is_draft:
                    kernel, inner = _draft(form, label, options, f"loop_{len(kernels)}")
                elif (found := _with_late_reductions(form, label, options, lowering)) is not None:
                    late, kernel, inner = found
                    form = late.form
                elif (added := _with_sums(form, label, options, lowering, places)) is not None:
                    form, only_summed, kernel, inner = added
                else:
                    kernel, inner = _kernel(form, label, options, lowering)
                sizes.check(kernel.sizes)
                kernels[kernel.name] = form
                _compile(kernel, form.inputs, form.outputs, task, [_offset(x) for x in tensors])
            except Refused as why:
                reason = str(why)
            except _torch.NewFactError as fact:
                reason = f"its code would hold for some sizes only: {fact}"
            except Exception as error:  # whatever Inductor or the C++ compiler raises
                if is_inner:
                    raise
                reason = failed(params.operator.label, error)
            else:
                reports += [report.of(params, trips) for report in inner]
                _replace(node, kernel, form, late, tensors, places, only_summed, sizes, has_effects=params.has_effects)
                for effect in effects_of_user(params.bodies):
                    keep_named(effect)
                continue
            for seed in reversed(seeds):
                module.graph.erase_node(seed)
        if reason is not None:
            reports.append(LoopReport(params.operator.label, "native", reason, params, trips))
            if is_inner:
                raise Refused(f"{params.operator.label} in its body: {reason}")
        inside = _plan_inside(node, params, within)
        reports += inside if reason is None else [report.of(params, None) for report in inside]
    clean(module)
    return Plan(Subgraph.intern(module, body.inputs, body.outputs), tuple(reports), kernels)


def _plan_inside(node: fx.Node, params: Params, within: _Graph) -> tuple[LoopReport, ...]:
    """Plan the loops in the bodies of a node that stays."""
    module = within.module
    plans = {body: _plan(body, within.task) for body in params.run_bodies}
    new = params.with_bodies(lambda body: plans[body].body if body in plans else body)
    if new is not params:
        with module.graph.inserting_before(node):
            node.args = (add_params(module, module.graph, new), *node.args[1:])
    return tuple(report for plan in plans.values() for report in plan.loops)


T = TypeVar("T")


def _kernel(form: Form, label: str, options: dict[str, Any], lowering: Lowerings) -> tuple[Any, list[LoopReport]]:
    """A loop as one function, and how it and the loops in it are lowered."""
    return _once(_made, form, label, options, lowering)


def _once(make: Callable[..., T], form: Form, label: str, options: dict[str, Any], lowering: Lowerings) -> T:
    """``make`` of a form, though a graph may be planned as a whole and then again, loop by loop. ``lowering``: that of
    all that is tried of one loop.
    """
    body = form.branches[0] if isinstance(form, Branches) else form.body
    known = replace(form, length=size_key(form.length)) if isinstance(form, Scan | Prefixes) else form
    key = make, known, label, repr(sorted(options.items())), torch.get_num_threads()
    return body.derive_apart(key, lambda: make(form, label, options, lowering))


def _with_late_reductions(
    form: Form, label: str, options: dict[str, Any], lowering: Lowerings
) -> tuple[Late, Function, list[LoopReport]] | None:
    """A loop over lanes, once what its steps return is reduced later: NOTE [Late reductions]."""
    late = late_reductions(form) if isinstance(form, Scan) and not is_on_cuda(form) else None
    if late is None:
        return None
    found = _once(_over_lanes_if_it_can_be, late.form, label, options, lowering)
    return None if found is None else (late, *found)


def _with_sums(
    form: Form, label: str, options: dict[str, Any], lowering: Lowerings, places: Mapping[fx.Node, Place]
) -> tuple[Scan, Sums, Function, list[LoopReport]] | None:
    """A loop over lanes that adds up what is only summed: NOTE [Sums of stacks]."""
    found = summed(form, places) if isinstance(form, Scan) and not is_on_cuda(form) else None
    if found is None:
        return None
    made = _once(_over_lanes_if_it_can_be, found[0], label, options, lowering)
    return None if made is None else (*found, *made)


def _over_lanes_if_it_can_be(
    form: Scan, label: str, options: dict[str, Any], lowering: Lowerings
) -> tuple[Function, list[LoopReport]] | None:
    try:
        return _over_lanes(form, label, lowering, options)
    except Refused:
        return None


def _draft(form: Form, label: str, options: dict[str, Any], name: str) -> tuple[Function, list[LoopReport]]:
    """A loop inside of one over lanes: a name for it, and how it and the loops in it are lowered there."""
    if not isinstance(form, Scan | While):
        raise Refused("it is no loop over lanes")
    inner = _plan(form.body, _Task(options, is_draft=True)).loops
    return Function(name, (), 0, 1, loops=True), [LoopReport(label, "lanes"), *inner]


def _made(
    form: Form, label: str, options: dict[str, Any], lowering: Lowerings
) -> tuple[Function | Launch, list[LoopReport]]:
    if is_on_cuda(form):
        draft = functools.cache(lambda body: _plan(body, _Task(options, is_draft=True)))
        launch, plans = launch_of(form, draft, options)
        return launch, [LoopReport(label, "lanes"), *(report for plan in plans for report in plan.loops)]
    if isinstance(form, Prefixes):
        scan, reports = _kernel(form.scan, label, options, lowering)
        return prefixes(form, scan), reports
    if isinstance(form, Branches):
        plans = [_plan(body, _Task(options)) for body in form.branches]
        functions = [statements(Lowering(plan.body, options).plain, options, len(form.inputs)) for plan in plans]
        return branches(form, functions), [report for plan in plans for report in plan.loops]
    try:
        return _over_lanes(form, label, lowering, options)
    except Refused as why:
        reason = str(why)
    plans = [_plan(body, _Task(options)) for body in _bodies(form)]
    inner = [report for plan in plans for report in plan.loops]
    first_const = form.n_carry + (form.n_xs if isinstance(form, Scan) else 0)
    updated = [*(0 for _ in plans[1:]), form.n_carry]  # a test writes nothing
    functions = [statements(lowering(p.body).of_steps(n), options, first_const) for p, n in zip(plans, updated)]
    *tests, body = functions
    function = scan_by_steps(form, body) if isinstance(form, Scan) else while_by_steps(form, tests[0], body)
    return function, [LoopReport(label, "steps", reason), *inner]


Drafts = Callable[[Subgraph], Plan]
Lowerings = Callable[[Subgraph], Lowering]


def _lowerings(options: dict[str, Any]) -> Lowerings:
    """Of the bodies of a loop, each once, for lanes and for steps."""
    return functools.cache(lambda body: Lowering(body, options))


def _over_lanes(
    form: Scan | While, label: str, lowering: Lowerings, options: dict[str, Any]
) -> tuple[Function, list[LoopReport]]:
    """A loop whose lanes don't read one another."""
    if any(body.holds_effects for body in _bodies(form)):
        raise Refused("what is printed, checked or called in a step comes in all its lanes before the next step")
    draft = functools.cache(lambda body: _plan(body, _Task(options, is_draft=True)))
    reports = [LoopReport(label, "lanes"), *(report for body in _bodies(form) for report in draft(body).loops)]
    of_lanes = functools.cache(lambda body, is_open: _body_of_lanes(body, is_open, draft, lowering))
    bodies: Bodies = lambda loop: of_lanes(loop.body, isinstance(loop, While) and is_masked(loop))
    try:
        return _by_lanes(form, bodies, draft, lowering, options), reports
    except Refused as refused:
        why = str(refused)
    try:
        if isinstance(form, Scan) and form.sums:
            raise Refused("its sums are of lanes of one number")
        return systems(form, bodies, options), reports
    except Refused as refused:
        reasons = dict.fromkeys((why, str(refused)))
        raise Refused("; with the numbers of a lane side by side, ".join(reasons)) from None


def _bodies(form: Scan | While) -> list[Subgraph]:
    return [form.cond, form.body] if isinstance(form, While) else [form.body]


def _body_of_lanes(body: Subgraph, is_open: bool, draft: Drafts, lowering: Lowerings) -> Body:
    plan = draft(without_representatives(body) if is_open else body)
    return Body(lowering(plan.body), plan.kernels)


def _by_lanes(
    form: Scan | While, bodies: Bodies, draft: Drafts, lowering: Lowerings, options: dict[str, Any]
) -> Function:
    n = form.n_carry
    lane_count(form.body, n)  # what refuses is not lowered
    body = bodies(form).lowered
    if isinstance(form, Scan):
        step = lane_body(body, n, options, "step", steps=size_of(form.length), sums=form.sums)
        return scan_by_lanes(form, step)
    step = lane_body(body, n, options, "step", steps=None)
    if is_masked(form):
        return while_by_lanes(form, None, step)
    test = lowering(draft(form.cond).body).plain
    return while_by_lanes(form, lane_body(test, n, options, "test", steps=None, is_test=True), step)


def _compile(
    kernel: Function | Launch,
    inputs: Sequence[TensorMeta],
    outputs: Sequence[TensorMeta],
    task: _Task,
    offsets: Sequence[int] = (),
) -> None:
    """Compile before anything depends on it; Inductor finds the library in its cache, Triton its binary. ``offsets``:
    where the elements of the inputs will begin.
    """
    if task.compiled is None:
        return
    if isinstance(kernel, Launch):
        generated(kernel.source)
        with stage(COMPILED):
            compile_launch(kernel, inputs, outputs)
        return
    given, results = ([meta.dtype for meta in metas] for metas in (inputs, outputs))
    starts = [start for start, _ in zip(offsets or [0] * len(given), given, strict=True)] + [0] * len(results)
    task.compiled(program(kernel.parts, kernel.name, len(kernel.sizes), given, results, starts))


def _compile_alone(made: Program) -> None:
    load([made])


def _offset(node: fx.Node) -> int:
    """Where in the memory of what Inductor allocates or is given the elements of ``node`` begin, as far as it shows: a
    kernel that is named with another offset later is compiled again.
    """
    offset: Size = 0
    shown: Any = node
    while shown.target in _VIEWS:
        base, dim, start = (*shown.args, 0, 0)[:3]
        if shown.target in _PARTS:
            shape = meta_of(base).shape
            before, behind = shape[: dim % len(shape)], shape[dim % len(shape) + 1 :]
            if any(size_of(size) != 1 for size in before) or not isinstance(start, int) or start < 0:
                return 0
            offset += start * math.prod(map(size_of, behind))
        shown = base
    is_place = shown.op == "placeholder" or shown.target is operator.getitem
    return offset if is_place and isinstance(offset, int) else 0


_PARTS = torch.ops.aten.slice.Tensor, torch.ops.aten.select.int
_VIEWS = {
    *_PARTS,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.squeeze.dims,
}


def _plan_tape(stacking: _Stacking, within: _Graph) -> list[LoopReport]:
    """Put kernels in the place of a loop that stacks, and of the one that reads its stacks: NOTE [Tapes]."""
    node, form, _, params, reader, again = stacking
    options, sizes = within.task.options, within.sizes
    if again.random:
        raise Refused("the loop of its gradient draws random numbers")
    n, scan = form.n_carry, reader.form
    check_metas((*form.body.outputs, *scan.body.inputs, *scan.body.outputs))
    plans = [_plan(body, _Task(options)) for body in (form.cond, form.body, scan.body)]
    firsts, updated = (n, n, scan.n_carry + scan.n_xs), (0, n, scan.n_carry)
    cond, body, back = [
        statements(Lowering(p.body, options).of_steps(k), options, first) for p, first, k in zip(plans, firsts, updated)
    ]
    record = layout_of(form.body.outputs[n:])
    writes = while_by_steps(form, cond, body, record)
    reads = scan_of_tape(scan, back, record, reader.rows)
    graph, mode = node.graph, sizes.new_mode()
    sizes.check([*writes.sizes, *reads.sizes])
    if not within.task.is_inner:
        alone = within.task._replace(compiled=_compile_alone)  # Python calls them: Inductor's code does not name them
        _compile(writes, form.inputs, [*form.outputs, TAPE_META], alone)
        _compile(reads, [*map(meta_of, reader.operands), TAPE_META], scan.body.outputs, alone)

    def replaced(old: fx.Node, kernel: Function, tensors: Sequence[Any], metas: Sequence[TensorMeta], tape: Any) -> Any:
        operation = effectful_taped_kernel if has_effect(old, within.module) else taped_kernel
        with graph.inserting_before(old):
            inputs, *rest = call_arguments(kernel, tensors, metas, sizes.node_of)
            new = graph.call_function(operation, (inputs, tape, *rest))
            values = [*metas, *([] if tape else [TAPE_META])]
            new.meta["val"] = [meta.fake(mode) for meta in values]
            elements = [_added(graph, operator.getitem, (new, i), val) for i, val in enumerate(new.meta["val"])]
        for user in list(old.users):
            _, i = user.args
            if i < len(metas):  # type: ignore[operator]
                user.replace_all_uses_with(elements[i])  # type: ignore[index]
        return elements[-1]

    tape = replaced(node, writes, stacking.operands, form.outputs, None)
    replaced(reader.node, reads, reader.operands, scan.body.outputs, tape)
    erase(reader.node)
    erase(node)
    for effect in effects_of_user((*params.bodies, *again.bodies)):
        keep_named(effect)
    inner = [report.of(params, None) for plan in plans for report in plan.loops]
    return [*(LoopReport(loop.operator.label, "tape", params=loop) for loop in (params, again)), *inner]


def _plan_counted(stacking: _Stacking, within: _Graph) -> list[LoopReport]:
    """The same on CUDA: NOTE [Counted, then stacked]."""
    assert not within.task.is_inner
    form, reader, sizes = stacking.form, stacking.reader, within.sizes
    loops = counted(form, reader)
    forms: list[Form] = [loops.counting, loops.writing, loops.reading]
    owners = stacking.params, stacking.params, stacking.again
    options = within.task.options
    made = [_kernel(loop, owner.operator.label, options, _lowerings(options)) for loop, owner in zip(forms, owners)]
    for loop, (kernel, _) in zip(forms, made):
        sizes.check(size for size in kernel.sizes if size != TAKEN)
        _compile(kernel, loop.inputs, loop.outputs, within.task)
    put_stacks(stacking.node, form, stacking.operands, reader, loops, [kernel for kernel, _ in made], sizes)
    return [report.of(owner, None) for owner, (_, reports) in zip(owners[1:], made[1:]) for report in reports]


def _replace(
    node: fx.Node,
    kernel: Function | Launch,
    form: Form,
    late: Late | None,
    tensors: Sequence[fx.Node],
    places: Mapping[fx.Node, Place],
    only_summed: Sums,
    sizes: GraphSizes,
    *,
    has_effects: bool,
) -> None:
    """The call of an operator as the call of its kernel. ``places``: where the values around it are then, those that
    are ``only_summed`` as their sums.
    """
    graph, mode = node.graph, sizes.new_mode()
    with graph.inserting_before(node):
        if isinstance(kernel, Launch):
            elements = launched(graph, kernel, tensors, form.outputs, sizes)
        else:
            operation = effectful_kernel if has_effects else loop_kernel
            new = graph.call_function(operation, call_arguments(kernel, tensors, form.outputs, sizes.node_of))
            new.meta["val"] = [meta.fake(mode) for meta in form.outputs]
            elements = [_added(graph, operator.getitem, (new, i), val) for i, val in enumerate(new.meta["val"])]
        if late is not None:
            elements = late.outputs(graph, elements, tensors, mode)
    for old, place in places.items():
        value = elements[place.output]
        if old in only_summed:
            put_sums(only_summed[old], old, value)
        if place.start is not None:
            with graph.inserting_before(old):
                end = sizes.node_of(size_of(meta_of(old).shape[0]) + place.start)
                rows = value, 0, place.start, end
                value = _added(graph, torch.ops.aten.slice.Tensor, rows, old.meta["val"])
        old.replace_all_uses_with(value)
        graph.erase_node(old)
    graph.erase_node(node)


def _added(graph: fx.Graph, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = value
    return node
