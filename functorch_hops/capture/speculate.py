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
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.overrides import TorchFunctionMode

from .. import _torch
from ..errors import CaptureError, DataDependentError, InputMutationError, LeakedTensorError, message
from . import indexing
from .functional import bound_slice, has_writes, replace_copy, unwrite_views
from .liveness import eliminate_dead_code
from .subgraph import StaticParameters, Subgraph, TensorMeta, is_differentiable, untracked

__all__ = ["Capture", "capture_function", "current_capture", "lift_operands", "speculate_subgraph"]


class _Session:
    """What nested captures share: the fake mode, and the record of values whose capture has ended."""

    def __init__(self) -> None:
        self.fake_mode = _torch.new_fake_mode()
        self.ended: list[Any] = []

    def close(self) -> None:
        """Make every later use of a fake of this session an error: it stands for no value any more."""
        self.fake_mode.dispatch = _refuse_leak  # type: ignore[method-assign]
        self.ended.clear()


def _refuse_leak(*_: Any, **__: Any) -> Any:
    raise LeakedTensorError(_leak_message())


def _leak_message() -> str:
    return message(
        "capture",
        "a tensor made inside a captured body is used after the capture has ended",
        remedy="return the value from the body instead of storing it in an outer variable",
    )


class _State(threading.local):
    capture: Capture | None = None


_state = _State()


def current_capture() -> Capture | None:
    """The innermost capture that runs on this thread."""
    return _state.capture


