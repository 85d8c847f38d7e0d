"""A while loop that draws random numbers as one that draws none: the state of the generator is in its carry.

NOTE [Random numbers are drawn again] What a loop of any number of steps drew can't be kept by another operation (its
shape is known to nobody), nor where the steps run again from a saved carry. So the numbers are drawn again: each step
becomes a function of the state of the generator with which it begins, which is a part of its carry, and the whole loop
a function of the state at its start. That one is kept, 5 KiB, and the loop is differentiated as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...derive.rewrite import rewritten
from ...ir.generator import STATE, generator_state, set_generator_state
from ...ir.subgraph import Subgraph, is_random_node, params_of
from ..replay.op import ReplayParams, replay_op
from .op import WhileLoopParams, while_loop_op

__all__ = ["after_loop", "draws_elsewhere", "redrawing", "replaying"]


def replaying(params: WhileLoopParams) -> WhileLoopParams:
    """The loop with the state of the generator as its first carry."""
    cond, body, n = params.cond, params.body, params.n_carry
    if not cond.random:
        quiet = rewritten(lambda state, *args: cond(*args), [STATE, *cond.inputs], "while_loop")
        step = body
    else:
        peek = ReplayParams(cond)
        quiet = rewritten(lambda *args: replay_op(peek, *args)[1:], [STATE, *cond.inputs], "while_loop")
        # The condition drew first.
        step = rewritten(lambda *args: (cond(*args), body(*args))[1], body.inputs, "while_loop")
    again = ReplayParams(step)
    pure = rewritten(lambda *args: replay_op(again, *args), [STATE, *body.inputs], "while_loop")
    return replace(params, cond=quiet, body=pure, n_carry=n + 1)


def after_loop(params: WhileLoopParams, state: Tensor, carry: Sequence[Tensor], consts: Sequence[Tensor]) -> None:
    """Let the generator go on from where the loop ends, given the state with which its last condition began."""
    if params.cond.random:
        state = replay_op(ReplayParams(params.cond), state, *carry, *consts)[0]
    set_generator_state(state)


def draws_elsewhere(body: Subgraph) -> bool:
    """Whether it draws from other generators than that of the CPU, whose state nobody keeps."""
    module = body.module
    for node in module.graph.nodes:
        params = params_of(node, module)
        inside = () if params is None else params.bodies
        if any(map(draws_elsewhere, inside)):
            return True
        if params is None and is_random_node(node, module):
            drawn = node.meta["val"]
            tensors = drawn if isinstance(drawn, (tuple, list)) else (drawn,)
            if any(x.device.type != "cpu" for x in tensors):
                return True
    return False


def redrawing(params: WhileLoopParams) -> Subgraph | None:
    """The call as a graph in which the loop may run again; None if it draws nothing, or what can't be drawn again."""
    if not params.random or params.flags or any(map(draws_elsewhere, params.bodies)):
        return None  # with stacks for reverse mode it has outputs of a length that no graph returns
    n, inputs = params.n_carry, params.body.inputs

    def run(*args: Tensor) -> list[Tensor]:
        state, *outs = while_loop_op(replaying(params), generator_state(), *args)
        after_loop(params, state, outs[:n], args[n:])
        return outs

    return params.body.derive(("redrawing", params.key()), lambda: rewritten(run, inputs, "while_loop"))
