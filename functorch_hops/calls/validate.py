"""The one validator: is an argument what it must be, do two trees of leaves agree, and if not, where."""

from __future__ import annotations

import operator
import re
import reprlib
from typing import Any

import torch
from torch import Tensor

from .. import pytree
from .._torch import without_torch_function
from ..errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ErrorContext,
    MetadataMismatchError,
    TreeMismatchError,
    message,
)
from ..ir.meta import TensorMeta
from .numbers import as_number
from .output import Constant, OutputSpec

__all__ = [
    "ORDERS",
    "PYTHON_NUMBERS",
    "as_flag",
    "as_int",
    "check_agreement",
    "check_callable",
    "check_carry",
    "check_tensor_leaves",
    "kind_of",
    "order_of",
]

PYTHON_NUMBERS = (bool, int, float, complex, torch.SymBool, torch.SymInt, torch.SymFloat)
"""What decides like a Python number; whoever asks a traced one for its value is told that it has none yet."""


ORDERS = {
    "cond": "pred, true_fn, false_fn, *operands",
    "switch": "index, branches, *operands",
    "while_loop": "cond_fn, body_fn, init_val",
    "fori_loop": "lower, upper, body_fn, init_val",
    "scan": "f, init, xs",
    "map": "f, xs",
    "associative_scan": "fn, elems",
    "sharded_scan": "f, init, xs",
    "sharded_associative_scan": "fn, elems",
    "vjp": "func, *primals",
    "jvp": "func, primals, tangents",
    "linearize": "func, *primals",
    "eval_shape": "func, *args",
    "export": "func, args",
    "custom_root": "f, init, solve, tangent_solve",
    "custom_linear_solve": "matvec, b, solve",
    "pure_callback": "f, result_shape, *args",
    "debug.callback": "func, *args",
    "debug.check": "pred, text, *args",
}
"""How functions are called that take another one together with its arguments."""


def order_of(operation: str) -> str | None:
    """What to do where arguments may have been given in another order."""
    return f"the order is fh.{operation}({ORDERS[operation]})" if operation in ORDERS else None


def check_callable(operation: str, parameter: str, value: Any) -> None:
    if not callable(value):
        later = f"write {operation}(func)(*args): its arguments are passed to what it returns"
        itself = "pass the function itself, not what it returns"
        remedy = order_of(operation) or (later if parameter in ("fun", "func") else itself)
        got = kind_of(value)
        raise ArgumentTypeError(
            message(operation, "not callable", parameter=parameter, expected="a function", got=got, remedy=remedy)
        )


def as_int(
    operation: str,
    parameter: str,
    value: Any,
    *,
    at_least: int | None = None,
    expected: str = "an int",
    is_option: bool = False,
) -> Any:
    """An argument that must be an int (NumPy's count, bools don't), as a Python int or a symbolic one. ``is_option``:
    one that says what the program is, so that an open one is what it is in this call.
    """
    value = as_number(value)
    expected = expected if at_least is None else f"{expected} >= {at_least}"
    if not isinstance(value, torch.SymInt):
        if isinstance(value, (bool, Tensor)) or not hasattr(type(value), "__index__"):
            converted, got = "convert it with int()", kind_of(value)
            remedy = converted if isinstance(value, (float, Tensor)) else _LEFT_OUT.get(parameter, converted)
            text = message(operation, "not an int", parameter=parameter, expected=expected, got=got, remedy=remedy)
            raise ArgumentTypeError(text)
        value = operator.index(value)
    if at_least is not None and value < at_least:
        remedy = _LEFT_OUT.get(parameter, f"pass {at_least} or more")
        text = message(operation, "too small", parameter=parameter, expected=expected, got=value, remedy=remedy)
        raise ArgumentValueError(text)
    return int(value) if is_option else value


_LEFT_OUT = {
    "argnums": "name arguments by position, from 0; leave argnums out for the first",
    "batch_size": "leave batch_size out for one element at a time",
    "checkpoints": "leave checkpoints out to save all steps",
    "chunk_size": "leave chunk_size out for all at once",
    "length": "leave length out where xs has a tensor",
    "max_steps": "leave max_steps out for no bound",
    "total": "leave total out if the number of steps is not known",
    "unroll": "leave unroll out for one step at a time",
}
"""What it means to leave out an argument that is an int."""


def as_flag(operation: str, parameter: str, value: Any) -> bool:
    """An argument that must be a bool."""
    value = as_number(value)
    if not isinstance(value, bool):
        got, remedy = kind_of(value), f"write {parameter}=True or {parameter}=False"
        text = message(operation, "not a bool", parameter=parameter, expected="True or False", got=got, remedy=remedy)
        raise ArgumentTypeError(text)
    return value


def check_tensor_leaves(operation: str, parameter: str, tree: Any) -> tuple[list[Tensor], pytree.Spec]:
    """The leaves of a tree that may hold tensors only (numbers were converted before)."""
    leaves, spec = pytree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            is_array = hasattr(type(leaf), "__array__")
            raise ArgumentTypeError(
                message(
                    operation,
                    "a leaf is no tensor",
                    path=pytree.leaf_paths(spec, parameter)[i],
                    expected="a tensor or a number",
                    got=kind_of(leaf),
                    remedy="convert it with torch.as_tensor"
                    if is_array or isinstance(leaf, range)
                    else "close over static values instead of passing them",
                )
            )
    return leaves, spec


