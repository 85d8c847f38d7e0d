"""A loop of unknown length that stacks what its gradient reads, on CUDA.

NOTE [Counted, then stacked] A kernel can't get memory, and how many rows a while loop stacks nobody knows before it
ends. So its kernel runs twice: once to count the steps, and once more, as a scan over so many, to stack. Between the
two the host waits for the count, once a call. The loop that reads the stacks is a scan of that length: it takes no step
that did not happen, and asks no flag.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from sympy import Symbol
from torch import fx

from ....derive.rewrite import rewritten
from ....ir.meta import TensorMeta
from ..forms import Scan, While
from ..graph_sizes import GraphSizes
from ..sizes import OpenSize, Size
from ..tapes import Reader, erase
from .around import Launch
from .operator import device_of, launch_arguments, triton_loop
from .planning import launched

__all__ = ["TAKEN", "counted", "put_stacks"]

aten = torch.ops.aten

TAKEN = OpenSize(Symbol("taken", integer=True, nonnegative=True), 64)
"""How many steps the loop takes."""


class Counted(NamedTuple):
    """What a while loop and the one of its gradient become: loops that count, stack, and read the stacks."""

    counting: While
    writing: Scan
    reading: Scan


def counted(form: While, reader: Reader) -> Counted:
    n, inputs = form.n_carry, form.body.inputs
    given = [*inputs[:n], TensorMeta((), torch.int64, device_of(form.outputs)), *inputs[n:]]
    cond = rewritten(lambda *args: form.cond(*args[:n], *args[n + 1 :]), given, "while_loop")
    body = rewritten(lambda *args: [*form.body(*args[:n], *args[n + 1 :])[:n], args[n] + 1], given, "while_loop")
    writing = Scan(form.body, n, 0, False, TAKEN)
    return Counted(While(cond, body, n + 1), writing, replace(reader.form, length=TAKEN))


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a graph, and the number of steps, which a node has."""

    sizes: GraphSizes
    taken: fx.Node

    def new_mode(self) -> Any:
        return self.sizes.new_mode()

    def node_of(self, size: Size) -> Any:
        return self.taken if size == TAKEN else self.sizes.node_of(size)


def put_stacks(
    loop: fx.Node,
    form: While,
    tensors: Sequence[fx.Node],
    reader: Reader,
    loops: Counted,
    launches: Sequence[Launch],
    sizes: GraphSizes,
) -> None:
    """The kernels of ``loops`` in the place of ``loop``, which stacks, and of its reader."""
    graph, n, device = loop.graph, form.n_carry, device_of(form.outputs)
    count, write, read = launches
    (flag,) = form.flags
    stacks = [value for i, value in enumerate(loop.meta["val"][n:]) if i != flag]
    with graph.inserting_before(loop):
        zero = graph.call_function(aten.full.default, ((), 0), {"dtype": torch.int64, "device": device})
        zero.meta["val"] = loops.counting.inputs[n].fake(sizes.new_mode())
        *last, steps = launched(graph, count, [*tensors[:n], zero, *tensors[n:]], loops.counting.outputs, sizes)
        taken = graph.call_function(aten._local_scalar_dense.default, (steps,))
        taken.meta["val"] = loop.meta["val"][n].shape[0]
        known = _Sizes(sizes, taken)
        rows = _written(graph, write, tensors, loops.writing, stacks, known)
    operands = [*reader.operands[: reader.form.n_carry], *(rows[i] for i in reader.rows)]
    operands += reader.operands[reader.form.n_carry :]
    with graph.inserting_before(reader.node):
        results = launched(graph, read, operands, loops.reading.outputs, known)
    for old, values in ((loop, last), (reader.node, results)):
        for user in list(old.users):
            place = cast("int", user.args[1])
            if place < len(values):
                user.replace_all_uses_with(values[place])
    erase(reader.node)
    erase(loop)


def _written(
    graph: fx.Graph, launch: Launch, tensors: Sequence[fx.Node], form: Scan, stacks: Sequence[Any], sizes: _Sizes
) -> list[fx.Node]:
    """The stacks, on the GPU all of them: nobody but the reader has them."""
    n, device, mode = form.n_carry, device_of(form.outputs), sizes.new_mode()
    metas = [meta._replace(device=device) for meta in (*form.outputs, *launch.scratch)]
    call = graph.call_function(triton_loop, launch_arguments(launch, tensors, metas, sizes.node_of))
    others = [meta.fake(mode) for meta in (*metas[:n], *metas[len(form.outputs) :])]
    call.meta["val"] = [*others[:n], *stacks, *others[n:]]
    rows = []
    for i, value in enumerate(stacks, n):
        rows.append(graph.call_function(operator.getitem, (call, i)))
        rows[-1].meta["val"] = value
    return rows
