"""Batching rules for an open number of lanes: those of torch (2.13) for these operators make a number of it.

They are rules in Python, for which torch looks where open sizes are traced, and only there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard, _functorch
from torch._decomp import decomposition_table
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.utils._pytree import tree_leaves, tree_map_only

from .levels import is_batched, is_batched_here

__all__ = ["kernels_of_open_sizes"]

_aten = torch.ops.aten
_BATCHED, _COMPOSITE = DispatchKey.FuncTorchBatched, DispatchKey.CompositeImplicitAutograd


@contextlib.contextmanager
def kernels_of_open_sizes() -> Iterator[None]:
    """As in torch's symbolic tracing: kernels are looked up in Python first, since some in C++ ask for numbers."""
    _register()
    with enable_python_dispatcher():
        yield


@functools.cache
def _register() -> None:
    """Once; what torch itself has in Python stays."""
    rules: dict[Any, Callable[..., Any]] = {op: functools.partial(_over_lanes, op, rule) for op, rule in _RULES.items()}
    rules |= {op: decomposition_table[op] for op in decomposition_table if op in _DECOMPOSED or _is_run_in_a_loop(op)}
    rules |= {op: functools.partial(op._op_dk, _COMPOSITE) for op in _COMPOSED}
    rules |= {op: op.py_kernels[_COMPOSITE] for op in _COMPOSED_IN_PYTHON if _COMPOSITE in op.py_kernels}
    for op, rule in rules.items():
        if _BATCHED not in op.py_kernels:
            op.py_impl(_BATCHED)(rule)
    for op, key, form in _FORMS:
        if key not in op.py_kernels:
            op.py_impl(key)(functools.partial(_unless_torch_does, op, key, form))


