"""Every private torch API of functorch, dispatch, fake and proxy tensors that this package uses.

Checked against torch 2.13.0 and 2.11.0. Nothing outside this module imports a ``torch._*`` name, so a new
torch release is checked here. Dynamo's and Inductor's private API have rooms of their own.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, _functorch
from torch._functorch import eager_transforms
from torch._functorch.autograd_function import VmapInfo as _VmapInfo
from torch._functorch.pyfunctorch import (
    dispatch_functorch,
    retrieve_current_functorch_interpreter,
    temporarily_clear_interpreter_stack,
)
from torch._functorch.utils import enable_single_level_autograd_function
from torch._functorch.vmap import restore_vmap, unwrap_batched, wrap_batched
from torch._library.custom_ops import OPDEFS
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction, once_differentiable
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    PythonKeyTracer,
    disable_proxy_modes_tracing,
    get_proxy_slot,
    track_tensor_tree,
)
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "DataDependentOutputException",
    "DispatchKey",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "OpOverload",
    "ProxyTorchDispatchMode",
    "PythonKeyTracer",
    "SingleLevelFunction",
    "TorchDispatchMode",
    "WeakTensorKeyDictionary",
    "disable_proxy_modes_tracing",
    "dispatch_functorch",
    "enable_single_level_autograd_function",
    "get_proxy_slot",
    "restore_vmap",
    "track_tensor_tree",
    "unwrap_batched",
    "wrap_batched",
]

SingleLevelFunction = _SingleLevelFunction
TransformType = _functorch.TransformType
CurrentInterpreter = retrieve_current_functorch_interpreter

is_wrapped = _functorch.is_functorch_wrapped_tensor
is_batched_wrapper = _functorch.is_batchedtensor
unwrap_once = _functorch.get_unwrapped
unwrap_if_dead = _functorch.unwrap_if_dead
unwrap_for_grad = _functorch._unwrap_for_grad
wrap_for_grad = _functorch._wrap_for_grad
top_interpreter = _functorch.peek_interpreter_stack
function_modes = _get_current_function_mode_stack
without_torch_function = torch._C.DisableTorchFunction
below_autograd = torch._C._AutoDispatchBelowAutograd


# ---------------------------------------------------------------------------------------------------------------------
# functorch levels


def base_tensor(t: Tensor) -> Tensor:
    """The tensor below every functorch wrapper."""
    while is_wrapped(t):
        t = unwrap_once(t)
    return t


def is_batched(t: Tensor) -> bool:
    """Whether some enclosing vmap level maps over ``t``: its value then differs between lanes."""
    while is_wrapped(t):
        if is_batched_wrapper(t):
            return True
        t = unwrap_once(t)
    return False


def without_gradient_levels(t: Tensor) -> Tensor:
    """``t`` as it was before transforms that differentiate wrapped it, as far as no vmap did so in between."""
    while _functorch.is_gradtrackingtensor(t):
        t = unwrap_once(t)
    return t


def read_number(t: Tensor) -> Any:
    """The Python number that the unbatched one-element tensor ``t`` holds, whatever wraps it."""
    if top_interpreter() is None and not is_wrapped(t):
        return t.item()
    with below_transforms():
        return base_tensor(t).item()


@contextlib.contextmanager
def below_transforms() -> Iterator[None]:
    """Run without functorch levels: tensors made here are wrapped by none."""
    if top_interpreter() is None:
        yield
        return
    with temporarily_clear_interpreter_stack():
        yield


def plain(t: Tensor) -> Tensor:
    """``t`` as a tensor that a HOP may hand to any kernel: no dead wrapper, zero tensor, lazy conj or neg."""
    t = unwrap_if_dead(t)
    if t._is_zerotensor():
        t = torch.zeros_like(t)
    if t.is_conj():
        t = t.resolve_conj()
    if t.is_neg():
        t = t.resolve_neg()
    return t


def has_own_operators(t: Tensor) -> bool:
    """Whether the class of ``t`` redefines what operators do. A graph knows nothing of that."""
    cls = type(t)
    if cls in PLAIN_TYPES or issubclass(cls, (FakeTensor, FunctionalTensor)):
        return False
    function = getattr(cls.__torch_function__, "__func__", cls.__torch_function__)
    known = Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl  # type: ignore[attr-defined]
    return function not in known or cls.__torch_dispatch__ is not Tensor.__torch_dispatch__


def as_plain_class(t: Tensor) -> Tensor:
    """A tensor of a class that only bears a name, as one of the base class."""
    if type(t) in PLAIN_TYPES or isinstance(t, (FakeTensor, FunctionalTensor)):
        return t
    return t.as_subclass(Tensor)


MAKE_DUAL = torch._VF._make_dual
"""What ``torch.func.jvp`` and ``forward_ad.make_dual`` call."""


def make_dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """``forward_ad.make_dual``, which copies a tangent of another layout in place, by a kernel that knows no symbolic
    sizes.
    """
    return forward_ad.make_dual(primal.contiguous(), tangent.contiguous())


def vjp(func: Callable[..., Any], args: Sequence[Any], argnums: Sequence[int], has_aux: bool) -> tuple[Any, ...]:
    """``torch.func.vjp`` for some of the arguments; all may be updated in place."""
    result: tuple[Any, ...] = eager_transforms._vjp_with_argnums(func, *args, argnums=tuple(argnums), has_aux=has_aux)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# modes and dispatch state


PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter, int})
"""Operands without a dispatch of their own."""

_CLEAN_INCLUDE = torch._C._dispatch_tls_local_include_set()
_CLEAN_EXCLUDE = torch._C._dispatch_tls_local_exclude_set()
_AUTOCAST_KEYS = (DispatchKey.AutocastCPU, DispatchKey.AutocastCUDA)


def in_gradient_level() -> bool:
    """Whether a level of functorch differentiates."""
    if top_interpreter() is None:
        return False
    keys = [level.key() for level in _functorch.get_interpreter_stack() or ()]
    return TransformType.Grad in keys or TransformType.Jvp in keys


def operator_with_rule(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> OpOverload | None:
    """The operator that is called, if torch can't differentiate it as a part of functorch's dispatch: its kernel for
    autograd is written in Python, or it was found to have none.
    """
    if isinstance(func, OpOverloadPacket) and func._qualified_op_name.partition("::")[0] != "aten":
        names = func.overloads()
        name = names[0] if len(names) == 1 else torch._C._jit_resolve_packet(func._qualified_op_name, *args, **kwargs)
        func = getattr(func, name or "default")
    if not isinstance(func, OpOverload) or func._schema.is_mutable:
        return None
    schema = func._schema
    name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    in_python = f"{name.replace('::', '/')}/Autograd" in torch.library._impls
    return func if in_python or schema.name in _without_formula else None


def has_formula(func: OpOverload) -> bool:
    """Whether it is known what the derivative of this operator is."""
    definition = OPDEFS.get(func._schema.name)
    has_own = definition is None or definition._backward_fn is not None
    return has_own and func._schema.name not in _without_formula


_without_formula: set[str] = set()


def found_without_formula(error: RuntimeError) -> bool:
    """Whether torch says that an operator has no derivative, which was not known of it."""
    match = re.match(r"derivative for (\S+) is not implemented", str(error))
    if match is None or match[1] in _without_formula:
        return False
    _without_formula.add(match[1])
    return True


@contextlib.contextmanager
def _without_function_modes() -> Iterator[None]:
    """Suspend every ``__torch_function__`` mode except the default device's."""
    modes = function_modes()
    for _ in modes:
        _pop_mode()
    kept = [mode for mode in modes if isinstance(mode, DeviceContext)]
    for mode in kept:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in kept:
            _pop_mode()
        for mode in modes:
            _push_mode(mode)


