"""``explain``: what became of each loop and branch of a function, and what compiling it took."""

from __future__ import annotations

import functools
import linecache
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, fx

from ..calls.arguments import P
from ..calls.leaf import left_to_python
from ..calls.spelling import spelled
from ..calls.validate import check_callable
from ..ir.meta import Mask, TensorMeta
from ..ir.subgraph import Params, Subgraph, params_of
from ..lowering.backends import compilation_of, compiled
from ..lowering.stages import COMPILED, GRAPH, KERNELS, PASSES
from ..ops.associative_scan.op import AssociativeScanParams
from ..ops.closed_call.op import ClosedCallParams, DeferredCallParams
from ..ops.cond.op import CondParams
from ..ops.scan.op import ScanParams
from ..ops.while_loop.op import WhileLoopParams
from ..transforms import jit
from ..transforms.jitted_function import JittedFunction

if TYPE_CHECKING:  # it imports what compiles
    from ..lowering.loops.plans import LoopReport

__all__ = ["Explanation", "LoopExplanation", "explain"]

Lowering = Literal["lanes", "steps", "tape", "inside", "replayed", "native", "python"]
Backward = Literal["late", "saved"]

_WORDS: dict[Lowering, str] = {
    "lanes": "one kernel; a block of lanes runs through all steps, its carries in registers",
    "steps": "one kernel, whose step is a function of all lanes",
    "tape": "one kernel, which writes its steps to a tape for the backward pass, or reads them from it",
    "inside": "a part of the kernel of the loop around it",
    "replayed": "torch's own operator, on a GPU: its launches are recorded in the second call, and replayed since",
    "native": "torch's own operator, whose body is compiled by itself",
    "python": "the operators of the graph, called from Python",
}


_BACKWARD: dict[Backward, str] = {
    "late": "the gradients can be differentiated again by autograd, which would run the graph once more",
    "saved": "the gradients were differentiated again by autograd; calls save for that from now on",
}


