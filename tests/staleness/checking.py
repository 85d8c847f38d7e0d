"""Whether a jitted function notices what happens to what it reads."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import types
import warnings
from collections.abc import Iterator

import torch

import functorch_hops as fh
from staleness.generator import Program

__all__ = ["failure_of"]

MODULE = "staleness_program"


def failure_of(program: Program) -> str | None:
    """What is wrong with the calls of a program, in words."""
    with _restored(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        exec(compile(program.text.replace("PROGRAM", MODULE), f"/home/user/{MODULE}.py", "exec"), module.__dict__)
        x = torch.ones(2)
        with torch.set_grad_enabled(program.seed % 2 == 0):
            return _failure(program, module, x, said)


def _failure(
    program: Program, module: types.ModuleType, x: torch.Tensor, said: list[warnings.WarningMessage]
) -> str | None:
    f = module.f
    jitted = fh.jit(f, backend="eager")
    if not program.may_warn:
        try:
            f(x)
        except Exception:  # noqa: BLE001 (whatever plain Python can't do is no program)
            return None
        if not torch.equal(jitted(x), f(x)):
            return "the first call differs"
        if not torch.equal(jitted(x), f(x)):
            return "the second call differs"
        if jitted.cache_info().misses != 1:
            return f"captured {jitted.cache_info().misses} times though nothing changed"
    else:
        jitted(x)
    told = [str(w.message) for w in said if str(w.message).startswith("jit")]
    if program.may_warn:
        return None if told else _compared(jitted, module, x)
    if told:
        return f"warned: {told[0]}"
    return _compared(jitted, module, x, times=3)  # captured or found, found and prepared for, prepared


def _compared(jitted: object, module: types.ModuleType, x: torch.Tensor, times: int = 1) -> str | None:
    module.change()
    for _ in range(times):
        try:
            expected = module.f(x)
        except Exception:  # noqa: BLE001 (what was put there is not what the function expects)
            return None
        got = jitted(x)
        if not torch.equal(got, expected):
            return f"stale: {got} for {expected}"
    return None


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    functions, environ, before = (math.sqrt, torch.ones), dict(os.environ), sys.modules.get(MODULE)
    try:
        yield
    finally:
        math.sqrt, torch.ones = functions
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        sys.modules.pop(MODULE, before)
        gc.collect(1)  # what other tests left behind takes seconds to look through
