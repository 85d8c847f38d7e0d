"""Loops and branches made known to the effects in them: NOTE [Effects and lanes], NOTE [Effects and steps]."""

from __future__ import annotations

import itertools
from dataclasses import replace

from torch import Tensor

from ...derive.rewrite import rewritten
from ...errors import user_place
from ...ir.subgraph import Params, Subgraph
from ...passes.effects import changed_effects
from ...trace.capture import current_capture
from .op import EffectParams, Loop, effect_op
from .running import BeginLoop, EndStep, EnterScope

__all__ = ["begin_loop", "enter_scope", "in_loop", "in_scope", "new_scope"]

_scopes = itertools.count(1)


def new_scope() -> int:
    return next(_scopes)


def in_scope(body: Subgraph, scope: int) -> Subgraph:
    """The graph, whose effects happen in the lanes that the scope is entered by."""

    def change(params: Params) -> Params:
        assert isinstance(params, EffectParams)
        return replace(params, scopes=(scope, *params.scopes))

    return changed_effects(body, ("scope", scope), change)


def enter_scope(scope: int, taken: Tensor) -> None:
    """What follows in this scope happens in the lanes that are ``taken``."""
    params, operands = EffectParams(EnterScope(scope), mapped=((),)).under_vmap(
        [taken.detach()], (True,), taken.shape[0]
    )
    effect_op(params, *operands)


def begin_loop(operation: str, first: int = 0) -> Loop:
    """A loop of the user's, which begins here and has effects in it; ``first``: the number of its first step."""
    capture = current_capture()
    file, line, _ = user_place() or ("", 0, "")
    loop = Loop(operation, file, line, 0 if capture is None else capture.depth)
    effect_op(EffectParams(BeginLoop(loop, first)))
    return loop


def in_loop(body: Subgraph, loop: Loop, *, ends_step: bool = True) -> Subgraph:
    """The graph, run in each step of the loop. ``ends_step``: with it the step ends."""

    def change(params: Params) -> Params:
        assert isinstance(params, EffectParams)
        return replace(params, loops=(loop, *params.loops))

    named = changed_effects(body, ("loop", loop), change)
    if not ends_step:
        return named

    def run(*args: Tensor) -> list[Tensor]:
        outs = named(*args)
        effect_op(EffectParams(EndStep(loop)))
        return list(outs)

    return named.derive(("step", loop), lambda: rewritten(run, named.inputs, loop.operation))