@contextlib.contextmanager
def _without_saved_tensor_hooks() -> Iterator[None]:
    """Suspend hooks on saved tensors (``save_on_cpu``, ``torch.utils.checkpoint``): functorch refuses to run with
    them.
    """
    autograd, hooks = torch._C._autograd, []
    while (hook := autograd._top_saved_tensors_default_hooks(False)) is not None:
        autograd._pop_saved_tensors_default_hooks()
        hooks.append(hook)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(*hook)


@contextlib.contextmanager
def _dual_level_as_jvp() -> Iterator[None]:
    """Let functorch's jvp join a dual level of plain autograd, as it joins that of another jvp: torch has one only."""
    from torch._functorch import eager_transforms

    joins = in_dual_level() and eager_transforms.JVP_NESTING == 0
    eager_transforms.JVP_NESTING += joins
    try:
        yield
    finally:
        eager_transforms.JVP_NESTING -= joins


@contextlib.contextmanager
def suspended(*, keep_autocast: bool) -> Iterator[None]:
    """Run as on a fresh thread: no functorch level, no mode, clean dispatch keys, gradients on.

    The order matters (the interpreter stack owns dispatch keys that the guard would otherwise drop). Autocast is
    kept where user code is traced, because it decides the dtypes that the user sees, and is off where a graph that
    holds its casts already is run or transformed.
    """
    exclude = _CLEAN_EXCLUDE
    if keep_autocast:
        current = torch._C._dispatch_tls_local_exclude_set()
        for key in _AUTOCAST_KEYS:
            exclude = exclude.remove(key) if not current.has(key) else exclude
    with contextlib.ExitStack() as stack:
        stack.enter_context(below_transforms())
        stack.enter_context(torch._C._EnableTorchFunction())
        stack.enter_context(_without_function_modes())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C._ForceDispatchKeyGuard(_CLEAN_INCLUDE, exclude))
        if not keep_autocast:
            stack.enter_context(torch._C._DisableAutocast())
        stack.enter_context(_without_saved_tensor_hooks())
        stack.enter_context(_dual_level_as_jvp())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_set_fwd_grad_enabled(True))
        stack.enter_context(_shared_dual_level())
        stack.enter_context(_without_validation())
        yield


