"""A carry before each step and after it, in one stack.

NOTE [One stack] The carry before a step is that after the step before it. So what a loop stacks of both is one stack of
a row more, at whose end the initial carry lies; the carries before and after the steps are its rows but the last one
and but the first one. Where a stack comes from elsewhere (the backward pass is another graph), a loop reads it a step
apart, and the initial carry where the stack has no row. Nothing is copied or stacked twice.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...ir.memory import is_view
from ...ir.nodes import meta_of
from ...ir.sizes import size_key
from ...passes.passthrough import passthrough_inputs, values
from ...passes.rewiring import rewired
from .forms import Scan, Shift

__all__ = ["Place", "shifted", "with_leads"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Place:
    """A value as an output of a kernel, from row ``start`` on if only some of its rows."""

    output: int
    start: int | None = None


Places = dict[fx.Node, Place]


def shifted(form: Scan, operands: Sequence[fx.Node]) -> tuple[Scan, list[fx.Node]]:
    """The loop without ``cat`` of a first or last row and a stack among its xs, and its operands."""
    n = form.n_carry
    new, heads = list(operands), list[fx.Node]()
    shifts: list[Shift | None] = [None] * form.n_xs
    for i in range(form.n_xs):
        found = _shifted(new[n + i], form.length)
        if found is not None:
            new[n + i], head, by = found
            shifts[i] = Shift(len(operands) + len(heads), by)
            heads.append(head)
    if not heads:
        return form, new
    body = form.body
    metas = [body.inputs[n + i] for i, shift in enumerate(shifts) if shift is not None]
    body = rewired(body, range(len(body.inputs)), (True,) * len(body.outputs), metas)
    return replace(form, body=body, shifts=tuple(shifts)), [*new, *heads]


def _shifted(x: fx.Node, length: int) -> tuple[fx.Node, fx.Node, int] | None:
    """The stack, the single row, and how far apart they are read, if a value consists of both."""
    if x.target is not aten.slice.Tensor or len(x.args) < 4 or x.kwargs:
        return None
    cat, dim, start, end, *step = (a.meta["val"] if isinstance(a, fx.Node) and a is not x.args[0] else a for a in x.args)
    found = _row_and_stack(cat, length)
    if found is None or dim != 0 or step not in ([], [1]):
        return None
    row, stack, is_first = found
    is_whole = (start, size_key(end)) == (0, size_key(length)) if is_first else start == 1 and _is_behind(end, length)
    return (stack, row, -1 if is_first else 1) if is_whole else None


def _is_behind(end: Any, length: Any) -> bool:
    return type(end) is int and (end > length if type(length) is int else end == sys.maxsize)


def _row_and_stack(cat: Any, length: int) -> tuple[fx.Node, fx.Node, bool] | None:
    """The value that is the single row, the stack, and whether the row comes first, of what is put together of both."""
    if not isinstance(cat, fx.Node) or cat.target is not aten.cat.default or cat.args[1:] not in ((), (0,)):
        return None
    parts: Any = cat.args[0]
    if len(parts) != 2 or len({meta_of(part).dtype for part in parts}) > 1:
        return None
    for row, stack in (parts, parts[::-1]):
        is_row = row.target is aten.unsqueeze.default and row.args[1] == 0
        if is_row and meta_of(stack) == meta_of(row.args[0]).with_leading(length):
            return row.args[0], stack, row is parts[0]
    return None


def with_leads(form: Scan, loop: fx.Node) -> tuple[Scan, Places]:
    """The loop with one stack for a carry before and after each step, and where the values of the graph around it are
    then. ``loop``: its node, the operands of which are those of the form, and the length.
    """
    n, init = form.n_carry, loop.args[2:]
    elements = {int(user.args[1]): user for user in loop.users if user.target is operator.getitem}  # type: ignore[arg-type]
    before = passthrough_inputs(form.body)[n:]
    found = values(form.body)
    leads: list[int | None] = [None] * (len(found) - n)
    merged: dict[int, int] = {}
    cats: dict[fx.Node, int] = {}
    for carry in range(n):
        stack = next((i for i, value in enumerate(found[n:]) if value is found[carry]), None)
        if stack is None or n + stack not in elements or before[stack] is not None or leads[stack] is not None:
            continue
        copies = [i for i, source in enumerate(before) if source == carry and n + i in elements]
        made = [user for user in elements[n + stack].users if _puts_before(user, init[carry], form)]
        if len([i for i in (stack, *copies) if _is_returned(elements[n + i])]) > 1 or not (copies or made):
            continue
        leads[stack] = carry
        merged |= dict.fromkeys(copies, stack)
        cats |= dict.fromkeys(made, stack)
    if not merged and not cats:
        return form, {node: Place(i) for i, node in elements.items()}
    kept = [i for i in range(len(leads)) if i not in merged]
    numbers = {i: n + new for new, i in enumerate(kept)}
    after, ahead = (0, 1) if form.reverse else (1, 0)
    places = {node: Place(i) for i, node in elements.items() if i < n}
    for i, node in elements.items():
        if i >= n:
            stack = merged.get(i - n, i - n)
            start = ahead if i - n in merged else after if leads[stack] is not None else None
            places[node] = Place(numbers[stack], start)
    places |= {node: Place(numbers[stack]) for node, stack in cats.items()}
    outputs = (*(True,) * n, *(i not in merged for i in range(len(leads))))
    body = rewired(form.body, range(len(form.body.inputs)), outputs)
    return replace(form, body=body, leads=tuple(leads[i] for i in kept)), places


def _puts_before(node: fx.Node, init: Any, form: Scan) -> bool:
    found = _row_and_stack(node, form.length)
    return found is not None and found[0] is init and found[2] is not form.reverse


def _is_returned(node: fx.Node) -> bool:
    return any(user.op == "output" or (is_view(user) and _is_returned(user)) for user in node.users)
