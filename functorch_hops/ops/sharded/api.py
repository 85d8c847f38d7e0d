"""``sharded_scan`` and ``sharded_associative_scan``: arguments, and the local loops between what ranks exchange."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ... import _torch, pytree
from ...calls.leaf import one_node
from ...calls.numbers import numbers_as_tensors
from ...calls.output import OutputSpec
from ...calls.trace_cache import as_graph
from ...calls.validate import as_flag, as_int, check_callable, check_tensor_leaves, kind_of
from ...errors import ArgumentTypeError, ArgumentValueError, CaptureError, ErrorContext, message
from ...ir.meta import TensorMeta
from ...trace.capture import current_capture
from ...trace.history import Carried, Itself, Part, Source
from ...trace.speculate import speculate_subgraph
from ..associative_scan.api import associative_scan
from ..cond.api import cond
from ..loops.weak_carry import InitialCarry, Weak, capture_step, kinds_of
from ..scan.api import run_scan, trip_count
from ..scan.remat import as_remat
from . import messages
from .exchanges import Receive, Send, Share, Shift, exchange
from .messages import Route

__all__ = ["sharded_associative_scan", "sharded_scan"]


def _route(operation: str, group: Any, reverse: bool) -> Route:
    """The way through the ranks of a process group, of a mesh of one dimension, or of all processes."""
    if _torch.is_exporting():
        text = message(operation, "an exported program has no process group", remedy="export the unsharded function")
        raise CaptureError(text)
    if not (dist.is_available() and dist.is_initialized()):
        remedy = "call torch.distributed.init_process_group first"
        raise ArgumentValueError(message(operation, "there is no process group", parameter="group", remedy=remedy))
    if hasattr(group, "get_group"):
        if group.ndim != 1:
            problem, expected = "the mesh has several dimensions", "a mesh of one, as mesh['sequence'] is"
            got, remedy = (
                f"{group.ndim} dimensions",
                "pass the dimension that the sequence is divided over, by its name",
            )
            raise ArgumentValueError(
                message(operation, problem, parameter="group", expected=expected, got=got, remedy=remedy)
            )
        group = group.get_group()
    group = dist.group.WORLD if group is None else group
    if not isinstance(group, dist.ProcessGroup):
        expected = "a ProcessGroup, a DeviceMesh of one dimension, or None"
        got, remedy = kind_of(group), "leave group out to take all processes"
        raise ArgumentTypeError(
            message(operation, "no process group", parameter="group", expected=expected, got=got, remedy=remedy)
        )
    return Route(group.group_name, group.size(), reverse)


def _as_one_graph(
    operation: str, parameter: str, run: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
) -> Sequence[Tensor]:
    """``run(*inputs)`` as a graph, in every mode: see NOTE [The same graph on all ranks]."""
    if current_capture() is not None:
        return run(*inputs)
    metas = [TensorMeta.of(x) for x in inputs]
    body, lifted = speculate_subgraph(
        run, metas, operation=operation, parameter=parameter, sources=list(map(Itself, inputs))
    )
    return body(*inputs, *lifted)


# ---------------------------------------------------------------------------------------------------------------------
# scan


@one_node
def sharded_scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    group: Any = None,
    reverse: bool = False,
    unroll: int = 1,
    remat: Any = None,
) -> tuple[Any, Any]:
    """``scan`` over a sequence of which each rank of a process group has a part.

    ::

        sharded_scan : ((c, a) -> (c, b), c, [a]) -> (c, [b])

    Equivalent, where ``all_gather`` and ``scatter`` are along dimension 0 and in the order of ranks, to::

        def sharded_scan(f, init, xs, *, group):
            carry, ys = scan(f, init, all_gather(xs, group))
            return carry, scatter(ys, group)

    Arguments:
        f: one step, as in :func:`scan`; the same on all ranks.
        init: the initial carry, which is that of rank 0 (of the last rank, if ``reverse``).
        xs: this rank's part of the sequence. Parts may have different lengths.
        length: that of this part; needed where ``xs`` has no leaf.
        group: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension (``mesh["sequence"]``), or None for all processes.
        reverse: go from the last element of the last rank to the first one of rank 0.
        unroll: as in :func:`scan`.
        remat: as in :func:`scan`.

    Returns:
        The final carry of the whole sequence, on all ranks, and the ys of this rank's part.

        What is differentiated is the sum over the ranks of what each differentiates. So ``xs`` get their whole
        gradient, and ``init`` and what ``f`` closes over a share of it on each rank: sum these over the ranks, as
        ``DistributedDataParallel`` does.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`scan`; ``group`` is no process group, or there is none.
        CaptureError: ``f`` can't be captured, which it is in plain eager, too; the call is to be exported.

    Cost: that of :func:`scan` over the part on each rank, one rank after the other, in reverse mode too: the memory is
    divided by the number of ranks, the time is not. Each rank sends one carry to the next. Where the step is
    associative, :func:`sharded_associative_scan` divides the time as well.

    Source: sequence parallelism of recurrent networks, as in Li et al., "Sequence parallelism" (2021).

    >>> import functorch_hops as fh, tempfile, torch
    >>> torch.distributed.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    >>> fh.sharded_scan(lambda c, x: (c + x, c * x), torch.tensor(0.0), torch.arange(4.0))
    (tensor(6.), tensor([0., 0., 2., 9.]))
    >>> torch.distributed.destroy_process_group()
    """
    check_callable("sharded_scan", "f", f)
    reverse = as_flag("sharded_scan", "reverse", reverse)
    unroll = as_int("sharded_scan", "unroll", unroll, at_least=1, is_option=True)
    remat = as_remat(remat)
    route = _route("sharded_scan", group, reverse)
    leaves, xs_spec = check_tensor_leaves("sharded_scan", "xs", numbers_as_tensors(xs))
    steps = trip_count("sharded_scan", leaves, xs_spec, length)
    start = InitialCarry.of("sharded_scan", "init", init)
    loop = _Loop(start.weak, xs_spec, steps, reverse, unroll, remat)
    carry_and_ys: tuple[Any, Any] = as_graph("sharded_scan", _chained, (f,), (start.tree, leaves), route, loop)
    return start.check_range("sharded_scan", "init", carry_and_ys[0]), carry_and_ys[1]


class _Loop(NamedTuple):
    """The loop over a part of the sequence."""

    weak: Weak
    xs_spec: pytree.Spec
    length: Any
    reverse: bool
    unroll: int
    remat: Any

    def __call__(self, f: Callable[..., Any], init: Any, leaves: list[Tensor]) -> tuple[Any, Any]:
        return run_scan(_CONTEXT, f, InitialCarry.of("sharded_scan", "init", init), leaves, *self[1:])


_CONTEXT = ErrorContext("sharded_scan", "f")


def _chained(
    functions: Sequence[Callable[..., Any]], operands: tuple[Any, list[Tensor]], route: Route, loop: _Loop
) -> tuple[Any, Any]:
    """Each rank waits for the carry of the one before it."""
    (f,), (init, leaves) = functions, operands
    given, initial = OutputSpec.flatten(init)
    n = len(given)
    results: list[OutputSpec] = []

    def local(*flat: Tensor) -> list[Tensor]:
        tensors, result = OutputSpec.of_body(loop(f, initial.unflatten(flat[:n]), list(flat[n:])))
        results.append(result)
        return tensors

    def run(*flat: Tensor) -> list[Tensor]:
        start, parts = _of_settled_kinds(f, initial, loop, flat[:n], flat[n:]), flat[n:]
        sources: list[Source] = [*(Carried(x, i) for i, x in enumerate(start)), *map(Itself, parts)]
        metas = [TensorMeta.of(x) for x in (*start, *parts)]
        body, lifted = speculate_subgraph(local, metas, operation="sharded_scan", parameter="f", sources=sources)
        carry, tied = exchange(Receive, route, start, [*parts, *lifted])
        outs = body(*carry, *tied)
        carry, ys = exchange(Send, route, outs[:n], outs[n:])
        carry, ys = exchange(Share, route, carry, ys)
        return [*carry, *ys]

    outs = _as_one_graph("sharded_scan", "f", run, [*given, *leaves])
    carry_and_ys: tuple[Any, Any] = results[-1].unflatten(outs)
    return carry_and_ys


def _of_settled_kinds(
    f: Callable[..., Any], initial: OutputSpec, loop: _Loop, init: Sequence[Tensor], parts: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The initial carry as all ranks send it: see NOTE [Numbers in a carry]."""
    if not any(loop.weak):
        return init
    sources: list[Source] = [*(Carried(x, i) for i, x in enumerate(init)), *map(Part, parts)]
    slices = [TensorMeta(tuple(x.shape[1:]), x.dtype, x.device) for x in parts]
    carry, _ = capture_step(_CONTEXT, f, initial, loop.weak, sources, slices, loop.xs_spec)
    return [x.to(device, dtype) for x, (dtype, device) in zip(init, kinds_of(carry))]


