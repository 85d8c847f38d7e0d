"""The dispatch class of all higher-order operators.

An operator takes static parameters (bodies and attributes) and flat tensors, and returns a tuple of tensors. What is
its own are its rules; everything else - which rule runs when - stands here once.

NOTE [Dispatch order] functorch comes first when a transform is active: torch would ask the PreDispatch key before, and
export would record wrappers. Then autograd, the modes of a capture (functionalize, proxy, fake), and at last the
eager run.

NOTE [Residuals are outputs] The gradient rule replaces ``op(static, *operands)`` by an augmented call, whose extra
outputs are the residuals. They are real outputs of the autograd node, so a second derivative flows through
them: cotangents for them arrive at the same node, which then differentiates the augmented call instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _torch
from .capture.current import current_capture
from .capture.liveness import Pruned
from .capture.passes.forwarding import Forwarded, forward_call
from .capture.passes.hoisting import Hoisted
from .capture.speculate import lift_operands, observed
from .capture.subgraph import Mask, StaticParameters, Subgraph, is_differentiable
from .capture.validate import check_tensor_class
from .errors import CaptureError, message
from .lowering.empty import without_empty
from .lowering.numbers import without_numbers

__all__ = ["Hop", "Rules"]

Tensors = Sequence[Tensor]
Maybe = Sequence[Tensor | None]


@dataclass(frozen=True)
class Rules:
    """The registration table of one operator; each rule is a function ``<operator>_<rule>``.

    ``run(static, operands) -> outputs``: the operation itself, on plain tensors.

    ``abstract(static, operands) -> outputs``: uninitialised outputs of the right shape, dtype and device.

    ``reached(static, sources, by) -> mask``: the outputs that the marked operands reach, as ``Subgraph.reached`` has
    it; at least those that ``batch`` maps (``by="value"``, ``"lane"``) and ``jvp`` moves (``by="tangent"``).

    ``batch(static, operands, mapped, size, randomness) -> (outputs, mapped outputs)``: over a batch at dimension 0 of
    the mapped operands.

    ``jvp(static, primals, tangents) -> (outputs, tangents)``: None is a tangent that is zero by structure.

    ``augment(static, active) -> static``: the call, of this or another operator, that also emits what ``pullback`` for
    the active operands reads.

    ``pullback(static, active, operands, residuals, cotangents) -> gradients``: one for each operand, None for none; a
    cotangent that is None is zero.

    ``prune(static, used) -> smaller static parameters, kept operands and outputs``: without what only unused outputs
    need; None where nothing can be left out.

    ``forward(static, operands) -> smaller call``: without operands that only pass through or are there twice (equal
    ones compare equal); None where there are none.

    ``hoist(static, operands) -> smaller call``: without what its body computes from constants alone, and the graph that
    does it; None where there is nothing. ``operands`` may be of any kind, only numbers among them are looked at.

    ``fission(static, operands) -> graph``: the call as a graph over its tensors, products that need not be in the loop
    taken for all steps at once; None where there are none.

    ``native(static, operands) -> outputs``: the same in torch's own operators, for export and Inductor.
    """

    run: Callable[[StaticParameters, Tensors], Tensors]
    abstract: Callable[[StaticParameters, Tensors], Tensors]
    reached: Callable[[StaticParameters, Mask, str], Mask]
    batch: Callable[[StaticParameters, Tensors, Mask, int, str], tuple[Tensors, Mask]]
    jvp: Callable[[StaticParameters, Tensors, Maybe], tuple[Tensors, Maybe]]
    augment: Callable[[StaticParameters, Mask], StaticParameters]
    pullback: Callable[[StaticParameters, Mask, Tensors, Tensors, Maybe], Maybe]
    prune: Callable[[StaticParameters, Mask], Pruned | None]
    forward: Callable[[StaticParameters, Sequence[Hashable]], Forwarded | None]
    hoist: Callable[[StaticParameters, Sequence[Any]], Hoisted | None]
    fission: Callable[[StaticParameters, Sequence[Any]], Subgraph | None]
    native: Callable[[StaticParameters, Tensors], Tensors]


_operators: dict[str, Hop] = {}


def _operator_of(static: StaticParameters) -> Hop:
    return _operators[static.hop]


class Hop(_torch.HigherOrderOperator):
    """A higher-order operator: dispatch, given its rules."""

    def __init__(self, name: str, rules: Rules) -> None:
        super().__init__(f"fh_{name}")
        _operators[name] = self
        self.label = name
        self.rules = rules
        transform = _torch.TransformType
        self.py_impl(transform.Vmap)(self._vmap)
        self.py_impl(transform.Grad)(self._grad)
        self.py_impl(transform.Jvp)(self._jvp)
        self.py_impl(_torch.DispatchKey.Autograd)(self._autograd)
        self.py_impl(_torch.DispatchKey.CompositeExplicitAutograd)(self._eager)
        self.py_impl(_torch.ProxyTorchDispatchMode)(self._proxy)
        self.py_impl(_torch.FakeTensorMode)(self._fake)
        self.py_functionalize_impl(self._functionalize)

    # -- dispatch

    def __call__(self, static: StaticParameters, *operands: Any) -> tuple[Tensor, ...]:
        if _is_plain(operands):
            if torch.is_grad_enabled():
                active = tuple([type(x) is not int and x.requires_grad for x in operands])
                if True in active:
                    return self._recorded_call(True, None, static, active, operands)
            return self._eager(static, *operands)
        operands = tuple(lift_operands([self._operand(x) if isinstance(x, Tensor) else x for x in operands]))
        if _torch.top_interpreter() is not None:
            if current_capture() is None and _torch.is_pre_dispatch():
                raise self._unknown_to_export()
            return _torch.dispatch_functorch(self, (static, *operands), {})
        return super().__call__(static, *operands)

    def _unknown_to_export(self) -> CaptureError:
        """torch.export records what a transform of torch's own wraps, not what it holds: a loop can't look inside."""
        return CaptureError(
            message(
                self.label,
                "torch.export can't trace torch.func's own transforms around it",
                remedy="use the transform of the same name of this library, or wrap the transformed function in fh.jit",
            )
        )

    def dispatch(self, dispatch_key: Any, *args: Any, **kwargs: Any) -> Any:
        """As torch does, but a mode that observes operators and does not know this one sees those that it runs."""
        mode = _torch.observer() if dispatch_key == _torch.DispatchKey.Python else None
        if mode is None:
            return super().dispatch(dispatch_key, *args, **kwargs)
        result = NotImplemented
        if mode.supports_higher_order_operators:
            result = super().dispatch(dispatch_key, *args, **kwargs)
        return self._eager(*args) if result is NotImplemented else result

    def _operand(self, x: Tensor) -> Tensor:
        check_tensor_class(self.label, x)
        return _torch.plain(x if current_capture() is not None else _torch.as_plain_class(x))

    def _eager(self, static: StaticParameters, *operands: Tensor) -> tuple[Tensor, ...]:
        with _torch.autocast_off():
            return tuple(map(Tensor.contiguous, self.rules.run(static, operands)))

    def _fake(self, mode: Any, static: StaticParameters, *operands: Tensor) -> tuple[Tensor, ...]:
        with mode:
            return tuple(self.rules.abstract(static, operands))

    def _proxy(self, mode: Any, static: StaticParameters, *operands: Any) -> Any:
        capture = current_capture()
        if capture is None or mode.tracer is not capture.tracer:
            with mode:
                # torch's operators take no tensor twice.
                smaller, inputs, restore = forward_call(self.rules.forward, static, operands)
                smaller, inputs, refill = without_empty(self.rules.prune, self.rules.abstract, smaller, inputs)
                native = smaller.derive("without numbers", lambda: smaller.with_bodies(without_numbers))
                return tuple(restore(refill(self.rules.native(native, _torch.traced(inputs)))))
        name = capture.add_static(self.label, static)
        proxies = [capture.proxy_of(x) for x in operands]
        out = capture.tracer.create_proxy("call_function", self, (name, *proxies), {}, name=self.label)
        outputs = self._fake(capture.session.fake_mode, static, *operands)
        return _torch.track_tensor_tree(outputs, out, constant=None, tracer=capture.tracer)

    def _functionalize(self, ctx: Any, static: StaticParameters, *operands: Any) -> Any:
        unwrapped = ctx.unwrap_tensors(operands)
        with ctx.redispatch_to_next():
            return ctx.wrap_tensors(self(static, *unwrapped))

    # -- transforms

    def _vmap(self, interpreter: Any, static: StaticParameters, *operands: Any) -> Any:
        level = interpreter.level()
        (values, dims) = _torch.unwrap_batched(operands, level)
        with interpreter.lower():
            randomness = interpreter.randomness()
            if all(d is None for d in dims) and not (static.random and randomness == "different"):
                return self(static, *values)
            values = [v if d is None else v.movedim(d, 0) for v, d in zip(values, dims)]
            mapped = tuple(d is not None for d in dims)
            outs, out_mapped = self.rules.batch(static, values, mapped, interpreter.batch_size(), randomness)
        return _torch.wrap_batched(tuple(outs), tuple(0 if m else None for m in out_mapped), level)

    def _jvp(self, interpreter: Any, static: StaticParameters, *operands: Any) -> Any:
        level = interpreter.level()
        duals = [forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None) for x in operands]
        primals = [_unwrapped(p, level) for p, _ in duals]
        tangents = [None if t is None else _unwrapped(_torch.plain(t), level) for _, t in duals]
        with interpreter.lower():
            outs, out_tangents = self.rules.jvp(static, primals, tangents)
        wrapped = (_torch.wrap_for_grad(o, level) for o in outs)
        return tuple(
            o if t is None else _torch.make_dual(o, _torch.wrap_for_grad(t, level))
            for o, t in zip(wrapped, out_tangents)
        )

    def _grad(self, interpreter: Any, static: StaticParameters, *operands: Any) -> Any:
        return self._differentiable_call(interpreter, static, operands)

    def _autograd(self, static: StaticParameters, *operands: Any) -> Any:
        tensors = [x for x in operands if isinstance(x, Tensor)]
        tracked = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if not tracked and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
            return self._plain_jvp(static, operands)
        return self._differentiable_call(None, static, operands)

    def _plain_jvp(self, static: StaticParameters, operands: Sequence[Any]) -> Any:
        duals = [forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None) for x in operands]
        outs, tangents = self.rules.jvp(static, [p for p, _ in duals], [t for _, t in duals])
        return tuple(o if t is None else _torch.make_dual(o, t) for o, t in zip(outs, tangents))

    def _differentiable_call(self, interpreter: Any, static: StaticParameters, operands: Sequence[Any]) -> Any:
        active = tuple(isinstance(x, Tensor) and x.requires_grad and is_differentiable(x.dtype) for x in operands)
        if not (torch.is_grad_enabled() and any(active)):
            with _below(interpreter):
                outs = self(static, *(_unwrapped_at(interpreter, x) for x in operands))
            return tuple(_wrapped_at(interpreter, o) for o in outs)
        return self._recorded_call(False, interpreter, static, active, operands)

    def _recorded_call(
        self, is_plain: bool, interpreter: Any, static: StaticParameters, active: Mask, operands: Sequence[Any]
    ) -> Any:
        """A call that autograd remembers. ``is_plain``: nothing but autograd is active."""
        augmented = static.derive(("augment", active), lambda: self.rules.augment(static, active))
        with contextlib.nullcontext() if is_plain else _torch.enable_single_level_autograd_function():
            outs = _Call.apply(static, augmented, active, interpreter, is_plain, *operands)  # type: ignore[attr-defined]
        return outs[: static["n_outputs"]]


class _Call(_torch.SingleLevelFunction):
    """The autograd node of every HOP, at one level of functorch or (``interpreter`` None) of plain autograd."""

    @staticmethod
    def forward(
        static: StaticParameters,
        augmented: StaticParameters,
        active: Mask,
        interpreter: Any,
        is_plain: bool,
        *operands: Any,
    ) -> Any:
        hop = _operator_of(augmented)
        if is_plain:
            return hop._eager(augmented, *operands)
        below = _torch.differentiable() if interpreter is None else _torch.lowered(interpreter)
        with below:
            outs = hop(augmented, *(_unwrapped_at(interpreter, x) for x in operands))
        return tuple(_wrapped_at(interpreter, o) for o in outs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.static, ctx.augmented, ctx.active, _, is_plain, *operands = inputs
        ctx.set_materialize_grads(False)
        own, emitted = _reached(ctx.static, ctx.active), _reached(ctx.augmented, ctx.active)
        reached = (*own, *emitted[len(own) :])
        ctx.mark_non_differentiable(*[o for o, r in zip(output, reached) if not (r and is_differentiable(o.dtype))])
        ctx.numbers = {i: x for i, x in enumerate(operands) if not isinstance(x, Tensor)}
        tensors = [None if i in ctx.numbers else x for i, x in enumerate(operands)] if ctx.numbers else operands
        ctx.save_for_backward(*tensors, *output[ctx.static["n_outputs"] :])
        if not is_plain:
            ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Plain forward mode over plain reverse mode: outputs and residuals have tangents, hence gradients do."""
        saved = ctx.saved_tensors[: len(ctx.active)]
        primals = [ctx.numbers[i] if t is None else forward_ad.unpack_dual(t).primal for i, t in enumerate(saved)]
        _, out_tangents = _operator_of(ctx.augmented).rules.jvp(ctx.augmented, primals, tangents[-len(primals) :])
        return tuple(out_tangents)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        # A pull function runs after its transform has ended: what it saved is then wrapped at a level that is gone.
        saved = [None if t is None else _torch.unwrap_if_dead(t) for t in ctx.saved_tensors]
        n_operands, n_outputs = len(ctx.active), ctx.static["n_outputs"]
        operands: list[Any] = [ctx.numbers.get(i, t) for i, t in enumerate(saved[:n_operands])]
        with observed():
            if any(c is not None for c in cotangents[n_outputs:]):
                grads = _second_pullback(ctx, operands, cotangents)
            else:
                residuals: list[Any] = saved[n_operands:]
                rules = _operator_of(ctx.static).rules
                grads = rules.pullback(ctx.static, ctx.active, operands, residuals, cotangents[:n_outputs])
        grads = [g if a else None for g, a in zip(grads, ctx.active)]
        return None, None, None, None, None, *grads


