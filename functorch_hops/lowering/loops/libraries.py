"""Kernels that are compiled together (torch 2.13).

NOTE [Kernels compiled together] In Inductor's code for a graph each kernel is a C++ source of its own. Most of what a
compiler does for one, nearly a second, is to read torch's headers; the kernel takes a fifth of that. So the kernels of
a graph are one source, or several where it would take long, which may be compiled at once. The loops have one of their
own: they are compiled before the graph around them is made. Inductor's code for the graph names them again, among its
own kernels (``lowering.together``), so they are ordered by what they are: in any order they are the same source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..stages import COMPILED, generated, stage
from .headers import header
from .source import Program

__all__ = ["CompiledTogether", "Kernel", "load", "loading", "ordered", "source_of"]

Kernel = Callable[..., None]

_ENOUGH = 1 << 16
"""Bytes of source after which another library begins: the compiler spends some two seconds on them."""


class CompiledTogether(Protocol):
    """A function of C++, and what it needs."""

    @property
    def shared(self) -> tuple[str, ...]: ...
    @property
    def parts(self) -> tuple[str, ...]: ...
    def defined_as(self, name: str, /) -> str: ...


C = TypeVar("C", bound=CompiledTogether)


def load(programs: Iterable[Program]) -> dict[Program, Kernel]:
    """The compiled functions, from Inductor's cache where it has them."""
    libraries = _libraries(ordered(programs))
    for _, source in libraries:
        generated(source)
    with stage(COMPILED):
        return dict(_loaded(libraries))


def ordered(programs: Iterable[Program]) -> list[Program]:
    return sorted(set(programs))


def loading(kernels: Sequence[C], submit: Callable[..., Any] | None = None) -> Iterator[tuple[C, Kernel]]:
    """Have the libraries of ``kernels`` compiled, at once if there is a ``submit``, and then loaded one by one."""
    return _loaded(_libraries(kernels), submit)


def _libraries(kernels: Sequence[C]) -> list[tuple[list[C], str]]:
    """The kernels of each library, and its source."""
    return [(several, source_of(several)) for several in _cut(kernels)]


def _loaded(
    libraries: Sequence[tuple[list[C], str]], submit: Callable[..., Any] | None = None
) -> Iterator[tuple[C, Kernel]]:
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    loads = [CppPythonBindingsCodeCache.load_async(source, submit_fn=submit) for _, source in libraries]
    for (several, _), load_library in zip(libraries, loads):
        try:
            library = load_library()
        except ImportError as error:  # a compiler that was killed has left a part of it
            if error.path is None:
                raise
            Path(error.path).unlink(missing_ok=True)
            library = load_library()
        for i, kernel in enumerate(several):
            yield kernel, getattr(library, f"kernel_{i}")


def _cut(kernels: Sequence[C]) -> Iterator[list[C]]:
    """The kernels of each library."""
    several, size = list[C](), 0
    for kernel in kernels:
        if size >= _ENOUGH:
            yield several
            several, size = [], 0
        several.append(kernel)
        size += len(kernel.defined_as("kernel")) + sum(map(len, kernel.parts))
    if several:
        yield several


def source_of(kernels: Sequence[CompiledTogether]) -> str:
    """A library with the functions ``kernel_0``, ``kernel_1`` and so on."""
    names = [f"kernel_{i}" for i in range(len(kernels))]
    texts = [text for kernel in kernels for text in (*kernel.shared, *kernel.parts)]
    methods = ", ".join(f'fh::method<{name}>("{name}")' for name in names)
    return "\n".join(
        [
            header("bindings"),
            *dict.fromkeys(texts),
            *(kernel.defined_as(name) for name, kernel in zip(names, kernels)),
            f"static PyMethodDef methods[] = {{{methods}, {{}}}};",
            "PyMODINIT_FUNC PyInit_kernel(void) { return fh::library(methods); }",
            "",
        ]
    )