@dataclass(frozen=True)
class LoopExplanation:
    """What became of a loop or a branch.

    Attributes:
        name: the names that :func:`annotate` gave to the calls that it is in, "" without any.
        operator: "scan" (``fori_loop`` and ``map`` are scans too), "while_loop", "cond" or "associative_scan".
        file, line, source: where the user called it; ``source`` is the text of that line.
        branch: the number of the branch that it runs, where lanes of a vmap select different ones: each branch is a
            ``cond`` of its own then. None otherwise.
        part: None for the call itself; its "forward" or "backward" pass or "tangent" where it was differentiated.
        lowering: "lanes", "steps", "tape", "inside", "replayed", "native" or "python"; ``str`` of the explanation has
            the words for each.
        reason: why there is nothing better; None where nothing is, and for a part of another loop's kernel.
        trip_count: how many steps it takes, None where only a run knows.
        saved_bytes: what the forward pass keeps of each step for the backward pass; None for all other parts.
        traffic_bytes: of its operands and results, which it reads and writes at least; None where a size is open.
        depth: how many loops and branches are around it.

    >>> import torch, functorch_hops as fh
    >>> step = lambda w: lambda c, x: ((w @ c).tanh(), None)
    >>> loss = fh.jit(fh.grad(lambda w, c: fh.scan(step(w), c, None, 7)[0].sum()), backend="eager")
    >>> forward, backward = fh.explain(loss)(torch.ones(2, 2), torch.ones(2)).loops
    >>> forward.part, forward.saved_bytes, backward.part, backward.trip_count
    ('forward', 8, 'backward', 7)
    """

    name: str
    operator: str
    file: str | None
    line: int | None
    source: str
    branch: int | None
    part: str | None
    lowering: Lowering
    reason: str | None
    trip_count: int | None
    saved_bytes: int | None
    traffic_bytes: int | None
    depth: int

    def __str__(self) -> str:
        part = {None: "", "forward": ", forward pass", "backward": ", backward pass"}.get(self.part, f", {self.part}")
        place = f" at {self.file}:{self.line}" if self.file else ""
        head = f"{self.name}/{self.operator}" if self.name else self.operator
        branch = "" if self.branch is None else f", branch {self.branch} of lanes that differ"
        lines = [f"{head}{branch}{part}{place}" + (f": {self.source}" if self.source else "")]
        lines.append(f"  lowered to {_WORDS[self.lowering]}")
        if self.reason is not None:
            lines.append(f"  nothing better, because {self.reason}")
        if self.operator not in ("cond", "associative_scan"):
            lines.append(f"  steps: {'known by a run only' if self.trip_count is None else self.trip_count}")
        if self.saved_bytes is not None:
            each = "" if self.operator == "cond" else " per step"
            lines.append(f"  saves {self.saved_bytes} bytes{each} for the backward pass")
        if self.traffic_bytes is not None:
            lines.append(f"  reads and writes {self.traffic_bytes} bytes, its operands and results")
        return "\n".join("  " * self.depth + line for line in lines)


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` returns; ``print`` shows it as text.

    Attributes:
        name: of the function.
        backend: that of ``jit``.
        loops: a :class:`LoopExplanation` for each loop and branch, in the order of the graph, inner ones after the one
            that they are in.
        capture_seconds: one call of the function on fake tensors.
        passes_seconds: what simplifies the graph before it is compiled.
        code_seconds: the code of the kernels of loops.
        compile_seconds: their compilation; little if they were found in a cache.
        graph_seconds: what the backend took for the graph around them, code and compilation.
        source_bytes: the size of all source that was generated.
        backward: of a function that differentiates by tensors that require gradients, "late": a call saves nothing for
            a backward pass through its results; or "saved": there was one, and from now on calls save for the next.
            None for any other function.

    >>> import torch, functorch_hops as fh
    >>> found = fh.explain(fh.jit(lambda xs: fh.scan(lambda c, x: (c + x, c), 0, xs), backend="eager"))(torch.ones(9))
    >>> [(loop.operator, loop.lowering, loop.trip_count) for loop in found.loops]
    [('scan', 'python', 9)]
    """

    name: str
    backend: str
    loops: tuple[LoopExplanation, ...]
    capture_seconds: float
    passes_seconds: float
    code_seconds: float
    compile_seconds: float
    graph_seconds: float
    source_bytes: int
    backward: Backward | None = None

    def __str__(self) -> str:
        seconds = (
            ("capture", self.capture_seconds),
            ("passes", self.passes_seconds),
            ("code of kernels", self.code_seconds),
            ("their compilation", self.compile_seconds),
            ("the graph", self.graph_seconds),
        )
        parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds)
        head = [f'{self.name}, backend "{self.backend}"', f"{parts}; {self.source_bytes} bytes of source"]
        head += [] if self.backward is None else [_BACKWARD[self.backward]]
        return "\n".join([*head, *(map(str, self.loops) if self.loops else ("no loops and no branches",))])


@spelled()
@left_to_python
def explain(func: Callable[P, Any]) -> Callable[P, Explanation]:
    """Say how each loop and branch of a function is lowered and why, and what compiling it takes.

    ``explain : (a -> b) -> (a -> Explanation)``. Equivalent to compiling ``jit(func)`` for these arguments, and looking
    at what came out. To see a gradient, explain the function that computes it: ``fh.explain(fh.value_and_grad(loss))``.

    Arguments:
        func: a function, or what :func:`jit` returned, whose options then hold. Without, they are those of ``jit``.

    Returns:
        A function of the same arguments, which returns an :class:`Explanation`: data, and text when it is printed.

    Raises:
        ArgumentTypeError: ``func`` is not callable.
        CaptureError, DataDependentError: ``func`` can't be captured.

    Cost: a capture, and a compilation if this graph was not compiled before; nothing is run.

    >>> import torch, functorch_hops as fh
    >>> def running_sum(xs):
    ...     return fh.scan(lambda total, x: (total + x, total), 0, xs)
    >>> print(fh.explain(fh.jit(running_sum, backend="eager"))(torch.ones(9)))  # doctest: +ELLIPSIS
    running_sum, backend "eager"
    capture ... s, passes ... s, ...
    scan at <doctest ...>:2...
      lowered to the operators of the graph, called from Python
      steps: 9
      reads and writes 80 bytes, its operands and results
    """
    check_callable("explain", "func", func)
    jitted: Any = getattr(func, "_jitted", func)
    if not isinstance(jitted, JittedFunction):
        made: Any = jit(func)
        jitted = getattr(made, "_jitted", made)

    @left_to_python
    @functools.wraps(func)
    def explained(*args: P.args, **kwargs: P.kwargs) -> Explanation:
        start = time.perf_counter()
        lowered = jitted.around(jitted.__wrapped__).lower(*args, **kwargs)
        captured = time.perf_counter() - start
        body, params = lowered._body, lowered._entry.params
        compiled(body, params.backend, params.origin)
        record = compilation_of(body, params.backend)
        is_eager = params.backend.name == "eager"
        loops = _Loops(record.reports(), "python" if is_eager else "native").of(record.body or body)
        name = params.backend.name
        return Explanation(
            name=params.origin.function,
            backend=name if isinstance(name, str) else getattr(name, "__name__", repr(name)),
            loops=tuple(loops),
            capture_seconds=captured,
            passes_seconds=record.seconds.get(PASSES, 0.0),
            code_seconds=record.seconds.get(KERNELS, 0.0),
            compile_seconds=record.seconds.get(COMPILED, 0.0),
            graph_seconds=record.seconds.get(GRAPH, 0.0),
            source_bytes=record.source_bytes,
            backward=_backward(params, lowered._active),
        )

    return explained


def _backward(params: ClosedCallParams, active: Mask) -> Backward | None:
    if not params.is_differentiated_again(active):
        return None
    return "late" if isinstance(params.recorded(active), DeferredCallParams) else "saved"


_KINDS = (ScanParams, WhileLoopParams, CondParams, AssociativeScanParams)


class _Loops:
    """The loops and branches of a graph, each with its report, if it has one."""

    def __init__(self, reports: Sequence[LoopReport], without: Lowering) -> None:
        self.reports, self.without = list(reports), without

    def of(self, body: Subgraph, depth: int = 0, around: Lowering | None = None) -> Iterator[LoopExplanation]:
        for node in body.module.graph.nodes:
            params = params_of(node, body.module)
            if params is None:
                continue
            inner, lowering = depth, around
            if isinstance(params, _KINDS):
                found = self._explained(params, node, depth, around)
                yield found
                inner, lowering = depth + 1, found.lowering
            for part in params.run_bodies:
                yield from self.of(part, inner, lowering)

    def _explained(self, params: Params, node: fx.Node, depth: int, around: Lowering | None) -> LoopExplanation:
        origin, label = params.origin, params.operator.label
        is_inside = around in ("lanes", "steps", "tape", "inside")
        report = next((r for r in self.reports if _is_of(r, params)), None)
        lowering: Lowering = "inside" if is_inside else self.without
        if report is not None:
            self.reports.remove(report)
            lowering = "inside" if is_inside else report.taken  # type: ignore[assignment]
        return LoopExplanation(
            name="/".join(params.scope.names),
            operator=label,
            file=origin.file if origin else None,
            line=origin.line if origin else None,
            source=linecache.getline(origin.file, origin.line).strip() if origin else "",
            branch=origin.branch if origin else None,
            part=origin.part if origin else None,
            lowering=lowering,
            reason=report.reason if report is not None and not is_inside else None,
            trip_count=params.trip_count(node.args[1:]),
            saved_bytes=origin.saved if origin else None,
            traffic_bytes=_traffic(node),
            depth=depth,
        )


def _traffic(node: fx.Node) -> int | None:
    """The bytes of the operands, each once, and of the results."""
    values = [n.meta.get("val") for n in node.all_input_nodes if n.op != "get_attr"]
    values += node.meta.get("val", ())
    metas = [TensorMeta.of(value) for value in values if isinstance(value, Tensor)]
    return sum(x.nbytes for x in metas) if all(type(size) is int for x in metas for size in x.shape) else None


def _is_of(report: LoopReport, params: Params) -> bool:
    origin = None if report.params is None else report.params.origin
    return report.operator == params.operator.label and origin == params.origin
