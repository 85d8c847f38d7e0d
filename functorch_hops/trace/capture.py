"""One function being captured: its inputs, what it closes over, its nodes, and what it may not do.

NOTE [A refusal is not caught] What a capture refuses works in eager Python, where a ``try`` around it never comes to
its ``except``. Captured code that went on there would be another program. So a capture remembers what it refused, and
raises it when its function returns all the same. So does an error of the user's in a branch that may not be taken.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from .. import _torch
from ..errors import ErrorContext, InputMutationError
from ..ir.active import state
from ..ir.build import copy_nodes
from ..ir.meta import TensorMeta
from ..ir.subgraph import Params, Subgraph
from .arrays import check_unwritten
from .buffers import Buffers, refuse_history, refuse_update
from .history import Carried, History, HistoryAsked, Itself, Question, Source
from .indexing import Rows
from .refusals import (
    check_tensor_class,
    is_refusal,
    subclass_inside,
    unknown_shape,
    write_to_closed_over,
    write_to_input,
)
from .session import Session, origins_of, refuse_leak
from .sparse import refuse_sparse
from .symbols import Symbols

__all__ = ["Capture", "answer", "current_capture", "outside_of_captures", "refusals_left", "tables"]


tables = _torch.WeakTensorKeyDictionary()
"""Tensors that a function built while it was captured and kept, and whether it computed them from others: see NOTE
[Tables built at first use].
"""


class Capture:
    """One body being captured."""

    def __init__(
        self, operation: str, parameter: str, parent: Capture | None, env: Any, buffers: Buffers | None = None
    ) -> None:
        self.buffers = buffers
        self.operation = operation
        self.parameter = parameter
        self.parent = parent
        self.depth: int = 1 if parent is None else parent.depth + 1
        self.session: Session = Session(self.context, env) if parent is None else parent.session
        self.session.deepest = max(self.session.deepest, self.depth)
        self.root = torch.nn.Module()
        self.graph = fx.Graph(tracer_cls=None)
        self.tracer = _torch.new_tracer(self.root, self.graph)
        self.recorder = _torch.CallRecorder(self.tracer, self.session.fake_mode)
        self.symbols = Symbols(self, _torch.symbols_around() if parent is None else None)
        self.tracer.sympy_expr_tracker = _torch.LiftedSymbols(self.symbols.lift)
        self.inputs: list[TensorMeta] = []
        self.history = History(self)
        self.lifted: list[Tensor] = []
        self.constants: set[int] = set()
        self.recording_off = False
        self.rows = Rows()
        self.lifting: TorchFunctionMode
        self.in_transform = False
        self.is_detaching = False
        """Whether a call of the user's detaches; autograd does so by itself."""
        self.is_copying = False
        """Whether a call of the user's makes a tensor of an array, but with memory of its own."""
        self.is_functionalizing = False
        """Whether a recorded graph runs again without its writes; its views, made anew, detach where they did."""
        self.is_of_user = True
        """Whether a user's function is captured, and not one over graphs."""
        self.is_in_dual_level = _torch.in_dual_level()
        """Whether forward mode was at work when it began."""
        self.is_kernel = False
        """Whether an operator's kernel for autograd runs, which sees gradients that this capture does not record."""
        self.refused: BaseException | None = None
        """See NOTE [A refusal is not caught]."""
        self.regrouped: list[tuple[Tensor, fx.Node, fx.Node]] = []
        """See NOTE [A view or a copy]: values, their nodes, and the nodes of what ``reshape`` made of them."""
        self.differentiated: set[fx.Node] = set()
        """The inputs by which a transform in the function differentiates, in reverse mode."""
        self.wrapped: list[weakref.ref[Tensor]] = []
        """Results of operators in transforms, which wrap what they differentiate or map over."""
        self._fakes: dict[int, Tensor] = {}
        self._input_storages: dict[int, int] = {}
        self._taken_as_contiguous: set[int] = set()
        self._protected: dict[int, Callable[[ErrorContext, str], InputMutationError]] = {}
        self._end_of_inputs: fx.Node | None = None

    # -- inputs

    def new_input(self, meta: TensorMeta, source: Source) -> Tensor:
        """A placeholder, and the fake that stands for it and for its source."""
        if source is not None and not _torch.is_dense(source.init if isinstance(source, Carried) else source.tensor):
            raise refuse_sparse(self.context, "a sparse tensor as a value of a graph, or its result")
        last = self._end_of_inputs
        where = self.graph.inserting_after(last) if last is not None else self.graph.inserting_before(None)
        quietly = (
            _torch.without_torch_function(),
            _torch.below_transforms(),
            _torch.disable_proxy_modes_tracing(),
        )
        with where, quietly[0], quietly[1], quietly[2]:
            node = self.graph.create_node("placeholder", f"arg{len(self.inputs)}")
            fake = self._stand_for(node, meta)
            self._input_storages[_torch.storage_key(fake)] = len(self.inputs)
        self._end_of_inputs = node
        self.inputs.append(meta)
        self.history.inputs[node] = source
        if isinstance(source, Itself) and isinstance(source.tensor, torch.nn.Parameter):
            fake._is_param = True
        if self.history.records(node):
            with _torch.without_torch_function(), _torch.below_transforms():  # which refuse it
                fake.requires_grad_()
        return fake

    def _stand_for(self, node: fx.Node, meta: TensorMeta) -> Tensor:
        """The fake that stands for the value of a node."""
        return self.recorder.stand_for(node, meta, lambda: self.new_fake(meta))

    def new_fake(self, meta: TensorMeta) -> Tensor:
        """A fake made by the capture itself: no operator of the body, nor of one inside of it that asks for it."""
        with (current_capture() or self).unrecorded():
            return meta.fake(self.session.fake_mode)

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Operators that run are none of the body's."""
        before, self.recording_off = self.recording_off, True
        try:
            yield
        finally:
            self.recording_off = before

    def owns(self, t: Tensor) -> bool:
        return t in self.tracer.tensor_tracker

    def stand_ins(self) -> set[int]:
        """The identities of what stands for tensors from outside, which the capture itself holds."""
        return set(map(id, self._fakes.values()))

    def may_return(self, t: Tensor) -> bool:
        """Whether ``t`` is a value of this capture, or a tensor from outside of every capture and transform."""
        return self.owns(t) or not (_torch.is_wrapped(t) or isinstance(t, _torch.FakeTensor))

    def lift(self, t: Tensor) -> Tensor:
        """What stands for ``t`` in this capture: itself if it belongs here, else the fake of an operand."""
        base = _torch.base_tensor(t)
        if self.owns(base) or _torch.is_legacy_wrapper(base):  # which was lifted before it was wrapped
            return t
        if type(base) is _torch.FakeTensor and self._made_inside(base):
            return t
        fake = self._fakes.get(id(t))
        if fake is None:
            check_tensor_class(self.operation, t)
            with _torch.without_torch_function():  # what is asked of ``t`` would lift it
                meta = TensorMeta.of(t)
                buffers = self.buffers if self.buffers is not None and self.buffers.may_update(t) else None
            fake = self.new_input(meta, Itself(t))
            if t in tables:
                self.constants.add(id(t))
            if buffers is not None:
                fake = self._buffer_copy(fake)
                buffers.add_copy(t, fake)
            self._fakes[id(t)] = fake
            self.lifted.append(t)
        return fake

    def _buffer_copy(self, fake: Tensor) -> Tensor:
        """What stands for a buffer: see NOTE [Updates of buffers]. Recorded by hand: a capture inside of this one may
        run, and ask for it.
        """
        with _torch.without_torch_function(), _torch.below_transforms(), _torch.disable_proxy_modes_tracing():
            copy = self.new_fake(TensorMeta.of(fake))
            detached = self.tracer.create_proxy(
                "call_function", torch.ops.aten.detach.default, (self.proxy_of(fake),), {}
            )
            proxy = self.tracer.create_proxy("call_function", torch.ops.aten.clone.default, (detached,), {})
            detached.node.meta["val"] = proxy.node.meta["val"] = copy
            _torch.track_tensor_tree(copy, proxy, constant=None, tracer=self.tracer)
        return copy

    def _made_inside(self, base: Tensor) -> bool:
        """Whether ``base`` is a fake that functorch made on its way (a zero tangent), not a foreign value."""
        mode = base.fake_mode  # type: ignore[attr-defined]
        if mode is not self.session.fake_mode:
            if mode in origins_of:  # of a session that has ended, or runs on another thread
                origins_of[mode].refuse([base])
            return False
        for context, tracker in self.session.ended:
            if base in tracker:
                refuse_leak(context)
        ancestor = self.parent
        while ancestor is not None:
            if ancestor.owns(base):
                return False
            ancestor = ancestor.parent
        return True

    def lift_tree(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.rows.fresh(self.lift(x))
        if type(x) is list:
            return [self.lift_tree(v) for v in x]
        if type(x) is tuple or isinstance(x, torch.Size):
            return type(x)([self.lift_tree(v) for v in x])
        if type(x) is dict:
            return {k: self.lift_tree(v) for k, v in x.items()}
        return x

    # -- nodes

    def inline(self, body: Subgraph, operands: Sequence[Tensor]) -> list[Tensor] | None:
        """Copy a graph into this one instead of running it, where nothing would happen to its operators on the way.

        That is so for plain values of this capture, with no transform, tangent or gradient at work and no open sizes.
        Rules wrap graphs in a few operators of their own; this saves tracing what is inside again.
        """
        if _torch.top_interpreter() is not None or not torch.is_grad_enabled() or body.shape_env is not None:
            return None
        outputs = []
        with _torch.without_torch_function():
            operands = [self.rows.fresh(self.lift(x)) for x in operands]  # both may record nodes
        with _torch.without_torch_function(), _torch.disable_proxy_modes_tracing():
            if any(not self.owns(x) or x.requires_grad or _torch.has_tangent(x) for x in operands):
                return None
            inputs = [self.proxy_of(x).node for x in operands]
            for node, meta in zip(copy_nodes(body, inputs, self.root, self.graph), body.outputs):
                outputs.append(self._stand_for(node, meta))
        return outputs

    def add_params(self, params: Params) -> fx.Proxy:
        """The ``get_attr`` node of an operator's parameters."""
        name = self.tracer.get_fresh_qualname(f"{params.operator.label}_")
        setattr(self.root, name, params)
        return self.tracer.create_proxy("get_attr", name, (), {})

    def proxy_of(self, x: Any) -> Any:
        """What a node takes as argument for a value of this capture."""
        if isinstance(x, Tensor) and not self.owns(x):
            x = torch.zeros_like(x)  # an untracked fake is a zero tangent made by functorch
        return self.tracer.unwrap_proxy(x)

    def node_of(self, t: Tensor) -> fx.Node:
        """The node whose value ``t`` is, whatever wraps it."""
        node: fx.Node = _torch.get_proxy_slot(_torch.base_tensor(t), self.tracer).proxy.node
        return node

    def erase_after(self, last: fx.Node | None) -> None:
        """Take back what a call recorded before it failed, behind ``last``. Open numbers that it was the first to read
        stay, with what they are read of: the tracer hands their nodes to whoever reads them next.
        """
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            is_number = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
            if node.op != "placeholder" and not is_number and not node.users:
                self.graph.erase_node(node)

    def is_from_outside(self, storage: int) -> bool:
        """Whether it is the memory of what stands for a tensor from outside."""
        return storage in self._input_storages or (self.buffers is not None and self.buffers.is_copy(storage))

    def take_as_contiguous(self, result: Any) -> None:
        """Note that ``result`` would be a copy of what it shares memory with, were that not contiguous."""
        if isinstance(result, Tensor):
            with _torch.without_torch_function():
                self._taken_as_contiguous.add(_torch.storage_key(_torch.base_tensor(result)))

    def is_taken_as_contiguous(self, storage: int) -> bool:
        return storage in self._taken_as_contiguous

    def rebind(self, t: Tensor, new: Tensor) -> None:
        """Let ``t`` stand for the value of ``new`` from now on."""
        with _torch.without_torch_function(), _torch.disable_proxy_modes_tracing():
            _torch.track_tensor_tree(t, fx.Proxy(self.node_of(new), self.tracer), constant=None, tracer=self.tracer)

    def note_wrapped(self, result: Any) -> None:
        for t in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(t, Tensor) and _torch.is_wrapped(t):
                self.wrapped.append(weakref.ref(t))

    def note_differentiated(self, t: Tensor) -> None:
        """A transform begins to differentiate by ``t``, in reverse mode: by an input, or by something else."""
        if not self.owns(_torch.base_tensor(t)):
            return
        node = self.node_of(t)
        if node.op == "placeholder":
            self.differentiated.add(node)
            source = self.history.inputs[node]
            if self.parent is not None and isinstance(source, Itself):
                self.parent.note_differentiated(self.parent.lift(source.tensor))

    # -- checks

    def note_refusal(self, error: BaseException) -> None:
        """Remember an error that leaves a call in the captured function, if eager Python would not raise it."""
        if isinstance(error, HistoryAsked) or is_refusal(error):
            self.refused = error

    def note_unseen(self, error: BaseException) -> None:
        """As above, where the function mode sees no call. In one that it sees, torch itself may catch the error."""
        if self.lifting in _torch.function_modes():
            self.note_refusal(error)

    def check_refusals(self) -> None:
        """The function has returned."""
        self.refused = self.refused or self.session.refused_elsewhere
        if self.refused is not None:
            if not isinstance(self.refused, HistoryAsked):
                self.refused.add_note("The captured function caught this error, which eager Python may not raise.")
            raise self.refused

    def protect(self, t: Tensor, refuse: Callable[[ErrorContext, str], InputMutationError]) -> None:
        """Refuse writes to a value that this capture made; ``refuse(context, the writing function)``."""
        with _torch.without_torch_function():
            self._protected[_torch.storage_key(_torch.base_tensor(t))] = refuse

    def check_write(self, func: _torch.OpOverload, target: Tensor) -> None:
        storage = _torch.storage_key(target)
        is_buffer = self.buffers is not None and self.buffers.is_copy(storage)
        if storage in self._input_storages or (is_buffer and self.in_transform):
            raise self.refuse_write(func.overloadpacket.__name__, [target])
        if storage in self._protected:
            raise self._protected[storage](self.context, func.overloadpacket.__name__)
        if is_buffer:
            self.buffers.note_write(storage)  # type: ignore[union-attr]

    def refuse_write(self, function: str, targets: Sequence[Any]) -> InputMutationError:
        """The error for a write to one of these values of the capture."""
        buffers = self.outermost().buffers
        path = next(filter(None, map(self.path_of_buffer, targets)), None)
        if path is not None and buffers is not None and self.parent is None and buffers.carries_gradients(path):
            return refuse_history(self.operation, path)
        if path is not None:
            return refuse_update(self.operation, path, f"is written to ({function})")
        storages = [_torch.storage_key(_torch.base_tensor(t)) for t in targets if isinstance(t, Tensor)]
        place = next(self._input_storages[storage] for storage in storages if storage in self._input_storages)
        refuse = write_to_input if place < len(self.inputs) - len(self.lifted) else write_to_closed_over
        return refuse(self.context, f"{function} on {self.inputs[place]}")

    def path_of_buffer(self, t: Any) -> str | None:
        """The name of the buffer for which a value stands."""
        buffers = self.outermost().buffers
        return next(filter(None, map(buffers.path_of, self.lifted_among([t]))), None) if buffers is not None else None

    def lifted_among(self, values: Sequence[Any]) -> list[Tensor]:
        """The tensors from outside that these values stand for."""
        storages = {_torch.storage_key(_torch.base_tensor(t)) for t in values if isinstance(t, Tensor)}
        return [t for t in self.lifted if id(t) in self._fakes and _torch.storage_key(self._fakes[id(t)]) in storages]

    def outermost(self) -> Capture:
        return self if self.parent is None else self.parent.outermost()

    @property
    def context(self) -> ErrorContext:
        return ErrorContext(self.operation, self.parameter)

    # -- result

    def finish(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        """Close the graph over ``outputs``, which must be tensors of this capture (see NOTE [Subgraph invariants])."""
        check_unwritten(self.context, self.session.shared)
        outputs = self._without_aliases(outputs)
        for copy in self.buffers.unwritten() if self.buffers is not None else ():
            node = self.proxy_of(copy).node
            node.replace_all_uses_with(node.args[0].args[0])
        self._lift_constants()
        nodes = [_torch.get_proxy_slot(out, self.tracer).proxy.node for out in outputs]
        self.graph.output(tuple(nodes))
        return _torch.new_graph_module(self.root, self.graph)

    def _lift_constants(self) -> None:
        """Tensors that the body made from Python values (``torch.tensor([1., 2.])``) are operands too: graphs hold
        none.
        """
        for node in [n for n in self.graph.nodes if n.op == "get_attr"]:
            constant = getattr(self.root, str(node.target))
            if isinstance(constant, _torch.FakeTensor):  # of a call that no mode sees
                raise subclass_inside(self.context, TensorMeta.of(constant))
            if isinstance(constant, Tensor):
                fake = self.new_input(TensorMeta.of(constant), None)
                self.lifted.append(constant)
                self.constants.add(id(constant))
                node.replace_all_uses_with(self.proxy_of(fake).node)
                self.graph.erase_node(node)

    def _without_aliases(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        seen = set(self._input_storages)
        if self.buffers is not None:
            seen.update(map(_torch.storage_key, self.buffers.unwritten()))
        unaliased = []
        for out in outputs:
            out = _torch.base_tensor(_torch.plain(self.rows.fresh(self.lift(out))))
            if _torch.storage_key(out) in seen:
                out = out.clone()
            elif not self.owns(out):
                out = torch.zeros_like(out)  # an untracked fake is a zero tangent made by functorch
            seen.add(_torch.storage_key(out))
            unaliased.append(out)
            if any(map(_torch.is_unbacked, out.shape)):
                raise unknown_shape(self.context)
        return unaliased


def current_capture() -> Capture | None:
    """The innermost capture that runs on this thread."""
    return state.capture  # type: ignore[return-value]


@contextlib.contextmanager
def outside_of_captures() -> Iterator[None]:
    """Run operators, not record them."""
    capture, state.capture = state.capture, None
    try:
        yield
    finally:
        state.capture = capture


@contextlib.contextmanager
def refusals_left() -> Iterator[None]:
    """What is refused here, the library catches itself."""
    capture = current_capture()
    before = capture.refused if capture is not None else None
    try:
        yield
    finally:
        if capture is not None:
            capture.refused = before


def answer(question: Question, t: Tensor) -> Any:
    """What a tensor says of itself where this is called, inside or outside of a capture."""
    capture = current_capture()
    if capture is not None:
        return capture.history.answer(question, t)
    return question.of(t, _torch.current_level())
