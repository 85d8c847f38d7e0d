"""``associative_scan``: arguments, plain eager, capture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import pytree
from ...calls.leaf import one_node
from ...calls.notes import note_body
from ...calls.numbers import numbers_as_tensors
from ...calls.output import OutputSpec
from ...calls.spelling import spelled
from ...calls.trace_cache import as_graph
from ...calls.validate import as_flag, as_int, check_agreement, check_callable, check_tensor_leaves, kind_of
from ...errors import ArgumentTypeError, ArgumentValueError, ErrorContext, message
from ...ir.meta import TensorMeta
from ...trace.history import Carried
from ...trace.refusals import in_our_words
from ...trace.speculate import speculate_subgraph
from ..mode import is_capturing
from .eager import prefixes
from .op import AssociativeScanParams, associative_scan_op

__all__ = ["associative_scan"]


@one_node
@spelled(
    axis="write dim=",
    combine_fn="pass it by position: fh.associative_scan(fn, elems)",
    combine_mode="leave it out: any function of two elements works",
)
def associative_scan(fn: Callable[[Any, Any], Any], elems: Any, /, *, dim: int = 0, reverse: bool = False) -> Any:
    """All prefix reductions with an associative function, in O(log n) depth.

    ``associative_scan : (((a, a) -> a), [a]) -> [a]``. Equivalent to::

        def associative_scan(fn, elems):
            results = [elems[0]]
            for x in elems[1:]:
                results.append(fn(results[-1], x))
            return stack(results)

    Arguments:
        fn: an associative function of two elements, written for one pair (the library vmaps it). It need not commute.
        elems: a tree of tensors, all of the same size at ``dim``.
        dim: the dimension to scan along.
        reverse: flip, scan, flip.

    Returns:
        A tree like ``elems``: at place i along ``dim`` the combination of the elements up to i (from i on, if
        ``reverse``).

    Raises:
        ArgumentTypeError, ArgumentValueError: ``fn`` is not callable, there is no element tensor, sizes disagree.
        TreeMismatchError, MetadataMismatchError: ``fn`` returns something else than an element.

    Cost: O(n) work, O(log n) calls of ``fn``, each on many pairs; compiled for a CPU, one pass in one kernel. Reverse
    mode of a captured call stores the elements and their prefixes, and goes back through them one by one, with the rest
    of ``fn`` computed again. On other devices, and for half precision, it is that of the O(log n) calls. The derivative
    is that of the loop above, as far as ``fn`` is associative around its arguments.

    Source: Blelloch, "Prefix sums and their applications" (1990); ``jax.lax.associative_scan``.

    >>> import torch, functorch_hops as fh
    >>> fh.associative_scan(torch.add, torch.arange(5))
    tensor([ 0,  1,  3,  6, 10])
    """
    check_callable("associative_scan", "fn", fn)
    reverse = as_flag("associative_scan", "reverse", reverse)
    leaves, spec = check_tensor_leaves("associative_scan", "elems", numbers_as_tensors(elems))
    dims = _check_sizes(leaves, spec, as_int("associative_scan", "dim", dim))
    moved = [x.movedim(d, 0) for x, d in zip(leaves, dims)]
    if reverse:
        moved = [x.flip(0) for x in moved]
    element = OutputSpec(spec, tuple(TensorMeta(tuple(x.shape[1:]), x.dtype, x.device) for x in moved))
    if is_capturing() or moved[0].shape[0] == 0:
        results = as_graph("associative_scan", _captured_associative_scan, (fn,), (moved,), element, observed=True)
    else:
        results = _plain_associative_scan(fn, moved, element)
    if reverse:
        results = [y.flip(0) for y in results]
    return pytree.unflatten(spec, [y.movedim(0, d) for y, d in zip(results, dims)])


def _check_sizes(leaves: list[Tensor], spec: pytree.Spec, dim: int) -> list[int]:
    if not leaves:
        problem, remedy = "there is no tensor to scan", "put what is scanned into elems"
        raise ArgumentTypeError(
            message("associative_scan", problem, parameter="elems", expected="a tensor", remedy=remedy)
        )
    dims = []
    for path, x in zip(pytree.leaf_paths(spec, "elems"), leaves):
        if not -x.dim() <= dim < x.dim():
            expected = f"at least {dim + 1 if dim >= 0 else -dim} dimension(s)"
            remedy = "pass the dim that all elements have, and close over what is not scanned"
            problem, got = f"no dimension {dim}", kind_of(x)
            text = message("associative_scan", problem, path=path, expected=expected, got=got, remedy=remedy)
            raise ArgumentValueError(text)
        dims.append(dim % x.dim())
        if x.shape[dim] != leaves[0].shape[dim]:
            expected = f"{leaves[0].shape[dim]} at dimension {dim}, as in {pytree.leaf_paths(spec, 'elems')[0]}"
            got = f"{x.shape[dim]}, in {kind_of(x)}"
            remedy = "expand what is the same in all elements, or close over it"
            text = message("associative_scan", "sizes disagree", path=path, expected=expected, got=got, remedy=remedy)
            raise ArgumentValueError(text)
    return dims


def _checked_fn(fn: Callable[[Any, Any], Any], element: OutputSpec) -> Callable[..., list[Tensor]]:
    """``fn`` on flat leaves of one pair."""
    k = len(element.leaves)

    def flat(*args: Tensor) -> list[Tensor]:
        try:
            result = fn(element.unflatten(args[:k]), element.unflatten(args[k : 2 * k]))
        except Exception as error:
            note_body(error, "associative_scan", fn, ())
            raise
        tensors, returned = OutputSpec.of_body(result)
        sides = ("elems", element), ("fn", returned)
        check_agreement(
            "associative_scan",
            "an element and what fn returns",
            *sides,
            parameter="fn",
            path="element",
            is_carry=True,
        )
        return tensors

    return flat


def _plain_associative_scan(
    fn: Callable[[Any, Any], Any], elems: Sequence[Tensor], element: OutputSpec
) -> Sequence[Tensor]:
    flat = _checked_fn(fn, element)
    vmapped = torch.func.vmap(lambda *args: tuple(flat(*args)), randomness="different")
    with in_our_words(ErrorContext("associative_scan", "fn")):
        return prefixes(lambda a, b: vmapped(*a, *b), elems)


def _captured_associative_scan(
    functions: Sequence[Callable[[Any, Any], Any]], operands: tuple[Sequence[Tensor]], element: OutputSpec
) -> Sequence[Tensor]:
    (fn,), (elems,) = functions, operands
    inputs = [*element.metas, *element.metas]
    left = [Carried(x, i) for i, x in enumerate(elems)]
    body, lifted = speculate_subgraph(
        _checked_fn(fn, element), inputs, operation="associative_scan", parameter="fn", sources=[*left, *left]
    )
    return associative_scan_op(AssociativeScanParams(body, len(elems)), *elems, *lifted)
