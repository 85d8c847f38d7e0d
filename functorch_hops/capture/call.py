"""A whole call - positional and keyword arguments of any tree - as a graph of flat tensors."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _torch, pytree
from . import environment
from .buffers import Buffers, Update
from .current import current_capture
from .environment.keys import Makers, by_value, describe
from .output import OutputSpec, number_as_tensor
from .sizes import open_shape, shape_env_of
from .speculate import capture_function
from .subgraph import Subgraph, TensorMeta

__all__ = ["Arguments", "TracedCall", "described", "signature_of", "static_key", "trace_call"]

_makers = Makers()


class TensorSpec:
    """Shape, dtype and device of a tensor that is not there.

    >>> import torch
    >>> TensorSpec((2, 3), torch.float32)
    TensorSpec(shape=(2, 3), dtype=torch.float32, device=cpu)
    """

    __fh_leaf__ = True
    __slots__ = ("device", "dtype", "shape")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = torch.device(device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorSpec) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.shape, self.dtype, self.device

    def __repr__(self) -> str:
        return f"TensorSpec(shape={self.shape}, dtype={self.dtype}, device={self.device})"


class Arguments:
    """The arguments of a call, flattened: tensors and floats are operands, everything else is static.

    ``static_floats``: floats are static too (a function that branched on one was seen). ``dynamic``: sizes from 2 on
    are open, see NOTE [Open sizes].
    """

    __slots__ = ("dynamic", "key", "leaves", "objects", "operands", "spec")

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], static_floats: bool = False, dynamic: bool = False
    ) -> None:
        self.dynamic = dynamic
        self.leaves, self.spec = pytree.flatten((args, kwargs))
        self.operands: list[Tensor] = []
        self.objects: list[Any] = []
        key: list[Hashable] = [self.spec]
        for leaf in self.leaves:
            kind = type(leaf)
            if isinstance(leaf, (Tensor, TensorSpec)):
                self.operands.append(leaf)  # type: ignore[arg-type]
                key.append((open_shape(leaf.shape) if dynamic else leaf.shape, leaf.dtype, leaf.device))
            elif kind is float and not static_floats:
                self.operands.append(torch.scalar_tensor(leaf, dtype=torch.float64, device="cpu"))
                key.append(float)
            else:
                entry = static_key(leaf)
                if isinstance(entry[1], _Identity):
                    self.objects.append(leaf)
                key.append(entry)
        self.key = tuple(key)

    def has_symbols(self) -> bool:
        """Whether a size or a number among the arguments is a symbol of an enclosing capture."""
        numbers = any(isinstance(leaf, (torch.SymInt, torch.SymFloat)) for leaf in self.leaves)
        return numbers or shape_env_of(x.shape for x in self.operands) is not None

    def metas(self) -> list[TensorMeta]:
        metas = [TensorMeta(tuple(x.shape), x.dtype, x.device) for x in self.operands]
        if not self.dynamic:
            return metas
        env = _torch.new_shape_env()
        return [meta.opened(env, f"arg{i}") for i, meta in enumerate(metas)]


class _Identity:
    """A static argument that is compared by identity where its own equality can't be a key."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity):
            return NotImplemented
        if self.value is other.value:
            return True
        return _is_value(self.value) and self.value == other.value and _content(self.value) == _content(other.value)

    def __hash__(self) -> int:
        return hash(self.value) if _is_value(self.value) else id(self.value)


def static_key(value: Any) -> tuple[Any, Any]:
    """What tells a static value from others: of equal numbers, True, 1 and 1.0 are different ones."""
    found: Any = by_value(value, _makers)
    if found is None and type(value) is tuple:
        return "tuple", tuple(map(static_key, value))
    return found or (type(value), _Identity(value))


