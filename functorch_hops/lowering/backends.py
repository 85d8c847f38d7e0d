"""Compile a Subgraph with one of torch's compiler backends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from .. import _torch
from ..calls.listening import tell_loops, timed
from ..derive.numbers import without_numbers
from ..environment.keys import ByIdentity, KeyMakers, by_value
from ..errors import message
from ..ir.build import copy_graph
from ..ir.meta import TensorMeta
from ..ir.origin import Origin
from ..ir.sizes import facts_hold
from ..ir.subgraph import Subgraph
from ..passes.hoisting import hoist_loops
from ..passes.products import batch_products
from ..passes.ranges import without_ranges
from .loops import kept
from .loops.happening import raising_again
from .real_parts import as_pairs, from_pairs, in_real_parts, over_pairs
from .replayed import Replayed, is_replayable
from .stages import GRAPH, KERNELS, PASSES, Code, Compilation, compilation, stage
from .waiting import told_to_wait

if TYPE_CHECKING:
    from .loops.plans import LoopReport, Plan, Whole

__all__ = [
    "Backend",
    "Compiled",
    "Options",
    "OtherSizesError",
    "compilation_of",
    "compiled",
    "dissolved",
    "with_tapes",
]


class Options(Mapping[str, Any]):
    """The options of a backend as they were given: lists and dicts in them are compared by content, and copied."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._values = {name: _own(value) for name, value in given.items()}
        self._key = _content(self._values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce__(self) -> Any:
        return Options, (self._values,)


def _own(value: Any) -> Any:
    if type(value) is dict:
        return {name: _own(part) for name, part in value.items()}
    return type(value)(map(_own, value)) if type(value) in (list, tuple, set, frozenset) else value


def _content(value: Any) -> Hashable:
    if type(value) is dict:
        return dict, frozenset((name, _content(part)) for name, part in value.items())
    if type(value) in (list, tuple):
        return type(value), tuple(map(_content, value))
    if type(value) in (set, frozenset):
        return type(value), frozenset(map(_content, value))
    known = by_value(value, KeyMakers())
    return ByIdentity(value) if known is None else known


@dataclass(frozen=True)
class Backend:
    """A backend as ``torch.compile`` names it, and its options."""

    name: str | Callable[..., Any]
    options: Options
    settings: tuple[Any, ...] = ()
    """Of the process, on which compiled code depends: what they were when the function was captured."""
    around: str | None = None
    """What compiles the graph around, in which a call dissolves, if that is known."""

    def now(self) -> Backend:
        return replace(self, settings=_torch.compiler_settings(self.name))


class OtherSizesError(Exception):
    """A graph was derived under assumptions about its open sizes that do not hold for this call."""


class Compiled:
    """A compiled graph: a function of a sequence of operands, in any layout."""

    def __init__(self, body: Subgraph, made: Code | Subgraph) -> None:
        self._body, self._made = body, made
        self._shapes = [meta.shape for meta in body.inputs] if body.shape_env is None else None

    def __call__(self, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        run = self.at(operands)
        if isinstance(run, Subgraph):
            return run(*operands)
        if self._shapes is not None and [x.shape for x in operands] != self._shapes:
            raise AssertionError(f"operands of {[*map(TensorMeta.of, operands)]} for a graph of {self._body.inputs}")
        with _torch.no_gradients():
            return run([x.contiguous() for x in operands])

    def at(self, operands: Sequence[Tensor]) -> Code | Subgraph:
        """What runs for operands of these sizes: compiled code, or the graph, where that does not cover the sizes. If
        the graph does not cover them either, raise OtherSizesError.

        Code takes contiguous operands in a list, which it may empty, and does not look at their sizes. While it runs no
        gradients are recorded, and autocast is off.
        """
        body = self._body
        if body.shape_env is None:
            return self._made
        sizes = body.bind(operands)
        if facts_hold(body.shape_env, sizes):
            return self._made
        if body.allows(sizes):
            return body
        raise OtherSizesError


def compiled(body: Subgraph, backend: Backend, origin: Origin | None = None) -> Compiled:
    """``body`` compiled, once per backend. ``origin``: whose function it is, for those who wait."""
    return body.derive_apart(("compiled", backend), lambda: Compiled(body, _announced(body, backend, origin)))


def _announced(body: Subgraph, backend: Backend, origin: Origin | None) -> Code | Subgraph:
    name = "a function" if origin is None else origin.function
    name = name if origin is None or origin.part is None else f"{name} ({origin.part})"
    place = None if origin is None else str(origin)
    is_quick = backend.name == "eager"
    told = contextlib.nullcontext() if is_quick else timed("compile", name, place)
    with told, contextlib.nullcontext() if is_quick else told_to_wait(name), compilation() as record:
        run = _compile(body, backend, record)
    tell_loops(record.reports)
    body.derive(("compilation", backend), lambda: record)
    return run


def compilation_of(body: Subgraph, backend: Backend) -> Compilation:
    """What it took to compile ``body``, which was compiled."""
    return body.derive(("compilation", backend), Compilation)


def dissolved(body: Subgraph, backend: Backend) -> Subgraph:
    """``body`` as a part of a larger graph, made ready for the backend that compiles this."""
    if backend.around != "inductor":
        return body

    def make() -> Subgraph:
        with _torch.compilation(body.shape_env):
            plan = _planned(_for_inductor(batch_products(hoist_loops(body))), dict(backend.options))
        tell_loops(lambda: plan.loops)
        return plan.body

    return body.derive_apart(("dissolved", backend), make)


def with_tapes(body: Subgraph, backend: Backend) -> Subgraph | None:
    """The graph with kernels of loops, if one of them hands a tape on to another (NOTE [Tapes])."""
    return body.derive_apart(("with tapes", backend), lambda: (_with_tapes(body, backend),))[0]


def _with_tapes(body: Subgraph, backend: Backend) -> Subgraph | None:
    options = dict(backend.options)
    if backend.name != "inductor" or not options.pop("loop_kernels", True):
        return None
    plan = _planned(_for_inductor(batch_products(hoist_loops(body))), options)
    return plan.body if any(report.taken == "tape" for report in plan.loops) else None


def _for_inductor(body: Subgraph) -> Subgraph:
    from .redrawn import redrawn_by_count

    plain = redrawn_by_count(without_numbers(without_ranges(body)))
    real = in_real_parts(plain)
    return plain if real is plain else hoist_loops(real)


def _planned(body: Subgraph, options: dict[str, Any]) -> Plan:
    from .inductor import exact_code
    from .loops.planning import planned

    with exact_code():
        return planned(body, options)


def _planned_whole(body: Subgraph, options: dict[str, Any]) -> Whole | None:
    from .inductor import exact_code
    from .loops.planning import planned_whole

    with exact_code():
        return planned_whole(body, options)


def _whole(body: Subgraph, options: dict[str, Any], record: Compilation) -> Code | None:
    """The graph as one kernel, if it can be: made by an earlier process (NOTE [Kept libraries]), or now."""
    name = kept.name_of(body, options)
    library = None if name is None else kept.found(name)
    if library is not None:
        record.source_bytes, record.reports = library.source_bytes, lambda: _loops_of_whole(body, options)
        return library.run_of(body)
    whole = _planned_whole(body, options)
    if whole is None:
        return None
    if name is not None:
        kept.keep(name, whole.library)
    record.reports = lambda: whole.loops
    return whole.library.run_of(body)


def _loops_of_whole(body: Subgraph, options: dict[str, Any]) -> tuple[LoopReport, ...]:
    from .inductor import exact_code
    from .loops.planning import loops_of_whole

    with exact_code():
        return loops_of_whole(body, options)


def _compile(body: Subgraph, backend: Backend, record: Compilation) -> Code | Subgraph:
    with stage(PASSES):
        record.body = body = batch_products(hoist_loops(body))
    if backend.name == "eager":
        return body
    if not body.outputs and not body.has_effects:
        return lambda operands: ()
    if backend.name == "inductor":
        body = _for_inductor(body)
        real = over_pairs(body)
        if real is not body:
            run = _compile_real(real, backend, record)
            return lambda operands: from_pairs(run(as_pairs(operands)), body)
    else:
        body = without_numbers(body)
    return _compile_real(body, backend, record)


def _compile_real(body: Subgraph, backend: Backend, record: Compilation) -> Code:
    """Compile a graph, for Inductor one without complex numbers."""
    options = dict(backend.options)
    if backend.name == "inductor" and options.pop("loop_kernels", True):
        with stage(KERNELS):
            whole = _whole(body, options, record)
            if whole is not None:
                return raising_again(whole, _raise_as_eager)
            plan = _planned(body, options)
        body, record.reports = plan.body, lambda: plan.loops
    effects = _torch.native_operators_kept() if body.has_effects else contextlib.nullcontext()
    with _torch.compilation(body.shape_env) as fake_mode, effects, stage(GRAPH):
        fakes = [meta.fake(fake_mode) for meta in body.inputs]
        module = fx.GraphModule(body.module, _copied(body))
        if backend.name == "inductor":
            from .inductor import compile_graph

            code: Code = compile_graph(module, fakes, options)
            if "triton.cudagraphs" not in options and is_replayable(body):
                code, launched = Replayed(code, body.outputs[0].device), record.reports
                record.reports = lambda: tuple(report.as_replayed() for report in launched())
            return raising_again(code, _raise_as_eager)
        native = _torch.native_graph(module, fakes)
        run = _torch.lookup_backend(backend.name)(native, fakes, **_as_keywords(backend))
        return raising_again(lambda operands: _torch.writable(run(*operands)), _raise_as_eager)


def _copied(body: Subgraph) -> fx.Graph:
    """The graph without what its capture knew of sizes: the backend's trace has symbols of its own."""
    graph = copy_graph(body)
    for node in graph.nodes:
        node.meta = {}
    return graph


def _as_keywords(backend: Backend) -> dict[str, Any]:
    return {"options": dict(backend.options)} if backend.options else {}


def _raise_as_eager(error: RuntimeError) -> None:
    """What a kernel found to be wrong - an index out of bounds, a matrix without a solution - is the error of eager."""
    failure = _torch.matrix_failure(error)
    if failure is not None:
        raise torch.linalg.LinAlgError(failure) from None
    bound = _torch.index_bound(error)
    if bound is not None:
        expected, remedy = f"an index from 0 to {bound} (excluded)", "fh.disable_jit() shows the line"
        text = message("jit", "an index is out of bounds", expected=expected, remedy=remedy)
        raise IndexError(text) from error