# ---------------------------------------------------------------------------------------------------------------------
# associative scan


@one_node
def sharded_associative_scan(
    fn: Callable[[Any, Any], Any], elems: Any, /, *, group: Any = None, dim: int = 0, reverse: bool = False
) -> Any:
    """``associative_scan`` over a sequence of which each rank of a process group has a part.

    ::

        sharded_associative_scan : (((a, a) -> a), [a]) -> [a]

    Equivalent, where ``all_gather`` and ``scatter`` are along ``dim`` and in the order of ranks, to::

        def sharded_associative_scan(fn, elems, *, group):
            return scatter(associative_scan(fn, all_gather(elems, group)), group)

    Arguments:
        fn: an associative function of two elements, as in :func:`associative_scan`; the same on all ranks.
        elems: this rank's part of the elements, at least one. Parts may have different lengths.
        group: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension (``mesh["sequence"]``), or None for all processes.
        dim: the dimension to scan along, which is the one that is sharded.
        reverse: from the last element of the last rank to the first one of rank 0.

    Returns:
        A tree like ``elems``: the prefixes at this rank's part.

        What is differentiated is the sum over the ranks of what each differentiates. So ``elems`` get their whole
        gradient, and what ``fn`` closes over a share of it on each rank, to be summed over the ranks.

    Raises:
        ArgumentTypeError, ArgumentValueError: as :func:`associative_scan`; a rank has no element; ``group`` is no
            process group, or there is none.
        CaptureError: ``fn`` can't be captured, which it is in plain eager, too; the call is to be exported.

    Cost: two passes over the part on each rank, all ranks at once, and 1 + log2 of the number of ranks messages of one
    element between them, in reverse mode too: O(n / ranks + log ranks).

    Source: Hillis and Steele, "Data parallel algorithms" (1986), between the ranks; Blelloch, "Prefix sums and their
    applications" (1990), on them. Linear recurrences so: Martin and Cundy, "Parallelizing linear recurrent neural nets
    over sequence length" (2018).

    >>> import functorch_hops as fh, tempfile, torch
    >>> torch.distributed.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    >>> fh.sharded_associative_scan(torch.add, torch.arange(5))
    tensor([ 0,  1,  3,  6, 10])
    >>> torch.distributed.destroy_process_group()
    """
    operation = "sharded_associative_scan"
    check_callable(operation, "fn", fn)
    reverse = as_flag(operation, "reverse", reverse)
    dim = as_int(operation, "dim", dim)
    route = _route(operation, group, reverse)
    leaves, spec = check_tensor_leaves(operation, "elems", numbers_as_tensors(elems))
    for path, x in zip(pytree.leaf_paths(spec, "elems") if leaves else (), leaves):
        if -x.dim() <= dim < x.dim() and x.shape[dim] == 0:
            problem, remedy = "a rank has no element", "divide the sequence over fewer ranks"
            raise ArgumentValueError(
                message(operation, problem, path=path, expected="at least one", got=kind_of(x), remedy=remedy)
            )
    return as_graph(operation, _combined, (fn,), (pytree.unflatten(spec, leaves),), route, dim, observed=True)