@contextlib.contextmanager
def _shared_dual_level() -> Iterator[None]:
    """``torch.func.jvp`` enters the one level that forward mode has, unless a jvp around it did: nor must it within a
    plain ``dual_level``, whose values it wraps before it uses that level.
    """
    outer = int(in_dual_level() and eager_transforms.JVP_NESTING == 0)
    eager_transforms.JVP_NESTING += outer
    try:
        yield
    finally:
        eager_transforms.JVP_NESTING -= outer


@contextlib.contextmanager
def _without_validation() -> Iterator[None]:
    """``torch.distributions`` does not look at the values of its parameters unless it is told to, as under
    ``torch.compile``.
    """
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)


def autocast_off() -> contextlib.AbstractContextManager[None]:
    """Captured graphs hold the casts that autocast made, so they run without it."""
    return torch._C._DisableAutocast()


def foreign_capture_active() -> bool:
    """Whether torch's own tracing (export, make_fx, FakeTensorMode) is at work around us."""
    has_fakes = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    return has_fakes or foreign_tracer_active()


def foreign_tracer_active() -> bool:
    """Whether torch records operators around us: its export or make_fx."""
    has_proxies = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    return has_proxies or is_pre_dispatch()


def is_pre_dispatch() -> bool:
    """Whether torch records operators above autograd and functorch, as its export does."""
    return torch._C._dispatch_tls_is_dispatch_key_included(DispatchKey.PreDispatch)


def no_modes() -> bool:
    """Whether neither a transform nor a dispatch mode is active: nothing but autograd stands before a kernel."""
    return top_interpreter() is None and torch._C._len_torch_dispatch_stack() == 0


def observer() -> TorchDispatchMode | None:
    """The innermost dispatch mode if nothing is traced, hence a mode of the user's, such as a FLOP counter."""
    modes = _get_current_dispatch_mode_stack()
    is_tracing = any(isinstance(mode, (ProxyTorchDispatchMode, FakeTensorMode)) for mode in modes)
    return modes[-1] if modes and not is_tracing else None


def in_dual_level() -> bool:
    """Whether plain forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def has_tangent(t: Tensor) -> bool:
    """Whether plain forward-mode differentiation is at work on ``t``."""
    return in_dual_level() and forward_ad.unpack_dual(t).tangent is not None


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Inside ``Function.forward``: gradients of both modes on again, autograd's kernels skipped."""
    with torch.enable_grad(), _set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        yield


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """As on values without history, in both modes."""
    with torch.no_grad(), _set_fwd_grad_enabled(False):
        yield


def in_no_mode_of_gradients() -> bool:
    return not (torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled())


