"""What waits for a part of torch that this library does not import itself (torch 2.13.0 to 2.15.0)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["when_inductor_is_imported"]


def when_inductor_is_imported(call: Callable[[], None]) -> None:
    """Run ``call()`` as soon as Inductor is imported; now, if it is already."""
    name = "torch._inductor.compile_fx"
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Waiting(name, call))


class _Waiting(MetaPathFinder):
    """It finds one module, as it would have been found, and is gone."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.call()

            loader.exec_module = exec_module
        return spec
