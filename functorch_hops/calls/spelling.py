"""Arguments that a function has elsewhere, in JAX or in torch, and what to write here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from .. import _torch
from ..errors import ArgumentTypeError, FunctorchHopsError, message
from ..trace.hooks import handlers
from .arguments import P, R

__all__ = ["derivative", "named", "spelled"]

_ONLY, _EITHER = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


_ELSEWHERE = {
    **dict.fromkeys(("lax", "control_flow"), "fh.scan, fh.while_loop, fh.cond and the like are in fh itself"),
    **dict.fromkeys(
        ("numpy", "jnp", "np", "nn", "random"), "write torch's own: its functions and modules are used as they are"
    ),
    **dict.fromkeys(("pmap", "shard_map", "pjit"), "write fh.sharded_scan, or torch.distributed around fh.jit"),
    **dict.fromkeys(("tree", "tree_map", "tree_util"), "write optree.tree_map and the like"),
    **dict.fromkeys(("remat", "ad_checkpoint"), "write fh.checkpoint"),
    **dict.fromkeys(("named_call", "named_scope"), "write fh.annotate"),
    "jacobian": "write fh.jacrev, or fh.jacfwd where there are few inputs",
    **dict.fromkeys(("functional_call", "stack_module_state", "functionalize"), "write torch.func's own"),
    "compile": "write fh.jit",
    "grad_and_value": "write fh.value_and_grad, which returns (value, gradient)",
    "make_jaxpr": "write fh.make_graph",
    "make_fx": "write fh.make_graph",
    "stop_gradient": "write x.detach()",
    **dict.fromkeys(("dynamic_slice", "dynamic_slice_in_dim"), "write x.narrow(dim, start, n)"),
    **dict.fromkeys(
        ("dynamic_update_slice", "dynamic_update_slice_in_dim"),
        "write y.narrow(dim, start, n).copy_(x) for a y made inside, such as a clone",
    ),
    "log_compiles": "write fh.log_captures",
    "ShapeDtypeStruct": "write fh.TensorSpec",
    "checkify": "write fh.debug.check",
    "device_put": "write x.to(device)",
    "everything_saveable": "write fh.checkpoint_policies.everything",
    "nothing_saveable": "write fh.checkpoint_policies.nothing, or leave the policy out",
    **dict.fromkeys(
        ("dots_saveable", "checkpoint_dots", "dots_with_no_batch_dims_saveable", "checkpoint_dots_with_no_batch_dims"),
        "write fh.checkpoint_policies.save_matmuls",
    ),
    "save_only_these_names": "write fh.checkpoint_policies.save_names",
    "save_anything_except_these_names": "write the complement(save_names(...)) of fh.checkpoint_policies",
    "save_from_both_policies": "write fh.checkpoint_policies.union",
    "linear_transpose": "write fh.vjp(func, *zeros)[1]: of a linear function, pull is the transpose",
    "custom_gradient": "write fh.custom_vjp, and f.defvjp(fwd, bwd)",
    "custom_vmap": "write torch.library.custom_op, and op.register_vmap(rule)",
    "io_callback": "write fh.debug.callback, or fh.pure_callback for what is computed",
    "ensure_compile_time_eval": "leave it out, or compute before the call what depends on no argument",
    "block_until_ready": "leave it out: on a CPU results are there when the call ends; torch.cuda.synchronize() waits",
}
"""Names that JAX or torch has, and what to write here."""


def named(name: str, module: ModuleType) -> AttributeError:
    """What to raise where one of our modules has no such name. Python adds the name that is most like it."""
    text = f"module '{module.__name__}' has no attribute {name!r}"
    text = f"{text}\n  help: {_ELSEWHERE[name]}" if name in _ELSEWHERE else text
    return AttributeError(text, name=name, obj=module)


_DERIVATIVE = {
    "argnames": "write argnums=, and pass the argument by position",
    "allow_int": "leave integers out of argnums: they have no derivative",
    "holomorphic": "leave it out; the derivative is the conjugate of the gradient of the real part",
    "reduce_axes": "leave it out: dimensions have no names; sum over the examples outside of vmap",
}


def derivative(**remedies: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """What :func:`spelled` says of every transform that differentiates, and these."""
    return spelled(**_DERIVATIVE, **remedies)


@_torch.assume_constant_result
def _fit(function: Callable[..., Any], count: int, keywords: Sequence[str]) -> bool:
    """Whether so many positional arguments and these keywords are those of a function."""
    try:
        inspect.signature(function).bind(*range(count), **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def spelled(**remedies: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that says what to write in the place of these keywords, which it does not have; and, of a function
    that takes no more than another one, where the arguments of that belong.

    Dynamo traces such a function. What Dynamo finds that it refuses is left to Python, whose error has the words of
    every other mode and the user's line.
    """

    def around(function: Callable[P, R]) -> Callable[P, R]:
        is_constructor = function.__name__ == "__init__"
        name = function.__qualname__.partition(".")[0] if is_constructor else function.__name__
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
        takes_one = inspect.Parameter.VAR_POSITIONAL not in kinds and kinds.count(_ONLY) + kinds.count(_EITHER) == 1

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_dynamo_compiling():
                handlers.register_leaf()
                if _fit(function, len(args), tuple(kwargs)):
                    try:
                        return function(*args, **kwargs)
                    except FunctorchHopsError:
                        pass  # it is raised again by the leaf
                if is_constructor:  # Dynamo has an object that it can't hand out yet
                    refused: R = handlers.leaf(type(args[0]), args[1:], kwargs)
                else:
                    refused = handlers.leaf(checked, args, kwargs)
                return refused
            for keyword in kwargs:
                if keyword in remedies:
                    remedy = remedies[keyword]
                    raise ArgumentTypeError(message(name, f"there is no argument {keyword}=", remedy=remedy))
            if takes_one and len(args) > 1:
                remedy = f"write {name}(func)(*args): its arguments are passed to what it returns"
                raise ArgumentTypeError(
                    message(name, "it takes the function alone", got=f"{len(args)} arguments", remedy=remedy)
                )
            return function(*args, **kwargs)

        checked.__fh_own__ = True  # type: ignore[attr-defined]  # for Dynamo, it closes over nothing of the user's
        return _torch.never_compiled(_torch.with_own_code(checked))

    return around
