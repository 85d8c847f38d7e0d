"""The rules of a call with a derivative of its own.

NOTE [Residuals of a custom rule] A second derivative follows torch: a residual that is an input leads back to that
input, one that is an output leads back through the custom derivative, and any other has no derivative.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...capture.derive import batched, rewritten
from ...capture.liveness import Pruned
from ...capture.subgraph import Mask, StaticParameters, Subgraph

__all__ = [
    "Layout",
    "custom_rule_abstract",
    "custom_rule_augment",
    "custom_rule_batch",
    "custom_rule_forward",
    "custom_rule_jvp",
    "custom_rule_native",
    "custom_rule_prune",
    "custom_rule_pullback",
    "custom_rule_run",
    "custom_rule_static",
]


@dataclass(frozen=True)
class Layout:
    """What the flat values of a custom rule are.

    ``marked``: the inputs that have gradients, among the first of the forward graph's. ``differentiable``: the outputs
    that have cotangents. ``sources``: for each residual ``("input", i)``, ``("output", i)`` or ``("other", 0)``.
    ``n_backward`` and ``n_forward_mode``: how many values these graphs close over.
    """

    n_inputs: int
    marked: Mask
    differentiable: Mask
    sources: tuple[tuple[str, int], ...]
    n_backward: int
    n_forward_mode: int


def custom_rule_static(name: str, bodies: Sequence[Subgraph], layout: Layout, emits: int = 0) -> StaticParameters:
    """``emits``: how many times the residuals follow the outputs."""
    n_outputs = len(layout.differentiable) + emits * len(layout.sources)
    return StaticParameters("custom_rule", bodies, name=name, layout=layout, emits=emits, n_outputs=n_outputs)


def custom_rule_run(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    layout: Layout = static["layout"]
    outs = static.bodies[0](*operands[: layout.n_inputs])
    n = len(layout.differentiable)
    return [*outs[:n], *(r for _ in range(static["emits"]) for r in outs[n:])]


def custom_rule_abstract(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    metas = static.bodies[0].outputs
    n = len(static["layout"].differentiable)
    return [m.empty() for m in (*metas[:n], *metas[n:] * static["emits"])]


def custom_rule_native(static: StaticParameters, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    return custom_rule_run(static, operands)


def custom_rule_augment(static: StaticParameters, active: Mask) -> StaticParameters:
    return custom_rule_static(static["name"], static.bodies, static["layout"], static["emits"] + 1)


def custom_rule_pullback(
    static: StaticParameters,
    active: Mask,
    operands: Sequence[Tensor],
    residuals: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> Sequence[Tensor | None]:
    layout: Layout = static["layout"]
    _, backward, *_ = static.bodies
    n, k = len(layout.differentiable), len(layout.sources)
    cts = list(cotangents[:n])
    to_inputs: list[Tensor | None] = [None] * len(operands)
    for copy in range(static["emits"]):
        for (kind, i), ct in zip(layout.sources, cotangents[n + copy * k :]):
            if kind == "output":
                cts[i] = _sum(cts[i], ct)
            elif kind == "input":
                to_inputs[i] = _sum(to_inputs[i], ct)
    metas = static.bodies[0].outputs
    given = [m.zeros() if ct is None else ct for ct, m, d in zip(cts, metas, layout.differentiable) if d]
    closed_over = operands[layout.n_inputs : layout.n_inputs + layout.n_backward]
    grads = iter(backward(*residuals, *closed_over, *given))
    own = [next(grads) if m else None for m in layout.marked]
    own += [None] * (len(operands) - len(own))
    return [_sum(g, extra) for g, extra in zip(own, to_inputs)]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def custom_rule_jvp(
    static: StaticParameters, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    from . import custom_rule_op

    layout: Layout = static["layout"]
    if len(static.bodies) < 3:
        raise NotImplementedError(
            f"{static['name']} has no forward-mode derivative: define its jvp staticmethod, or use reverse mode"
        )
    n = len(layout.differentiable)
    outs = custom_rule_op(custom_rule_augment(static, ()), *primals)
    residuals = outs[static["n_outputs"] :]
    closed_over = primals[layout.n_inputs + layout.n_backward :]
    moving = [torch.zeros_like(p) if t is None else t for p, t, m in zip(primals, tangents, layout.marked) if m]
    out_tangents = iter(static.bodies[2](*residuals, *closed_over, *moving))
    own: list[Tensor | None] = [next(out_tangents) if d else None for d in layout.differentiable]
    emitted = [
        own[i] if kind == "output" else tangents[i] if kind == "input" else None
        for _ in range(static["emits"])
        for kind, i in layout.sources
    ]
    return outs[: n + len(emitted)], [*own, *emitted]


def custom_rule_batch(
    static: StaticParameters, operands: Sequence[Tensor], mapped: Mask, size: int, randomness: str
) -> tuple[Sequence[Tensor], Mask]:
    from . import custom_rule_op

    layout: Layout = static["layout"]
    forward, backward, *forward_mode = static.bodies
    n, k = layout.n_inputs, len(layout.differentiable)
    everywhere = (*(True,) * k, *(False,) * len(layout.sources))
    new_forward, out = batched(forward, mapped[:n], size, randomness, everywhere)
    cts = (True,) * sum(layout.differentiable)
    backward_mapped = (*out[k:], *mapped[n : n + layout.n_backward], *cts)
    bodies = [new_forward, _summed(backward, backward_mapped, size, randomness, layout, mapped)]
    if forward_mode:
        bodies.append(_expanded(forward_mode[0], out[k:], mapped, size, randomness, layout))
    new = custom_rule_static(static["name"], bodies, layout, static["emits"])
    return custom_rule_op(new, *operands), (*out[:k], *out[k:] * static["emits"])


def _summed(
    backward: Subgraph, mapped: Mask, size: int, randomness: str, layout: Layout, operands_mapped: Mask
) -> Subgraph:
    """The batched backward graph; the gradient of an input that all lanes share is the sum over the lanes."""
    body, _ = batched(backward, mapped, size, randomness, (True,) * len(backward.outputs))
    shared = [not m for m, marked in zip(operands_mapped, layout.marked) if marked]

    def run(*args: Tensor) -> list[Tensor]:
        return [g.sum(0) if s else g for g, s in zip(body(*args), shared)]

    return body.derive(("summed", tuple(shared)), lambda: rewritten(run, body.inputs, "vmap")) if any(shared) else body


def _expanded(
    forward_mode: Subgraph, residuals: Mask, mapped: Mask, size: int, randomness: str, layout: Layout
) -> Subgraph:
    marked = tuple(m for m, d in zip(mapped, layout.marked) if d)
    closed_over = mapped[layout.n_inputs + layout.n_backward :]
    everywhere = (True,) * len(forward_mode.outputs)
    return batched(forward_mode, (*residuals, *closed_over, *marked), size, randomness, everywhere)[0]


def custom_rule_forward(static: StaticParameters, operands: Sequence[Hashable]) -> None:
    """The derivative is the user's, who sees all operands and outputs: they stay as they are."""


def custom_rule_prune(static: StaticParameters, used: Mask) -> Pruned | None:
    n = len(static["layout"].differentiable)
    if not static["emits"] or any(used[n:]):
        return None
    layout: Layout = static["layout"]
    operands = (True,) * (layout.n_inputs + layout.n_backward + layout.n_forward_mode)
    outputs = (*(True,) * n, *(False,) * (len(used) - n))
    return Pruned(custom_rule_static(static["name"], static.bodies, layout), operands, outputs)
