"""``speculate_subgraph``: run a Python function once on fake tensors and keep what it did as a Subgraph.

A capture runs as on a fresh thread (``_torch.suspended``) under three observers:

- :class:`_Lifting` sees each torch call with the user's tensors, before functorch unwraps anything. A tensor that is
not
  of this capture (closed-over, a parameter, a value of an enclosing capture, a wrapper of an enclosing transform) is
  lifted: it becomes an operand, and a fresh fake of its logical shape stands for it inside.
- :class:`_Effects` sees the ATen operators below every transform that the body itself applies: writes to inputs are
refused,
  and what ran without gradients is detached.
- torch's own proxy mode records.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.overrides import TorchFunctionMode

from .. import _torch, pytree
from ..errors import Caller, CaptureError, DataDependentError, InputMutationError, LeakedTensorError, message
from .buffers import Buffers, refuse_update
from .builder import copy_nodes
from .current import current_capture, state
from .functional import (
    bound_slice,
    has_writes,
    replace_copy,
    replace_empty_like,
    running_statistics,
    unexpand_written,
    unwrite_views,
    without_statistics,
)
from .indexing import Rows
from .passes import clean
from .sizes import shape_env_of, size_at
from .subgraph import StaticParameters, Subgraph, TensorMeta, is_differentiable, untracked
from .validate import check_tensor_class

__all__ = [
    "Capture",
    "capture_function",
    "current_capture",
    "data_dependent",
    "lift_operands",
    "reading_refused",
    "speculate_subgraph",
]


class _Session:
    """What nested captures share: the fake mode, and the record of values whose capture has ended."""

    def __init__(self, caller: Caller, env: Any) -> None:
        self.caller = caller
        self.fake_mode = _torch.new_fake_mode(env)
        self.ended: list[tuple[Caller, Any]] = []
        self.deepest = 0
        self.origins = _origins[self.fake_mode] = _Origins(caller)

    def close(self) -> None:
        """Make every later use of a fake of this session an error: it stands for no value any more."""
        self.fake_mode.dispatch = self.origins.refuse_use  # type: ignore[method-assign]
        for caller, tracker in self.ended:
            self.origins.leaked.update({id(t): (weakref.ref(t), caller) for t in tracker})
        self.ended.clear()


class _Origins:
    """Where the fakes of a session that has ended come from: those that are alive then have leaked."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.leaked: dict[int, tuple[weakref.ref[Tensor], Caller]] = {}

    def refuse(self, tensors: Iterable[Any]) -> NoReturn:
        # What autograd hands on is an alias of the tensor that the user has: then any that leaked may be meant.
        given = [self.leaked[id(t)] for t in tensors if id(t) in self.leaked]
        alive = (caller for t, caller in (*given, *self.leaked.values()) if t() is not None)
        _refuse_leak(next(alive, self.caller))

    def refuse_use(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        self.refuse(pytree.flatten((args, kwargs or {}))[0])


_origins: weakref.WeakKeyDictionary[_torch.FakeTensorMode, _Origins] = weakref.WeakKeyDictionary()
"""Of each session, as long as tensors of it are alive."""


def _refuse_leak(caller: Caller) -> NoReturn:
    raise LeakedTensorError(
        message(
            caller.operation,
            f"a tensor made while {caller.parameter} was captured is used outside of that capture",
            parameter=caller.parameter,
            remedy="return the value from the function instead of storing it in an outer variable",
        )
    )


_DEPTH_OF_RECURSION = 8
"""No program nests as deep as this on purpose and exhausts Python's stack by something else."""


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
        self.session: _Session = _Session(self.caller, env) if parent is None else parent.session
        self.session.deepest = max(self.session.deepest, self.depth)
        self.root = torch.nn.Module()
        self.graph = fx.Graph(tracer_cls=None)
        self.tracer = _torch.new_tracer(self.root, self.graph)
        self.tracer.sympy_expr_tracker = _torch.LiftedSymbols(self._lift_symbol)
        self.inputs: list[TensorMeta] = []
        self.lifted: list[Tensor] = []
        self.constants: set[int] = set()
        self.is_quiet = False
        self.rows = Rows()
        self.in_transform = False
        self._fakes: dict[int, Tensor] = {}
        self._input_storages: dict[int, int] = {}
        self._protected_storages: set[int] = set()
        self._carriers: dict[Any, Tensor] = {}
        self._end_of_inputs: fx.Node | None = None

    # -- inputs

    def new_input(self, meta: TensorMeta) -> Tensor:
        """A placeholder, and the fake that stands for it."""
        last = self._end_of_inputs
        where = self.graph.inserting_after(last) if last is not None else self.graph.inserting_before(None)
        quietly = (
            _torch.without_torch_function(),
            _torch.below_transforms(),
            _torch.disable_proxy_modes_tracing(),
        )
        with where, quietly[0], quietly[1], quietly[2]:
            fake = self._new_fake(meta)
            proxy = self.tracer.create_proxy("placeholder", f"arg{len(self.inputs)}", (), {})
            _torch.track_tensor_tree(fake, proxy, constant=None, tracer=self.tracer)
            self._input_storages[_torch.storage_key(fake)] = len(self.inputs)
        self._end_of_inputs = proxy.node
        self.inputs.append(meta)
        return fake

    def _new_fake(self, meta: TensorMeta) -> Tensor:
        """A fake made by the capture itself: no operator of the body."""
        self.is_quiet = True
        try:
            return meta.fake(self.session.fake_mode)
        finally:
            self.is_quiet = False

    def owns(self, t: Tensor) -> bool:
        return t in self.tracer.tensor_tracker

    def may_return(self, t: Tensor) -> bool:
        """Whether ``t`` is a value of this capture, or a tensor from outside of every capture and transform."""
        return self.owns(t) or not (_torch.is_wrapped(t) or isinstance(t, _torch.FakeTensor))

    def lift(self, t: Tensor) -> Tensor:
        """What stands for ``t`` in this capture: itself if it belongs here, else the fake of an operand."""
        base = _torch.base_tensor(t)
        if self.owns(base):
            return t
        if type(base) is _torch.FakeTensor and self._made_inside(base):
            return t
        fake = self._fakes.get(id(t))
        if fake is None:
            check_tensor_class(self.operation, t)
            with _torch.without_torch_function():
                meta = TensorMeta.of(t)
            fake = self.new_input(meta)
            if self.buffers is not None and self.buffers.may_update(t):
                fake = self._copied(fake)
                self.buffers.add_copy(t, fake)
            self._fakes[id(t)] = fake
            self.lifted.append(t)
        return fake

    def _copied(self, fake: Tensor) -> Tensor:
        """What stands for a buffer: see NOTE [Updates of buffers]."""
        self.is_quiet = True
        try:
            with _torch.without_torch_function(), _torch.below_transforms():
                return fake.detach().clone()
        finally:
            self.is_quiet = False

    def _made_inside(self, base: Tensor) -> bool:
        """Whether ``base`` is a fake that functorch made on its way (a zero tangent), not a foreign value."""
        mode = base.fake_mode  # type: ignore[attr-defined]
        if mode is not self.session.fake_mode:
            if mode in _origins:  # of a session that has ended, or runs on another thread
                _origins[mode].refuse([base])
            return False
        for caller, tracker in self.session.ended:
            if base in tracker:
                _refuse_leak(caller)
        ancestor = self.parent
        while ancestor is not None:
            if ancestor.owns(base):
                return False
            ancestor = ancestor.parent
        return True

    def _lift_symbol(self, symbol: Any) -> Any | None:
        """A symbol of an enclosing capture travels as an operand, from which it is read again inside: a size as the
        size of an empty tensor, so that it remains a size in every graph derived from this one; a float as a 0-d
        tensor.
        """
        if self.parent is None:
            return None
        entry = self.parent.tracer.sympy_expr_tracker.get(symbol)
        if entry is None:
            return None
        is_size = isinstance(entry.value, torch.SymInt)
        with _torch.without_torch_function(), _torch.below_transforms(), _torch.disable_proxy_modes_tracing():
            carriers = self.parent._carriers
            if symbol not in carriers:
                carriers[symbol] = self.parent.new_carrier(entry.proxy.force(), entry.value)
            placeholder = self.proxy_of(self.lift(carriers[symbol]))
            target, rest = (size_at, (0,)) if is_size else (torch.ops.aten._local_scalar_dense.default, ())
            number = self.tracer.create_proxy("call_function", target, (placeholder, *rest), {})
        number.node.meta["val"] = entry.value
        return _torch.symbol_entry(number, entry.value)

    def new_carrier(self, number: fx.Proxy, value: Any) -> Tensor:
        """A symbolic number of this capture as a tensor that can be an operand."""
        is_size = isinstance(value, torch.SymInt)
        meta = TensorMeta((value, 0) if is_size else (), torch.bool if is_size else torch.float64, torch.device("cpu"))
        target: Any = torch.ops.aten.empty.memory_format if is_size else torch.ops.aten.scalar_tensor.default
        fake = self._new_fake(meta)
        args = ([number, 0] if is_size else number,)
        kwargs = {"dtype": meta.dtype, "device": meta.device}
        proxy = self.tracer.create_proxy("call_function", target, args, kwargs)
        _torch.track_tensor_tree(fake, proxy, constant=None, tracer=self.tracer)
        return fake

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
        with _torch.without_torch_function(), _torch.disable_proxy_modes_tracing():
            operands = [self.rows.fresh(self.lift(x)) for x in operands]
            if any(not self.owns(x) or x.requires_grad or _torch.has_tangent(x) for x in operands):
                return None
            inputs = [self.proxy_of(x).node for x in operands]
            for node, meta in zip(copy_nodes(body, inputs, self.root, self.graph), body.outputs):
                fake = self._new_fake(meta)
                _torch.track_tensor_tree(fake, fx.Proxy(node, self.tracer), constant=None, tracer=self.tracer)
                outputs.append(fake)
        return outputs

    def add_static(self, label: str, static: StaticParameters) -> fx.Proxy:
        """The ``get_attr`` node of an operator's static parameters."""
        name = self.tracer.get_fresh_qualname(f"{label}_")
        self.root.register_module(name, static)
        return self.tracer.create_proxy("get_attr", name, (), {})

    def proxy_of(self, x: Any) -> Any:
        """What a node takes as argument for a value of this capture."""
        if isinstance(x, Tensor) and not self.owns(x):
            x = torch.zeros_like(x)  # an untracked fake is a zero tangent made by functorch
        return self.tracer.unwrap_proxy(x)

    # -- checks

    def protect(self, t: Tensor) -> None:
        """Refuse writes to a value that this capture made."""
        with _torch.without_torch_function():
            self._protected_storages.add(_torch.storage_key(_torch.base_tensor(t)))

    def check_write(self, func: _torch.OpOverload, target: Tensor) -> None:
        storage = _torch.storage_key(target)
        is_buffer = self.buffers is not None and self.buffers.is_copy(storage)
        if storage in self._input_storages or (is_buffer and self.in_transform):
            raise self.refuse_write(func.overloadpacket.__name__, [target])
        if storage in self._protected_storages:
            raise self._refuse_named(func.overloadpacket.__name__)
        if is_buffer:
            self.buffers.note_write(storage)  # type: ignore[union-attr]

    def refuse_write(self, function: str, targets: Sequence[Any]) -> InputMutationError:
        """The error for a write to one of these values of the capture."""
        buffers = self.outermost().buffers
        written = map(buffers.path_of, self.lifted_among(targets)) if buffers is not None else ()
        path = next(filter(None, written), None)
        if path is not None:
            return refuse_update(self.operation, path, f"is written to ({function})")
        storages = [_torch.storage_key(_torch.base_tensor(t)) for t in targets if isinstance(t, Tensor)]
        place = next(self._input_storages[storage] for storage in storages if storage in self._input_storages)
        is_own = place < len(self.inputs) - len(self.lifted)
        return InputMutationError(
            message(
                self.operation,
                f"{self.parameter} writes to {'an input' if is_own else 'a tensor that it closes over'}",
                parameter=self.parameter,
                expected="a function without side effects",
                got=f"{function} on {self.inputs[place]}",
                remedy="return the new value, or work on a clone()"
                if is_own
                else "pass the tensor as an argument and return its new value (torch.func.functional_call does this "
                "for the buffers of a module)",
            )
        )

    def _refuse_named(self, function: str) -> InputMutationError:
        return InputMutationError(
            message(
                self.operation,
                f"{self.parameter} writes to a value that checkpoint_name named",
                parameter=self.parameter,
                got=function,
                remedy="name the new value, or work on a clone()",
            )
        )

    def lifted_among(self, values: Sequence[Any]) -> list[Tensor]:
        """The tensors from outside that these values stand for."""
        storages = {_torch.storage_key(_torch.base_tensor(t)) for t in values if isinstance(t, Tensor)}
        return [t for t in self.lifted if id(t) in self._fakes and _torch.storage_key(self._fakes[id(t)]) in storages]

    def outermost(self) -> Capture:
        return self if self.parent is None else self.parent.outermost()

    def refuse_backward(self, what: str) -> CaptureError:
        return CaptureError(
            message(
                self.operation,
                f"{what} can't run inside a captured function, whose values have no gradient history",
                parameter=self.parameter,
                remedy="take derivatives there with fh.grad, fh.value_and_grad or fh.vjp",
            )
        )

    def refuse_generator(self) -> CaptureError:
        return CaptureError(
            message(
                self.operation,
                "an operator draws from a torch.Generator, whose state a graph can't hold",
                parameter=self.parameter,
                remedy="use the default generator (torch.manual_seed), or draw outside and pass the numbers",
            )
        )

    @property
    def caller(self) -> Caller:
        return Caller(self.operation, self.parameter)

    def _unknown_shape(self) -> CaptureError:
        return CaptureError(
            message(
                self.operation,
                "the shape of an output depends on values, which are known only when the graph runs",
                parameter=self.parameter,
                expected="an output of a shape that follows from the shapes of the inputs",
                remedy="use torch.where or a mask of fixed size instead of boolean indexing or nonzero()",
            )
        )

    # -- result

    def finish(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        """Close the graph over ``outputs``, which must be tensors of this capture (see NOTE [Subgraph invariants])."""
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
            if isinstance(constant, Tensor):
                fake = self.new_input(TensorMeta.of(constant))
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
                raise self._unknown_shape()
        return unaliased


def speculate_subgraph(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    *,
    operation: str,
    parameter: str,
    keep_autocast: bool = True,
) -> tuple[Subgraph, list[Tensor]]:
    """Capture ``function``, called once with fakes of ``inputs``, and the free variables that it used.

    ``function`` takes and returns flat tensors; trees are the caller's matter. The returned graph's inputs are
    ``inputs`` followed by one for each lifted tensor. Everything that was active around the call (transforms,
    modes, autocast, gradient mode) is as before when it returns or raises.
    """
    subgraph, capture = capture_function(
        function, inputs, operation=operation, parameter=parameter, keep_autocast=keep_autocast
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
    keep_autocast: bool = True,
    buffers: Buffers | None = None,
) -> tuple[Subgraph, Capture]:
    """As :func:`speculate_subgraph`; returns the ended capture, which knows which lifted tensors are constants.

    ``buffers``: of the modules that ``function`` uses, which then may return their new values.
    """
    module, capture = _trace(function, inputs, operation, parameter, keep_autocast, buffers)
    with _torch.without_torch_function():  # an enclosing capture is not to see the metadata being read
        unwrite_views(module.graph)
        if has_writes(module.graph):
            functional = functionalize(module, remove="mutations")
            module, _ = _trace(functional, capture.inputs, operation, parameter, keep_autocast=False)
        _clean(module)
        outputs = [TensorMeta.of(n.meta["val"]) for n in module.graph.output_node().args[0]]  # type: ignore[union-attr]
        return Subgraph.intern(module, capture.inputs, outputs), capture


def _trace(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    operation: str,
    parameter: str,
    keep_autocast: bool,
    buffers: Buffers | None = None,
) -> tuple[fx.GraphModule, Capture]:
    _torch.install_hooks(_lift_hook, _function_hook, lambda: state.capture is not None)
    parent = state.capture
    capture = Capture(operation, parameter, parent, shape_env_of(meta.shape for meta in inputs), buffers)
    try:
        with _torch.suspended(keep_autocast=keep_autocast), _observers(capture):
            fakes = [capture.new_input(meta) for meta in inputs]
            own = capture.outermost().buffers if parent is not None else None
            bound = own.bound() if own is not None else []
            with reading_refused(capture.caller), _recursion_refused(capture):
                outputs = function(*fakes)
            if own is not None:
                own.check_bound(bound, operation)
            with _torch.without_torch_function():
                return capture.finish(outputs), capture
    finally:
        capture.session.ended.append((capture.caller, capture.tracer.tensor_tracker))
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
            _torch.ProxyTorchDispatchMode(capture.tracer, "fake"),
            _Effects(capture),
            _Lifting(capture),
        ):
            yield
    finally:
        state.capture = outer


@contextlib.contextmanager
def reading_refused(caller: Caller) -> Iterator[None]:
    """torch's own refusals to read a value, of traced tensors and of those that a vmap maps over, in our words."""
    try:
        yield
    except DataDependentError:
        raise
    except Exception as error:
        refused = data_dependent(caller, error)
        if refused is None:
            raise
        raise refused from error


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


def data_dependent(caller: Caller, error: Exception) -> DataDependentError | None:
    """The error in our words, if it is torch's refusal to read a value."""
    what = _torch.refused_read(error)
    return None if what is None else _unreadable(caller, what, _REMEDIES.get(what, _BRANCH), error)


def _unreadable(caller: Caller, what: str, remedy: str, cause: Exception | None = None) -> DataDependentError:
    return DataDependentError(
        message(
            caller.operation,
            "Python asks for the value of a tensor that has none yet: it is traced, or mapped over by vmap",
            parameter=caller.parameter,
            expected="operations on tensors",
            got=what,
            remedy=remedy,
            cause=cause,
        )
    )


def lift_operands(operands: Sequence[Any]) -> list[Any]:
    """Operands of a HOP call as values of the innermost capture, if one runs."""
    capture = state.capture
    if capture is None:
        return list(operands)
    return [capture.rows.fresh(capture.lift(x)) if isinstance(x, Tensor) else x for x in operands]


def _lift_hook(t: Tensor) -> Tensor:
    capture = state.capture
    return capture.lift(t) if capture is not None and isinstance(t, Tensor) else t


def _function_hook(cls: type, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if state.capture is None:
        return NotImplemented
    from ..ops.custom_rule.autograd_function import call_autograd_function

    return call_autograd_function(cls, args, kwargs)


_BRANCH = "use fh.cond or torch.where to branch on it, fh.while_loop to loop on it"
_COUNT = (
    "use fh.fori_loop to loop up to it, fh.cond to branch on it, tensor[i] or tensor[i] = value to index by it, "
    "torch.arange(n) < i to mask what is beyond it"
)
_COMPUTE = "compute with the tensor itself, by functions of torch; use fh.cond to branch on it"
_SIZE = "sizes and bounds are Python ints: mask what is beyond a traced one, for example by torch.arange(n) < bound"
_REMEDIES = {".item()": _COMPUTE, _torch.READ_AS_SIZE: _SIZE}
_READS: dict[Any, tuple[str, str]] = {
    Tensor.__bool__: ("bool(), as `if`, `while`, `and`, `or`, `not` and `in` call it", _BRANCH),
    Tensor.is_nonzero: (".is_nonzero()", _BRANCH),
    Tensor.__contains__: ("`in`", "use (tensor == value).any(), and fh.cond to branch on it"),
    Tensor.__index__: ("use as an int, as range() and the index of a list do it", _COUNT),
    Tensor.__int__: ("int()", _COUNT),
    Tensor.__float__: ("float()", _COMPUTE),
    Tensor.__complex__: ("complex()", _COMPUTE),
    Tensor.item: (".item()", _COMPUTE),
    Tensor.tolist: (".tolist()", _COMPUTE),
    Tensor.numpy: (".numpy()", _COMPUTE),
    Tensor.__array__: ("conversion to NumPy", _COMPUTE),
    Tensor.__dlpack__: ("conversion by DLPack", _COMPUTE),
    Tensor.data_ptr: (".data_ptr()", _COMPUTE),
    Tensor.__format__: ("a format such as `:.3f`", "print it without a format: that shows dtype and shape"),
    torch.tensor: ("torch.tensor() of tensors", "use torch.stack"),
}
_SHOWN = (Tensor.__repr__, Tensor.__format__)
"""What makes text of a tensor, if it is given no more than the tensor."""
_BACKWARD: dict[Any, str] = {
    torch.autograd.grad: "torch.autograd.grad()",
    torch.autograd.backward: "torch.autograd.backward()",
    Tensor.backward: ".backward()",
}


def _is_unknown(x: Any) -> bool:
    """Whether the values of a traced tensor, or of those in a list of numbers, are unknown."""
    if isinstance(x, (list, tuple)):
        return any(map(_is_unknown, x))
    return isinstance(x, Tensor) and _torch.known_constant(_torch.base_tensor(x)) is None


def _has_history(outputs: Any) -> bool:
    """Whether something to be differentiated can be: where torch.func differentiates, that is so."""
    with _torch.without_torch_function():
        return any(t.requires_grad for t in ([outputs] if isinstance(outputs, Tensor) else outputs))


def _shown(t: Tensor) -> str:
    with _torch.without_torch_function():
        return f"Traced({TensorMeta.of(t)})"


class _Lifting(TorchFunctionMode):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        capture = self.capture
        if func in _SHOWN and not any(args[1:]):
            return _shown(args[0])
        if func in _BACKWARD and not _has_history(args[0]):
            raise capture.refuse_backward(_BACKWARD[func])
        args = tuple(capture.lift_tree(a) for a in args)
        kwargs = {k: capture.lift_tree(v) for k, v in kwargs.items()} if kwargs else {}
        if kwargs.get("generator") is not None:
            raise capture.refuse_generator()
        if func in _READS and _is_unknown(args[0]):
            raise _unreadable(capture.caller, *_READS[func])
        capture.in_transform = _torch.top_interpreter() is not None
        try:
            return self._call(func, args, kwargs)
        except RuntimeError as error:
            values = [*args, *kwargs.values()]
            if _torch.is_captured_write_error(error) and capture.lifted_among(values):
                raise capture.refuse_write(_torch.function_name(func), values) from error
            raise

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        rows, result = self.capture.rows, None
        if func is Tensor.__getitem__:
            return rows.getitem(*args)
        if func is Tensor.__setitem__:
            rows.setitem(*args)
        else:
            result = func(*args, **kwargs)
        rows.write_through()
        return result


class _Effects(_torch.TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.capture.is_quiet:
            return func(*args, **kwargs)
        detached = not torch.is_grad_enabled()
        pure = without_statistics(func, args)
        if pure is not None:
            return self._batch_norm(func, pure, args, detached)
        if isinstance(func, _torch.OpOverload) and func._schema.is_mutable:
            self._check_writes(func, args, kwargs, detached)
            if detached:
                args, kwargs = self._without_history(func, args, kwargs)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        return self._untracked(out) if detached else out

    def _untracked(self, out: Any) -> Any:
        """What ran without gradients, as a value that reverse mode does not look behind."""
        if isinstance(out, (tuple, list)):
            return type(out)(self._untracked(o) for o in out)
        if not isinstance(out, Tensor) or not is_differentiable(out.dtype):
            return out
        tracer = self.capture.tracer
        proxy = tracer.create_proxy("call_function", untracked, (self.capture.proxy_of(out),), {})
        with _torch.disable_proxy_modes_tracing():
            alias = out.detach()
        return _torch.track_tensor_tree(alias, proxy, constant=None, tracer=tracer)

    def _batch_norm(self, func: _torch.OpOverload, pure: Any, args: Any, detached: bool) -> Any:
        """The normalisation without running statistics, and the update of these as if the user had written it."""
        x, weight, bias, mean, var, training, momentum, eps = args
        out = pure(x, weight, bias, None, None, training, momentum, eps)
        new = running_statistics(x, out[1], out[2], mean, var, momentum, eps)
        for target, value in zip((mean, var), new):
            self.capture.check_write(func, target)
            torch.ops.aten.copy_.default(target, self._untracked(value))
        return self._untracked(out) if detached else out

    def _without_history(self, func: _torch.OpOverload, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What is written under no_grad carries no gradient into the target."""
        names = [a.name for a in func._schema.arguments if a.alias_info is None]
        read = {name: self._untracked(kwargs[name]) for name in names if name in kwargs}
        places = {a.name: i for i, a in enumerate(func._schema.arguments)}
        new = list(args)
        for name in names:
            if places[name] < len(new) and isinstance(new[places[name]], (Tensor, list)):
                new[places[name]] = self._untracked(new[places[name]])
        return tuple(new), {**kwargs, **read}

    def _check_writes(self, func: _torch.OpOverload, args: Any, kwargs: Any, detached: bool) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for target in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(target, Tensor):
                    self.capture.check_write(func, target)
                    self.capture.rows.note_write(target)
                    if detached and is_differentiable(target.dtype):
                        self._check_untracked_write(func, target)

    def _check_untracked_write(self, func: _torch.OpOverload, target: Tensor) -> None:
        """A write under no_grad keeps the target's gradient history, which a functional graph cannot say."""
        slot = _torch.get_proxy_slot(target, self.capture.tracer, None)
        if slot is not None and _depends_on_input(slot.proxy.node):
            raise CaptureError(
                message(
                    self.capture.operation,
                    "an in-place operation under no_grad on a value that carries gradients",
                    parameter=self.capture.parameter,
                    expected="an operation that leaves the gradient history as it is",
                    got=f"{func.overloadpacket.__name__} on {TensorMeta.of(target)}",
                    remedy="write the operation out of place, on value.detach()",
                )
            )


def _depends_on_input(node: fx.Node) -> bool:
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if node in seen or node.target in (torch.ops.aten.detach.default, untracked):
            continue
        seen.add(node)
        if node.op == "placeholder" and is_differentiable(node.meta["val"].dtype):
            return True
        todo.extend(node.all_input_nodes)
    return False


_TO_RESHAPE = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def _clean(module: fx.GraphModule) -> None:
    """Free the graph of layout assumptions, of what has no derivative, and of dead code."""
    for node in list(module.graph.nodes):
        if node.target in _TO_RESHAPE:
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.copy.default:
            replace_copy(node)
        elif node.target is torch.ops.aten.empty_like.default:
            replace_empty_like(node)
        elif node.target is torch.ops.aten.sym_size.int:
            node.target = size_at
        bound_slice(node)
        unexpand_written(node)
    clean(module)
