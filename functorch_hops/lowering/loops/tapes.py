"""A loop of unknown length, and the loop backwards over what it stacked (torch 2.13).

NOTE [Tapes] What a while loop stacks for its gradient has a length that nobody knows before it ends. So its kernel
writes a tape, a record for each step, in memory that grows; and the one loop that reads the stacks is a kernel that
reads the tape. In the graph between them the tape is a tensor of two numbers, the place of the tape, whose storage is
the tape: there is no size that only a run knows, and the tape lives as long as the tensor does. Where both kernels are
calls in one function of C++, that function has the place, and frees the tape at its end. All steps on it happened, so
the loop backwards asks no flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import has_side_effect

from ...ir.build import copy_of, replace_call
from ...ir.meta import TensorMeta
from ...ir.nodes import meta_of, size_at
from ...ir.subgraph import Subgraph, params_of
from ...passes.cleaning import clean
from ...passes.rewiring import restricted
from .forms import TAPE_META, Branches, Refused, Scan, While, is_whole
from .headers import header
from .operator import effectful_kernel, empty_outputs, loop_kernel, run_kernel
from .sizes import Size, aligned
from .source import n_bytes
from .tape_values import empty_tape, free_tape, owner_of

__all__ = [
    "TAPE",
    "TAPED_KERNELS",
    "Layout",
    "Reader",
    "effectful_taped_kernel",
    "erase",
    "has_kernels",
    "layout_of",
    "reader_of",
    "taped_kernel",
]

TAPE = header("tape")

_ALIGNMENT = 16


@dataclass(frozen=True)
class Layout:
    """The records of a tape: where each value lies in one, and the bytes of one."""

    offsets: tuple[Size, ...]
    size: Size


def layout_of(metas: Sequence[TensorMeta]) -> Layout:
    offsets: list[Size] = []
    size: Size = 0
    for meta in metas:
        offsets.append(size)
        size = size + aligned(n_bytes(meta), _ALIGNMENT)
    return Layout(tuple(offsets), size)


@dataclass(frozen=True)
class Reader:
    """The loop that reads the stacks of another one. ``form``: without the flags among its xs, its length being that of
    the tape; ``rows``: for each x the value in a record; ``operands``: the initial carry and the constants.
    """

    node: fx.Node
    form: Scan
    rows: tuple[int, ...]
    operands: tuple[fx.Node, ...]


def reader_of(form: While, loop: fx.Node, module: fx.GraphModule) -> Reader:
    """The one loop that reads what ``loop``, the node of ``form``, stacks."""
    n = form.n_carry
    if len(form.flags) != 1:
        raise Refused("it stacks values for a second derivative")
    stacks = {user: int(user.args[1]) - n for user in loop.users if int(user.args[1]) >= n}  # type: ignore[arg-type]
    readers = {user for stack in stacks for user in stack.users}
    sizes = {user for user in readers if user.target is size_at}
    readers = (readers | {user for size in sizes for user in size.users}) - sizes
    reader = next(iter(readers), loop)
    params = params_of(reader, module) if len(readers) == 1 else None
    if params is None or reader.args[1] not in sizes:
        raise Refused("what it stacks is read by more than the loop of its gradient")
    operands = reader.args[2:]
    given = [1, *(x.meta["val"] for x in operands)]  # type: ignore[union-attr]
    scan = params.operator.rules.form(params, given)
    if not isinstance(scan, Scan) or len(scan.body.outputs) > scan.n_carry:
        raise Refused("what it stacks is read by a loop that stacks again")
    first, end = scan.n_carry, scan.n_carry + scan.n_xs
    xs = operands[first:end]
    others = (*operands[:first], *operands[end:])
    if not all(x in stacks for x in xs) or any(x in stacks or x in sizes for x in others):
        raise Refused("the loop of its gradient reads other rows than it stacks")
    (flag,) = form.flags
    is_flag = [stacks[x] == flag for x in xs]  # type: ignore[index]
    rows = [stacks[x] - (stacks[x] > flag) for x, f in zip(xs, is_flag) if not f]  # type: ignore[index]
    body = _where_steps_happened(scan.body, [first + i for i, f in enumerate(is_flag) if f])
    return Reader(reader, replace(scan, body=body, n_xs=len(rows)), tuple(rows), others)  # type: ignore[arg-type]


def _where_steps_happened(body: Subgraph, flags: Sequence[int]) -> Subgraph:
    """The body for steps at which its inputs ``flags`` are true, without them."""
    module = copy_of(body)
    inputs = module.graph.find_nodes(op="placeholder")
    for flag in (inputs[i] for i in flags):
        if flag.meta["val"].dim() > 0:
            raise Refused("lanes of its gradient take different numbers of steps")
        for node in list(flag.users):
            params = params_of(node, module)
            form = params.operator.rules.form(params, [meta_of(x) for x in node.args[1:]]) if params else None
            if not isinstance(form, Branches) or node.args[1] is not flag or flag in node.args[2:]:
                raise Refused("the loop of its gradient asks whether a step happened")
            node.args = (node.args[0], *node.args[2:])
            replace_call(node, form.branches[1], module)
    clean(module)
    happened = Subgraph.intern(module, body.inputs, body.outputs)
    return restricted(happened, tuple(i not in flags for i in range(len(inputs))), (True,) * len(body.outputs))


def erase(node: fx.Node) -> None:
    """Remove a node and what reads it, which nobody else reads."""
    for user in list(node.users):
        erase(user)
    node.graph.erase_node(node)


def has_kernels(body: Subgraph) -> bool:
    """Whether loops of a graph are kernels already: it is a part of one that has tapes."""
    kernels = loop_kernel, effectful_kernel, *TAPED_KERNELS
    return any(node.target in kernels for node in body.module.graph.nodes)


_library = torch.library.Library("functorch_hops", "FRAGMENT")
_SIGNATURE = (
    "(Tensor[] inputs, Tensor? tape, SymInt[] sizes, SymInt workspace, str[] parts, str name, int[] ranks,"
    " SymInt[] shapes, ScalarType[] dtypes) -> Tensor[]"
)
_library.define(f"taped_kernel{_SIGNATURE}")
_library.define(f"effectful_taped_kernel{_SIGNATURE}")
taped_kernel = torch.ops.functorch_hops.taped_kernel.default
"""The kernel of a loop that reads ``tape``, or that writes one, which is its last output then."""
effectful_taped_kernel = torch.ops.functorch_hops.effectful_taped_kernel.default
"""One that does something besides its results: see ``effectful_kernel``."""
has_side_effect(effectful_taped_kernel)
TAPED_KERNELS = taped_kernel, effectful_taped_kernel


def _run(
    inputs: list[Tensor],
    tape: Tensor | None,
    sizes: list[int],
    workspace: int,
    parts: list[str],
    name: str,
    ranks: list[int],
    shapes: list[int],
    dtypes: list[torch.dtype],
) -> list[Tensor]:
    outputs = empty_outputs(ranks, shapes, dtypes)
    if tape is None:
        place = empty_tape()
        try:
            run_kernel(inputs, [*outputs, place], sizes, workspace, parts, name)
        except BaseException:
            free_tape(place)
            raise
        return [*outputs, owner_of(place)]
    if not is_whole(tape):
        raise RuntimeError("the tape of a loop was copied")
    run_kernel([*inputs, tape], outputs, sizes, workspace, parts, name)
    return outputs


def _fake(
    inputs: list[Tensor],
    tape: Tensor | None,
    sizes: list[Any],
    workspace: Any,
    parts: list[str],
    name: str,
    ranks: list[int],
    shapes: list[Any],
    dtypes: list[torch.dtype],
) -> list[Tensor]:
    outputs = empty_outputs(ranks, shapes, dtypes)
    return outputs if tape is not None else [*outputs, TAPE_META.empty()]


for _name in ("taped_kernel", "effectful_taped_kernel"):
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"functorch_hops::{_name}", _fake, lib=_library)
