"""Keywords that a function has elsewhere, in JAX or in torch, and what to write here."""

from __future__ import annotations

import functools
from collections.abc import Callable

from .. import _torch
from ..errors import ArgumentTypeError, message
from .arguments import P, R

__all__ = ["spelled"]


def spelled(**remedies: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that says what to write in the place of these keywords, which it does not have."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for keyword in kwargs:
                if keyword in remedies:
                    remedy = remedies[keyword]
                    raise ArgumentTypeError(message(name, f"there is no argument {keyword}=", remedy=remedy))
            return function(*args, **kwargs)

        checked.__fh_own__ = True  # type: ignore[attr-defined]  # for Dynamo, it closes over nothing of the user's
        return _torch.never_compiled(_torch.with_own_code(checked))

    return around