@contextlib.contextmanager
def lowered(interpreter: Any) -> Iterator[None]:
    """Inside ``Function.forward`` at a functorch level: run at the level below, gradients of both modes on."""
    with torch.enable_grad(), _set_fwd_grad_enabled(True), interpreter.lower():
        yield


# ---------------------------------------------------------------------------------------------------------------------
# fake tensors and tracing


def new_fake_mode(env: Any = None) -> FakeTensorMode:
    """A FakeTensorMode with a ShapeEnv, which open sizes and unbacked ones (saved carries of a while loop) need."""
    return FakeTensorMode(shape_env=env or new_shape_env(), allow_non_fake_inputs=False, static_shapes=True)


def refused_read(error: BaseException) -> str | None:
    """What asked for a value that only a run would know (a traced tensor's, a lane's), if torch refused that."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return f"the operator {error.func.overloadpacket.__name__}"
    if isinstance(error, GuardOnDataDependentSymNode):
        return READ_AS_SIZE
    if type(error) is RuntimeError:
        return next((what for words, what in _VMAP_REFUSALS.items() if words in str(error)), None)
    return None


READ_AS_SIZE = "use as a size, a bound or a Python number"
_VMAP_REFUSALS = {
    "vmap: It looks like you're attempting to use a Tensor in some data-dependent control flow": "bool(), as `if`, "
    "`while`, `and`, `or`, `not` and `in` call it",
    "vmap: It looks like you're calling .item() on a Tensor": ".item()",
}


def is_captured_write_error(error: RuntimeError) -> bool:
    """Whether functorch refused to write to a tensor from outside of a transform."""
    texts = "would mutate a captured Tensor", "will be updated in place, were not batched", "vmap: inplace arithmetic"
    return any(text in str(error) for text in texts)


def function_name(func: Any) -> str:
    """The name under which a user knows a function that a ``__torch_function__`` mode sees."""
    return torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))


def new_tracer(root: torch.nn.Module, graph: torch.fx.Graph) -> PythonKeyTracer:
    """A proxy tracer that appends to ``graph`` and keeps constants and static parameters on ``root``."""
    tracer = PythonKeyTracer()
    tracer.root = root
    tracer.graph = graph
    tracer.tensor_attrs = {}
    return tracer


def new_graph_module(root: torch.nn.Module, graph: torch.fx.Graph) -> torch.fx.GraphModule:
    """A GraphModule that generates its code when it first runs: most graphs are only steps to others."""
    return _LazyGraphModule(root, graph)


def run_of(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """The generated code of a graph."""
    _LazyGraphModule.force_recompile(module)
    return module.forward


def storage_key(t: Tensor) -> int:
    """Identity of the storage of ``t``; equal for views of one tensor."""
    return t.untyped_storage()._cdata


def known_constant(t: Tensor) -> Tensor | None:
    """The value of a traced tensor where tracing knows it (``torch.tensor(3)`` in the body), else None."""
    constant: Tensor | None = getattr(t, "constant", None)
    return constant


def known_number(t: Tensor) -> Any:
    """The number that tracing knows a one-element tensor to hold, else None."""
    constant = known_constant(base_tensor(t))
    if constant is None:
        return None
    with suspended(keep_autocast=False):
        return constant.item()


# ---------------------------------------------------------------------------------------------------------------------
# hooks: places where torch wraps or runs something that no mode sees


def install_hooks(
    lift: Callable[[Tensor], Tensor],
    apply_function: Callable[[type, Sequence[Any], dict[str, Any]], Any],
    refuse_function: Callable[[type], None],
    is_capturing: Callable[[], bool],
) -> None:
    """Let a running capture see what torch hides from every mode.

    ``vmap``, ``grad`` and ``vjp`` wrap their arguments in C++, and ``vmap`` takes its results apart there: a tensor from
    outside the capture would enter with the level of an unrelated transform. ``autograd.Function.apply`` runs ``forward`` and forgets ``backward``. The hooks
    hand over to ``lift`` / ``apply_function``, which do nothing unless a capture runs on the calling thread. There,
    torch logs the traceback of each shape error of the user's on top of raising it: that log is silent meanwhile.
    ``view`` of a zero tangent runs below the Python key: see ``_show_views_of_zeros``.
    """
    from torch._functorch import vmap

    add_batch_dim, remove_batch_dim = vmap._add_batch_dim, vmap._remove_batch_dim
    wrap = eager_transforms._wrap_for_grad
    setattr(vmap, "_add_batch_dim", lambda t, dim, level: add_batch_dim(lift(t), dim, level))  # noqa: B010
    setattr(vmap, "_remove_batch_dim", lambda t, *rest: remove_batch_dim(lift(t), *rest))  # noqa: B010
    setattr(eager_transforms, "_wrap_for_grad", lambda t, level: wrap(lift(t), level))  # noqa: B010

    _hook_functions(apply_function, refuse_function)
    _show_views_of_zeros()
    logging.getLogger(FakeTensor.__module__).addFilter(lambda _: not is_capturing())


def _hook_functions(
    apply_function: Callable[[type, Sequence[Any], dict[str, Any]], Any], refuse_function: Callable[[type], None]
) -> None:
    """``f = MyFunction.apply`` may have been bound before. Up to torch 2.13 that method ends in one that can be hooked.
    From 2.14 on it is C++ to the end, but makes its context of a Python class: it is refused there.
    """

    def is_public(cls: type) -> bool:
        return issubclass(cls, torch.autograd.Function)  # not a node of our own operators

    def hooked(original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            result = apply_function(cls, args, kwargs) if is_public(cls) else NotImplemented
            return original(cls, *args, **kwargs) if result is NotImplemented else result

        return apply

    def made(context: Any) -> None:
        if is_public(context._forward_cls):
            refuse_function(context._forward_cls)

    module, method = torch.autograd.function, vars(torch.autograd.Function)["apply"]
    bind = lambda cls, *args, **kwargs: method.__get__(None, cls)(*args, **kwargs)
    setattr(torch.autograd.Function, "apply", classmethod(hooked(bind)))  # noqa: B010
    if isinstance(method, classmethod):
        below = lambda cls, *args: super(_SingleLevelFunction, cls).apply(*args)
        setattr(_SingleLevelFunction, "apply", classmethod(hooked(below)))  # noqa: B010
    else:
        setattr(module.BackwardCFunction, "__init__", made)  # noqa: B010
    setattr(module, "custom_function_call", hooked(module.custom_function_call))  # noqa: B010


_library = torch.library.Library("aten", "IMPL")


def _show_views_of_zeros() -> None:
    """Let ``view`` of a zero tensor go the way of every other view of one.

    torch has a kernel for it that ends in the backend's: what it makes of a fake zero tensor is a meta tensor, which
    can't be added to any fake (torch 2.13: ``make_fx(vmap(hessian(f)), tracing_mode="fake")``).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its kernel is replaced
        _library.impl("view", torch.library.fallthrough_kernel, "ZeroTensor")


