"""The kernels that Inductor makes for one graph, compiled together (torch 2.13).

NOTE [Kernels compiled together] In Inductor's code for a graph each kernel is a C++ source of its own. Most of what a
compiler does for one, nearly a second, is to read torch's headers; the kernel takes a fifth of that. So here they wait
until all have been named, and are one source then, or several where it would take long, which may be compiled at once.
The code says so itself: it holds this ``AsyncCompile`` in the place of Inductor's, and is compiled in the same way from
Inductor's caches. The kernel of a loop was compiled by itself, before the graph around it
was made; so is what consists of several functions, which have the same names in each kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch._inductor import async_compile
from torch._inductor.async_compile import get_compile_threads
from torch._inductor.codecache import CppPythonBindingsCodeCache

from .loops.headers import header

__all__ = ["AsyncCompile"]

_KERNEL = re.compile(r"\bkernel")
_ENOUGH = 1 << 16
"""Bytes of source after which another library begins: the compiler spends some two seconds on them."""


class _Waiting:
    """A kernel that is not compiled yet."""

    def __init__(self, source: str) -> None:
        self.source = source


class AsyncCompile(async_compile.AsyncCompile):
    """As Inductor's code for a graph uses it: it defines its kernels, and then waits for all of them."""

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
        is_function = len(_KERNEL.findall(source_code)) == 1
        return _Waiting(source_code) if is_function else super().cpp_pybinding(argtypes, source_code)

    def wait(self, scope: dict[str, Any]) -> None:
        kernels = {name: value for name, value in scope.items() if isinstance(value, _Waiting)}
        submit = self.submit if get_compile_threads() > 1 else None
        libraries = [
            (
                names,
                CppPythonBindingsCodeCache.load_async(_source([kernels[x].source for x in names]), submit_fn=submit),
            )
            for names in _cut(kernels)
        ]
        for names, load in libraries:
            library = load()
            scope.update((name, getattr(library, f"kernel_{i}")) for i, name in enumerate(names))
        super().wait(scope)


def _cut(kernels: dict[str, _Waiting]) -> Iterator[list[str]]:
    """The names of the kernels of each library."""
    names, size = list[str](), 0
    for name, kernel in kernels.items():
        if size >= _ENOUGH:
            yield names
            names, size = [], 0
        names.append(name)
        size += len(kernel.source)
    if names:
        yield names


def _source(kernels: Sequence[str]) -> str:
    """A library with the functions ``kernel_0``, ``kernel_1`` and so on."""
    names = [f"kernel_{i}" for i in range(len(kernels))]
    functions = (_KERNEL.sub(name, kernel) for name, kernel in zip(names, kernels))
    methods = ", ".join(f'fh::method<{name}>("{name}")' for name in names)
    return "\n".join(
        [
            header("bindings"),
            *functions,
            f"static PyMethodDef methods[] = {{{methods}, {{}}}};",
            "PyMODINIT_FUNC PyInit_kernel(void) { return fh::library(methods); }",
            "",
        ]
    )
