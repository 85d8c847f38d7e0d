"""What a tensor is besides its values: its class, its storage, lazy views, a constant that tracing knows."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils.weak import WeakTensorKeyDictionary

from .dispatch import suspended
from .levels import base_tensor, unwrap_if_dead

__all__ = [
    "PLAIN_TYPES",
    "WeakTensorKeyDictionary",
    "as_dtype",
    "as_plain_class",
    "become",
    "empty_strided_cpu",
    "has_own_operators",
    "has_storage",
    "has_symbols",
    "is_dense",
    "is_lazy",
    "known_constant",
    "known_number",
    "n_writes",
    "plain",
    "storage_key",
    "storage_numel",
]

PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter, int})
"""Operands without a dispatch of their own."""


empty_strided_cpu = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]
"""``(sizes, strides, dtype)``: as Inductor's code makes tensors, in half of the time that ``torch.empty`` takes."""


def is_lazy(t: Tensor) -> bool:
    """Whether what lies in its memory, if it has any, are not its values."""
    with torch._C.DisableTorchFunction():  # a capture around would take this for a question of the user's
        return t.is_neg() or t.is_conj() or t._is_zerotensor()


def plain(t: Tensor) -> Tensor:
    """``t`` as a tensor that a HOP may hand to any kernel: no dead wrapper, zero tensor, lazy conj or neg."""
    t = unwrap_if_dead(t)
    if not is_lazy(t):
        return t
    return torch.zeros_like(t) if t._is_zerotensor() else t.resolve_conj().resolve_neg()


def become(t: Tensor, value: Tensor) -> None:
    """Let the object ``t`` be the tensor ``value``, which is nowhere else: ``torch.utils.swap_tensors``, which refuses
    objects to which there are weak references.
    """
    with torch._C.DisableTorchFunction():
        t.__class__, value.__class__ = type(value), type(t)
        t.__dict__, value.__dict__ = value.__dict__, t.__dict__
        torch._C._swap_tensor_impl(t, value)


def has_own_operators(t: Tensor) -> bool:
    """Whether the class of ``t`` redefines what operators do. A graph knows nothing of that."""
    cls = type(t)
    if cls in PLAIN_TYPES or issubclass(cls, (FakeTensor, FunctionalTensor)):
        return False
    function = getattr(cls.__torch_function__, "__func__", cls.__torch_function__)
    known = Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl  # type: ignore[attr-defined]
    return function not in known or cls.__torch_dispatch__ is not Tensor.__torch_dispatch__


def as_plain_class(t: Tensor) -> Tensor:
    """A tensor of a class that only bears a name, as one of the base class."""
    if type(t) in PLAIN_TYPES or isinstance(t, (FakeTensor, FunctionalTensor)):
        return t
    return t.as_subclass(Tensor)


def as_dtype(dtype: torch.dtype | int) -> torch.dtype:
    """A dtype as an operator's kernel gets it: in a list it is a number, up to torch 2.12."""
    return _numbered(dtype) if isinstance(dtype, int) else dtype


@functools.cache
def _numbered(number: int) -> torch.dtype:
    made: Tensor = torch.ops.aten.empty.memory_format((0,), dtype=number)
    return made.dtype


def storage_key(t: Tensor) -> int:
    """Identity of the storage of ``t``; equal for views of one tensor."""
    with torch._C.DisableTorchFunction():
        return t.untyped_storage()._cdata


def n_writes(t: Tensor) -> int:
    """How often ``t`` was written to, as far as torch counts: of a tensor of inference mode it does not."""
    with torch._C.DisableTorchFunction():
        return 0 if t.is_inference() else t._version


def storage_numel(t: Tensor) -> int:
    """How many elements fit into the storage of ``t``."""
    with torch._C.DisableTorchFunction():
        return t.untyped_storage().nbytes() // t.itemsize


def is_dense(t: Tensor) -> bool:
    """Whether a tensor has a value at each place, in strides."""
    if type(t) is FakeTensor:
        return True
    if not torch._C._len_torch_function_stack():
        return t.layout is torch.strided and not t.is_nested
    with torch._C.DisableTorchFunction():
        return t.layout is torch.strided and not t.is_nested


def has_storage(t: Tensor) -> bool:
    """Whether the values of ``t`` lie in memory of its own, as those of a dense tensor do."""
    return bool(torch._C._has_storage(t))


def has_symbols(t: Tensor) -> bool:
    """Whether sizes or strides of ``t`` are no numbers."""
    return bool(t._has_symbolic_sizes_strides)


def known_constant(t: Tensor) -> Tensor | None:
    """The value of a traced tensor where tracing knows it (``torch.tensor(3)`` in the body), else None."""
    constant: Tensor | None = getattr(t, "constant", None)
    return constant


def known_number(t: Tensor) -> Any:
    """The number that tracing knows a one-element tensor to hold, else None."""
    constant = known_constant(base_tensor(t))
    if constant is None:
        return None
    with suspended(keep_autocast=False):
        return constant.item()