_ONCE_CODE = once_differentiable(lambda ctx: None).__code__
VmapInfo = _VmapInfo
"""What a ``vmap`` staticmethod gets of its transform."""


def is_once_differentiable(backward: Any) -> bool:
    """Whether a staticmethod was marked by torch's decorator of that name."""
    code = getattr(backward, "__code__", None)
    return code is _ONCE_CODE


def pytree_node(cls: type) -> torch.utils._pytree.NodeDef | None:
    """How ``torch.utils._pytree`` takes instances of one type apart, if it knows that type."""
    return torch.utils._pytree.SUPPORTED_NODES.get(cls)


def is_batched_here(t: torch.Tensor) -> bool:
    """Whether the innermost transform is a vmap that maps over ``t``."""
    if not _functorch.is_batchedtensor(t):
        return False
    # Dynamo can't ask for the level of a tensor: there, a tensor that an outer vmap maps over counts as well.
    is_dynamo = torch.compiler.is_dynamo_compiling()
    return is_dynamo or _functorch.maybe_get_level(t) == _functorch.maybe_current_level()


def unbacked_size() -> torch.SymInt:
    """A size that only a run knows, in the fake mode that is active.

    Tracing may assume that it is at least 2, so that torch takes the path for sizes in general wherever it asks for an
    empty tensor or for a broadcast; that path is right for 0 and 1 too. Nothing of this reaches compiled code.
    """
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    size: torch.SymInt = mode.shape_env.create_unbacked_symint()
    torch._check(size >= 2)
    return size


