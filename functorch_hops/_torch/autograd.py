"""Autograd: both modes on and off, the one dual level of forward mode, and which operators have a derivative."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch._functorch.autograd_function import VmapInfo as _VmapInfo
from torch._functorch.utils import enable_single_level_autograd_function
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction, once_differentiable

from .forward_rules import differentiated_again
from .inference import outside_inference
from .levels import top_interpreter

__all__ = [
    "MAKE_DUAL",
    "SingleLevelFunction",
    "VmapInfo",
    "Written",
    "applied",
    "below_autograd",
    "differentiable",
    "enable_single_level_autograd_function",
    "found_without_formula",
    "has_formula",
    "has_tangent",
    "in_dual_level",
    "in_no_mode_of_gradients",
    "inputs_stay",
    "is_leaf",
    "is_once_differentiable",
    "lowered",
    "make_dual",
    "operator_with_rule",
    "refuse_written",
    "saved_despite_writes",
    "values_before_writes",
    "vjp",
    "writable",
]

SingleLevelFunction = _SingleLevelFunction
below_autograd = torch._C._AutoDispatchBelowAutograd
_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
MAKE_DUAL = torch._VF._make_dual
"""What ``torch.func.jvp`` and ``forward_ad.make_dual`` call."""


def is_leaf(t: Tensor) -> bool:
    """``t.is_leaf``, also of a view in a level that is not entered now.

    Autograd takes a view of what was written to since again, in the levels that are there: without its own one the view
    gets no history, which autograd asserts. A view taken where gradients are tracked is never a leaf if what it is a
    view of requires one.
    """
    autograd: Any = torch._C._autograd
    base = t._base
    if base is not None and base.requires_grad and autograd._get_creation_meta(t) == autograd.CreationMeta.DEFAULT:
        return not t.requires_grad
    return t.is_leaf


def applied(function: type[_SingleLevelFunction]) -> Callable[..., Any]:
    """``function.apply``, past what waits there for functions of the user's."""
    apply: Callable[..., Any] = super(_SingleLevelFunction, function).apply  # type: ignore[misc]
    return apply


_TELLS_WRITTEN = hasattr(torch._C._autograd.SavedTensor, "unpack")
"""Whether one saved tensor can be unpacked alone, and looked at without (torch 2.11 knows all of a node's only)."""

Written = dict[int, tuple[Tensor, RuntimeError]]
"""Saved inputs that were written to since, by their places, as they are now; and torch's error."""


def saved_despite_writes(ctx: Any, n_inputs: int, written: Written) -> list[Tensor | None]:
    """What a Function saved. Of the first ``n_inputs``, which are inputs, torch refuses to unpack those that were
    written to: they are added to ``written``, and a hook answers for them from then on.
    """
    while True:
        try:
            saved = list(ctx.saved_tensors)
            break
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error) or not _TELLS_WRITTEN:
                raise
            packed = ctx._raw_saved_tensors
            places = [i for i in range(n_inputs) if not _unpacks(packed[i])]
            if not places:
                raise
            kept = error.with_traceback(None)  # whose frames would keep all that was saved, in a cycle
            for i in places:
                written[i] = packed[i].data, kept
                packed[i].register_hooks(lambda t: t, lambda t: torch.empty(0))
    for i, (value, _) in written.items():
        saved[i] = value
    return saved


class _Tracing(threading.local):
    inputs_stay = False


_tracing = _Tracing()


@contextlib.contextmanager
def inputs_stay() -> Iterator[None]:
    """While AOTAutograd traces a graph that writes to none of its inputs but at the end: see NOTE [Inputs that are
    written to are copied].
    """
    outer, _tracing.inputs_stay = _tracing.inputs_stay, True
    try:
        yield
    finally:
        _tracing.inputs_stay = outer


