"""``pure_callback``: a function of NumPy or SciPy in a body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ... import pytree
from ...calls.arguments import TensorSpec
from ...calls.leaf import itself, one_effect
from ...calls.numbers import symbol_as_tensor
from ...calls.output import OutputSpec
from ...calls.spelling import spelled
from ...calls.validate import as_flag, check_callable, kind_of
from ...errors import ArgumentTypeError, message
from ...ir.meta import TensorMeta
from .op import CallbackParams, callback_op

__all__ = ["pure_callback"]


@spelled(vmap_method="write vectorized=True for a function that takes further dimensions in front, else leave it out")
@one_effect
def pure_callback(
    f: Callable[..., Any], result_shape: Any, /, *args: Any, vectorized: bool = False, **kwargs: Any
) -> Any:
    """The result of a Python function, such as one of NumPy or SciPy, also in captured and compiled code.

    ``pure_callback : ((*a, **k) -> b, shapes of b, *a, **k) -> b``. Equivalent to ``f(*args, **kwargs)`` with NumPy
    arrays in the place of tensors, whose results become tensors again.

    Arguments:
        f: a function whose results depend on its arguments only, and which does nothing else: it may be called once for
            equal arguments, or not at all if nobody needs the result. (For effects there is ``fh.debug.callback``.)
        result_shape: what ``f`` returns, a tree of ``TensorSpec`` or of tensors like the results.
        args: the arguments of ``f``, any trees.
        vectorized: ``f`` also takes arguments with further dimensions in front and returns results with the same: then
            ``vmap`` calls it once. Otherwise once for each lane.
        kwargs: keyword arguments of ``f``.

    Returns:
        A tree like ``result_shape``, of tensors. It has no derivative of its own: to give it one, put the call into a
        function with a rule (:class:`custom_vjp`, :class:`custom_jvp`).

    Raises:
        ArgumentTypeError: ``f`` is not callable, or ``result_shape`` holds something else.
        TreeMismatchError, MetadataMismatchError: ``f`` returned something else than ``result_shape`` says. It is raised
            by the call of the compiled function, as are the exceptions of ``f``.
        ArgumentTypeError: a derivative is asked for, and there is no rule.

    Cost: that of ``f``, and some tens of microseconds. A loop that holds it is no kernel of its own. The sizes of the
        result are never open: a trace is for one shape of it.

    Source: ``jax.pure_callback``.

    >>> import numpy as np, torch, functorch_hops as fh
    >>> @fh.custom_vjp
    ... def i0(x):
    ...     return fh.pure_callback(np.i0, x, x)
    >>> i0.defvjp(lambda x: (i0(x), x), lambda x, ct: (ct * torch.special.i1(x),))
    >>> fh.jit(fh.vmap(fh.grad(i0)), backend="eager")(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.5652])
    """
    check_callable("pure_callback", "f", f)
    vectorized = as_flag("pure_callback", "vectorized", vectorized)
    specs, tree = pytree.flatten(pytree.map(itself, result_shape))
    for path, spec in zip(pytree.leaf_paths(tree, "result_shape") if specs else (), specs):
        if not isinstance(spec, (Tensor, TensorSpec)):
            expected, got = "a TensorSpec, or a tensor like the result", kind_of(spec)
            remedy = "write fh.TensorSpec(shape, dtype)"
            text = message(
                "pure_callback", "unknown kind of result", path=path, expected=expected, got=got, remedy=remedy
            )
            raise ArgumentTypeError(text)
    known = pytree.map(lambda x: symbol_as_tensor(itself(x)), (args, kwargs))
    operands, call = OutputSpec.flatten(known)
    # Python returns arrays of sizes that are numbers: a trace is for these.
    metas = tuple(TensorMeta(tuple(map(int, spec.shape)), spec.dtype, spec.device) for spec in specs)
    params = CallbackParams(itself(f), call, metas, vectorized, mapped=((),) * len(operands))
    return pytree.unflatten(tree, list(callback_op(params, *operands)))