@contextlib.contextmanager
def sizes_forgotten() -> Iterator[None]:
    """Where tensors are made for their metadata only: torch would miss sizes that only a run knows in what follows."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    with mode.shape_env.ignore_fresh_unbacked_symbols():
        yield


# ---------------------------------------------------------------------------------------------------------------------
# torch's own higher-order operators, to which ours are lowered


def dense(t: Tensor) -> Tensor:
    """``t`` in the layout that its shape alone determines.

    ``contiguous()`` leaves any stride to a dimension of size 1, and any offset to a part of a tensor; torch's ``cond``
    then takes its branches' outputs for unlike (torch 2.13).
    """
    t, stride = t.contiguous(), 1
    for size, actual in zip(reversed(t.shape), reversed(t.stride())):
        if type(size) is int and size == 1 and not _is_number(actual, stride):
            return t.clone(memory_format=torch.contiguous_format)
        stride = stride * size
    # Inductor would take a clone for a no-op: it compares strides, not offsets.
    return t if _is_number(t.storage_offset(), 0) else t.flip(())


def _is_number(value: Any, number: Any) -> bool:
    return type(value) is int and type(number) is int and value == number


def unshared(tensors: Sequence[Tensor], constants: Sequence[Tensor] = ()) -> list[Tensor]:
    """The tensors, copied where they share storage with an earlier one or with a constant.

    torch's loops refuse the former, and Inductor's write the carry over the latter.
    """
    seen, result = list(constants), []
    for t in tensors:
        is_shared = any(t is other or t._is_view() or other._is_view() for other in seen)
        result.append(t.clone() if is_shared else t)
        seen.append(result[-1])
    return result


def traced(operands: Sequence[Any]) -> list[Any]:
    """Operands for a loop of torch's own in a trace of torch's own. A tensor from outside becomes a value of the trace,
    since these loops can't copy a real one there; and what torch exports has no operands that share storage.
    """
    values, seen = [], list[Tensor]()
    for x in operands:
        if isinstance(x, Tensor):
            if not isinstance(x, FakeTensor):
                x = torch.ops.aten.alias.default(x)
            elif is_exporting():
                x = unshared([x], seen)[0]
            seen.append(x)
        values.append(x)
    return values


def native_cond(pred: Tensor, true_fn: Any, false_fn: Any, operands: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.cond import cond_op

    result: Sequence[Tensor] = cond_op(pred, true_fn, false_fn, operands)
    return result


def native_scan(step: Any, init: Sequence[Tensor], xs: Sequence[Tensor], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    if init:
        from torch._higher_order_ops.scan import scan_op

        # Inductor allocates the stacks by what symbols it finds among the operands.
        sizes = _symbols([x.shape for x in (*init, *xs, *consts)])
        n = len(init) + len(xs) + len(consts)
        call = (lambda *args: step(*args[:n])) if sizes else step
        result: Sequence[Tensor] = scan_op(call, list(init), list(xs), (*consts, *sizes))
    else:
        from torch._higher_order_ops.map import map_impl

        result = map_impl(step, list(xs), list(consts))
    return result


def _symbols(shapes: Sequence[Sequence[Any]]) -> list[torch.SymInt]:
    """The sizes in these shapes that are symbols, each once."""
    sizes = (size for shape in shapes for size in shape if isinstance(size, torch.SymInt))
    return list({size.node.expr: size for size in sizes if size.node.expr.is_Symbol}.values())


def native_while_loop(cond: Any, body: Any, init: tuple[Any, ...], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.while_loop import while_loop_op

    result: Sequence[Tensor] = while_loop_op(cond, body, init, consts)
    return result


def native_while_loop_stacked(cond: Any, body: Any, init: tuple[Any, ...], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.while_loop import while_loop_stack_output_op

    result: Sequence[Tensor] = while_loop_stack_output_op(cond, body, init, consts)
    return result


def native_associative_scan(combine: Any, elems: Sequence[Tensor], consts: tuple[Any, ...]) -> Sequence[Tensor]:
    from torch._higher_order_ops.associative_scan import associative_scan_op

    result: Sequence[Tensor] = associative_scan_op(combine, list(elems), consts)
    return result


def is_exporting() -> bool:
    """Whether torch.export traces around us."""
    return torch.compiler.is_exporting()


# ---------------------------------------------------------------------------------------------------------------------
# compilation


@contextlib.contextmanager
def compilation(env: Any = None) -> Iterator[FakeTensorMode]:
    """What a compiler backend needs around it: a fake mode, a tracing context, and nothing of the caller's state."""
    from torch._guards import TracingContext, tracing

    fake_mode = new_fake_mode(env)
    with suspended(keep_autocast=False), torch.no_grad(), tracing(TracingContext(fake_mode)):
        yield fake_mode


