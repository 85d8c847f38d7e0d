"""Complex numbers as pairs of real ones, for a compiler that has none.

NOTE [Complex numbers in kernels] Inductor calls torch's operators for complex numbers, one by one, and a loop over them
would be no kernel. So a graph is rewritten: each complex value is two, its real and its imaginary part, in the carries
and stacks of loops too. An operator without a rule (``complex_rules``, ``fourier_rules``), an eigenvalue say, takes and
returns complex tensors as before, which are made of parts for it. What enters and leaves the graph lies in memory as
pairs, which is a view from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from ..derive.rewrite import rewritten
from ..ir.meta import TensorMeta
from ..ir.nodes import packed
from ..ir.origin import made_for
from ..ir.subgraph import Params, Subgraph, params_of
from .complex_parts import Parts, combined, paired, separated
from .complex_rules import RULES
from .fourier_rules import FOURIER_RULES

__all__ = ["as_pairs", "from_pairs", "in_real_parts", "over_pairs"]

aten = torch.ops.aten


def in_real_parts(body: Subgraph) -> Subgraph:
    """The graph with complex numbers where it begins and where it ends only."""

    def make() -> Subgraph:
        inner = _Inner(body)
        return rewritten(lambda *args: [*map(combined, inner(map(_opened, args)))], body.inputs, "jit")

    return body.derive("in real parts", make) if _is_complex(body) else body


def over_pairs(body: Subgraph) -> Subgraph:
    """The graph with pairs of real numbers, in a last dimension, for what is complex where it begins or ends."""
    edges = (*body.inputs, *body.outputs)
    if not any(meta.dtype.is_complex for meta in edges):
        return body
    inner = _Inner(body)

    def run(*args: Tensor) -> list[Tensor]:
        given = [_of_pairs(x) if meta.dtype.is_complex else x for x, meta in zip(args, body.inputs)]
        return [paired(x) if isinstance(x, Parts) else x for x in inner(given)]

    return body.derive("over pairs", lambda: rewritten(run, [*map(_paired, body.inputs)], "jit"))


def as_pairs(operands: Iterable[Tensor]) -> list[Tensor]:
    """Views of complex tensors as :func:`over_pairs` takes them."""
    return [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in operands]


def from_pairs(outputs: Iterable[Tensor], body: Subgraph) -> list[Tensor]:
    return [torch.view_as_complex(x) if meta.dtype.is_complex else x for x, meta in zip(outputs, body.outputs)]


def _of_pairs(x: Tensor) -> Parts:
    return Parts(x.select(-1, 0), x.select(-1, 1), torch.view_as_complex(x))


def _opened(x: Any) -> Any:
    return separated(x) if isinstance(x, Tensor) and x.is_complex() else x


def _paired(meta: TensorMeta) -> TensorMeta:
    return TensorMeta((*meta.shape, 2), meta.dtype.to_real(), meta.device) if meta.dtype.is_complex else meta


def _part(meta: TensorMeta) -> TensorMeta:
    return TensorMeta(meta.shape, meta.dtype.to_real(), meta.device)


def _is_complex(body: Subgraph) -> bool:
    """Whether complex numbers are anywhere in a graph."""

    def find() -> bool:
        module = body.module
        values = (node.meta.get("val") for node in module.graph.nodes)
        called = (params_of(node, module) for node in module.graph.nodes)
        return any(isinstance(v, Tensor) and v.is_complex() for v in values) or any(
            _is_complex(inner) for params in called if params is not None for inner in params.bodies
        )

    return body.derive("is complex", lambda: (find(),))[0]


def _in_parts(body: Subgraph) -> Subgraph:
    """A body of an operator: two inputs and outputs for each that is complex."""

    def make() -> Subgraph:
        inner = _Inner(body, is_loop=True)
        kinds = [meta.dtype.is_complex for meta in body.inputs]
        metas = [part for meta in body.inputs for part in ((_part(meta),) * 2 if meta.dtype.is_complex else (meta,))]
        return rewritten(lambda *args: _flat(inner(_grouped(args, kinds))), metas, "jit")

    return body.derive("in parts", make) if _is_complex(body) else body


def _flat(values: Iterable[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, Parts) else (value,))]


def _grouped(parts: Iterable[Any], kinds: Iterable[bool]) -> list[Any]:
    rest = iter(parts)
    return [Parts(next(rest), next(rest)) if is_complex else next(rest) for is_complex in kinds]


class _Inner(fx.Interpreter):
    """A graph as a function of values that may be Parts. Made outside of a capture, in which fakes of another one are
    not to be asked for anything.
    """

    def __init__(self, body: Subgraph, is_loop: bool = False) -> None:
        super().__init__(body.module, garbage_collect_values=False)
        values = {node: node.meta.get("val") for node in body.module.graph.nodes}
        self._dtypes = {
            node: map_aggregate(value, lambda x: getattr(x, "dtype", None)) for node, value in values.items()
        }
        self._rules: dict[Any, Callable[..., Any]] = RULES | FOURIER_RULES if is_loop else RULES
        self._dims = {node: value.dim() for node, value in values.items() if isinstance(value, Tensor)}

    def __call__(self, operands: Iterable[Any]) -> Sequence[Any]:
        outputs: Sequence[Any] = self.run(*operands)
        return outputs

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return _opened(super().run_node(n))
        if n.op != "call_function":
            return super().run_node(n)
        dtypes, params = self._dtypes[n], params_of(n, self.module)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if params is not None:
            return _called(n.target, params, args[1:], dtypes)
        made = self._of_pairs(n)
        if made is not None:
            return made
        if not any(isinstance(x, Parts) or _is_complex_dtype(x) for x in _leaves((args, kwargs, dtypes))):
            return super().run_node(n)
        made = self._by_rule(n, args, kwargs)
        if made is NotImplemented:
            made = n.target(*map_aggregate(args, combined), **map_aggregate(kwargs, combined))  # type: ignore[operator]
            return map_aggregate(made, _opened)
        return _exact(made, dtypes) if isinstance(dtypes, torch.dtype) else made

    def _by_rule(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        rule, dtypes = self._rules.get(n.target), self._dtypes[n]
        if rule is None:
            return NotImplemented
        if _is_complex_dtype(dtypes) and torch.Tag.pointwise in getattr(n.target, "tags", ()):
            args = map_aggregate(args, lambda x: _promoted(x, dtypes))
        return rule(*args, **kwargs)

    def _of_pairs(self, n: fx.Node) -> Any:
        """One of the numbers of a pair, or a pair of which one number is zero, without the pair."""
        source: Any = n.args[0]
        while n.target is aten.view_as_complex.default and isinstance(source, fx.Node) and source.target in _COPIES:
            source = source.args[0]
        if not isinstance(source, fx.Node):
            return None
        if n.target is aten.select.int and source.target is aten.view_as_real.default:
            (parts,), _ = self.fetch_args_kwargs_from_env(source)
            _, dim, place = n.args
            is_last = isinstance(parts, Parts) and dim in (-1, self._dims[source] - 1)
            return (parts.real, parts.imag)[int(place)] if is_last else None  # type: ignore[arg-type]
        if n.target is aten.view_as_complex.default and source.target is aten.select_backward.default:
            (cotangent, sizes, dim, place), _ = self.fetch_args_kwargs_from_env(source)
            if dim in (-1, len(sizes) - 1):
                zero = torch.zeros_like(cotangent)
                return Parts(cotangent, zero) if place in (0, -2) else Parts(zero, cotangent)
        return None


_COPIES = (packed, aten.clone.default, aten.alias.default)


def _called(operator: Any, params: Params, operands: Sequence[Any], dtypes: Any) -> Any:
    is_complex = tuple(isinstance(x, Parts) for x in operands)
    if not any(is_complex) and not any(map(_is_complex, params.bodies)):
        return operator(params, *operands)
    with made_for(params.origin):
        changed = params.in_parts(_in_parts, is_complex)
    if changed is None:
        return map_aggregate(operator(params, *map(combined, operands)), _opened)
    return _grouped(operator(changed, *_flat(operands)), [dtype.is_complex for dtype in dtypes])


def _promoted(x: Any, dtype: torch.dtype) -> Any:
    """A real number as torch takes it before it computes with complex ones; of bfloat16 there are none."""
    return x.to(dtype.to_real()) if isinstance(x, Tensor) and x.dtype != torch.bool else x


def _exact(made: Any, dtype: torch.dtype) -> Any:
    """With the dtype that torch gives the result, where a number took part."""
    if isinstance(made, Parts):
        return made.map(lambda part: part.to(dtype.to_real()))
    return made.to(dtype)


def _leaves(a: Any) -> Iterable[Any]:
    if isinstance(a, dict):
        a = tuple(a.values())
    if isinstance(a, (list, tuple)):
        for x in a:
            yield from _leaves(x)
    else:
        yield a


def _is_complex_dtype(x: Any) -> bool:
    return isinstance(x, torch.dtype) and x.is_complex
