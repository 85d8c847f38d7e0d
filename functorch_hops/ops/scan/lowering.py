"""scan as torch's own ``scan`` (or ``map`` where nothing is carried)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _torch
from ...lowering.exported import as_declared, as_floats, as_real, is_training, tied
from ...lowering.loops.forms import NativeLoop, Scan
from .op import ScanParams, split_operands

__all__ = ["scan_form", "scan_lower", "scan_native_loop"]


def scan_lower(params: ScanParams, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """torch's scan runs forward in time only, wants at least one step and one ``xs``, and inputs that share no
    storage.
    """
    body = params.body
    n, n_xs = params.n_carry, params.n_xs
    length, init, xs, consts = split_operands(params, operands)
    if isinstance(length, int) and length == 0:
        return [*(c.clone() for c in init), *(meta.with_leading(0).zeros() for meta in body.outputs[n:])]
    if is_training() and _torch.SCAN_FORGETS_CARRIES:
        init = tied(init, operands)
    if not xs:
        xs = [torch.zeros(length) if is_training() else torch.arange(length)]
    if params.reverse:
        xs = [x.flip(0) for x in xs]
    is_map = n == 0 and _torch.is_exporting() and not _torch.is_exporting_to_onnx()
    # Inductor and ONNX have no map, and Inductor takes a scan of a single output for that output: an idle carry makes
    # it two.
    idle = [] if is_map or (n > 0 and len(body.outputs) > 1) else [torch.zeros(())]
    k, first_const = len(idle), len(idle) + n + len(xs)
    # Inductor does not find a scan with complex operands or outputs: there they travel as pairs of real numbers.
    read: Any = list if _torch.is_exporting() else as_real
    returned = as_floats if is_training() else read
    # Where nothing is saved and nothing stacked, torch's derivative of a scan is one over nothing, which it refuses.
    is_unstacked = is_training() and len(body.outputs) == n
    # What a step returns and its derivative reads would be two results of one memory, which torch refuses in a scan.
    separate = _copied if is_training() else _torch.dense

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        outs = body(*as_declared((*args[k : k + n + n_xs], *args[first_const:]), body.inputs))
        stacked = [torch.zeros(())] if is_unstacked else []
        return (*map(_copied, args[:k]), *map(separate, (*returned(outs), *stacked)))

    consts = returned(consts)
    inputs = _torch.unshared([_torch.dense(c) for c in (*idle, *returned(init), *returned(xs))], consts)
    outs = _torch.native_scan(step, inputs[: k + n], inputs[k + n :], tuple(consts))
    outs = as_declared(outs[k : k + len(body.outputs)], body.outputs)
    ys = [y.flip(0) for y in outs[n:]] if params.reverse else outs[n:]
    return [*outs[:n], *ys]


def _copied(t: Tensor) -> Tensor:
    return _torch.dense(t.clone())


def scan_native_loop(params: ScanParams) -> NativeLoop:
    return NativeLoop.PLAIN


def scan_form(params: ScanParams, operands: Sequence[Any]) -> Scan:
    return Scan(params.body, params.n_carry, params.n_xs, params.reverse, operands[0])