def _combined(functions: Sequence[Callable[[Any, Any], Any]], operands: tuple[Any], route: Route, dim: int) -> Any:
    """The prefixes of each part, and then what comes before it, which is found in rounds: after k of them each place
    knows the combination of the 2^k last elements, of those that are the combinations of parts.
    """
    (fn,), (elems,) = functions, operands
    leaves, spec = pytree.flatten(elems)

    def run(*flat: Tensor) -> list[Tensor]:
        prefixes = associative_scan(fn, pytree.unflatten(spec, flat), dim=dim, reverse=route.backwards)
        whole = pytree.map(lambda y: y.select(dim, 0 if route.backwards else -1), prefixes)
        place = messages.position(*route, flat[0].device)
        before = _shifted(route, 1, whole)
        reach = 1
        while reach < route.size - 1:
            earlier = _shifted(route, reach, before)
            before = cond(place > reach, fn, lambda _, later: later, earlier, before)
            reach *= 2
        outs = cond(place > 0, functools.partial(_after, fn, dim), lambda _, local: local, before, prefixes)
        return pytree.flatten(outs)[0]

    outs = _as_one_graph("sharded_associative_scan", "fn", run, leaves)
    return pytree.unflatten(spec, outs)


def _shifted(route: Route, offset: int, element: Any) -> Any:
    leaves, spec = pytree.flatten(element)
    moved, _ = exchange(functools.partial(Shift, offset=offset), route, leaves)
    return pytree.unflatten(spec, moved)


def _after(fn: Callable[[Any, Any], Any], dim: int, before: Any, prefixes: Any) -> Any:
    """All prefixes of a part, with what is before the part."""
    (first, spec), (leaves, _) = pytree.flatten(before), pytree.flatten(prefixes)
    n = len(leaves)

    def flat(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.flatten(fn(pytree.unflatten(spec, args[:n]), pytree.unflatten(spec, args[n:])))[0])

    vmapped = torch.func.vmap(flat, in_dims=(*(None,) * n, *(0,) * n), randomness="different")
    outs = vmapped(*first, *(y.movedim(dim, 0) for y in leaves))
    return pytree.unflatten(spec, [out.movedim(0, dim % out.dim()) for out in outs])
