"""Which nodes of a graph may be kernels, as what loop, and what happens in their bodies besides results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...ir.subgraph import Params, Subgraph, has_effect, params_of
from .forms import Again, Branches, Form, Prefixes, Refused, Scan, While
from .linear import CHECKS
from .source import check_metas
from .triton.planning import check_form, is_on_cuda

__all__ = ["effects_of_user", "form_of", "unknown_effects"]


def form_of(params: Params, operands: Sequence[Any], is_inner: bool) -> tuple[Form | None, str | None]:
    """The loop that a node is, or why there is no kernel of it; neither of what is no loop. A branch outside of loops
    is run once, and stays as it is.
    """
    try:
        form = params.operator.rules.form(params, operands)
        if form is None or (isinstance(form, Branches | Again) and not is_inner):
            return None, None
        if not params.scope.loop_kernels:
            raise Refused("it is annotated with loop_kernels=False")
        if isinstance(form, Again):
            raise Refused("what it draws again is no number by count")
        if unknown_effects(params.bodies):
            raise Refused("one of its operators checks or does something unknown")
        if params.holds_effects and isinstance(form, Prefixes):
            raise Refused("what happens in an associative function happens in many elements at once")
        seen = form.body if isinstance(form, Scan) else form  # rows may be numbers
        check_metas((*seen.inputs, *seen.outputs))
        if isinstance(form, Scan | Prefixes) and form.length in (0,) and (not is_inner or isinstance(form, Prefixes)):
            raise Refused("it takes no step")
        if is_on_cuda(form):
            check_form(form, params.has_effects)
        if params.scope.names and isinstance(form, Scan | While | Prefixes):
            form = replace(form, label=params.scope.named(form.label))
    except Refused as why:
        return None, str(why)
    return form, None


def _effects(bodies: Iterable[Subgraph]) -> Iterator[Any]:
    """What does something besides its results in graphs: parameters of the user's effects, operators of others."""
    for body in bodies:
        for node in body.module.graph.nodes:
            if has_effect(node, body.module):
                inner = params_of(node, body.module)
                if inner is None or inner.is_effect:
                    yield inner or node.target
                else:
                    yield from _effects(inner.bodies)


def unknown_effects(bodies: Iterable[Subgraph]) -> bool:
    return any(not isinstance(effect, Params) and effect not in CHECKS for effect in _effects(bodies))


def effects_of_user(bodies: Iterable[Subgraph]) -> Iterator[Params]:
    return (effect for effect in _effects(bodies) if isinstance(effect, Params))
