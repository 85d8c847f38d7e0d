"""Traced Python floats as 0-d tensors.

A float that ``jit`` traces is a symbolic number in a graph, so that it promotes as in eager Python. Inductor
takes symbolic floats at the top of a graph but not inside loops. There, and everywhere for uniformity, the
number becomes the 0-d float64 tensor that it was read from, and each result gets the dtype that the number
gave it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.subgraph import Subgraph
from .rewrite import rewritten

__all__ = ["without_numbers"]

aten = torch.ops.aten


def without_numbers(body: Subgraph) -> Subgraph:
    """The same graph without symbolic floats."""
    if not any(_is_number(node) for node in body.module.graph.nodes):
        return body

    def make() -> Subgraph:
        interpreter = _AsTensors(body.module)
        return rewritten(interpreter.run, body.inputs, "jit")

    return body.derive("without numbers", make)


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymFloat)


class _AsTensors(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        values = {n: n.meta.get("val") for n in module.graph.nodes}
        self.dtypes = {n: v.dtype for n, v in values.items() if isinstance(v, Tensor)}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is aten._local_scalar_dense.default and _is_number(n):
            return self.env[n.args[0]]  # type: ignore[index]
        if not any(_is_number(m) for m in n.all_input_nodes) or n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        out = _TENSOR_FORMS.get(n.target, n.target)(*args, **kwargs)  # type: ignore[operator]
        return out.to(self.dtypes[n]) if n in self.dtypes else out


def _add(x: Any, y: Any, alpha: Any = 1) -> Any:
    return torch.add(x, torch.mul(y, alpha))


def _sub(x: Any, y: Any, alpha: Any = 1) -> Any:
    return torch.sub(x, torch.mul(y, alpha))


def _full(size: Any, value: Tensor, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    return value.to(device=device, dtype=dtype or torch.get_default_dtype()).expand(size).clone()


def _full_like(x: Tensor, value: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return value.to(device=x.device, dtype=dtype or x.dtype).expand(x.shape).clone()


def _scalar_tensor(value: Tensor, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    return value.to(device=device, dtype=dtype or torch.get_default_dtype())


# What takes a number and has no form, or one of another name, that takes a tensor in its place.
_TENSOR_FORMS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.rsub.Scalar: lambda x, y, alpha=1: _sub(y, x, alpha),
    aten.pow.Tensor_Scalar: torch.pow,
    aten.pow.Scalar: torch.pow,
    aten.full.default: _full,
    aten.full_like.default: _full_like,
    aten.scalar_tensor.default: _scalar_tensor,
    aten.clamp.default: torch.clamp,
    aten.clamp_min.default: torch.clamp_min,
    aten.clamp_max.default: torch.clamp_max,
    aten.where.ScalarOther: torch.where,
    aten.where.ScalarSelf: torch.where,
    aten.masked_fill.Scalar: torch.masked_fill,
    aten.eq.Scalar: torch.eq,
    aten.ne.Scalar: torch.ne,
    aten.lt.Scalar: torch.lt,
    aten.le.Scalar: torch.le,
    aten.gt.Scalar: torch.gt,
    aten.ge.Scalar: torch.ge,
    torch.sym_float: lambda x: x,
    operator.neg: torch.neg,
}
