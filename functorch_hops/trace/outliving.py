"""Tensors that a function left somewhere while it was captured.

NOTE [Tables built at first use] A module builds a table when it is first called and keeps it (positions, masks, rotary
embeddings, ``functools.lru_cache``). In a capture that table is a fake. What it was computed from - Python numbers, and
tensors from outside of all captures - is at hand when the capture ends, so its value is computed then, and the very
object that was kept becomes the real table (``_torch.become``), whoever holds it: the fake, or what a transform that
has ended wrapped it in. Traces that meet it again take it for an operand where its place is watched, else for a
constant. The trace that built it is for one call, if its place is watched (NOTE [When a trace is valid]): the next call
goes another way. A tensor that depends on traced values can't be had: its next use is refused (``session``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from .. import _torch
from ..ir.nodes import behind, untracked
from ..ir.subgraph import has_effect, is_random_node
from .capture import Capture, outside_of_captures, tables
from .detached import memory_chains, written

__all__ = ["make_real"]


def make_real(capture: Capture) -> None:
    """Let the values of an ended capture that are still alive, and can be computed now, become real."""
    own = capture.stand_ins()
    wrapped = [t for ref in capture.wrapped if (t := ref()) is not None and capture.owns(_torch.base_tensor(t))]
    wrapped_in = {id(_torch.base_tensor(t)): t for t in wrapped}
    alive = [(t, capture.node_of(t)) for t in list(capture.tracer.tensor_tracker) if id(t) not in own]
    alive = [(wrapped_in.get(id(t), t), node) for t, node in alive if node.op == "call_function"]
    if not alive:
        return
    known, overwritten = _known_nodes(capture)
    alive = [(t, node) for t, node in alive if node in known and node not in overwritten]
    if alive:
        has_history = any(t is not None and t.requires_grad for t in known.values())
        with _torch.suspended(keep_autocast=False), outside_of_captures(), torch.set_grad_enabled(has_history):
            values = _computed(capture, known)
            for t, node in alive:
                del capture.tracer.tensor_tracker[_torch.base_tensor(t)]
                _torch.become(t, values[node])
                tables[t] = any(capture.history.inputs.get(n) is not None for n in behind([node]))


def _known_inputs(capture: Capture) -> dict[fx.Node, Tensor]:
    """The inputs whose tensors are at hand: those that are neither arguments nor traced by someone else."""
    inputs = capture.graph.find_nodes(op="placeholder")
    lifted = zip(inputs[len(inputs) - len(capture.lifted) :], capture.lifted)
    return {node: t for node, t in lifted if not (_torch.is_wrapped(t) or isinstance(t, _torch.FakeTensor))}


def _known_nodes(capture: Capture) -> tuple[dict[fx.Node, Tensor | None], set[fx.Node]]:
    """The nodes that depend on known inputs alone and draw or do nothing, inputs with their values; and those among
    them whose memory something unknown is written to afterwards.
    """
    known: dict[fx.Node, Tensor | None] = {**_known_inputs(capture)}
    chains, tainted = memory_chains(capture.graph), set[fx.Node]()

    def is_tainted(node: fx.Node) -> bool:
        return node in chains and chains[node][-1] in tainted

    for node in capture.graph.nodes:
        if node.op == "get_attr":
            known[node] = None
        elif node.op == "call_function":
            if _can_be_run(node, capture, known) and not any(map(is_tainted, node.all_input_nodes)):
                known[node] = None
            else:
                tainted.update(chains[target][-1] for target in written(node))
    return known, set(filter(is_tainted, known))


def _can_be_run(node: fx.Node, capture: Capture, known: Collection[fx.Node]) -> bool:
    does_more = has_effect(node, capture.root) and not written(node)
    return not (does_more or is_random_node(node, capture.root)) and all(n in known for n in node.all_input_nodes)


def _computed(capture: Capture, known: dict[fx.Node, Tensor | None]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}
    for node, value in known.items():
        if node.op == "placeholder":
            values[node] = value
        elif node.op == "get_attr":
            values[node] = getattr(capture.root, str(node.target))
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            # A view that is taken without gradients could not be written to here, where they are tracked.
            target: Any = torch.detach if node.target is untracked else node.target
            values[node] = target(*args, **kwargs)
    return values
