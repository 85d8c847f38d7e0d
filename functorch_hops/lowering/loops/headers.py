"""The C++ that kernels consist of besides what is generated: the files in ``cpp/``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["header"]


def header(name: str) -> str:
    return Path(__file__).parent.joinpath("cpp", f"{name}.h").read_text()
