"""What a traced value answers when it is asked for its gradient history or its layout.

NOTE [A traced value answers as the real one] A capture computes with fakes, which have no history, and whose inputs are
contiguous. Code that asks (``x.requires_grad``, to save work or to install a hook; ``x.stride()``) must go the way that
it goes in eager Python. So an input of a capture answers for the tensor that it stands for, and a value for the inputs
that it was computed from, along the recorded graph; its layout only if these are contiguous, as they are in the graph.
What a tensor from around the capture answered is an assumption of the trace, as its shape is (``Assumption``). One
capture stands for all steps of a loop: a carry gives an answer only if the initial and the returned value give the
same, which is checked when the body is closed.

NOTE [Gradients asked for inside] ``torch.autograd.grad`` in a captured function needs what autograd records. To record
it always would make every capture pay for it, so the first call begins the outermost capture again; then inputs of
captures as deep as the one that asked require gradients where the tensors do for which they stand. A capture does not
know how the tensors around it depend on one another, nor what a carry was computed from: a gradient that might flow
there is refused.

What autograd made inside the capture itself (``requires_grad_()`` on a value made there, a wrapper of a transform that
is applied there) answers as always.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .. import _torch
from ..errors import CaptureError, ErrorContext, message
from ..ir.dependence import Through, depends, passes
from ..ir.meta import TensorMeta, is_differentiable
from ..ir.nodes import behind, untracked
from .detached import memory_chains, written

__all__ = [
    "Assumption",
    "Carried",
    "History",
    "HistoryAsked",
    "Itself",
    "Part",
    "Question",
    "Source",
    "check_behind_leaves",
    "check_carries",
    "check_leaves",
    "layout_unknown",
    "own_leaves",
]


class Question(enum.Enum):
    """What is asked of a tensor."""

    REQUIRES_GRAD = enum.auto()
    IS_LEAF = enum.auto()
    IS_TRACKED = enum.auto()
    """Whether what is computed from it requires a gradient."""
    LIES_PLAINLY = enum.auto()
    """Whether it is contiguous, from the beginning of its memory."""
    STRIDE = enum.auto()
    OFFSET = enum.auto()
    IS_CONJ = enum.auto()
    IS_NEG = enum.auto()
    """Whether what lies in its memory is to be conjugated, or negated, when it is read."""

    @property
    def is_of_layout(self) -> bool:
        return self in (Question.LIES_PLAINLY, Question.STRIDE, Question.OFFSET)

    @property
    def is_of_bits(self) -> bool:
        return self in _BITS

    def of(self, t: Tensor, level: int | None) -> Any:
        """The answer of a tensor from outside of every capture, at this level of functorch."""
        with _torch.without_torch_function():
            if self is Question.LIES_PLAINLY:
                return t.is_contiguous() and t.storage_offset() == 0
            if self.is_of_layout:
                return t.stride() if self is Question.STRIDE else t.storage_offset()
            if self is Question.IS_LEAF:
                return _torch.is_leaf(t)
            if self.is_of_bits:
                return t.is_conj() if self is Question.IS_CONJ else t.is_neg()
            return t.requires_grad and (self is Question.REQUIRES_GRAD or _torch.is_tracked_at(level, t))


_BITS = (Question.IS_CONJ, Question.IS_NEG)


class HistoryAsked(BaseException):
    """The outermost capture is to begin again, see NOTE [Gradients asked for inside]; no ``except Exception`` of the
    user's catches this.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth


class Assumption(NamedTuple):
    """What a tensor from around a capture answered."""

    tensor: Tensor
    question: Question
    answer: Any


@dataclass(frozen=True)
class Itself:
    """An input that is this tensor."""

    tensor: Tensor


@dataclass(frozen=True)
class Part:
    """An input that an operator makes of this tensor, as a loop makes rows."""

    tensor: Tensor


@dataclass(frozen=True)
class Carried:
    """An input that is this tensor in the first step, and from then on the result of the loop's body at ``place``
    (None in another function of the loop, which shares the answers).
    """

    init: Tensor
    place: int | None
    answers: dict[Question, Any] = field(default_factory=dict)


Source = Itself | Part | Carried | None
"""What an input of a capture stands for; None: for nothing that has a history."""