def _reached(static: StaticParameters, active: Mask) -> Mask:
    """The outputs that have gradients. That no gradient leads to another is for autograd to say, as it does in plain
    eager: a pullback would give zeros. While forward mode is on, what has a tangent counts as well (torch knows no
    output with the one and without the other).
    """
    rules, by = _operator_of(static).rules, "tangent" if _torch.in_dual_level() else "gradient"
    return static.derive(("reached from", active, by), lambda: rules.reached(static, active, by))


def _second_pullback(ctx: Any, operands: Sequence[Any], cotangents: Maybe) -> Maybe:
    """Residuals have cotangents: differentiate the augmented call (see NOTE [Residuals are outputs])."""
    static = ctx.augmented
    rules = _operator_of(static).rules
    again = static.derive(("augment", ctx.active), lambda: rules.augment(static, ctx.active))
    outs = _operator_of(again)(again, *operands)
    return rules.pullback(static, ctx.active, operands, outs[static["n_outputs"] :], cotangents)


def _is_plain(operands: Sequence[Any]) -> bool:
    """Whether a call needs no dispatch: plain tensors, and nothing active but autograd."""
    if not _torch.no_modes() or _torch.in_dual_level() or not _torch.PLAIN_TYPES.issuperset(map(type, operands)):
        return False
    return not any(type(x) is not int and (x.is_neg() or x.is_conj() or _torch.is_wrapped(x)) for x in operands)


def _below(interpreter: Any) -> Any:
    return _torch.below_autograd() if interpreter is None else interpreter.lower()


def _unwrapped(x: Any, level: int) -> Any:
    return _torch.unwrap_for_grad(x, level) if isinstance(x, Tensor) else x


def _unwrapped_at(interpreter: Any, x: Any) -> Any:
    return x if interpreter is None else _unwrapped(x, interpreter.level())


def _wrapped_at(interpreter: Any, x: Tensor) -> Tensor:
    return x if interpreter is None else _torch.wrap_for_grad(x, interpreter.level())