class Capture:
    """One body being captured."""

    def __init__(self, operation: str, parameter: str, parent: Capture | None) -> None:
        self.operation = operation
        self.parameter = parameter
        self.parent = parent
        self.session: _Session = _Session() if parent is None else parent.session
        self.root = torch.nn.Module()
        self.graph = fx.Graph(tracer_cls=None)
        self.tracer = _torch.new_tracer(self.root, self.graph)
        self.tracer.sympy_expr_tracker = _torch.LiftedSymbols(self._lift_symbol)
        self.inputs: list[TensorMeta] = []
        self.lifted: list[Tensor] = []
        self.constants: set[int] = set()
        self.is_quiet = False
        self._fakes: dict[int, Tensor] = {}
        self._scalars: dict[Any, Tensor] = {}
        self._input_storages: set[int] = set()
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
            self._input_storages.add(_torch.storage_key(fake))
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

    def lift(self, t: Tensor) -> Tensor:
        """What stands for ``t`` in this capture: itself if it belongs here, else the fake of an operand."""
        base = _torch.base_tensor(t)
        if self.owns(base):
            return t
        if type(base) is _torch.FakeTensor and self._made_inside(base):
            return t
        fake = self._fakes.get(id(t))
        if fake is None:
            with _torch.without_torch_function():
                meta = TensorMeta.of(t)
            fake = self._fakes[id(t)] = self.new_input(meta)
            self.lifted.append(t)
        return fake

    def _made_inside(self, base: Tensor) -> bool:
        """Whether ``base`` is a fake that functorch made on its way (a zero tangent), not a foreign value."""
        mode = base.fake_mode  # type: ignore[attr-defined]
        if mode.dispatch is _refuse_leak:
            raise LeakedTensorError(_leak_message())
        if mode is not self.session.fake_mode:
            return False
        if any(base in tracker for tracker in self.session.ended):
            raise LeakedTensorError(_leak_message())
        ancestor = self.parent
        while ancestor is not None:
            if ancestor.owns(base):
                return False
            ancestor = ancestor.parent
        return True

    def _lift_symbol(self, symbol: Any) -> Any | None:
        """A symbolic number of an enclosing capture travels as a 0-d tensor, and is read again inside."""
        if self.parent is None:
            return None
        entry = self.parent.tracer.sympy_expr_tracker.get(symbol)
        if entry is None:
            return None
        dtype = torch.float64 if isinstance(entry.value, torch.SymFloat) else torch.int64
        with _torch.without_torch_function(), _torch.below_transforms(), _torch.disable_proxy_modes_tracing():
            if symbol not in self.parent._scalars:
                self.parent._scalars[symbol] = self.parent.new_scalar(entry.proxy.force(), dtype)
            operand = self.parent._scalars[symbol]
            placeholder = self.proxy_of(self.lift(operand))
            number = self.tracer.create_proxy(
                "call_function", torch.ops.aten._local_scalar_dense.default, (placeholder,), {}
            )
        number.node.meta["val"] = entry.value
        return _torch.symbol_entry(number, entry.value)

    def new_scalar(self, number: fx.Proxy, dtype: torch.dtype) -> Tensor:
        """A symbolic number of this capture as a 0-d tensor."""
        fake = self._new_fake(TensorMeta((), dtype, torch.device("cpu")))
        target = torch.ops.aten.scalar_tensor.default
        proxy = self.tracer.create_proxy("call_function", target, (number,), {"dtype": dtype})
        _torch.track_tensor_tree(fake, proxy, constant=None, tracer=self.tracer)
        return fake

    def lift_tree(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.lift(x)
        if type(x) is list:
            return [self.lift_tree(v) for v in x]
        if type(x) is tuple or isinstance(x, torch.Size):
            return type(x)([self.lift_tree(v) for v in x])
        if type(x) is dict:
            return {k: self.lift_tree(v) for k, v in x.items()}
        return x

    # -- nodes

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

    def check_write(self, func: _torch.OpOverload, target: Tensor) -> None:
        if _torch.storage_key(target) in self._input_storages:
            raise InputMutationError(
                message(
                    self.operation,
                    f"{self.parameter} writes to an input or a closed-over tensor ({func})",
                    parameter=self.parameter,
                    remedy="return the new value, or work on a clone()",
                )
            )

    def refuse_reading(self, what: str) -> DataDependentError:
        return DataDependentError(
            message(
                self.operation,
                f"{what} asks for the value of a traced tensor, which is known only when the graph runs",
                parameter=self.parameter,
                remedy="use fh.cond (or torch.where) for a branch, fh.while_loop or fh.fori_loop for a loop",
            )
        )

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
        self._lift_constants()
        nodes = [_torch.get_proxy_slot(out, self.tracer).proxy.node for out in outputs]
        self.graph.output(tuple(nodes))
        return fx.GraphModule(self.root, self.graph)

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
        unaliased = []
        for out in outputs:
            out = _torch.base_tensor(_torch.plain(self.lift(out)))
            if _torch.storage_key(out) in seen:
                out = out.clone()
            elif not self.owns(out):
                out = torch.zeros_like(out)  # an untracked fake is a zero tangent made by functorch
            seen.add(_torch.storage_key(out))
            unaliased.append(out)
            if not all(isinstance(size, int) for size in out.shape):
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
    return subgraph, capture.lifted


def capture_function(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    *,
    operation: str,
    parameter: str,
    keep_autocast: bool = True,
) -> tuple[Subgraph, Capture]:
    """As :func:`speculate_subgraph`; returns the ended capture, which knows which lifted tensors are constants."""
    module, capture = _trace(function, inputs, operation, parameter, keep_autocast)
    unwrite_views(module.graph)
    if has_writes(module.graph):
        functional = functionalize(module, remove="mutations")
        module, _ = _trace(functional, capture.inputs, operation, parameter, keep_autocast=False)
    _clean(module)
    outputs = [TensorMeta.of(node.meta["val"]) for node in module.graph.output_node().args[0]]  # type: ignore[union-attr]
    return Subgraph.intern(module, capture.inputs, outputs), capture


def _trace(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[TensorMeta],
    operation: str,
    parameter: str,
    keep_autocast: bool,
) -> tuple[fx.GraphModule, Capture]:
    _torch.install_hooks(_lift_hook, _function_hook)
    parent = _state.capture
    capture = Capture(operation, parameter, parent)
    try:
        with _torch.suspended(keep_autocast=keep_autocast), _observers(capture):
            fakes = [capture.new_input(meta) for meta in inputs]
            with _translated_errors(capture):
                outputs = function(*fakes)
            with _torch.without_torch_function():
                return capture.finish(outputs), capture
    finally:
        capture.session.ended.append(capture.tracer.tensor_tracker)
        if parent is not None:
            parent.constants |= capture.constants
        if parent is None:
            capture.session.close()


@contextlib.contextmanager
def _observers(capture: Capture) -> Iterator[None]:
    outer = _state.capture
    _state.capture = capture
    try:
        with (
            capture.session.fake_mode,
            _torch.ProxyTorchDispatchMode(capture.tracer, "fake"),
            _Effects(capture),
            _Lifting(capture),
        ):
            yield
    finally:
        _state.capture = outer


@contextlib.contextmanager
def _translated_errors(capture: Capture) -> Iterator[None]:
    try:
        yield
    except DataDependentError:
        raise
    except Exception as error:
        if _torch.is_data_dependent_error(error):
            raise capture.refuse_reading("an operator") from error
        raise


def lift_operands(operands: Sequence[Any]) -> list[Any]:
    """Operands of a HOP call as values of the innermost capture, if one runs."""
    capture = _state.capture
    if capture is None:
        return list(operands)
    return [capture.lift(x) if isinstance(x, Tensor) else x for x in operands]


def _lift_hook(t: Tensor) -> Tensor:
    capture = _state.capture
    return capture.lift(t) if capture is not None and isinstance(t, Tensor) else t


def _function_hook(cls: type, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if _state.capture is None:
        return NotImplemented
    from ..ops.custom_rule.autograd_function import call_autograd_function

    return call_autograd_function(cls, args, kwargs)


_READS: dict[Any, str] = {
    Tensor.__bool__: "bool() (an `if`, `while`, `and`, `or` or `not`)",
    Tensor.item: ".item()",
    Tensor.tolist: ".tolist()",
    Tensor.numpy: ".numpy()",
    Tensor.__array__: "numpy conversion",
    Tensor.__int__: "int()",
    Tensor.__float__: "float()",
    Tensor.__complex__: "complex()",
    Tensor.__index__: "use as a Python index or range()",
    Tensor.is_nonzero: ".is_nonzero()",
    Tensor.__contains__: "`in`",
}


class _Lifting(TorchFunctionMode):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        capture = self.capture
        args = tuple(capture.lift_tree(a) for a in args)
        kwargs = {k: capture.lift_tree(v) for k, v in kwargs.items()} if kwargs else {}
        if func in _READS and _torch.known_constant(_torch.base_tensor(args[0])) is None:
            raise capture.refuse_reading(_READS[func])
        if func is Tensor.__getitem__:
            return indexing.getitem(*args)
        if func is Tensor.__setitem__:
            return indexing.setitem(*args)
        return func(*args, **kwargs)


_META = torch.device("meta")


class _Effects(_torch.TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.capture.is_quiet:
            return func(*args, **kwargs)
        args = tuple(self._zero_tangent(a) for a in args)
        if kwargs.get("device") == _META:
            kwargs = {**kwargs, "device": self._device(args)}
        detached = not torch.is_grad_enabled()
        if isinstance(func, _torch.OpOverload) and func._schema.is_mutable:
            self._check_writes(func, args, kwargs, detached)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        return self._untracked(out) if detached else out

    def _zero_tangent(self, x: Any) -> Any:
        """torch's kernels see that a fake is on the meta device, and make zero tangents there, which are no fakes."""
        if type(x) is not Tensor or x.device != _META:
            return x
        return torch.zeros(x.shape, dtype=x.dtype, device=self._device(()))

    def _device(self, args: Sequence[Any]) -> torch.device:
        """Where a value belongs that torch's kernels would put on the meta device."""
        devices = [x.device for x in args if isinstance(x, Tensor)] + [meta.device for meta in self.capture.inputs]
        return next((d for d in devices if d != _META), torch.device("cpu"))

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

    def _check_writes(self, func: _torch.OpOverload, args: Any, kwargs: Any, detached: bool) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for target in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(target, Tensor):
                    self.capture.check_write(func, target)
                    if detached and is_differentiable(target.dtype):
                        self._check_untracked_write(func, target)

    def _check_untracked_write(self, func: _torch.OpOverload, target: Tensor) -> None:
        """A write under no_grad keeps the target's gradient history, which a functional graph cannot say."""
        slot = _torch.get_proxy_slot(target, self.capture.tracer, None)
        if slot is not None and _depends_on_input(slot.proxy.node):
            raise CaptureError(
                message(
                    self.capture.operation,
                    f"an in-place operation under no_grad on a value that carries gradients ({func})",
                    parameter=self.capture.parameter,
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


def size_at(x: Tensor, dim: int) -> Any:
    """``x.shape[dim]``; torch's operator for it has no batching rule."""
    return x.shape[dim]


_TO_RESHAPE = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def _clean(module: fx.GraphModule) -> None:
    """Free the graph of layout assumptions, of what has no derivative, and of dead code."""
    for node in list(module.graph.nodes):
        if node.target in _TO_RESHAPE:
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.copy.default:
            replace_copy(node)
        elif node.target is torch.ops.aten.sym_size.int:
            node.target = size_at
        bound_slice(node)
    eliminate_dead_code(module)