class History:
    """The answers of the values of one capture."""

    def __init__(self, capture: Any) -> None:
        self.capture = capture
        self.inputs: dict[fx.Node, Source] = {}
        self.assumed: dict[tuple[int, Question], Assumption] = {}

    def answer(self, question: Question, t: Tensor) -> Any:
        """What ``t`` answers, a value of this capture or a tensor from around it."""
        capture, t = self.capture, self.capture.lift(t)
        if question.is_of_layout:
            return self._layout(question, t)
        if question.is_of_bits:
            return self._bit(question, t)
        of_autograd = question.of(t, None)
        if (
            _torch.is_wrapped(t)
            or not capture.owns(t)  # a zero tangent made by functorch
            or (of_autograd and question is not Question.IS_LEAF)
        ):
            return of_autograd
        node = capture.node_of(t)
        if node.op == "placeholder":
            return self.of_input(question, node)
        if question is Question.IS_LEAF:
            return node.target is untracked or (of_autograd and not self.is_tracked(node))
        return self.is_tracked(node)

    def records(self, node: fx.Node) -> bool:
        """Whether autograd is to record what becomes of an input. What a loop carries has the history of all steps, of
        which a capture of one knows nothing.
        """
        capture, source = self.capture, self.inputs[node]
        is_asked = capture.depth <= capture.session.history_depth and isinstance(source, (Itself, Part))
        return is_asked and self.of_input(Question.IS_TRACKED, node)

    def ask(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
        """Whether these gradients are recorded; begin the capture again, if they would be then."""
        capture = self.capture
        outputs, inputs = [capture.lift(t) for t in outputs], [capture.lift(t) for t in inputs]
        with _torch.without_torch_function():
            is_recorded, missing = any(t.requires_grad for t in outputs), [t for t in inputs if not t.requires_grad]
        missing = [t for t in (missing if is_recorded else outputs) if self.answer(Question.REQUIRES_GRAD, t)]
        if missing and capture.depth > capture.session.history_depth:
            raise HistoryAsked(capture.depth)
        is_of_transform = any(_torch.is_wrapped(t) and not _torch.is_batched_wrapper(t) for t in inputs)
        if is_recorded and not missing and not is_of_transform:
            self._check_paths(outputs, inputs)
        return is_recorded and not missing

    def _check_paths(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Whether no gradient of these inputs flows outside of this capture."""
        owned = [
            [self.capture.node_of(t) for t in ts if self.capture.owns(_torch.base_tensor(t))]
            for ts in (outputs, inputs)
        ]
        asked = set(owned[1]) & set(self.inputs)
        behind = {n for node in owned[0] for n in _inputs_behind(node)} if asked else set()
        for node in behind if len(asked) > 1 else behind - asked:
            if self.of_input(Question.IS_TRACKED, node) and not self.of_input(Question.IS_LEAF, node):
                raise _path_outside(self.capture.context, TensorMeta.of(node.meta["val"]))

    def _bit(self, question: Question, t: Tensor) -> Any:
        """Graphs hold values as they are read: an input has the bit of its tensor, and views of one could have it."""
        base = _torch.base_tensor(t)
        if not self.capture.owns(base):
            return question.of(t, None)
        node = self.capture.node_of(base)
        if node.op == "placeholder":
            return self._layout_of_input(question, node)
        origin = memory_chains(node.graph)[node][-1]
        if origin.op == "placeholder" and any(self._layout_of_input(q, origin) for q in _BITS):
            raise _unresolved(self.capture.context)
        return question.of(t, None)

    def _layout(self, question: Question, t: Tensor) -> Any:
        if self.knows_layout(t):
            return question.of(t, None)
        if _torch.is_wrapped(t) or self.capture.node_of(t).op != "placeholder":
            raise layout_unknown(self.capture.context)
        return self._layout_of_input(question, self.capture.node_of(t))

    def knows_layout(self, t: Tensor, is_assumed: bool = True) -> bool:
        """Whether the inputs that the layout of ``t`` comes from lie plainly, as in the graph: then it is that of the
        fake. ``is_assumed``: the trace depends on it from now on.
        """
        base = _torch.base_tensor(self.capture.lift(t))
        if not self.capture.owns(base):
            return True
        inputs = _inputs_of_layout(self.capture.node_of(base))
        return all(self._layout_of_input(Question.LIES_PLAINLY, node, is_assumed) for node in inputs)

    def _layout_of_input(self, question: Question, node: fx.Node, is_assumed: bool = True) -> Any:
        source = self.inputs[node]
        if source is None:
            return question.of(node.meta["val"], None)
        if isinstance(source, Part) and question is Question.OFFSET:
            raise layout_unknown(self.capture.context)
        if isinstance(source, Carried):
            return self._of_carry(question, source, is_assumed)
        answer = self._around(question, source.tensor, is_assumed)
        return answer[1:] if isinstance(source, Part) and question is Question.STRIDE else answer

    def of_input(self, question: Question, node: fx.Node) -> bool:
        """What the tensor answers that an input stands for."""
        source = self.inputs[node]
        if source is None or not is_differentiable(node.meta["val"].dtype):
            return question is Question.IS_LEAF
        if isinstance(source, Itself):
            return bool(self._around(question, source.tensor))
        if isinstance(source, Part):
            is_tracked = self._around(Question.IS_TRACKED, source.tensor)
            return not is_tracked if question is Question.IS_LEAF else is_tracked
        return bool(self._of_carry(question, source))

    def _of_carry(self, question: Question, source: Carried, is_assumed: bool = True) -> Any:
        if not is_assumed:
            return self._around(question, source.init, is_assumed)
        if question not in source.answers:
            source.answers[question] = self._around(question, source.init)
        return source.answers[question]

    def _around(self, question: Question, t: Tensor, is_assumed: bool = True) -> Any:
        """The answer of a tensor from around this capture, on which what is captured here depends from now on."""
        parent, level = self.capture.parent, self.capture.session.level
        if parent is None:
            answer = question.of(t, level)
        elif question is Question.LIES_PLAINLY:
            answer = parent.history.knows_layout(t, is_assumed) and question.of(parent.lift(t), None)
        else:
            answer = parent.history.answer(question, t)
        if is_assumed:
            self.assumed[id(t), question] = Assumption(t, question, answer)
        return answer

    def is_tracked(self, node: fx.Node) -> bool:
        """Whether a value was computed, where gradients are tracked, from something with a history. A view that was
        taken under ``no_grad`` says of itself what that does of which it is a view, as in torch.

        Carries are asked last: most values have a history whatever that of the carry is.
        """
        inputs = _inputs_behind(node)
        carried = {n for n in inputs if isinstance(self.inputs[n], Carried)}
        if self._reach({n for n in inputs - carried if self.of_input(Question.IS_TRACKED, n)}, node):
            return True
        return any(self._reach({n}, node) and self.of_input(Question.IS_TRACKED, n) for n in carried)

    def _reach(self, sources: set[fx.Node], target: fx.Node) -> bool:
        """Whether a history goes from these inputs to a value, through operators and writes to shared memory."""
        graph: fx.Graph = self.capture.graph
        chains, marked, tainted = memory_chains(graph), dict[fx.Node, Any](), set[fx.Node]()

        def is_view(node: fx.Node) -> bool:
            return node.target is untracked and len(chains[node]) > 2

        def is_tainted(node: fx.Node) -> bool:
            return chains[node][-1] in tainted and all(passes(n, Through.GRADIENT) or is_view(n) for n in chains[node])

        for node in graph.nodes if sources else ():
            if node.op == "placeholder":
                marked[node] = node in sources
            else:
                through = Through.TANGENT if is_view(node) else Through.GRADIENT
                marked[node] = depends(node, marked, through, self.capture.root) or is_tainted(node)
                if marked[node]:
                    tainted.update(chains[t][-1] for t in written(node))
        return bool(sources) and (bool(marked[target]) or is_tainted(target))


def _inputs_of_layout(node: fx.Node) -> set[fx.Node]:
    """The inputs whose layout may have something to do with that of a value."""

    def is_contiguous(n: fx.Node) -> bool:
        return n.kwargs.get("memory_format") is torch.contiguous_format or isinstance(
            n.target, _torch.HigherOrderOperator
        )

    return {n for n in behind([node], is_contiguous) if n.op == "placeholder"}


def _inputs_behind(node: fx.Node) -> set[fx.Node]:
    """The inputs that may have a history from which ``node`` was computed; any, if something was written in place."""
    is_written = any(written(n) for n in node.graph.nodes)
    nodes = node.graph.find_nodes(op="placeholder") if is_written else behind([node])
    return {n for n in nodes if n.op == "placeholder" and is_differentiable(n.meta["val"].dtype)}


def check_carries(history: History, outputs: Sequence[Tensor]) -> None:
    """Whether what a body returns answers as the carry did while the body was captured."""
    for source in list(history.inputs.values()):
        if isinstance(source, Carried) and source.place is not None:
            for question, answer in list(source.answers.items()):
                if history.answer(question, outputs[source.place]) != answer:
                    raise _changing(history.capture, question)


def own_leaves(capture: Any, values: Sequence[Tensor]) -> list[int]:
    """At which of these values a gradient history begins: made inside, and ``requires_grad_()`` was called on them."""
    with _torch.without_torch_function():
        return [
            i
            for i, t in enumerate(values)
            if capture.owns(t) and t.requires_grad and t.is_leaf and capture.node_of(t).op != "placeholder"
        ]


def check_leaves(capture: Any, outputs: Sequence[Tensor]) -> None:
    """A graph has no place for a history that begins at one of its results."""
    if own_leaves(capture, outputs):
        raise _leaf_returned(capture.context, "call requires_grad_() on the result of the call")


def check_behind_leaves(capture: Any, outputs: Sequence[Tensor], leaves: Sequence[int]) -> None:
    """Whether the histories that begin at results lead to no other one."""
    with _torch.without_torch_function():
        behind = _leaves_behind([t.grad_fn for i, t in enumerate(outputs) if i not in leaves])
        if any(outputs[i] is leaf for i in leaves for leaf in behind):
            raise _leaf_returned(capture.context, "compute outside what is to be differentiated by it")


def _leaves_behind(functions: Sequence[Any]) -> list[Tensor]:
    """The leaves to which these nodes of autograd lead."""
    todo, seen = [f for f in functions if f is not None], set[Any]()
    while todo:
        function = todo.pop()
        if function not in seen:
            seen.add(function)
            todo += [f for f, _ in function.next_functions if f is not None]
    return [function.variable for function in seen if hasattr(function, "variable")]


def _leaf_returned(context: ErrorContext, remedy: str) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            f"{context.parameter} returns a tensor that requires_grad_() made the beginning of a gradient history, "
            "which no graph holds",
            parameter=context.parameter,
            remedy=remedy,
        )
    )


def layout_unknown(context: ErrorContext) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "the layout of a value depends on that of inputs which are not contiguous, and may be another in the "
            "compiled graph",
            parameter=context.parameter,
            remedy="ask an input itself, or call .contiguous() first",
        )
    )


def _unresolved(context: ErrorContext) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "is_conj() or is_neg() of a view of a lazily conjugated or negated input is not known",
            parameter=context.parameter,
            remedy="ask the input itself, or call resolve_conj() and resolve_neg() first",
        )
    )


def _path_outside(context: ErrorContext, meta: TensorMeta) -> CaptureError:
    return CaptureError(
        message(
            context.operation,
            "torch.autograd.grad() asks for a gradient which may flow through what was computed outside",
            parameter=context.parameter,
            expected="inputs and closed-over tensors that are leaves of autograd, but for the one that is asked for",
            got=f"a computed tensor that requires a gradient, {meta}",
            remedy="call fh.grad, fh.vjp or fh.linearize inside, or compute the tensor inside",
        )
    )


def _changing(capture: Any, question: Question) -> CaptureError:
    what = "requires a gradient"
    remedy = "decide it outside of the loop, or start with a carry that has a gradient history as well"
    if question is not Question.REQUIRES_GRAD and question is not Question.IS_TRACKED:
        what = "is a leaf" if question is Question.IS_LEAF else "is contiguous, or has some layout"
    if question.is_of_bits:
        what, remedy = "is lazily conjugated or negated", "start with init.resolve_conj().resolve_neg()"
    return CaptureError(
        message(
            capture.operation,
            f"{capture.parameter} asks whether a carry {what}, and the answer changes after the first step",
            parameter=capture.parameter,
            expected="one answer for the initial carry and for the returned one, as one capture stands for all steps",
            remedy=remedy,
        )
    )
