"""The dispatch class of all higher-order operators.

An operator takes parameters (bodies and attributes) and flat tensors, and returns a tuple of tensors. What is
its own are its rules; everything else - which rule runs when - stands here once.

NOTE [Dispatch order] functorch comes first when a transform is active: torch would ask the PreDispatch key before, and
export would record wrappers. Then autograd, the modes of a capture (functionalize, proxy, fake), and at last the
eager run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Generic

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _torch
from ..derive.numbers import without_numbers
from ..errors import CaptureError, message
from ..ir.meta import Mask, is_differentiable
from ..ir.origin import made_for
from ..ir.sizes import is_closed
from ..ir.subgraph import P, Params
from ..lowering.empty import without_empty
from ..lowering.exported import exported
from ..passes.passthrough import simplify_call
from ..trace.capture import current_capture
from ..trace.refusals import check_mode_inside, check_tensor_class, unknown_to_export
from ..trace.speculate import lift_operands
from .autograd import (
    PlainCall,
    RecordedCall,
    jvp_of,
    over_legacy_batch,
    unwrapped,
    unwrapped_at,
    vjp_forward,
    wrapped_at,
)
from .rules import Rules

__all__ = ["Hop", "is_plain_call"]


class Hop(_torch.HigherOrderOperator, Generic[P]):
    """A higher-order operator on parameters of one class: dispatch, given its rules.

    Rules call operators, their own among them: an operator is made first (``ops/<operator>/op.py``), and gets its rules
    when all of them are there (``ops/<operator>/__init__.py``).
    """

    rules: Rules[P]

    def __init__(
        self, name: str, params: type[P], *, body_names: Sequence[str] = ("body",), names_operand: bool = False
    ) -> None:
        """``body_names``: what the bodies are called in a printed graph; the last one stands for all further bodies,
        by number. ``names_operand``: the operator computes nothing; its output is its operand under a name.
        """
        super().__init__(f"fh_{name}")
        params.operator = self
        self.label = name
        self.names_operand = names_operand
        self._body_names = tuple(body_names)
        transform = _torch.TransformType
        self.py_impl(transform.Vmap)(self._vmap)
        self.py_impl(transform.Grad)(self._grad)
        self.py_impl(transform.Jvp)(self._jvp)
        self.py_impl(_torch.DispatchKey.Autograd)(self._autograd)
        self.py_impl(_torch.DispatchKey.CompositeExplicitAutograd)(self.run_eagerly)
        self.py_impl(_torch.ProxyTorchDispatchMode)(self._proxy)
        self.py_impl(_torch.FakeTensorMode)(self._fake)
        for mode in _torch.SELECTIVE_CHECKPOINT_MODES:
            self.py_impl(mode)(self._under_checkpoint)
        self.py_functionalize_impl(self._functionalize)
        self.fallthrough(_torch.LEGACY_VMAP)

    def body_name(self, i: int) -> str:
        return self._body_names[min(i, len(self._body_names) - 1)].format(i)

    def register(self, rules: Rules[P]) -> None:
        self.rules = rules

    # -- dispatch

    def __call__(self, params: P, *operands: Any) -> tuple[Tensor, ...]:
        if _torch.is_legacy_batched(operands):
            return over_legacy_batch(params.public_name, lambda *xs: self(params, *xs), operands)  # type: ignore[return-value]
        if is_plain_call(operands):
            if torch.is_grad_enabled():
                active = tuple([type(x) is not int and x.requires_grad for x in operands])
                if True in active:
                    return self._recorded_call(True, None, params, active, operands)
            return self.run_eagerly(params, *operands)
        operands = tuple(lift_operands([_operand(params, x) if isinstance(x, Tensor) else x for x in operands]))
        if _torch.top_interpreter() is not None:
            if current_capture() is None and _torch.is_pre_dispatch():
                raise unknown_to_export(params.public_name)
            with _torch.dual_level_known():
                return _torch.dispatch_functorch(self, (params, *operands), {})
        return super().__call__(params, *operands)

    def dispatch(self, dispatch_key: Any, *args: Any, **kwargs: Any) -> Any:
        """As torch does, but a mode that observes operators and does not know this one sees those that it runs."""
        mode = _torch.observer() if dispatch_key == _torch.DispatchKey.Python else None
        if mode is None:
            check_mode_inside(current_capture(), args[0].public_name)
            return super().dispatch(dispatch_key, *args, **kwargs)
        result = NotImplemented
        if mode.supports_higher_order_operators:
            result = super().dispatch(dispatch_key, *args, **kwargs)
        return self.run_eagerly(*args) if result is NotImplemented else result

    def run_eagerly(self, params: P, *operands: Tensor) -> tuple[Tensor, ...]:
        shown = _torch.shown_in_profile(lambda: _shown(params, operands))
        with _torch.autocast_off(), _torch.unobserved(), shown:
            return tuple(map(Tensor.contiguous, self.rules.impl(params, operands)))

    def _fake(self, mode: Any, params: P, *operands: Tensor) -> tuple[Tensor, ...]:
        with mode:
            return tuple(self.rules.abstract_eval(params, operands))

    def _proxy(self, mode: Any, params: P, *operands: Any) -> Any:
        capture = current_capture()
        if capture is None or mode.tracer is not capture.tracer:
            with mode:
                # torch's operators take no tensor twice.
                smaller, inputs, restore = simplify_call(self.rules.passthrough, params, operands)
                smaller, inputs, refill = without_empty(self.rules.prune, self.rules.abstract_eval, smaller, inputs)
                native = smaller.derive("without numbers", lambda: smaller.with_bodies(without_numbers))
                return tuple(restore(refill(self._lowered(native, _torch.traced(inputs)))))
        name = capture.add_params(params)
        proxies = [capture.proxy_of(x) for x in operands]
        out = capture.tracer.create_proxy("call_function", self, (name, *proxies), {}, name=self.label)
        outputs = self._fake(capture.session.fake_mode, params, *operands)
        return _torch.track_tensor_tree(outputs, out, constant=None, tracer=capture.tracer)

    def _lowered(self, params: P, operands: Sequence[Any]) -> Sequence[Tensor]:
        lower: Any = functools.partial(self.rules.lower, params)
        result: Sequence[Tensor] = exported(params, operands, lower) if _torch.is_exporting() else lower(operands)
        return result

    def _under_checkpoint(self, mode: Any, params: P, *operands: Any) -> Any:
        with _torch.saved_by_checkpoint(mode) if _is_once(params) else contextlib.nullcontext():
            return mode.__torch_dispatch__(self, [], (params, *operands), {})

    def _functionalize(self, ctx: Any, params: P, *operands: Any) -> Any:
        unwrapped = ctx.unwrap_tensors(operands)
        saved = _torch.saved_by_tags() if _is_once(params) else contextlib.nullcontext()
        with saved, ctx.redispatch_to_next():
            return ctx.wrap_tensors(self(params, *unwrapped))

    # -- transforms

    def _vmap(self, interpreter: Any, params: P, *operands: Any) -> Any:
        level = interpreter.level()
        (values, dims) = _torch.unwrap_batched(operands, level)
        with interpreter.lower(), made_for(params.origin):
            randomness = interpreter.randomness()
            differ = params.holds_effects or (params.draws and randomness == "different")
            if all(d is None for d in dims) and not differ:
                return self(params, *values)
            size = interpreter.batch_size()
            values = [v if d is None else v.movedim(d, 0) for v, d in zip(values, dims)]
            mapped = tuple(d is not None for d in dims)
            if params.bodies and not any(mapped) and not is_closed((size,)):
                values, mapped = _telling_size(params, values, size)
            outs, out_mapped = self.rules.batch(params, values, mapped, size, randomness)
            if current_capture() is None:
                outs = [o.contiguous() for o in outs]  # so is each lane, as if the call had been its own
        return _torch.wrap_batched(tuple(outs), tuple(0 if m else None for m in out_mapped), level)

    def _jvp(self, interpreter: Any, params: P, *operands: Any) -> Any:
        level = interpreter.level()
        duals = list(map(_dual, operands))
        primals = [unwrapped(p, level) for p, _ in duals]
        tangents = [None if t is None else unwrapped(_torch.plain(t), level) for _, t in duals]
        with interpreter.lower(), made_for(params.origin, "tangent"):
            outs, out_tangents = self.rules.jvp(params, primals, tangents)
        wrapped = (_torch.wrap_for_grad(o, level) for o in outs)
        return tuple(
            o if t is None else _torch.make_dual(o, _torch.wrap_for_grad(t, level))
            for o, t in zip(wrapped, out_tangents)
        )

    def _grad(self, interpreter: Any, params: P, *operands: Any) -> Any:
        return self._differentiable_call(interpreter, params, operands)

    def _autograd(self, params: P, *operands: Any) -> Any:
        tensors = [x for x in operands if isinstance(x, Tensor)]
        tracked = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if not tracked and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
            return self._plain_jvp(params, operands)
        return self._differentiable_call(None, params, operands)

    def _plain_jvp(self, params: P, operands: Sequence[Any]) -> Any:
        duals = list(map(_dual, operands))
        outs, tangents = jvp_of(params, [p for p, _ in duals], [t for _, t in duals])
        return tuple(o if t is None else _torch.make_dual(o, t) for o, t in zip(outs, tangents))

    def _differentiable_call(self, interpreter: Any, params: P, operands: Sequence[Any]) -> Any:
        active = tuple(isinstance(x, Tensor) and x.requires_grad and is_differentiable(x.dtype) for x in operands)
        if not (torch.is_grad_enabled() and any(active)):
            with _below(interpreter):
                outs = self(params, *(unwrapped_at(interpreter, x) for x in operands))
            return tuple(wrapped_at(interpreter, o) for o in outs)
        return self._recorded_call(False, interpreter, params, active, operands)

    def _recorded_call(self, is_plain: bool, interpreter: Any, params: P, active: Mask, operands: Sequence[Any]) -> Any:
        """A call that autograd remembers. ``is_plain``: nothing but autograd is active."""
        params = params.recorded(active) if is_plain else params.transformed(active)  # type: ignore[assignment]
        augmented = vjp_forward(params, active)
        has_tangent = tuple(interpreter is None and isinstance(x, Tensor) and _torch.has_tangent(x) for x in operands)
        with contextlib.nullcontext() if is_plain else _torch.enable_single_level_autograd_function():
            plain = PlainCall(augmented) if is_plain else None
            outs = RecordedCall.apply(params, augmented, active, has_tangent, interpreter, plain, *operands)  # type: ignore[attr-defined]
        return outs[: params.n_outputs]


def _telling_size(params: Params, operands: Sequence[Any], size: int) -> tuple[list[Any], Mask]:
    """The operands, the last of which differs between the lanes: how many there are is open, and a body knows that by
    its inputs only.
    """
    *others, last = operands or [None]
    if not isinstance(last, Tensor) or not all(body.inputs for body in params.bodies):
        problem = "a body without operands happens in each lane, and how many lanes there are is left open"
        remedy = "pass a value of the lane to it, or use dynamic=False"
        raise CaptureError(message(params.public_name, problem, remedy=remedy))
    return [*others, last.expand(size, *last.shape)], (*(False for _ in others), True)


def is_plain_call(operands: Sequence[Any]) -> bool:
    """Whether a call needs no dispatch: plain tensors, and nothing active but autograd."""
    if not _torch.no_modes() or _torch.in_dual_level() or not _torch.PLAIN_TYPES.issuperset(map(type, operands)):
        return False
    return not any(type(x) is not int and (_torch.is_lazy(x) or _torch.is_wrapped(x)) for x in operands)


def _operand(params: Params, x: Tensor) -> Tensor:
    check_tensor_class(params.public_name, x)
    return _torch.plain(x if current_capture() is not None else _torch.as_plain_class(x))


def _shown(params: Params, operands: Sequence[Any]) -> str:
    """A call in a profile: what it is, where, which part of a derivative, how many steps it takes if that is known."""
    origin, steps = params.origin, params.trip_count(operands)
    parts = [params.scope.named(params.public_name), *([str(origin)] if origin is not None else [])]
    parts += [origin.part] if origin is not None and origin.part is not None else []
    return ", ".join([*parts, *([] if steps is None else [f"{steps} steps"])])


def _dual(x: Any) -> tuple[Any, Tensor | None]:
    """An operand and its tangent. torch (2.13) makes float64 tangents of 0-d float32 values that meet a number."""
    primal, tangent = forward_ad.unpack_dual(x) if isinstance(x, Tensor) else (x, None)
    return primal, None if tangent is None else tangent.to(primal.dtype)


def _below(interpreter: Any) -> Any:
    return _torch.below_autograd() if interpreter is None else interpreter.lower()


def _is_once(params: Params) -> bool:
    """Of random numbers in a loop AOTAutograd would not keep the state for a checkpoint, and effects happen once."""
    return params.draws or params.holds_effects
