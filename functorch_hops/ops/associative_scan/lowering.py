"""associative_scan in torch's own operators.

Export keeps the loop as torch's ``associative_scan``. Inductor lowers that one on CUDA and for pointwise functions
only, so for compilation the O(log n) steps are written out; on the CPU a kernel of one pass takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import _torch
from ...lowering.loops.forms import Prefixes, Refused
from .eager import associative_scan_impl
from .op import AssociativeScanParams

__all__ = ["associative_scan_form", "associative_scan_lower"]


def associative_scan_lower(params: AssociativeScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    body = params.body
    k = params.n_leaves
    if not _torch.is_exporting() or operands[0].shape[0] == 0:
        return associative_scan_impl(params, operands)
    elems = _torch.unshared([_torch.dense(e) for e in operands[:k]])
    return _torch.native_associative_scan(lambda *args: body(*args), elems, tuple(operands[k:]))


def associative_scan_form(params: AssociativeScanParams, operands: Sequence[Any]) -> Prefixes:
    length = operands[0].shape[0]
    if type(length) is not int:
        raise Refused("its length is open")
    return Prefixes(params.body, params.n_leaves, length)
