"""``jit``: capture once per signature, compile, and never serve what is stale.

When a trace is valid: see the note in ``calls.trace_cache``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, Protocol, overload

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from functorch_hops.calls.arguments import P, R, one_or_several, signature_of
from functorch_hops.calls.leaf import traced_through
from functorch_hops.calls.spelling import spelled
from functorch_hops.calls.validate import check_callable, kind_of
from functorch_hops.errors import ArgumentTypeError, ArgumentValueError, message
from functorch_hops.lowering.backends import Backend, Options
from functorch_hops.transforms.jitted import Jitted
from functorch_hops.transforms.jitted_function import JittedFunction
from functorch_hops.transforms.jitted_module import JittedModule, jitted_inside, module_of

__all__ = ["jit"]


class Decorator(Protocol):
    """``jit`` with its options."""

    @overload
    def __call__(self, func: nn.Module, /) -> JittedModule: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Jitted[P, R]: ...


@overload
def jit(
    func: nn.Module,
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> JittedModule: ...
@overload
def jit(
    func: Callable[P, R],
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> Jitted[P, R]: ...
@overload
def jit(
    func: None = None,
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> Decorator: ...
@spelled(
    fullgraph="leave it out: jit captures all of a function, or says why not",
    mode="write options=, of the backend",
    compiler_options="write options=, of the backend",
    **dict.fromkeys(("donate_argnums", "donate_argnames"), "leave it out: no memory of an argument is given away"),
    inline="leave it out: a jitted function that is called while another is captured becomes part of its graph",
    keep_unused="leave it out: arguments that are not used cost nothing",
    abstracted_axes="write dynamic=True",
    device="leave it out: a function runs where its arguments are",
    **dict.fromkeys(
        ("in_shardings", "out_shardings"), "leave it out: shards are those of torch.distributed, around or inside"
    ),
)
@traced_through
def jit(
    func: Callable[..., Any] | None = None,
    /,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    dynamic: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> Any:
    """Compile a function: captured once per signature, compiled, cached.

    ``jit : (a -> b) -> (a -> b)``. Equivalent to ``func``.

    Arguments:
        func: a function or an ``nn.Module``. It may use control flow of this library, close over tensors and
            modules, and apply transforms; the result takes part in every transform and in ``loss.backward()``.
            Without it, ``jit`` is a decorator: ``@fh.jit(backend="eager")``.
        static_argnums, static_argnames: arguments to be taken as hashable constants as a whole; where one of the two
            names an argument, it may be passed either way.
        dynamic: one trace for tensors of all sizes (of one number of dimensions) as far as nothing that was traced
            depends on them: what does, is noticed and captured again. Sizes 0 and 1 have traces of their own.
        backend: as ``torch.compile``'s: ``"inductor"``, ``"aot_eager"``, ``"eager"``, or a callable.
        options: the backend's options. For Inductor there is one more, ``loop_kernels``: whether a loop may be one
            kernel (True): of C++ on CPUs, of Triton on CUDA devices. Where none can be made, it is torch's own loop.

    Random numbers are fresh in every call. With ``backend="eager"`` they are those of plain eager at the same seed;
    Inductor draws others, reproducibly after ``torch.manual_seed``.

    Tensors and floats among the arguments are traced; ints, bools, strings and other hashables are static: a new value
    is a new capture. A NumPy array is traced too: the function gets it as a tensor (of the same memory and dtype), and
    a NumPy scalar as a Python number. Tensors that the function closes over are live inputs. What it reads from
    closures, globals and modules is watched: a change is a new capture. What can't be watched, and what happens once
    instead of in every call (a counter, Python's random numbers), is named in one RuntimeWarning at the capture;
    ``docs/sharp_bits.md`` says more. Updates of module buffers (``BatchNorm`` in training mode) are written back after
    the call; other writes to inputs are refused, and so is an update in a body or under a transform. A result that is
    an argument, a tensor from outside, a view of one or of another result is that, and not a copy.

    Returns:
        A function of the same arguments and results as ``func``, with ``cache_info()``, ``clear_cache()`` and
        ``lower()``: a :class:`Jitted`. For a module it is a module too, which shares parameters, submodules, mode and
        attributes with ``func`` under the same names; its copies are jitted, and hooks registered on it run outside
        the graph. ``DistributedDataParallel`` runs as Python around its module, which is jitted.

    Raises:
        ArgumentTypeError: ``func`` is not callable, a static argument is not hashable.
        ArgumentValueError: a static argument is none of ``func``.
        CaptureError, DataDependentError: ``func`` can't be captured.
        InputMutationError: ``func`` writes to a tensor from outside that is no buffer, or can't be written back to.

    Cost: a call like one before adds some 3 microseconds to the compiled code, and a tenth of one for each place that
    the function reads; the first ones of a kind add some tens. After 8 captures of one function a warning says what
    changed.

    Source: ``jax.jit``; ``torch.compile``.

    >>> import torch, functorch_hops as fh
    >>> double = fh.jit(lambda x: x * 2, backend="eager")
    >>> double(torch.ones(2)), double(torch.zeros(2)), double.cache_info().misses
    (tensor([2., 2.]), tensor([0., 0.]), 1)
    """
    with_options: Any = functools.partial(
        jit,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        dynamic=dynamic,
        backend=backend,
        options=options,
    )
    if not isinstance(backend, str):
        check_callable("jit", "backend", backend)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        expected, remedy = "a dict, or None", "write options={'name': value}, with the names of torch.compile"
        raise ArgumentTypeError(
            message("jit", "not a dict", parameter="options", expected=expected, got=kind_of(options), remedy=remedy)
        )
    if func is None:
        return with_options
    check_callable("jit", "func", func)
    if torch.compiler.is_dynamo_compiling():
        return func  # it compiles the whole
    if isinstance(func, DistributedDataParallel):
        return jitted_inside(func, with_options(func.module))
    numbers, names = _both_ways(func, one_or_several(static_argnums), one_or_several(static_argnames))
    jitted = JittedFunction(func, numbers, names, Backend(backend, Options(options)), dynamic)
    return module_of(jitted) if isinstance(func, nn.Module) else jitted


def _both_ways(
    func: Callable[..., Any], numbers: tuple[int, ...], names: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The static arguments by position and by name: a caller may pass them either way."""
    try:
        parameters = list(signature_of(func).parameters.values())
    except (TypeError, ValueError):
        return numbers, names
    kinds = {p.kind for p in parameters}
    count = len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
    _check_static("static_argnums", numbers, range(-count, count), is_open=Parameter.VAR_POSITIONAL in kinds)
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    _check_static("static_argnames", names, named, is_open=Parameter.VAR_KEYWORD in kinds)
    either = {i: p.name for i, p in enumerate(parameters) if p.kind is p.POSITIONAL_OR_KEYWORD}
    by_name = (i for i, name in either.items() if name in names)
    by_number = (name for i, name in either.items() if i in numbers)
    return tuple(dict.fromkeys((*numbers, *by_name))), tuple(dict.fromkeys((*names, *by_number)))


def _check_static(parameter: str, given: tuple[Any, ...], known: range | list[str], *, is_open: bool) -> None:
    """``is_open``: the function takes others than those that it names."""
    unknown = [x for x in given if x not in known]
    if is_open or not unknown:
        return
    expected = f"from {known.start} to {known.stop - 1}" if isinstance(known, range) else ", ".join(known)
    raise ArgumentValueError(
        message(
            "jit",
            "the function has no such argument",
            parameter=parameter,
            expected=expected if known else "nothing: it has no arguments of this kind",
            got=repr(unknown[0]),
            remedy="name an argument of the function, as it is called",
        )
    )
