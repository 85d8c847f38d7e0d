"""Captured graphs as text."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .meta import TensorMeta
from .subgraph import Subgraph, params_of

__all__ = ["print_subgraph"]


def print_subgraph(body: Subgraph, name: str, indent: str = "") -> str:
    """A graph in lines ``%name: float32[3] = operator(arguments)``, bodies nested below the node that runs them."""
    names = {node: f"%{node.name}" for node in body.module.graph.nodes}
    placeholders = [n for n in body.module.graph.nodes if n.op == "placeholder"]
    inputs = ", ".join(f"{names[n]}: {_kind(meta)}" for n, meta in zip(placeholders, body.inputs))
    lines = [f"{indent}{name}({inputs}):"]
    for node in body.module.graph.nodes:
        if node.op == "call_function":
            lines += _lines(node, names, body.module, indent + "  ")
    outputs = ", ".join(names[n] for n in body.output_nodes())
    return "\n".join([*lines, f"{indent}  return ({outputs})"])


def _lines(node: fx.Node, names: dict[fx.Node, str], module: fx.GraphModule, indent: str) -> list[str]:
    params = params_of(node, module)
    value = node.meta.get("val")
    kind = f": {_kind(TensorMeta.of(value))}" if isinstance(value, torch.Tensor) else ""
    arguments = node.args if params is None else node.args[1:]
    words = [_argument(a, names) for a in arguments]
    words += [f"{k}={_argument(v, names)}" for k, v in node.kwargs.items()]
    if params is None:
        return [f"{indent}{names[node]}{kind} = {_target(node)}({', '.join(words)})"]
    attributes = ", ".join(f"{k}={v}" for k, v in params.attributes.items())
    said = f"  # {'/'.join(params.scope.names)}" if params.scope.names else ""
    lines = [f"{indent}{names[node]} = {params.operator.label}[{attributes}]({', '.join(words)}){said}"]
    for i, inner in enumerate(params.bodies):
        lines.append(print_subgraph(inner, node.target.body_name(i), indent + "  "))  # type: ignore[union-attr]
    return lines


def _target(node: fx.Node) -> str:
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    return getattr(node.target, "__name__", name) if "<" in name else name


def _argument(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(v, names) for v in value)}]"
    return str(value)


def _kind(meta: TensorMeta) -> str:
    kind = f"{str(meta.dtype).removeprefix('torch.')}[{', '.join(map(str, meta.shape))}]"
    return kind if meta.device.type == "cpu" else f"{kind}@{meta.device}"
