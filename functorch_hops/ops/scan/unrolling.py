"""``unroll=k``: a captured loop takes k steps of the body per iteration, and the remainder after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _torch
from ...derive.rewrite import rewritten
from ...ir.dependence import needed_inputs
from ...ir.meta import TensorMeta
from ...ir.subgraph import Subgraph
from ...passes.hoisting import is_any, split_invariant
from ...passes.passthrough import simplify_call
from ...passes.rewiring import restricted
from .op import ScanParams, scan_op, split_operands
from .passthrough import scan_passthrough

__all__ = ["run_in_chunks", "run_unrolled", "simplified"]

Rest = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


class Loop(NamedTuple):
    """A scan before it is called: its body, its operands, and a function from its outputs to those that are wanted."""

    body: Subgraph
    init: Sequence[Tensor]
    xs: Sequence[Tensor]
    consts: Sequence[Tensor]
    restore: Callable[[Sequence[Tensor]], Sequence[Tensor]]


def simplified(
    body: Subgraph,
    length: Any,
    init: Sequence[Tensor],
    xs: Sequence[Tensor],
    consts: Sequence[Tensor],
    reverse: bool,
) -> Loop:
    """The loop without what only passes through it, and with invariant work done."""
    params = ScanParams(body, len(init), len(xs), reverse)
    params, operands, restore = simplify_call(scan_passthrough, params, [length, *init, *xs, *consts])
    _, init, xs, consts = split_operands(params, operands)
    body = params.body
    if isinstance(length, int) and length > 0:
        body, consts = _without_invariants(body, len(init), xs, consts)
    return Loop(body, init, xs, consts, restore)


def run_unrolled(
    body: Subgraph,
    n_carry: int,
    length: Any,
    init: Sequence[Tensor],
    xs: Sequence[Tensor],
    consts: Sequence[Tensor],
    reverse: bool,
    unroll: int,
) -> Sequence[Tensor]:
    """``scan`` with ``unroll`` steps in each iteration. An open length has no remainder that is known: no unrolling."""

    def rest(length: Any, carry: Sequence[Tensor], xs: Sequence[Tensor]) -> Sequence[Tensor]:
        return _scan(body, n_carry, length, carry, xs, consts, reverse)

    if unroll == 1 or isinstance(length, torch.SymInt) or length < 2 * unroll:
        return rest(length, init, xs)
    several = _several_steps(body, n_carry, len(xs), unroll, reverse)
    return run_in_chunks(several, unroll, rest, n_carry, length, init, xs, consts, reverse)


def run_in_chunks(
    chunk: Subgraph,
    size: int,
    rest: Rest,
    n_carry: int,
    length: Any,
    init: Sequence[Tensor],
    xs: Sequence[Tensor],
    consts: Sequence[Tensor],
    reverse: bool,
) -> Sequence[Tensor]:
    """A scan over chunks of ``size`` steps, whose body is ``chunk``, and ``rest`` for what remains.

    The remainder runs last, so in reverse it is the first part of ``xs``.
    """
    chunks, remainder = length // size, length % size
    cut = remainder if reverse else chunks * size
    head, tail = [x[:cut] for x in xs], [x[cut:] for x in xs]
    chunked, left = (tail, head) if reverse else (head, tail)
    folded = [x.unflatten(0, (chunks, size)) for x in chunked]
    outs = _scan(chunk, n_carry, chunks, init, folded, consts, reverse)
    carry, ys = outs[:n_carry], [y.flatten(0, 1) for y in outs[n_carry:]]
    if remainder == 0:
        return [*carry, *ys]
    outs = rest(remainder, carry, left)
    pairs = zip(outs[n_carry:], ys) if reverse else zip(ys, outs[n_carry:])
    return [*outs[:n_carry], *(torch.cat(pair) for pair in pairs)]


def _without_invariants(
    body: Subgraph, n_carry: int, xs: Sequence[Tensor], consts: Sequence[Tensor]
) -> tuple[Subgraph, Sequence[Tensor]]:
    """The body of a scan that takes a step, and its constants, invariant work done (NOTE [When hoisting is right])."""
    first = n_carry + len(xs)
    parts = split_invariant(body, tuple(i >= first for i in range(len(body.inputs))), is_any)
    if parts is None:
        return body, consts
    outside, inside = parts
    with _torch.autocast_off():
        consts = [*consts, *outside(*consts)]
    everything = (True,) * len(body.outputs)
    needed = needed_inputs(inside, everything)[first:]
    return restricted(inside, (*(True,) * first, *needed), everything), [c for c, n in zip(consts, needed) if n]


def _scan(
    body: Subgraph,
    n_carry: int,
    length: Any,
    carry: Sequence[Tensor],
    xs: Sequence[Tensor],
    consts: Sequence[Tensor],
    reverse: bool,
) -> Sequence[Tensor]:
    return scan_op(ScanParams(body, n_carry, len(xs), reverse), length, *carry, *xs, *consts)


def _several_steps(body: Subgraph, n_carry: int, n_xs: int, k: int, reverse: bool) -> Subgraph:
    def run(*args: Tensor) -> list[Tensor]:
        carry: Sequence[Tensor] = args[:n_carry]
        xs, consts = args[n_carry : n_carry + n_xs], args[n_carry + n_xs :]
        steps = []
        for t in reversed(range(k)) if reverse else range(k):
            outs = body(*carry, *(x[t] for x in xs), *consts)
            carry = outs[:n_carry]
            steps.append(outs[n_carry:])
        if reverse:
            steps.reverse()
        return [*carry, *(torch.stack(column) for column in zip(*steps, strict=True))]

    def chunk(meta: TensorMeta) -> TensorMeta:
        return meta.with_leading(k)

    xs = body.inputs[n_carry : n_carry + n_xs]
    inputs = [*body.inputs[:n_carry], *map(chunk, xs), *body.inputs[n_carry + n_xs :]]
    return body.derive(("several steps", n_carry, n_xs, k, reverse), lambda: rewritten(run, inputs, "scan"))