def native_graph(module: torch.nn.Module, fakes: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The graph in torch's own operators and higher-order operators."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with fakes[0].fake_mode if fakes else new_fake_mode():  # type: ignore[attr-defined]
        return make_fx(module)(*fakes)


def lookup_backend(backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """A compiler backend by its ``torch.compile`` name."""
    from torch._dynamo.backends.registry import lookup_backend

    result: Callable[..., Any] = lookup_backend(backend)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# symbols


def new_shape_env() -> Any:
    """What the symbols of a trace belong to, and where it records what it assumes about them."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)


def new_symbol(env: Any, value: int, name: str) -> torch.SymInt:
    """An open size, at least 2, that is ``value`` in the call at hand."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    source = ConstantSource(name)
    symbol = env.create_symbol(value, source, DimDynamic.DYNAMIC)
    size: torch.SymInt = env.create_symintnode(symbol, hint=value, source=source)
    return size


def shape_env(size: torch.SymInt) -> Any:
    return size.node.shape_env


def expression(size: torch.SymInt) -> Any:
    """The sympy expression of a size, as it was written: later facts change nothing in it."""
    return size.node._expr


def facts(env: Any) -> list[Any]:
    """What was assumed about the symbols of a trace, in the order of its recording."""
    return [guard.expr for guard in env.guards]


def size_hint(size: Any) -> int:
    """An open size as it is in the call for which it was traced."""
    hint: int = size.node.hint if isinstance(size, torch.SymInt) else size
    return hint


def is_unbacked(size: Any) -> bool:
    """Whether a size depends on values that only a run knows."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))


class LiftedSymbols(dict[Any, Any]):
    """A tracer's table of symbols that asks ``lift`` for one that it does not know: a number of an enclosing
    capture.
    """

    def __init__(self, lift: Callable[[Any], Any | None]) -> None:
        super().__init__()
        self.lift = lift

    def get(self, key: Any, default: Any = None) -> Any:
        if not super().__contains__(key) and key.is_Symbol:
            found = self.lift(key)
            if found is not None:
                self[key] = found
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    def __missing__(self, key: Any) -> Any:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found


def symbol_entry(proxy: torch.fx.Proxy, value: Any) -> Any:
    """What a tracer's table of symbols holds."""
    from torch.fx.experimental.proxy_tensor import _SympyExprTrackerValue
    from torch.utils._thunk import Thunk

    return _SympyExprTrackerValue(Thunk(lambda: proxy), value)


def read_scalar(t: Tensor) -> Any:
    """``t.item()`` as an operator, which a trace records; the result is a symbolic number there."""
    return torch.ops.aten._local_scalar_dense.default(t)


# ---------------------------------------------------------------------------------------------------------------------
# what else a trace depends on


def ambient_state() -> tuple[Any, ...]:
    """Settings outside a function's arguments and environment that its trace depends on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch._C._is_any_autocast_enabled() and _autocast_dtypes(),
        _default_device() if torch._C._len_torch_function_stack() else None,
        # Composite operators choose their kernels by these.
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
        torch._C._get_cudnn_enabled(),
        torch._C._get_mkldnn_enabled(),
    )


def _autocast_dtypes() -> tuple[Any, ...]:
    return tuple(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in ("cpu", "cuda"))


def _default_device() -> torch.device | None:
    modes = function_modes()
    return next((mode.device for mode in reversed(modes) if isinstance(mode, DeviceContext)), None)


def restart_dynamo(reason: str) -> None:
    """Make Dynamo trace the current function again from its beginning."""
    from torch._dynamo.exc import UnspecializeRestartAnalysis  # importing Dynamo takes a second

    # Of all restarts this one may take another path through the code than the first attempt.
    raise UnspecializeRestartAnalysis(restart_reason=reason)
