"""Errors in C++ that Inductor generates.

NOTE [What kernels throw] An index out of range and a division of an integer by zero throw where they are found. No
exception may leave a region of OpenMP, so what is thrown by one thread is kept until all have ended. Inductor (torch
2.13) has neither: an index out of range ends the process if several threads look for it (pytorch/pytorch 195402), and
a division by zero is noted through a variable of the process that points to the kernel that began last, on any
thread: that one raises, and the other returns a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .headers import header

__all__ = ["DIVISION", "checked_divisions", "thrown"]

DIVISION = header("division")
"""What ``checked_divisions`` needs."""

_DIVISIONS = re.compile(r"\b(floor_divide_integral|mod|remainder_integral)\(")
"""How torch (2.13) prints divisions, of integers and others."""


def checked_divisions(code: str) -> str:
    """Statements before ``code`` for which its divisions by zero throw; none if it has no divisions."""
    return "\n".join(f"FH_CHECKED({name})" for name in sorted(set(_DIVISIONS.findall(code))))


def thrown(kernel: str) -> str:
    """The C++ function of a kernel, with all that its threads throw thrown: NOTE [What kernels throw]."""
    checked = checked_divisions(kernel)
    lines = kernel.splitlines()
    if not (checked or "TORCH_CHECK(" in kernel) or "{" not in lines:
        return kernel
    begin = lines.index("{") + 1
    end = lines.index("}", begin)
    body = _caught(lines[begin:end])
    head = [DIVISION, *lines[:begin]] if checked else lines[:begin]
    return "\n".join([*head, checked, *body, *lines[end:], ""])


_SHARED = re.compile(r"#pragma omp (?:for(?:.* collapse\((\d+)\))?|single)")
"""Work that threads share; how many loops it is, if it is not one."""


def _caught(lines: Sequence[str]) -> list[str]:
    """The body of a function, where what is thrown in work that threads share leaves it at its end."""
    caught: list[str] = []
    loops: int | None = None
    """Of the shared work that begins, how many have not begun."""
    end: str | None = None
    """The line that ends it."""
    for line in lines:
        text = line.strip()
        if line == end:
            caught.append("} catch (...) { if (!has_thrown.exchange(true)) thrown = std::current_exception(); }")
            end = None
        caught.append(line)
        if shared := _SHARED.match(text):
            loops = 0 if text.endswith("single") else int(shared[1] or 1)
        elif loops and text.startswith("for("):
            loops -= 1
        elif loops == 0 and text == "{":
            caught.append("try {")
            loops, end = None, line.replace("{", "}")
    if len(caught) == len(lines):
        return caught
    kept = "std::atomic<bool> has_thrown{false}; std::exception_ptr thrown;"
    return [kept, *caught, "if (thrown) std::rethrow_exception(thrown);"]
