"""Whose code is it: the user's, which is followed, or a library's, which is taken as fixed."""

from __future__ import annotations

import functools
import pathlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

__all__ = [
    "Origin",
    "are_pure_names",
    "is_pure",
    "is_stateful",
    "library",
    "of_class",
    "of_globals",
    "of_module",
    "own_package",
    "package",
    "standard",
]

Origin = tuple[str, str | None]
"""Module name and file."""

# Followed nowhere, wherever they are installed (an editable install lies outside site-packages).
_LIBRARIES = frozenset({"torch", "numpy", "optree", "functorch_hops"})
# Of these it is known that their functions do nothing but compute: they write nowhere, and read nothing that changes.
_REPEATABLE = frozenset(
    {
        *("torch", "functorch_hops", "optree", "numpy", "einops", "builtins", "math", "cmath", "operator", "_operator"),
        *("functools", "_functools", "itertools", "collections", "_collections", "_collections_abc", "dataclasses"),
        *("enum", "typing", "types", "abc", "numbers", "contextlib"),
    }
)
_NOT_REPEATABLE_NAMES = frozenset(
    {
        *(
            "random",
            "seed",
            "seed_all",
            "manual_seed",
            "manual_seed_all",
            "initial_seed",
            "fork_rng",
            "get_rng_state",
            "set_rng_state",
        ),
        *("save", "load", "set_printoptions", "get_printoptions", "set_flush_denormal", "geterr", "seterr"),
        # Settings that no trace depends on, and inference mode, which is off in a capture.
        *("is_inference_mode_enabled", "is_warn_always_enabled", "is_anomaly_check_nan_enabled"),
        *("_is_multithreading_enabled", "_is_fwd_grad_enabled"),
        *("get_overwrite_module_params_on_conversion", "get_swap_module_params_on_conversion"),
        *("print", "input", "open", "exec", "eval", "compile", "__import__", "breakpoint"),
        *("globals", "locals", "id", "hash", "setattr", "delattr", "lru_cache", "cache", "cache_info", "cache_clear"),
    }
)
_READ_FROM_OUTSIDE = frozenset({"print", "input", "open", "exec", "eval", "breakpoint"})
# Of the standard library: what reads clocks, files, generators and the like, or writes to them.
_STATEFUL = frozenset(
    {
        *("random", "time", "os", "posix", "nt", "io", "_io", "secrets", "uuid", "socket", "subprocess", "tempfile"),
        *("asyncio", "signal", "gc", "getpass", "glob", "genericpath", "shutil", "select", "resource", "locale"),
        *("logging", "queue", "_queue", "multiprocessing"),
    }
)
_STATEFUL_NAMES = {
    "datetime": {"now", "today", "utcnow"},
    "_contextvars": {"set", "reset"},
    "functools": {"cache_info", "cache_clear"},
    "decimal": {"getcontext", "localcontext", "setcontext"},
    "sys": {"getrecursionlimit", "setrecursionlimit", "getswitchinterval", "setswitchinterval", "getrefcount"}
    | {"gettrace", "settrace", "getprofile", "setprofile", "getallocatedblocks", "_current_frames"},
    "threading": {"active_count", "current_thread", "enumerate", "get_ident", "get_native_id"},
    "_thread": {"get_ident", "get_native_id", "locked"},
    "posixpath": {"abspath", "realpath", "relpath", "expanduser", "expandvars", "ismount", "lexists"},
    "ntpath": {"abspath", "realpath", "relpath", "expanduser", "expandvars", "ismount", "lexists"},
    "pathlib": {*dir(pathlib.Path)} - {*dir(pathlib.PurePath)},
}
# What of these is known by the environment, or always the same.
_NOT_STATEFUL_NAMES = {
    "os": {"getenv", "__getitem__", "__contains__", "__iter__", "__len__", "get", "encode", "decode", "copy"}
    | {"fspath", "fsencode", "fsdecode", "cpu_count"},
    "posix": {"fspath", "cpu_count"},
    "random": {"__init__", "__new__"},
}
_MOST_WRAPPERS = 100
_EXTENSIONS = (".so", ".pyd", ".dylib")


def of_globals(namespace: Mapping[str, Any]) -> Origin:
    file = namespace.get("__file__")
    return str(namespace.get("__name__")), file if isinstance(file, str) else None


def of_module(module: ModuleType) -> Origin:
    return of_globals(module.__dict__)


def of_class(cls: type) -> Origin:
    name = cls.__module__
    module = sys.modules.get(name) if isinstance(name, str) else None
    return (str(name), None) if module is None else (str(name), of_module(module)[1])


def own_package(func: Any) -> str:
    """The package that a function comes from, below all wrappers: the user's, even if it is installed."""
    for _ in range(_MOST_WRAPPERS):
        if isinstance(func, functools.partial):
            func = func.func
        elif isinstance(func, MethodType):
            func = func.__func__
        elif "__wrapped__" in (attributes := getattr(func, "__dict__", {})):
            func = attributes["__wrapped__"]
        else:
            break
    if isinstance(func, FunctionType):
        origins = [of_globals(func.__globals__)]
    else:  # torch derives classes of the user's, as ``fully_shard`` does
        origins = list(map(of_class, type(func).__mro__))
    own = (package(origin) for origin in origins if not (package(origin) in _LIBRARIES or standard(origin)))
    return next(own, "")


def package(origin: Origin) -> str:
    return origin[0].partition(".")[0]


@functools.lru_cache(maxsize=8192)
def library(origin: Origin) -> bool:
    """Whether the code comes from an installed package, the standard library or the interpreter."""
    if package(origin) in _LIBRARIES or standard(origin):
        return True
    _, file = origin
    if file is None:
        return False
    return file.endswith(_EXTENSIONS) or file.startswith(_roots("purelib", "platlib")) or _in_site_packages(file)


def is_pure(code: Origin, name: str = "") -> bool:
    """Whether what a library offers under a name gives the same for the same and has no effect, as far as known."""
    module = code[0].split(".")
    return module[0] in _REPEATABLE and "random" not in module and name not in _NOT_REPEATABLE_NAMES


@functools.lru_cache(maxsize=8192)
def is_stateful(module: str, name: str) -> bool:
    """Whether a function of a library reads or writes what belongs to the process or to the world outside."""
    top = module.partition(".")[0]
    if module == "builtins":
        return name in _READ_FROM_OUTSIDE
    if top in ("torch", "numpy"):
        return not is_pure((module, None), name) and name not in ("globals", "locals", "id", "hash", "compile")
    return name in _STATEFUL_NAMES.get(top, ()) or (
        top in _STATEFUL and name not in _NOT_STATEFUL_NAMES.get(top, ()) and not name.startswith("<")
    )


def are_pure_names(names: Iterable[str]) -> bool:
    return _NOT_REPEATABLE_NAMES.isdisjoint(names)


@functools.lru_cache(maxsize=8192)
def standard(origin: Origin) -> bool:
    _, file = origin
    if file is None:
        # Without a file: a built-in module, or one that the user made by hand or typed in.
        return package(origin) in sys.builtin_module_names
    return file.startswith(_roots("stdlib", "platstdlib")) and not _in_site_packages(file)


def _in_site_packages(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.replace("\\", "/").split("/"))


@functools.cache
def _roots(*kinds: str) -> tuple[str, ...]:
    return tuple(root.rstrip("/\\") + sep for kind in kinds if (root := sysconfig.get_path(kind)) for sep in "/\\")