def check_agreement(
    operation: str,
    what: str,
    expected: tuple[str, OutputSpec],
    got: tuple[str, OutputSpec],
    *,
    path: str,
    parameter: str | None = None,
    is_carry: bool = False,
) -> None:
    """Raise unless both sides (each a name and its outputs) agree in tree, constants and metadata.

    ``is_carry``: the first side is given, and the second one has to follow it.
    """
    (name, left), (other_name, right) = expected, got
    found = pytree.difference(left.spec, right.spec, path)
    if found is not None:
        where, expected_tree, got_tree = found
        raise TreeMismatchError(
            message(
                operation,
                f"{what} differ in their trees",
                parameter=parameter,
                path=where,
                expected=f"{expected_tree} from {name}",
                got=f"{got_tree} from {other_name}",
                remedy=f"return a tree like that of {name}" if is_carry else "return the same tree from both",
            )
        )
    for i, (a, b) in enumerate(zip(left.leaves, right.leaves)):
        if _agree(a, b):
            continue
        aspect = _aspect(a, b)
        error = TreeMismatchError if aspect is None else MetadataMismatchError
        raise error(
            message(
                operation,
                f"{what} differ in {aspect or 'a leaf that is no tensor'}",
                parameter=parameter,
                path=left.paths(path)[i],
                expected=f"{a} from {name}",
                got=f"{b} from {other_name}",
                remedy=_remedy(a, b, name if is_carry else None),
            )
        )


def _agree(a: TensorMeta | Constant, b: TensorMeta | Constant) -> bool:
    return a.agrees(b) if isinstance(a, TensorMeta) and isinstance(b, TensorMeta) else a == b


def check_carry(context: ErrorContext, carry: OutputSpec, returned: OutputSpec) -> None:
    """A body must return a carry like the one that it was given."""
    check_agreement(
        context.operation,
        "the carry and what the body returns",
        ("the initial carry", carry),
        (context.parameter, returned),
        parameter=context.parameter,
        path="carry",
        is_carry=True,
    )


def kind_of(value: Any) -> str:
    """What a value is, for a message: the same whether it is traced or not, without addresses, and short.

    >>> import torch
    >>> kind_of(torch.ones(2, 3)), kind_of(2.5), kind_of(None), kind_of([1, 2])
    ('a tensor float32[2, 3]@cpu', 'float 2.5', 'None', 'list [*, *]')
    """
    if torch.compiler.is_dynamo_compiling():
        return type(value).__name__  # the message that is read is made outside of Dynamo: see `spelled`
    if isinstance(value, Tensor):
        with without_torch_function():  # a capture that runs must not lift what is only named
            return f"a tensor {TensorMeta.of(value)}"
    if value is None:
        return "None"
    if hasattr(type(value), "__fh_leaf__"):
        return "a value that torch.compile has yet to make"
    if isinstance(value, (torch.SymBool, torch.SymInt, torch.SymFloat)):
        return f"a traced {type(value).__name__.removeprefix('Sym').lower()}"
    if isinstance(value, torch.nn.Module):
        return f"a module {type(value).__name__}"
    spec = pytree.flatten(value)[1]
    if not spec.is_leaf():
        return f"{type(value).__name__} {pytree.describe(spec)}"
    if "__repr__" not in {name for cls in type(value).__mro__[:-1] for name in vars(cls)}:
        return f"an object of type {type(value).__name__}"
    return f"{type(value).__name__} {re.sub(r' at 0x[0-9a-f]+', '', _short.repr(value))}"


_short = reprlib.Repr()
_short.maxother = _short.maxstring = 80


def _aspect(a: TensorMeta | Constant, b: TensorMeta | Constant) -> str | None:
    """In what two tensors differ; None where one side is no tensor."""
    if isinstance(a, Constant) or isinstance(b, Constant):
        return None
    if a.shape != b.shape:
        return "shape"
    return "dtype" if a.dtype != b.dtype else "device"


def _remedy(a: TensorMeta | Constant, b: TensorMeta | Constant, given: str | None) -> str:
    """``given``: the name of the first side, if the second one has to follow it."""
    if isinstance(a, Constant) or isinstance(b, Constant):
        return "return tensors, or the same constant from both" if given is None else "return a tensor"
    if a.shape != b.shape:
        return _remedy_of_shapes(a, b, given)
    if a.dtype != b.dtype:
        common = torch.promote_types(a.dtype, b.dtype)
        if given is None:
            return f"convert both, for example with .to({common})"
        start = f"make {given} {common}, or " if common != a.dtype else ""
        return f"{start}convert what is returned with .to({a.dtype})"
    return f"move {'one of them' if given is None else 'what is returned'} with .to({str(a.device)!r})"


def _remedy_of_shapes(a: TensorMeta, b: TensorMeta, given: str | None) -> str:
    if given is None:
        return "return the same shape from both (expand one of them, or reduce the other)"
    pairs = zip(reversed(a.shape), reversed(b.shape))
    grows = len(a.shape) <= len(b.shape) and all(x in (1, y) for x, y in pairs)
    start = f"expand {given} to the shape {list(b.shape)}, or " if grows else ""
    return f"{start}return the shape {list(a.shape)}"
