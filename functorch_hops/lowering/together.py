"""The kernels that Inductor's code for a graph names, compiled together (torch 2.13).

They wait until all have been named: NOTE [Kernels compiled together]. The code says so itself: it holds this
``AsyncCompile`` in the place of Inductor's, and is compiled in the same way from Inductor's caches. What consists of
several functions, which have the same names in each kernel, is compiled by itself.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch._inductor import async_compile
from torch._inductor.async_compile import get_compile_threads

from .loops.libraries import loading, ordered
from .loops.source import Program

__all__ = ["AsyncCompile"]

_KERNEL = re.compile(r"\bkernel")


class _Waiting:
    """A kernel of Inductor's that is not compiled yet."""

    shared: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, source: str) -> None:
        self.source = source

    def defined_as(self, name: str) -> str:
        return _KERNEL.sub(name, self.source)


class AsyncCompile(async_compile.AsyncCompile):
    """As Inductor's code for a graph uses it: it defines its kernels, and then waits for all of them."""

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
        is_function = len(_KERNEL.findall(source_code)) == 1
        return _Waiting(source_code) if is_function else super().cpp_pybinding(argtypes, source_code)

    def loop_kernel(self, *of_program: tuple[str, ...]) -> Program:
        """The kernel of a loop."""
        return Program(*of_program)

    def wait(self, scope: dict[str, Any]) -> None:
        submit = self.submit if get_compile_threads() > 1 else None
        loops = ordered(value for value in scope.values() if isinstance(value, Program))
        others = [value for value in scope.values() if isinstance(value, _Waiting)]
        kernels = dict([*loading(loops, submit), *loading(others, submit)])
        for name, value in scope.items():
            if isinstance(value, Program | _Waiting):
                scope[name] = kernels[value]
        super().wait(scope)
