"""Control flow of torch's own inside a captured body: it becomes ours, and composes with all else as ours does.

torch hands such a call to Dynamo, which calls the operator with graphs. In a capture the operator gets the user's
functions instead (``_torch.install_hooks``), on flat tensors, and comes to the function mode as any other function of
torch. What attention with a user's function for its scores computes, torch has in its own Python code.

From torch 2.15 on loops also get `mutated_arg_indices`: to which operands their functions write. Captures see that
themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from .. import _torch
from ..ops.associative_scan.api import associative_scan
from ..ops.cond.api import cond
from ..ops.map.api import map as map_rows
from ..ops.scan.api import scan
from ..ops.while_loop.api import while_loop

__all__ = ["OPERATORS"]

Values = Sequence[Any]


def _cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Values = ()) -> Any:
    return cond(pred, true_fn, false_fn, *operands)


def _while_loop(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., Any],
    init: Values,
    constants: Values,
    mutated_arg_indices: str = "",
) -> Any:
    spec: Any = None

    def step(carry: Values) -> Values:
        nonlocal spec
        leaves, spec = _torch.tree_flatten(body_fn(*carry, *constants))
        return leaves

    result = while_loop(lambda carry: cond_fn(*carry, *constants), step, list(init))
    return _torch.tree_unflatten(result, spec)


def _scan(
    combine_fn: Callable[..., Any],
    init: Values,
    xs: Values,
    additional_inputs: Values,
    mutated_arg_indices: str = "",
) -> Any:
    specs: list[Any] = []
    is_graph, n = isinstance(combine_fn, fx.GraphModule), len(init)  # which returns carry and y in one tuple

    def step(carry: Values, x: Values) -> tuple[Values, Values]:
        outs = combine_fn(*carry, *x, *additional_inputs)
        results = [_torch.tree_flatten(part) for part in ((outs[:n], outs[n:]) if is_graph else outs)]
        specs[:] = [spec for _, spec in results]
        (new, _), (y, _) = results
        return new, y

    carry, ys = scan(step, list(init), list(xs))
    parts = [_torch.tree_unflatten(part, spec) for part, spec in zip((carry, ys), specs, strict=True)]
    return (*parts[0], *parts[1]) if is_graph else tuple(parts)


def _associative_scan(combine_fn: Callable[..., Any], xs: Values, additional_inputs: Values = ()) -> Any:
    combine = lambda a, b: list(combine_fn(*a, *b, *additional_inputs))
    return associative_scan(combine, list(xs))


def _map(function: Callable[..., Any], xs: Values, constants: Values, mutated_arg_indices: str = "") -> Any:
    return map_rows(lambda row: function(*row, *constants), list(xs))


def _invoke_subgraph(subgraph: Callable[..., Any], identifier: str | None, *operands: Any) -> Any:
    """A region that is compiled once for all its calls: in a captured body a call like any other."""
    return subgraph(*operands)


def _attention(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return _torch.attention_in_python()(*args, **kwargs)


OPERATORS: dict[str, Callable[..., Any]] = {
    "associative_scan": _associative_scan,
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "map_impl": _map,
    "flex_attention": _attention,
    "invoke_subgraph": _invoke_subgraph,
}
"""By the names of torch's operators."""
