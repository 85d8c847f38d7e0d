"""Places where torch wraps or runs something that no mode sees."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
import torch.utils.dlpack
from torch import Tensor, _tensor_str
from torch._functorch import eager_transforms
from torch._higher_order_ops import utils as higher_order
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import _SingleLevelFunction
from torch.utils._python_dispatch import _disable_current_modes

from .compilers import dynamo_silent
from .dispatch import tangents_readable, without_saved_tensor_hooks
from .levels import top_interpreter
from .symbols import hear_unanswered

__all__ = ["BackwardHookFunction", "CheckpointFunction", "in_checkpoint", "install_hooks"]

BackwardHookFunction = torch.nn.modules._functions.BackwardHookFunction
CheckpointFunction = torch.utils.checkpoint.CheckpointFunction


def install_hooks(
    lift: Callable[[Tensor], Tensor],
    apply_function: Callable[[type, Sequence[Any], dict[str, Any]], Any],
    refuse_function: Callable[[type], None],
    refuse_seed: Callable[[str], None],
    is_capturing: Callable[[], bool],
    note_unanswered: Callable[[BaseException], None],
) -> None:
    """Let a running capture see what torch hides from every mode.

    ``vmap``, ``grad`` and ``vjp`` wrap their arguments in C++, and ``vmap`` takes its results apart there: a tensor
    from outside the capture would enter with the level of an unrelated transform. ``autograd.Function.apply`` runs
    ``forward`` and forgets ``backward``. The hooks hand over to ``lift`` / ``apply_function``, which do nothing unless
    a capture runs on the calling thread. There, torch logs the traceback of each shape error of the user's on top of
    raising it: that log is silent meanwhile. What sets a generator's state is no operator: ``refuse_seed`` raises in a
    capture. Reverse mode runs in a plain checkpoint, see :func:`in_checkpoint`, and torch's own checkpoint is a plain
    call in a capture and under a transform, which have no use for its hooks. torch's control flow is compiled by
    Dynamo where it is called: in a capture its operators get the user's functions. Sizes are asked for their
    values by Python itself: ``note_unanswered`` is told where there is none. A tensor's text has no effect on what
    comes later, whether it can be made or not. What torch makes of memory that others have is seen by no mode, but for
    NumPy's arrays, which an operator hands on: so it does in a capture with other memory.
    """
    from torch._functorch import vmap

    add_batch_dim, remove_batch_dim = vmap._add_batch_dim, vmap._remove_batch_dim
    wrap = eager_transforms._wrap_for_grad
    setattr(vmap, "_add_batch_dim", lambda t, dim, level: add_batch_dim(lift(t), dim, level))  # noqa: B010
    setattr(vmap, "_remove_batch_dim", lambda t, *rest: remove_batch_dim(lift(t), *rest))  # noqa: B010
    setattr(eager_transforms, "_wrap_for_grad", lambda t, level: wrap(lift(t), level))  # noqa: B010

    _hook_functions(apply_function, refuse_function)
    for name in ("_vjp_with_argnums", "grad_and_value_impl"):
        setattr(eager_transforms, name, _without_hooks_in_checkpoint(getattr(eager_transforms, name)))
    _hook_seeds(refuse_seed)
    _hook_checkpoint(is_capturing)
    _hook_control_flow(is_capturing)
    _hook_texts(is_capturing)
    _hook_shared_memory(is_capturing)
    hear_unanswered(note_unanswered)
    logging.getLogger(FakeTensor.__module__).addFilter(lambda _: not is_capturing())


def _hook_seeds(refuse: Callable[[str], None]) -> None:
    def hooked(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            refuse(original.__name__)
            return original(*args, **kwargs)

        return run

    for module in (torch.random, torch.cuda.random):
        for name in ("fork_rng", "manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"):
            original: Any = getattr(module, name, None)
            for place in (module, torch, torch.cuda):
                found: Any = getattr(place, name, None)
                if original is not None and _wraps(found, original):
                    setattr(place, name, hooked(found))


def _wraps(function: Any, original: Any) -> bool:
    """Whether a function is the original: Dynamo, once imported, wraps what stands in torch."""
    return inspect.unwrap(function, stop=lambda f: f is original) is original


def _hook_checkpoint(is_capturing: Callable[[], bool]) -> None:
    module: Any = torch.utils.checkpoint
    name = "_checkpoint_without_reentrant_generator"
    name = f"{name}_impl" if hasattr(module, f"{name}_impl") else name  # torch 2.15
    original = getattr(module, name)

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Iterator[None]:
        """What surrounds the call."""
        if is_capturing() or top_interpreter() is not None:
            yield
        else:
            yield from original(*args, **kwargs)

    setattr(module, name, run)


def _hook_control_flow(is_capturing: Callable[[], bool]) -> None:
    name = "setup_compilation_env"
    original = getattr(higher_order, name)

    @contextlib.contextmanager
    @functools.wraps(original)
    def run() -> Iterator[Any]:
        """What surrounds the compilation of one operator."""
        with original() as backend:
            if not is_capturing():
                yield backend
                return
            with dynamo_silent():
                yield backend

    for module in (higher_order, sys.modules.get("torch.nn.attention.flex_attention")):
        if module is not None:
            setattr(module, name, run)


def _hook_texts(is_capturing: Callable[[], bool]) -> None:
    """A kernel's fake version asks for the text of its tensors where it calls an operator of several overloads: C++
    tells why the first one does not fit, even if the next one does. In forward mode torch (2.13) can't make that text,
    which reads tangents where autograd is out of the way. And it turns functorch off by an object in a local variable,
    which a traceback keeps: once that is let go, the keys of that moment are set again, on a thread that has long left
    the kernel. From then on gradients there are absent.
    """

    original = _tensor_str._str

    @functools.wraps(original)
    def text(self: Tensor, *, tensor_contents: str | None = None) -> str:
        if not is_capturing():
            return original(self, tensor_contents=tensor_contents)
        with torch.no_grad(), _disable_current_modes(), torch._C._DisableFuncTorch(), tangents_readable():
            return _tensor_str._str_intern(self, tensor_contents=tensor_contents)

    setattr(_tensor_str, "_str", text)  # noqa: B010


def _hook_shared_memory(is_capturing: Callable[[], bool]) -> None:
    def hooked(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(original)
        def made(*args: Any, **kwargs: Any) -> Tensor:
            result = original(*args, **kwargs)
            if not is_capturing():
                return result
            with torch._C.DisableTorchFunction():
                lifted: Tensor = torch.ops.aten.lift_fresh.default(result)
            return lifted

        return made

    for module, name in ((torch, "frombuffer"), (torch, "from_dlpack"), (torch.utils.dlpack, "from_dlpack")):
        setattr(module, name, hooked(getattr(module, name)))


class _Checkpoints(threading.local):
    active = 0


_checkpoints = _Checkpoints()


@contextlib.contextmanager
def in_checkpoint() -> Iterator[None]:
    """Let torch's transforms run although ``torch.utils.checkpoint`` has its hooks on saved tensors in place.

    torch refuses such hooks there. Meanwhile they are suspended: what a transform saves is kept, not computed again.
    """
    _checkpoints.active += 1
    try:
        yield
    finally:
        _checkpoints.active -= 1


def _without_hooks_in_checkpoint(transform: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(transform)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _checkpoints.active:
            return transform(*args, **kwargs)
        with without_saved_tensor_hooks():
            return transform(*args, **kwargs)

    return run


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
    run = hooked(lambda cls, *args, **kwargs: method.__get__(None, cls)(*args, **kwargs))

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # `torch.compile(MyFunction.apply)` traces this; it knows the method
            return cls.apply(*args, **kwargs)
        return run(cls, *args, **kwargs)

    setattr(torch.autograd.Function, "apply", classmethod(apply))  # noqa: B010
    if isinstance(method, classmethod):
        below = lambda cls, *args: super(_SingleLevelFunction, cls).apply(*args)
        setattr(_SingleLevelFunction, "apply", classmethod(hooked(below)))  # noqa: B010
    else:
        setattr(module.BackwardCFunction, "__init__", made)  # noqa: B010
    setattr(module, "custom_function_call", hooked(module.custom_function_call))  # noqa: B010
