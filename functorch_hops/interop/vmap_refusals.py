"""Calls that torch's own vmap refuses, on the lanes of a function that is mapped.

torch has no batching rule for some operators (``lstm_cell``, 2.13), none for an index by a mask, and reads the number
of an index that differs between lanes where a level of differentiation stands between. Such a call is made in another
way: an index by what ``trace/indexing.py`` does with a traced one, which keeps a row a view, where torch copies it; any
other function is captured, one call of it, and its graph is called instead. Only the refused call runs again, nothing
of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import _torch
from ..calls.arguments import Arguments
from ..calls.trace_cache import as_graph
from ..calls.traced_call import trace_call
from ..errors import ErrorContext, InputMutationError
from ..trace.indexing import RowsOfLanes, set_part
from ..trace.refusals import READS, check_collective, unbatchable, written_by_lanes
from ..trace.replaced import replaced

__all__ = ["OnLanes", "call_on_lanes"]

_CONTEXT = ErrorContext("vmap", "func")


class OnLanes(TorchFunctionMode):
    """Around a function that is mapped in plain eager; in a capture, the capture's own mode does the same."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = RowsOfLanes()

    def up_to_date(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._rows.up_to_date(results)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        check_collective(_CONTEXT, func, args)
        if (result := replaced(func, args, kwargs)) is not NotImplemented:
            return result
        try:
            return self._rows.call(func, args, kwargs)
        except RuntimeError as error:
            if not _torch.is_refused_by_vmap(error):
                raise
            return call_on_lanes(func, args, kwargs, error)


def call_on_lanes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], error: RuntimeError) -> Any:
    """The call that torch's vmap refused with ``error``."""
    if func in READS:
        raise error
    if func is Tensor.__setitem__:
        return set_part(*args)
    try:
        return as_graph("vmap", _called, (func,), (tuple(args), kwargs))
    except InputMutationError:
        raise written_by_lanes(_CONTEXT, error) from error
    except RuntimeError as again:
        if not _torch.is_refused_by_vmap(again):
            raise
        raise unbatchable(_CONTEXT, _torch.function_name(func), error) from error


def _called(functions: Sequence[Callable[..., Any]], operands: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    arguments = Arguments(*operands, static_floats=True)
    call = trace_call(functions[0], arguments, "vmap")
    return call.output.unflatten(call.body(*arguments.operands, *call.lifted))
