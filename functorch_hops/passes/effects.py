"""The effects of a user (``fh.debug``) in a graph, changed or taken out wherever they are in it.

NOTE [Effects happen once] What a backward pass computes again has happened before. So the graph of a backward pass is
freed of the effects of the forward pass, those in the loops that it runs again included; an effect that depends on a
cotangent is its own and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from .._torch import OpOverload
from ..ir.build import add_params, copy_of
from ..ir.origin import made_for
from ..ir.subgraph import P, Params, Subgraph, params_of
from .cleaning import clean

__all__ = ["changed_effects", "may_run_again", "silenced", "silent"]


def changed_effects(body: Subgraph, key: Hashable, change: Callable[[Params], Params | None]) -> Subgraph:
    """The graph with each effect changed, by a function that ``key`` stands for; None takes the effect out."""
    if not body.holds_effects:
        return body
    return body.derive(("changed effects", key), lambda: _changed(body, key, change))


def _changed(body: Subgraph, key: Hashable, change: Callable[[Params], Params | None]) -> Subgraph:
    module = copy_of(body)
    for node in list(module.graph.nodes):
        params = params_of(node, module)
        if params is None or not params.holds_effects:
            continue
        with made_for(params.origin):
            new = change(params) if params.is_effect else _in_bodies(params, key, change)
        if new is None:
            module.graph.erase_node(node)
            continue
        with module.graph.inserting_before(node):
            node.args = (add_params(module, module.graph, new), *node.args[1:])
    clean(module)
    return Subgraph.intern(module, body.inputs, body.outputs)


def _in_bodies(params: P, key: Hashable, change: Callable[[Params], Params | None]) -> P:
    return params.with_bodies(lambda inner: changed_effects(inner, key, change))


def silent(body: Subgraph) -> Subgraph:
    """The graph without effects of the user's."""
    return changed_effects(body, "silent", lambda params: None)


def silenced(params: P) -> P:
    """The call without effects of the user's in its bodies."""
    return _in_bodies(params, "silent", lambda params: None) if params.holds_effects else params


def may_run_again(body: Subgraph) -> bool:
    """Whether nobody can tell if the graph runs once more, on operands that it has seen: it draws no random numbers,
    tells the user nothing, and holds neither Python nor operators of the user's. To check a matrix again is no harm.
    """
    return body.derive("may run again", lambda: (_may_run_again(body),))[0]


def _may_run_again(body: Subgraph) -> bool:
    if body.draws or body.holds_effects:
        return False
    for node in body.module.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace not in _OPERATORS:
            return False
        params = params_of(node, body.module)
        if params is not None and (params.calls_python or not all(map(may_run_again, params.bodies))):
            return False
    return True


_OPERATORS = ("aten", "prims")
