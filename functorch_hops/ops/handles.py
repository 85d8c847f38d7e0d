"""Numbers under which compiled code finds the parameters of an operator: code holds no objects."""

from __future__ import annotations

import itertools
import weakref

from ..ir.subgraph import Params
from ..lowering.stages import keep_named

__all__ = ["number_of", "params_at"]

_params: weakref.WeakValueDictionary[int, Params] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def number_of(params: Params) -> int:
    """The number of these parameters, which live as long as the code that is compiled now."""

    def make() -> int:
        number = next(_numbers)
        _params[number] = params
        return number

    keep_named(params)
    return params.derive("number", make)


def params_at(number: int) -> Params:
    return _params[number]
