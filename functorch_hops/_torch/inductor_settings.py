"""Inductor's configuration, without importing Inductor (checked against torch 2.13.0, 2.14.1 and 2.15.0).

Importing it takes seconds. Until somebody does, it is configured by the environment alone; what is compared is what
was changed since, which is nothing at the time of its import.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch.compiler.config

__all__ = ["inductor_checks", "inductor_environment", "inductor_keeps", "inductor_settings"]

_NAME = "torch._inductor.config"


def inductor_settings() -> str:
    """What was changed of the configuration, as far as code depends on it."""
    config = _config()
    return "" if config is None else _changes(config.get_hash())


def inductor_checks() -> list[tuple[Callable[..., Any], *tuple[Any, ...]]]:
    """What tells a change of the configuration: its hash, and whether it is the hash still (torch 2.13); before, what
    computes it if it is not.
    """
    config = _config()
    if config is None:
        return [(sys.modules.get, _NAME)]
    config.get_hash()
    if hasattr(config, "_hash_dirty_var"):
        return [(config._hash_dirty_var.get,), (config._hash_cache_var.get,)]
    return [(config.get_hash,)]


def _config() -> Any:
    """The module, if it was imported, to its end."""
    config = sys.modules.get(_NAME)
    return config if hasattr(config, "get_hash") else None


@functools.lru_cache(maxsize=16)
def _changes(_hash: bytes) -> str:
    config: Any = _config()
    changed = []
    for name, entry in config._config.items():
        if name in config._compile_ignored_keys or entry.alias is not None:
            continue
        override = entry.user_override
        override = override.get() if isinstance(override, ContextVar) else override  # not in torch 2.11
        forced, by_environment = entry.env_value_force, entry.env_value_default
        if _is_set(override) and not _is_set(forced):
            default = by_environment if _is_set(by_environment) else entry.default
            if repr(override) != repr(default):
                changed.append((name, repr(override)))
    return repr(sorted(changed)) if changed else ""


def _is_set(value: Any) -> bool:
    from torch.utils._config_module import _UNSET_SENTINEL

    return value is not _UNSET_SENTINEL


def inductor_environment() -> Mapping[str, str] | None:
    """The variables that configure Inductor and its compiler, as they were when Inductor read them, or would now; None
    if they were others before its import than behind it, and nobody knows which it read.
    """
    global _seen, _is_read
    if not _is_read:
        now = _variables()
        _is_read = _config() is not None
        _seen = None if _is_read and _seen != now else now
    return _seen


def _variables() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) and name not in _PLACES}


_PREFIXES = (
    "TORCHINDUCTOR_",
    "TORCH_COMPILE_",
    "ATEN_CPU_",
    "CXX",
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    "COMPILER_PATH",
    "GCC_EXEC_PREFIX",
    "CONDA_EXE",
    "OMP_PREFIX",
)
_PLACES = {"TORCHINDUCTOR_CACHE_DIR"}
_seen: Mapping[str, str] | None = _variables()
_is_read = False


def inductor_keeps(options: Mapping[str, Any]) -> bool:
    """Whether compiled graphs are kept on disk."""
    if options.get("force_disable_caches", torch.compiler.config.force_disable_caches):
        return False
    config, environment = _config(), os.environ
    if "fx_graph_cache" in options:
        return bool(options["fx_graph_cache"])
    if config is not None:
        return bool(config.fx_graph_cache)
    default = environment.get("TORCHINDUCTOR_FX_GRAPH_CACHE_DEFAULT", "1")
    return environment.get("TORCHINDUCTOR_FX_GRAPH_CACHE", default) == "1"