def _unless_torch_does(op: Any, key: DispatchKey, form: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = form(*args, **kwargs)
    return op._op_dk(key, *args, **kwargs) if result is NotImplemented else result


def _is_run_in_a_loop(op: Any) -> bool:
    """Whether torch has no rule for it, and calls it for each lane."""
    has_kernel = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, op.name())
    return (
        op.namespace == "aten"
        and not (op._schema.is_mutable or has_kernel(_BATCHED) or has_kernel(_COMPOSITE))
        and torch.Tag.nondeterministic_seeded not in op.tags
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not any(map(is_batched, (input, weight) if bias is None else (input, weight, bias))):
        return NotImplemented
    product = input.matmul(weight.mT if weight.dim() > 1 else weight)
    return product if bias is None else product + bias.to(product.dtype)  # under autocast, that of the product


def _take_along_dim(self: Tensor, indices: Tensor, dim: int | None = None) -> Any:
    if dim is None or self.dim() != indices.dim() or not any(map(is_batched, (self, indices))):
        return NotImplemented
    dim %= self.dim()
    sizes = [*torch.broadcast_shapes(self.select(dim, 0).shape, indices.select(dim, 0).shape)]
    whole, places = (x.expand(*sizes[:dim], x.shape[dim], *sizes[dim:]) for x in (self, indices))
    return whole.gather(dim, places)


def _kron(self: Tensor, other: Tensor) -> Any:
    """Each element of one times all of the other."""
    if not any(map(is_batched, (self, other))):
        return NotImplemented
    rank = max(self.dim(), other.dim())
    left, right = (x.reshape(*[1] * (rank - x.dim()), *x.shape) for x in (self, other))
    for dim in reversed(range(rank)):
        left, right = left.unsqueeze(dim + 1), right.unsqueeze(dim)
    product = left * right
    return product.reshape([product.shape[2 * dim] * product.shape[2 * dim + 1] for dim in range(rank)])


def _block_diag(tensors: Sequence[Tensor]) -> Any:
    """torch's derivative of it counts by numbers."""
    return decomposition_table[_aten.block_diag.default](tensors) if any(map(is_batched, tensors)) else NotImplemented


class _Lanes:
    """Of the innermost vmap."""

    def __init__(self) -> None:
        vmap: Any = retrieve_current_functorch_interpreter()
        self.level, self.n = vmap.level(), vmap.batch_size()

    def whole(self, x: Tensor) -> Tensor:
        """The values in all lanes, whose dimension comes first."""
        value, dim = _functorch._unwrap_batched(x, self.level)
        return value.expand(self.n, *value.shape) if dim is None else value.movedim(dim, 0)

    def merged(self, x: Tensor) -> Tensor:
        """As :meth:`whole`, with the first dimension of each lane a part of that of the lanes."""
        return self.whole(x).flatten(0, 1)

    def side_by_side(self, x: Tensor) -> Tensor:
        """As :meth:`whole`, with the lanes a part of the second dimension."""
        return self.whole(x).transpose(0, 1).flatten(1, 2)


Arguments = dict[str, Any]
Rule = Callable[[Any, Arguments, _Lanes], Any]


def _over_lanes(op: Any, rule: Rule, *args: Any, **kwargs: Any) -> Any:
    """``rule`` gets the arguments by name, as each lane has them, and returns the results of all lanes."""
    given = {a.name: a.default_value for a in op._schema.arguments}
    given.update(zip(given, args), **kwargs)
    lanes = _Lanes()
    with _ExcludeDispatchKeyGuard(DispatchKeySet(_BATCHED)):
        if not any(isinstance(x, Tensor) and is_batched_here(x) for x in tree_leaves(given)):
            return op(**given)
        return tree_map_only(Tensor, lambda x: _functorch._add_batch_dim(x, 0, lanes.level), rule(op, given, lanes))


def _joined(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """torch leaves out what has no elements in one dimension, whatever the others have."""
    parts = [x for x in given["tensors"] if not (x.dim() == 1 and type(x.shape[0]) is int and x.shape[0] == 0)]
    parts = parts or given["tensors"]
    return op([lanes.whole(x) for x in parts], given["dim"] % parts[0].dim() + 1)


def _along(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """Parts along dimensions."""
    sizes = given.get("input_sizes")
    rank = tree_leaves(given)[0].dim() if sizes is None else len(sizes)
    moved = {name: dim % rank + 1 for name, dim in given.items() if name in ("dim", "dim1", "dim2")}
    if sizes is not None:
        moved["input_sizes"] = [lanes.n, *sizes]
    return op(**{**tree_map_only(Tensor, lanes.whole, given), **moved})


def _at_places(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """Elements at an index; to torch a number has a dimension, of size one, if need be."""

    def with_dimension(x: Tensor) -> Tensor:
        return lanes.whole(x) if x.dim() else lanes.whole(x).unsqueeze(-1)

    dim = given["dim"] % max(given["self"].dim(), 1) + 1
    result = op(**{**tree_map_only(Tensor, with_dimension, given), "dim": dim})
    return result if given["index" if op is _aten.gather.default else "self"].dim() else result.squeeze(-1)


def _selected(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """Rows along a dimension, the same in all lanes or others in each."""
    x, index, rank = lanes.whole(given["self"]), given["index"], given["self"].dim()
    x, dim = (x, given["dim"] % rank + 1) if rank else (x.unsqueeze(-1), 1)
    if is_batched_here(index):
        places = lanes.whole(index).reshape(lanes.n, *[1] * (dim - 1), -1, *[1] * (x.dim() - dim - 1))
        rows = x.gather(dim, places.expand(*x.shape[:dim], -1, *x.shape[dim + 1 :]))
    else:
        rows = op(x, dim, index)
    return rows if rank else rows.squeeze(-1)


def _with_strides(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """Memory for a tensor of this layout, in each lane."""
    size, stride = given["size"], given["stride"]
    span = 1 + sum((length - 1) * step for length, step in zip(size, stride))
    return op(**{**given, "self": lanes.whole(given["self"]), "size": [lanes.n, *size], "stride": [span, *stride]})


def _rows(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """Rows of one table, or of the tables of all lanes one behind the other."""
    indices = lanes.whole(given["indices"])
    if not is_batched_here(given["weight"]):
        return op(**{**given, "indices": indices})
    table = lanes.whole(given["weight"])
    return op(table.flatten(0, 1), _of_all_tables(indices, lanes, table.shape[1]))


def _rows_backward(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """Sums in the rows of all tables: the kernel reads their number."""
    grad, indices, n_rows = lanes.whole(given["grad_output"]), lanes.whole(given["indices"]), given["num_weights"]
    grad = torch.where((indices == given["padding_idx"]).unsqueeze(-1), 0, grad)
    places = _of_all_tables(indices, lanes, n_rows)
    if given["scale_grad_by_freq"]:
        ones = torch.ones_like(places, dtype=grad.dtype)
        counts = ones.new_zeros(lanes.n * n_rows).index_put([places], ones, accumulate=True)
        grad = grad / counts[places].unsqueeze(-1)
    total = grad.new_zeros((lanes.n * n_rows, grad.shape[-1])).index_put([places], grad, accumulate=True)
    return total.unflatten(0, (lanes.n, n_rows))


def _of_all_tables(indices: Tensor, lanes: _Lanes, n_rows: Any) -> Tensor:
    first = torch.arange(lanes.n, device=indices.device) * n_rows
    return indices + first.reshape(-1, *[1] * (indices.dim() - 1))


def _as_batch(op: Any, given: Arguments, lanes: _Lanes) -> Any:
    """Operators that run over a batch, the first dimension of tensors of this rank, run over a larger one."""
    if tree_leaves(given)[0].dim() < _RANKS_OF_BATCHES[op]:
        return op(**tree_map_only(Tensor, lanes.whole, given))
    mask = given.pop("attn_mask", None)
    merged = tree_map_only(Tensor, lanes.merged, given)
    if "input_size" in given:
        n, *sizes = given["input_size"]
        merged["input_size"] = [lanes.n * n, *sizes]
    if mask is not None:  # of fewer dimensions, or of one that is broadcast
        whole = lanes.whole(mask)
        whole = whole.reshape(lanes.n, *[1] * (4 - mask.dim()), *mask.shape)
        merged["attn_mask"] = whole.expand(lanes.n, given["query"].shape[0], *whole.shape[2:]).flatten(0, 1)
    return tree_map_only(Tensor, lambda x: x.unflatten(0, (lanes.n, -1)), op(**merged))


def _convolution(op: Any, given: Arguments, lanes: _Lanes) -> Tensor:
    """One of a larger batch, or one in groups of channels where the lanes have weights of their own."""
    x, weight, bias = given["input"], given["weight"], given["bias"]
    if is_batched_here(weight):
        wider = {"input": lanes.side_by_side(x), "weight": lanes.merged(weight), "groups": lanes.n * given["groups"]}
        result = op(**{**given, **wider, "bias": None}).unflatten(1, (lanes.n, -1)).transpose(0, 1)
    else:
        result = op(**{**given, "input": lanes.merged(x), "bias": None}).unflatten(0, (lanes.n, -1))
    return result if bias is None else result + lanes.whole(bias).reshape(lanes.n, 1, -1, *[1] * (x.dim() - 2))


def _convolution_backward(op: Any, given: Arguments, lanes: _Lanes) -> tuple[Tensor | None, ...]:
    """As :func:`_convolution`; gradients of weights are those of each lane."""
    grad, x, weight = given["grad_output"], given["input"], given["weight"]
    of_input, of_weight, of_bias = given["output_mask"]
    groups = {
        "grad_output": lanes.side_by_side(grad),
        "input": lanes.side_by_side(x),
        "weight": lanes.merged(weight),
        "groups": lanes.n * given["groups"],
        "bias_sizes": None,
    }
    d_input = d_weight = d_bias = None
    if of_input and not is_batched_here(weight):
        batch = {"grad_output": lanes.merged(grad), "input": lanes.merged(x), "output_mask": [True, False, False]}
        d_input = op(**{**given, **batch})[0].unflatten(0, (lanes.n, -1))
    elif of_input:
        d_input = op(**{**given, **groups, "output_mask": [True, False, False]})[0]
        d_input = d_input.unflatten(1, (lanes.n, -1)).transpose(0, 1)
    if of_weight:
        d_weight = op(**{**given, **groups, "output_mask": [False, True, False]})[1].unflatten(0, (lanes.n, -1))
    if of_bias:
        d_bias = lanes.whole(grad).sum([1, *range(3, grad.dim() + 1)])
    return d_input, d_weight, d_bias


def _convolution_double_backward(
    gg_input: Tensor | None,
    gg_weight: Tensor | None,
    gg_bias: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    input: Tensor,
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    transposed: bool,
    output_padding: Sequence[Any],
    groups: Any,
    output_mask: Sequence[bool],
) -> Any:
    """Where numbers are open, as that of groups is for lanes: a convolution is linear in its input and its weights."""
    if not any(isinstance(n, torch.SymInt) for n in (*stride, *padding, *dilation, *output_padding, groups)):
        return NotImplemented
    how = stride, padding, dilation, transposed, output_padding, groups
    gg_output = g_input = g_weight = None
    if output_mask[0]:
        terms = [] if gg_input is None else [_aten.convolution(gg_input, weight, None, *how)]
        terms += [] if gg_weight is None else [_aten.convolution(input, gg_weight, None, *how)]
        terms += [] if gg_bias is None else [gg_bias.reshape(1, -1, *[1] * (grad.dim() - 2)).expand(grad.shape)]
        gg_output = functools.reduce(torch.add, terms) if terms else None
    if output_mask[1] and gg_weight is not None:
        g_input = _aten.convolution_backward(grad, input, gg_weight, None, *how, [True, False, False])[0]
    if output_mask[2] and gg_input is not None:
        g_weight = _aten.convolution_backward(grad, gg_input, weight, None, *how, [False, True, False])[1]
    return gg_output, g_input, g_weight


_RANKS_OF_BATCHES = {
    _aten._adaptive_avg_pool2d_backward.default: 4,
    _aten.adaptive_max_pool2d.default: 4,
    _aten.adaptive_max_pool2d_backward.default: 4,
    _aten.avg_pool2d.default: 4,
    _aten.avg_pool2d_backward.default: 4,
    _aten.avg_pool3d.default: 5,
    _aten.avg_pool3d_backward.default: 5,
    _aten.max_pool2d_with_indices.default: 4,
    _aten.max_pool2d_with_indices_backward.default: 4,
    _aten.max_pool3d_with_indices.default: 5,
    _aten.max_pool3d_with_indices_backward.default: 5,
    _aten.reflection_pad1d.default: 3,
    _aten.reflection_pad1d_backward.default: 3,
    _aten.reflection_pad2d.default: 4,
    _aten.reflection_pad2d_backward.default: 4,
    _aten.reflection_pad3d.default: 5,
    _aten.reflection_pad3d_backward.default: 5,
    _aten.replication_pad1d.default: 3,
    _aten.replication_pad1d_backward.default: 3,
    _aten.replication_pad2d.default: 4,
    _aten.replication_pad2d_backward.default: 4,
    _aten.replication_pad3d.default: 5,
    _aten.replication_pad3d_backward.default: 5,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 4,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 4,
    _aten.upsample_bicubic2d_backward.default: 4,
    _aten.upsample_bilinear2d_backward.default: 4,
    _aten.upsample_linear1d_backward.default: 3,
    _aten.upsample_nearest1d_backward.default: 3,
    _aten.upsample_nearest2d_backward.default: 4,
    _aten.upsample_nearest3d_backward.default: 5,
    _aten.upsample_trilinear3d_backward.default: 5,
}
_COMPOSED = (_aten.isclose.default, _aten.kl_div.default, _aten.triplet_margin_loss.default)
"""Which torch calls for each lane, though it could compose them of other operators."""
_FORMS = (
    (_aten._convolution_double_backward.default, _COMPOSITE, _convolution_double_backward),
    *(
        (op, DispatchKey.FuncTorchDynamicLayerFrontMode, form)
        for op, form in (
            (_aten.block_diag.default, _block_diag),
            (_aten.kron.default, _kron),
            (_aten.linear.default, _linear),
            (_aten.take_along_dim.default, _take_along_dim),
        )
    ),
)
"""What torch computes in C++ by numbers before it asks for a batching rule, or after that."""
_COMPOSED_IN_PYTHON = (
    _aten.upsample_bicubic2d.vec,
    _aten.upsample_bilinear2d.vec,
    _aten.upsample_linear1d.vec,
    _aten.upsample_nearest1d.vec,
    _aten.upsample_nearest2d.vec,
    _aten.upsample_nearest3d.vec,
    _aten.upsample_trilinear3d.vec,
)
"""Which torch composes in C++ if they are in lanes."""
_DECOMPOSED = {
    getattr(_aten, name).default
    for name in (
        "_adaptive_avg_pool2d",
        "_native_batch_norm_legit",
        "_prelu_kernel",
        "_prelu_kernel_backward",
        "aminmax",
        "binary_cross_entropy",
        "binary_cross_entropy_backward",
        "block_diag",
        "col2im",
        "gelu_backward",
        "grid_sampler_2d",
        "im2col",
        "index_add",
        "index_copy",
        "linalg_cross",
        "native_batch_norm",
        "native_batch_norm_backward",
        "native_group_norm",
        "native_group_norm_backward",
        "native_layer_norm",
        "native_layer_norm_backward",
        "pixel_shuffle",
        "pixel_unshuffle",
        "unfold_backward",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "upsample_linear1d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "upsample_trilinear3d",
    )
}
"""By torch's own decompositions, of operators that leave sizes open."""

_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_RANKS_OF_BATCHES, _as_batch),
    _aten.cat.default: _joined,
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.embedding.default: _rows,
    _aten.embedding_dense_backward.default: _rows_backward,
    _aten.index_select.default: _selected,
    _aten.new_empty_strided.default: _with_strides,
    **dict.fromkeys(
        (
            _aten.diagonal_backward.default,
            _aten.diagonal_scatter.default,
            _aten.select_backward.default,
            _aten.select_scatter.default,
            _aten.slice_backward.default,
            _aten.slice_scatter.default,
        ),
        _along,
    ),
    **dict.fromkeys(
        (
            _aten.gather.default,
            _aten.scatter.reduce,
            _aten.scatter.src,
            _aten.scatter.value,
            _aten.scatter.value_reduce,
            _aten.scatter_add.default,
            _aten.scatter_reduce.two,
        ),
        _at_places,
    ),
}
