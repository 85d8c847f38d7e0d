"""Random numbers in a kernel.

NOTE [Numbers by count] A kernel can't ask torch's generator at each step, and lanes that run apart draw in another
order than eager's. So the graph around it draws one number, the seed of this call, from Inductor's stream; and the
kernel's numbers are a function of it and of where they are drawn: of the step and the place in the body, which are
added to the seed and make the key of a Philox generator, and of the element, which is its counter. No two draws of a
loop share a key. A loop or branch in a body has a seed that is drawn there. Of a graph that is one kernel
(NOTE [Whole graphs]) the seed is an operand, which torch's generator draws at each call. What reverse mode needs of the
numbers is stacked or taped as any other value, before this is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ... import _torch
from ...derive.rewrite import rewritten
from ...ir.meta import TensorMeta
from ...ir.nodes import bernoulli_like
from ...ir.origin import made_for
from ...ir.sizes import shape_env_of
from ...ir.subgraph import Params, Subgraph, is_random_node, params_of
from .forms import Branches, Form, Refused, Scan, While

__all__ = ["draw", "keyed", "keyed_body"]

aten = torch.ops.aten

_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define("draw(Tensor key, SymInt[] size, str kind) -> Tensor")
draw = torch.ops.functorch_hops.draw.default
"""Numbers by count: uniform in [0, 1) ("rand") or normal ("randn") in float32, or of 63 bits ("bits") in int64."""

torch.library.register_fake(
    "functorch_hops::draw",
    lambda key, size, kind: key.new_empty(size, dtype=torch.int64 if kind == "bits" else torch.float32),
    lib=_library,
)

_LARGEST_SEED = 2**63 - 1


def keyed(
    form: Form, loop: fx.Node, operands: Sequence[fx.Node], added: list[fx.Node]
) -> tuple[Scan | While | Branches, list[fx.Node]]:
    """The loop ``loop`` with numbers by count, and its operands. ``added``: takes the nodes that are put before it."""
    nodes = _Nodes(loop, added)
    new, at, key = _with_key(form)
    return new, [*operands[:at], key(nodes.add, nodes.seed(new.inputs[at].device), loop.args[1]), *operands[at:]]


Key = Callable[[Callable[..., Any], Any, Any], Any]
"""The operand that a loop with numbers by count takes: of what makes a node of an operator, of its arguments and of its
keywords, or the value of one; of a seed; and of the loop's first operand.
"""


def _with_key(form: Form) -> tuple[Scan | While | Branches, int, Key]:
    """The loop or branch with numbers by count; the place of the operand that this takes among its inputs."""
    if isinstance(form, Scan):
        return _scan_with_keys(form)
    if isinstance(form, While):
        return _while_with_key(form), form.n_carry, lambda apply, seed, _: seed
    if isinstance(form, Branches):
        at = len(form.branches[0].inputs)
        branches = tuple(keyed_body(body, at)[0] for body in form.branches)
        return replace(form, branches=branches), at + 1, lambda apply, seed, _: seed
    raise Refused("it draws random numbers")


def _scan_with_keys(form: Scan) -> tuple[Scan, int, Key]:
    """With a key for each step among the xs."""
    at = form.n_carry + form.n_xs
    body, count = keyed_body(form.body, at)

    def keys(apply: Callable[..., Any], seed: Any, length: Any) -> Any:
        steps = apply(aten.arange.default, (length,), {"dtype": torch.int64, "device": body.inputs[at].device})
        return apply(aten.add.Tensor, (apply(aten.mul.Tensor, (steps, count), {}), seed), {})

    return replace(form, body=body, n_xs=form.n_xs + 1), at, keys


def _while_with_key(form: While) -> While:
    """With the key of the next step as the last carry."""
    n = form.n_carry
    body, in_body = keyed_body(form.body, n)
    cond, in_cond = keyed_body(form.cond, n, in_body)

    def step(*args: Tensor) -> list[Tensor]:
        outs = body(*args)
        return [*outs[:n], args[n] + (in_body + in_cond), *outs[n:]]

    return replace(form, cond=cond, body=rewritten(step, body.inputs, "while_loop"), n_carry=n + 1)


class _Nodes:
    """Nodes in front of a loop."""

    def __init__(self, loop: fx.Node, added: list[fx.Node]) -> None:
        self._loop, self._added = loop, added
        values = [x.meta["val"] for x in loop.all_input_nodes if isinstance(x.meta.get("val"), Tensor)]
        self._mode = _torch.new_fake_mode(shape_env_of(x.shape for x in values))

    def add(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        with self._loop.graph.inserting_before(self._loop):
            node = self._loop.graph.call_function(target, args, kwargs)
        self._added.append(node)  # also if its sizes are refused
        given = fx.map_arg(args, lambda x: x.meta["val"])
        with self._mode:
            node.meta["val"] = target(*given, **kwargs)
        return node

    def seed(self, device: torch.device) -> fx.Node:
        return self.add(aten.randint.low, (0, _LARGEST_SEED, []), {"device": device})


def _check(body: Subgraph) -> None:
    """Refuse what is not drawn by count."""
    for node in body.module.graph.nodes:
        if is_random_node(node, body.module) and params_of(node, body.module) is None:
            if node.target not in _DRAWS:
                raise Refused(f"it draws random numbers by {node.target}")
            if tree_leaves(node.meta["val"])[0].dtype.is_complex:
                raise Refused("it draws complex numbers")


def _device(body: Subgraph) -> torch.device:
    """Where a body computes, hence where its key is: on a GPU if it does anything there."""
    devices = [meta.device for meta in (*body.inputs, *body.outputs)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def keyed_body(body: Subgraph, at: int, first: int = 0) -> tuple[Subgraph, int]:
    """The body with a key as input ``at``, to which ``first`` and the number of each draw are added, and how many draws
    there are.
    """
    _check(body)
    drawing = [node for node in body.module.graph.nodes if is_random_node(node, body.module)]
    numbers = {node: first + i for i, node in enumerate(drawing)}
    dtypes = {node: tree_leaves(node.meta["val"])[0].dtype for node in drawing}
    calls = {node: _KeyedCall(node, params) for node in drawing if (params := params_of(node, body.module)) is not None}

    class Keyed(fx.Interpreter):
        def __init__(self, key: Tensor) -> None:
            super().__init__(body.module)
            self.key = key

        def run_node(self, node: fx.Node) -> Any:
            if node not in numbers:
                return super().run_node(node)
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            key = self.key + numbers[node]
            if node in calls:
                return calls[node](draw(key, (), "bits"), args[1:])
            return _DRAWS[node.target](_Source(key, dtypes[node]), *args, **kwargs)

    def run(*args: Tensor) -> Any:
        return Keyed(args[at]).run(*args[:at], *args[at + 1 :])

    key = TensorMeta((), torch.int64, _device(body))
    inputs = [*body.inputs[:at], key, *body.inputs[at:]]
    return rewritten(run, inputs, "scan"), len(drawing)


class _KeyedCall:
    """A loop or branch in a body, with numbers by count."""

    def __init__(self, node: fx.Node, params: Params) -> None:
        operands = [x.meta["val"] if isinstance(x, fx.Node) else x for x in node.args[1:]]
        form, at, self._key = _with_key(params.operator.rules.form(params, operands))
        changed = {name: getattr(form, name) for name in _CHANGED[type(form)]}
        with made_for(params.origin):
            self._params: Params = replace(params, **changed)
        self._at = at + isinstance(form, Scan)  # whose length is an operand of its node, and none of its kernel's
        self._is_carried = isinstance(form, While)

    def __call__(self, seed: Tensor, operands: Sequence[Any]) -> Any:
        at = self._at
        key = self._key(lambda target, args, kwargs: target(*args, **kwargs), seed, operands[0])
        outs = self._params.operator(self._params, *operands[:at], key, *operands[at:])
        return (*outs[:at], *outs[at + 1 :]) if self._is_carried else outs


_CHANGED = {Scan: ("body", "n_xs"), While: ("cond", "body", "n_carry"), Branches: ("branches",)}


class _Source:
    """Where an operator draws from, and the dtype of its result."""

    def __init__(self, key: Tensor, dtype: torch.dtype) -> None:
        self.key, self.dtype = key, dtype

    def chance(self, size: Sequence[Any]) -> Tensor:
        """To compare with a probability."""
        return draw(self.key, size, "rand")

    def uniform(self, size: Sequence[Any]) -> Tensor:
        """With all digits of the dtype, and never 1, which half precision would round to."""
        if self.dtype == torch.float64:
            return (draw(self.key, size, "bits") >> 10).to(self.dtype) * 2.0**-53
        if self.dtype == torch.float32:
            return self.chance(size)
        step = torch.finfo(self.dtype).eps / 2
        return (torch.floor(self.chance(size) / step) * step).to(self.dtype)

    def normal(self, size: Sequence[Any]) -> Tensor:
        return draw(self.key, size, "randn").to(self.dtype)

    def integer(self, low: int, high: int, size: Sequence[Any]) -> Tensor:
        return (draw(self.key, size, "bits") % (high - low) + low).to(self.dtype)


def _bernoulli(source: _Source, x: Tensor, p: Any = None, **_: Any) -> Tensor:
    return (source.chance(x.shape) < (x if p is None else p)).to(source.dtype)


def _dropout(source: _Source, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = source.chance(x.shape) >= p
    return x * kept * (0.0 if p == 1 else 1 / (1 - p)), kept


def _normal(source: _Source, mean: Any, std: Any = 1.0, **_: Any) -> Tensor:
    size = torch.broadcast_shapes(*(x.shape for x in (mean, std) if isinstance(x, Tensor)))
    return source.normal(size) * std + mean


_DRAWS: dict[Any, Callable[..., Any]] = {
    aten.rand.default: lambda source, size, **_: source.uniform(size),
    aten.rand_like.default: lambda source, x, **_: source.uniform(x.shape),
    aten.randn.default: lambda source, size, **_: source.normal(size),
    aten.randn_like.default: lambda source, x, **_: source.normal(x.shape),
    aten.randint.default: lambda source, high, size, **_: source.integer(0, high, size),
    aten.randint.low: lambda source, low, high, size, **_: source.integer(low, high, size),
    aten.randint_like.default: lambda source, x, high, **_: source.integer(0, high, x.shape),
    aten.randint_like.low_dtype: lambda source, x, low, high, **_: source.integer(low, high, x.shape),
    aten.bernoulli.default: _bernoulli,
    bernoulli_like: _bernoulli,
    aten.bernoulli.Tensor: _bernoulli,
    aten.native_dropout.default: _dropout,
    aten.normal_functional.default: lambda source, x, mean=0.0, std=1.0, **_: source.normal(x.shape) * std + mean,
    aten.normal.Tensor_float: _normal,
    aten.normal.float_Tensor: _normal,
    aten.normal.Tensor_Tensor: _normal,
    aten.uniform.default: lambda source, x, low=0.0, high=1.0, **_: source.uniform(x.shape) * (high - low) + low,
    aten.exponential.default: lambda source, x, rate=1.0, **_: -torch.log1p(-source.uniform(x.shape)) / rate,
}