def described(entry: Any) -> str:
    """The key of an argument in words."""
    if entry is float:
        return "float"
    if len(entry) == 3:
        shape, dtype, device = entry
        return str(TensorMeta(tuple(shape), dtype, device))
    kind, value = entry
    if isinstance(value, _Identity):
        return repr(value.value)
    return f"({', '.join(map(described, value))})" if kind == "tuple" else describe(entry)


def signature_of(func: Callable[..., Any]) -> inspect.Signature:
    """The signature that a caller has in mind: of a module, or of what was made of one, that is its ``forward``."""
    inner = inspect.unwrap(func)
    return inspect.signature(inner.forward if isinstance(inner, torch.nn.Module) else func)


def _content(x: Any) -> Hashable:
    """What equal objects may differ in: they hold numbers of other types. None for what only equality tells apart."""
    key = by_value(x, _makers)
    if key is not None or not _is_value(x):
        return key
    if isinstance(x, tuple):
        parts: Iterable[Any] = x
    elif dataclasses.is_dataclass(x):
        parts = (getattr(x, field.name) for field in dataclasses.fields(x))
    else:
        parts = getattr(x, "__dict__", {}).values()
    return type(x), tuple(map(_content, parts))


def _is_value(x: Any) -> bool:
    """Whether a static argument is compared by its own equality, which it defines together with its hash."""
    cls = type(x)
    has_own = any("__eq__" in vars(base) for base in cls.__mro__ if base is not object)
    return cls.__hash__ is not None and has_own and not isinstance(x, torch.nn.Module)


@dataclass(frozen=True)
class TracedCall:
    """A graph whose operands are the call's operands, then ``lifted``; ``constants`` are those that tracing made."""

    body: Subgraph
    output: OutputSpec
    lifted: list[Tensor]
    constants: set[int]
    updates: list[Update]
    """Of buffers; their new values follow the outputs."""


def trace_call(
    func: Callable[..., Any],
    arguments: Arguments,
    operation: str,
    buffers: Buffers | None = None,
    grad_enabled: bool | None = None,
) -> TracedCall:
    """Capture ``func`` on arguments like these, called once, in the caller's gradient mode unless one is given."""
    is_traced_float = [type(leaf) is float for leaf in arguments.leaves]
    dynamic = _dynamic_places(arguments)
    buffers = buffers or Buffers(environment.snapshot(func).buffers, operation, writable=False)
    outputs: list[OutputSpec] = []
    updates: list[Update] = []
    enabled = torch.is_grad_enabled() if grad_enabled is None else grad_enabled

    def run(*flat: Tensor) -> list[Tensor]:
        leaves = list(arguments.leaves)
        for place, value in zip(dynamic, flat):
            leaves[place] = _torch.read_scalar(value) if is_traced_float[place] else value
        args, kwargs = pytree.unflatten(arguments.spec, leaves)
        with torch.set_grad_enabled(enabled):
            result = func(*args, **kwargs)
        tensors, output = OutputSpec.flatten(pytree.map(_number_as_tensor, result))
        outputs.append(output)
        made, values = buffers.updates(current_capture())
        updates.extend(made)
        return [*tensors, *values]

    try:
        body, capture = capture_function(
            run, arguments.metas(), operation=operation, parameter=_name(func), buffers=buffers
        )
    finally:
        buffers.restore()
    return TracedCall(body, outputs[-1], capture.lifted, capture.constants, updates)


def _dynamic_places(arguments: Arguments) -> list[int]:
    """The places among the leaves of the operands, in their order."""
    floats = any(entry is float for entry in arguments.key[1:])
    return [
        i
        for i, leaf in enumerate(arguments.leaves)
        if isinstance(leaf, (Tensor, TensorSpec)) or (floats and type(leaf) is float)
    ]


def _number_as_tensor(leaf: Any) -> Any:
    """A traced number among the outputs is a tensor; a number that is the same in every call stays one."""
    return number_as_tensor(leaf) if isinstance(leaf, (torch.SymFloat, torch.SymInt)) else leaf


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", None) or type(func).__name__