def values_before_writes(inputs: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """By their places, the values of those inputs that AOTAutograd traces. A write to one gives it another value, and
    leaves the one that it had to whoever holds it.
    """
    found: dict[int, Tensor] = {}
    for i, x in enumerate(inputs) if _tracing.inputs_stay else ():
        if isinstance(x, FunctionalTensor):
            torch._sync(x)
            found[i] = FunctionalTensor.to_functional(torch._from_functional_tensor(x.elem).detach())
    return found


def refuse_written(written: Written) -> None:
    """Raise torch's error, if there is one: more is read than the caller of :func:`saved_despite_writes` looks at."""
    for _, error in written.values():
        raise error


def _unpacks(packed: Any) -> bool:
    try:
        packed.unpack()
    except RuntimeError:
        return False
    return True


def writable(results: Sequence[Tensor]) -> Sequence[Tensor]:
    """The results of a call without a gradient history, none a view: torch refuses work in place on views that were
    taken where nothing was recorded. What they are views of belongs to nobody else.
    """
    with torch._C.DisableTorchFunction():
        are_views = [t._is_view() for t in results]
    return tuple(t.detach() if is_view else t for t, is_view in zip(results, are_views)) if any(are_views) else results


def make_dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """``forward_ad.make_dual``, which copies a tangent of another layout in place, by a kernel that knows no symbolic
    sizes.
    """
    return forward_ad.make_dual(primal.contiguous(), tangent.contiguous())


def vjp(func: Callable[..., Any], args: Sequence[Any], argnums: Sequence[int] | None, has_aux: bool) -> tuple[Any, ...]:
    """``torch.func.vjp`` for some of the arguments, None for all of them, which may all be updated in place. Inside of
    another transform it can be differentiated again, see NOTE [Right rules for forward mode].
    """
    run = outside_inference(eager_transforms._vjp_with_argnums)
    numbers = None if argnums is None else tuple(argnums)
    with contextlib.nullcontext() if top_interpreter() is None else differentiated_again():
        outputs, pull, *aux = run(_with_known_history(func), *args, argnums=numbers, has_aux=has_aux)
    return outputs, outside_inference(pull), *aux


def _with_known_history(func: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose results know their gradient history. That of a view whose base was written to is found
    when it is asked for, which in a dispatch mode fails where the level has ended (torch 2.13), as in a pull function.
    """

    def call(*args: Tensor) -> Any:
        results = func(*args)
        with torch._C.DisableTorchFunction():
            for t in torch.utils._pytree.tree_leaves(results):
                if isinstance(t, Tensor) and t._is_view():
                    _ = t.grad_fn
        return results

    return call


def in_dual_level() -> bool:
    """Whether plain forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def has_tangent(t: Tensor) -> bool:
    """Whether plain forward-mode differentiation is at work on ``t``."""
    return in_dual_level() and forward_ad.unpack_dual(t).tangent is not None


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Inside ``Function.forward``: gradients of both modes on again, autograd's kernels skipped.

    Nor is it noted what is a view of what: a tangent of a view is given to its base too, whose layout is another.
    """
    with (
        torch.enable_grad(),
        _set_fwd_grad_enabled(True),
        torch._C._AutoDispatchBelowAutograd(),
        torch._C._ExcludeDispatchKeyGuard(_VIEWS),
    ):
        yield


@contextlib.contextmanager
def lowered(interpreter: Any) -> Iterator[None]:
    """Inside ``Function.forward`` at a functorch level: run at the level below, gradients of both modes on."""
    with torch.enable_grad(), _set_fwd_grad_enabled(True), interpreter.lower():
        yield


def in_no_mode_of_gradients() -> bool:
    return not (torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled())


def operator_with_rule(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> OpOverload | None:
    """The operator, if functorch can't differentiate it: its autograd kernel is a Python function (``torch.library``),
    or torch has said that it has none. Else None.
    """
    if isinstance(func, OpOverloadPacket) and func._qualified_op_name.partition("::")[0] != "aten":
        names = func.overloads()
        name = names[0] if len(names) == 1 else torch._C._jit_resolve_packet(func._qualified_op_name, *args, **kwargs)
        func = getattr(func, name or "default")
    if not isinstance(func, OpOverload):
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


_ONCE_CODE = once_differentiable(lambda ctx: None).__code__
VmapInfo = _VmapInfo
"""What a ``vmap`` staticmethod gets of its transform."""


def is_once_differentiable(backward: Any) -> bool:
    """Whether a staticmethod was marked by torch's decorator of that name."""
    code = getattr(backward, "__code__", None)
    return code is _ONCE_CODE
