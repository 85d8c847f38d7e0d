"""What waits for a part of torch that this library does not import itself (torch 2.13.0 to 2.15.0)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["when_inductor_is_imported"]

Execute = Callable[[ModuleType], None]
Run = Callable[[ModuleType, Execute], None]


def when_inductor_is_imported(call: Callable[[], None]) -> None:
    """Run ``call()`` as soon as Inductor is imported; now, if it is already."""
    name = "torch._inductor.compile_fx"
    if name in sys.modules:
        call()
        return

    def run(module: ModuleType, execute: Execute) -> None:
        execute(module)
        call()

    when_imported(name, run)


def when_imported(name: str, run: Run) -> None:
    """When a module is imported, ``run(module, execute)`` is what executes its code."""
    sys.meta_path.insert(0, _Waiting(name, run))


def run_instead(name: str, run: Run) -> None:
    """``run(module, execute)`` in an import of a module, which then fails; nothing if it was imported meanwhile."""

    def run_and_fail(module: ModuleType, execute: Execute) -> None:
        run(module, execute)
        raise _Done

    waiting = _Waiting(name, run_and_fail, threading.get_ident())
    sys.meta_path.insert(0, waiting)
    try:
        import_module(name)
    except _Done:
        return
    sys.meta_path.remove(waiting)


class _Done(Exception):
    pass


class _Waiting(MetaPathFinder):
    """It finds one module, as the finders behind it do, until the module is executed: who asks for the spec may only
    want to know whether there is one (``importlib.util.find_spec``).
    """

    def __init__(self, name: str, run: Run, thread: int | None = None) -> None:
        self.name, self.run, self.thread = name, run, thread

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or self.thread not in (None, threading.get_ident()):
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                if self not in sys.meta_path:  # the spec was asked for before another one was executed
                    execute(module)
                    return
                sys.meta_path.remove(self)
                self.run(module, execute)

            loader.exec_module = exec_module
        return spec
