"""The dispatch mode of a capture, below every transform that the body itself applies: writes to inputs are refused, and
what ran without gradients is detached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..ir.meta import TensorMeta, is_differentiable
from ..ir.nodes import bernoulli_like, untracked
from .arrays import shared_memory
from .batch_norm import running_statistics, without_statistics
from .capture import Capture
from .dtypes import check_dtypes
from .inplace import FUNCTIONAL, REPLACED
from .mutating import Functional, functional_form, write_back
from .open_sizes import laid_out_zeros, symbol_as_tensor
from .refusals import check_overlap, operator_of_torch, refused_of_tensor, write_to_array, write_to_view
from .settings import check_settings
from .zeros import SymbolicZeros

__all__ = ["Effects"]

_SIZES = (torch.ops.aten.size.default, torch.ops.aten.sym_size.default, torch.ops.aten.sym_size.int)
"""Asked of what a transform wraps, if a size is a symbol: the wrapper itself is no value of the capture."""


_ASKED: dict[Any, Callable[..., Any]] = {
    torch.ops.prim.device.default: lambda t: t.device,
    torch.ops.aten.is_same_size.default: lambda a, b: a.shape == b.shape,
    torch.ops.aten._has_same_storage_numel.default: lambda a, b: _torch.storage_numel(a) == _torch.storage_numel(b),
}
"""What autograd and functorch ask for at each operator. The answer is no value of the graph."""


class Effects(_torch.TorchDispatchMode):
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: a capture is out of Dynamo's reach as a whole, and torch would import it for this."""
        return False

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture
        self.zeros = SymbolicZeros()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._result(func, args, kwargs or {})
        except BaseException as error:
            self.capture.note_unseen(error)
            raise

    def _result(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _ASKED:
            with _torch.without_torch_function():
                if not any(map(_torch.has_symbols, args)):
                    return _ASKED[func](*args)
        if self.capture.recording_off:
            return func(*args, **kwargs)
        check_settings(self.capture.context, self.capture.session.settings)
        if _torch.is_operator_of_torch(func):
            raise operator_of_torch(self.capture.context, func.name())
        check_dtypes(func, args, kwargs)
        if func in _SIZES:
            args = (_torch.without_gradient_levels(args[0]), *args[1:])
        if func is torch.ops.aten.view_as_complex.default and self.capture.in_transform:
            args = (self._pairs_of_numbers(args[0]),)
        if func is torch.ops.aten.detach.default and self._is_of_autograd():
            func = torch.ops.aten.alias.default
        detached = not torch.is_grad_enabled()
        if self.capture.is_functionalizing:
            func = FUNCTIONAL.get(func, func)
        out = self.zeros.result(func, args, kwargs)
        if out is None and self.capture.session.has_open_sizes:
            out = self._with_open_sizes(func, args, kwargs)
        if out is not None:
            return self._untracked(out) if detached else out
        pure = without_statistics(func, args)
        if pure is not None:
            return self._batch_norm(func, pure, args, detached)
        if isinstance(func, _torch.OpOverload) and func._schema.is_mutable:
            if func.overloadpacket is torch.ops.aten.set_:
                remedy = "write values with copy_(), or use the other tensor itself"
                raise refused_of_tensor(self.capture.context, "set_()", remedy, TensorMeta.of(args[0]))
            self._check_writes(func, args, kwargs)
            if (form := functional_form(func)) is not None:
                return self._custom_write(form, args, kwargs)
            writes_data = torch.Tag.inplace_view not in func.tags  # squeeze_ leaves values and history as they are
            return self._write_detached(func, args, kwargs) if detached and writes_data else func(*args, **kwargs)
        if func is torch.ops.aten._new_zeros_with_same_feature_meta.default:
            with _torch.whole_storages(self.capture.session.fake_mode):
                out = func(*args, **kwargs)
        elif func is torch.ops.aten.bernoulli.p:
            out = self._bernoulli(*args, **kwargs)
        else:
            other = REPLACED.get(func)
            shared = shared_memory(args[0]) if func is torch.ops.aten.lift_fresh.default else None
            if shared is not None and self.capture.is_copying:
                args, shared = (shared.content,), None
            out = self.capture.recorder.call(func, args, kwargs) if other is None else other(*args, **kwargs)
            if shared is not None:
                self.capture.session.shared.append(shared)
                self.capture.protect(out, write_to_array)
        return self._untracked(out) if detached else out

    def _is_of_autograd(self) -> bool:
        """Whether autograd detaches what an operator saves of its own result, which is not to end its history here."""
        return not (self.capture.is_detaching or self.capture.is_functionalizing)

    def _pairs_of_numbers(self, x: Tensor) -> Tensor:
        """What lies in memory as complex numbers do. Autograd views as such what is contiguous for each lane of a vmap,
        whose lanes may lie in between.
        """
        if x.stride(-1) == 1 and all(stride % 2 == 0 for stride in (*x.stride()[:-1], x.storage_offset())):
            return x
        copy = x.clone(memory_format=torch.contiguous_format)
        for value in (x, copy):
            self.capture.protect(value, write_to_view)
        return copy

    def _with_open_sizes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The result of a call whose kernel (torch 2.13) knows no symbols."""
        for kernel in (symbol_as_tensor, laid_out_zeros):
            out = kernel(func, args, kwargs)
            if out is not None:
                return out
        return None

    def _untracked(self, out: Any) -> Any:
        """What ran without gradients, as a value that reverse mode does not look behind."""
        if isinstance(out, (tuple, list)):
            return type(out)(self._untracked(o) for o in out)
        if not isinstance(out, Tensor) or not is_differentiable(out.dtype):
            return out
        tracer = self.capture.tracer
        target: Any = torch.ops.aten.detach.default if _torch.in_no_mode_of_gradients() else untracked
        proxy = tracer.create_proxy("call_function", target, (self.capture.proxy_of(out),), {})
        with _torch.without_torch_function():  # functorch takes a lane apart where the other mode listens
            with _torch.disable_proxy_modes_tracing():
                alias = out.detach()
            return _torch.track_tensor_tree(alias, proxy, constant=None, tracer=tracer)

    def _bernoulli(self, x: Tensor, p: float = 0.5, *, generator: None = None) -> Tensor:
        """Numbers drawn into ``x``, on whose values they don't depend. A call of the user's draws them in the order of
        indices.
        """
        tracer, empty_like = self.capture.tracer, torch.ops.aten.empty_like.default
        if self.capture.is_of_user:
            x = empty_like(x, memory_format=torch.contiguous_format)
        elif self.capture.node_of(x).target is not empty_like:
            x = empty_like(x)
        proxy = tracer.create_proxy("call_function", bernoulli_like, (self.capture.proxy_of(x), p), {})
        with _torch.disable_proxy_modes_tracing():
            drawn = torch.empty_like(x)
        result: Tensor = _torch.track_tensor_tree(drawn, proxy, constant=None, tracer=tracer)
        return result

    def _batch_norm(self, func: _torch.OpOverload, pure: Any, args: Any, detached: bool) -> Any:
        """The normalisation without running statistics, and the update of these as if the user had written it."""
        x, weight, bias, mean, var, training, momentum, eps = args
        out = pure(x, weight, bias, None, None, training, momentum, eps)
        new = running_statistics(x, out[1], out[2], mean, var, momentum, eps)
        for target, value in zip((mean, var), new):
            self.capture.check_write(func, target)
            torch.ops.aten.copy_.default(target, self._untracked(value))
        return self._untracked(out) if detached else out

    def _custom_write(self, form: Functional, args: Any, kwargs: Any) -> Any:
        outs = form(*args, **kwargs)
        with self:  # as writes of the user's
            return write_back(form, outs, args, kwargs)

    def _write_detached(self, func: _torch.OpOverload, args: Any, kwargs: Any) -> Any:
        """A write under no_grad: it gives no gradient to its target, which keeps the history that it has, see NOTE
        [Each alias has a history of its own].
        """
        names = [a.name for a in func._schema.arguments]
        given = dict(zip(names, args)) | kwargs
        aliases = {name: self._untracked(value) for name, value in given.items()}
        result = func(*(aliases[name] for name in names[: len(args)]), **{name: aliases[name] for name in kwargs})
        returned = {id(alias): value for name in given for alias, value in _pairs(aliases[name], given[name])}
        return _mapped(result, lambda t: returned.get(id(t), t))

    def _check_writes(self, func: _torch.OpOverload, args: Any, kwargs: Any) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for target in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(target, Tensor):
                    self.capture.check_write(func, target)
                    check_overlap(self.capture.context, func, target)
                    self.capture.rows.note_write(target)
                    self.zeros.forget(target)


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Corresponding leaves of two arguments."""
    if isinstance(a, (list, tuple)):
        for pair in zip(a, b, strict=True):
            yield from _pairs(*pair)
    else:
        yield a, b


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The tensors of an argument or result changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(v, change) for v in value)
    return change(value) if isinstance(value, Tensor) else value
