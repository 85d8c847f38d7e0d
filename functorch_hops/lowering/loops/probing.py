"""Which vectors the processor has: asked once, not by every process (torch 2.13).

Inductor builds a library for each kind of vectors and keeps it, but each process loads all of them again, each in a
Python of its own, to see whether they load. That takes as long as to compile a kernel.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from .kept import is_noted, note

__all__ = ["note_probes"]


@functools.cache
def note_probes() -> None:
    """From now on a library that was found to load, by torch and on a processor like these, is not tried again."""
    from torch._inductor.cpu_vec_isa import VecISA

    probe: Any = getattr(VecISA, "_probe_load", None)
    if probe is None:  # torch 2.11 tries as a part of the build
        return

    @functools.wraps(probe)
    def probe_once(isa: Any, output_path: str) -> bool:
        library = Path(output_path).read_bytes()
        if is_noted(library):
            return True
        loads: bool = probe(isa, output_path)
        if loads:
            note(library)
        return loads

    setattr(VecISA, "_probe_load", probe_once)  # noqa: B010
