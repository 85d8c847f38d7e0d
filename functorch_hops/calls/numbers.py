"""Numbers of Python and NumPy: the tensors that stand for them, and the dtypes that they give way to."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from .. import pytree
from ..trace.capture import current_capture

__all__ = [
    "as_number",
    "from_numpy",
    "number_as_tensor",
    "number_type",
    "numbers_as_tensors",
    "symbol_as_tensor",
    "weak_dtype",
]

_SYMBOLIC = {torch.SymBool: bool, torch.SymInt: int, torch.SymFloat: float}


def as_number(value: Any) -> Any:
    """NumPy's scalars and arrays without dimensions as the Python number that they hold; anything else as it is."""
    if isinstance(value, Tensor) or not hasattr(type(value), "__array__") or getattr(value, "shape", None) != ():
        return value
    return value.item() if value.dtype.kind in "biufc" else value


def from_numpy(value: Any) -> Any:
    """An object of NumPy: an array as a tensor, of the same memory where that is possible, a scalar as a Python number.
    What torch has no dtype for stays as it is.
    """
    np = sys.modules["numpy"]
    if isinstance(value, (np.number, np.bool_)):
        return value.item()
    if type(value) not in (np.ndarray, np.memmap) or value.dtype.kind not in "biufc":
        return value
    if (
        not value.dtype.isnative
        or not value.flags.writeable
        or any(stride % value.itemsize for stride in value.strides)
    ):
        value = np.array(value, value.dtype.newbyteorder("="), order="C")
    elif any(stride < 0 for stride in value.strides):
        value = value.copy(order="C")
    try:
        # A capture is to see that the tensor is made of a constant.
        return torch.from_numpy(value) if current_capture() is None else torch.tensor(value)
    except TypeError:
        return value


def number_type(value: Any) -> type | None:
    """``bool``, ``int``, ``float`` or ``complex``; None for what is no number."""
    if isinstance(value, tuple(_SYMBOLIC)):
        return _SYMBOLIC[type(value)]
    return next((kind for kind in (bool, int, float, complex) if isinstance(value, kind)), None)


def default_dtype(kind: type) -> torch.dtype:
    """The dtype of the tensor that stands for a number of this type."""
    if kind is bool or kind is int:
        return torch.bool if kind is bool else torch.int64
    dtype = torch.get_default_dtype()
    return dtype if kind is float else dtype.to_complex()


def number_as_tensor(value: Any, device: torch.device | None = None) -> Any:
    """A number as a 0-d tensor (bool, int64, default dtype, default complex dtype); anything else as it is. ``device``:
    where it is to be, the default device otherwise.
    """
    number = as_number(value)
    kind = number_type(number)
    if kind is None:
        return value
    if isinstance(number, torch.SymBool):
        return torch.scalar_tensor(torch.sym_ite(number, 1, 0), dtype=torch.bool, device=device)
    if isinstance(number, (torch.SymInt, torch.SymFloat)):
        return torch.scalar_tensor(number, dtype=default_dtype(kind), device=device)  # type: ignore[arg-type]
    return torch.full((), number, dtype=default_dtype(kind), device=device)


def symbol_as_tensor(value: Any) -> Any:
    """A traced number, whose value comes later, as a 0-d tensor; anything else, a number that is the same in every call
    too, as it is.
    """
    return number_as_tensor(value) if isinstance(value, (torch.SymInt, torch.SymFloat)) else value


def numbers_as_tensors(tree: Any) -> Any:
    """The tree with its numbers as tensors."""
    if type(tree) is Tensor:
        return tree
    leaves, spec = pytree.flatten(tree)
    if all(type(leaf) is Tensor for leaf in leaves):
        return tree
    return pytree.unflatten(spec, map(number_as_tensor, leaves))


def weak_dtype(kind: type, dtype: torch.dtype) -> torch.dtype:
    """``torch.result_type`` of a number of type ``kind`` and a tensor of ``dtype``."""
    own = default_dtype(kind)
    return dtype if torch.can_cast(own, dtype) else torch.promote_types(own, dtype)
