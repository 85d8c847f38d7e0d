"""Loops that draw random numbers again, for a compiler that has generators of its own.

What draws again is a function of the state of torch's generator: NOTE [Random numbers are drawn again]. A compiled
graph draws by count instead (NOTE [Numbers by count]), so the first bytes of the state are the key there, which is
advanced as the generator would be. The state at the start is drawn; torch's generator does not see the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..derive.rewrite import rewritten
from ..ir.generator import STATE, generator_state, set_generator_state
from ..ir.subgraph import Params, Subgraph, params_of
from .loops.drawing import keyed_body
from .loops.forms import Again, Refused

__all__ = ["redrawn_by_count"]

_BYTES = torch.int64.itemsize


def redrawn_by_count(body: Subgraph) -> Subgraph:
    """The graph with numbers by count where it draws again; itself where it doesn't."""
    return body.derive("redrawn by count", lambda: _redrawn(body) if _redraws(body) else body)


def _redraws(body: Subgraph) -> bool:
    for node in body.module.graph.nodes:
        params = params_of(node, body.module)
        if node.target in (generator_state, set_generator_state):
            return True
        if params is not None and (_again(node, params) or any(map(_redraws, params.bodies))):
            return True
    return False


def _again(node: fx.Node, params: Params) -> Subgraph | None:
    """What a node draws again, if it does that."""
    operands = [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
    try:
        form = params.operator.rules.form(params, operands)
    except Refused:
        return None  # it is no kernel, and planning says why
    return form.body if isinstance(form, Again) else None


def _keyed(node: fx.Node, params: Params) -> tuple[Subgraph, int] | None:
    """What is drawn again by count, and how many draws there are; None of any other operator."""
    body = _again(node, params)
    try:
        return None if body is None else keyed_body(body, 0)
    except Refused:
        return None  # and lowering says why


def _redrawn(body: Subgraph) -> Subgraph:
    module = body.module
    called = {node: params for node in module.graph.nodes if (params := params_of(node, module)) is not None}
    again = {node: keyed for node, params in called.items() if (keyed := _keyed(node, params)) is not None}
    changed = {node: params.with_bodies(redrawn_by_count) for node, params in called.items() if node not in again}

    class Redrawn(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            if node.target is generator_state:
                return torch.randint(0, 256, STATE.shape, dtype=torch.uint8)
            if node.target is set_generator_state:
                return None
            if node in again:
                return _by_count(*again[node], *args[1:])
            if node in changed:
                return node.target(changed[node], *args[1:], **kwargs)  # type: ignore[operator]
            return super().run_node(node)

    return rewritten(Redrawn(module).run, body.inputs, "jit")


def _by_count(body: Subgraph, count: int, state: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
    place = torch.arange(STATE.shape[0])
    key = (state[:_BYTES].to(torch.int64) << (place[:_BYTES] * 8)).sum()
    after = ((key + count) >> (place.clamp(max=_BYTES - 1) * 8)) & 255
    return torch.where(place < _BYTES, after.to(torch.uint8), state), *body(key.to(body.inputs[0].device), *operands)
