"""Every public callable's docstring has its parts, in one order."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import functorch_hops as fh

TYPES = (
    "CacheInfo",
    "CaptureEvent",
    "CapturedGraph",
    "Explanation",
    "Jitted",
    "LoopExplanation",
    "Lowered",
    "NanOrigin",
    "NanReport",
    "Progress",
    "TensorSpec",
)
"""What annotations name, and users do not make."""


def functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for name in fh.__all__:
        value = getattr(fh, name)
        if name not in TYPES and callable(value) and not (isinstance(value, type) and issubclass(value, Exception)):
            found[name] = value
    policies = fh.checkpoint_policies
    for name in policies.__all__:
        if inspect.isfunction(getattr(policies, name)):
            found[f"checkpoint_policies.{name}"] = getattr(policies, name)
    for name in fh.debug.__all__:
        found[f"debug.{name}"] = getattr(fh.debug, name)
    for cls in (fh.custom_jvp, fh.custom_vjp):
        for name, method in vars(cls).items():
            if not name.startswith("_") and inspect.isfunction(method):
                found[f"{cls.__name__}.{name}"] = method
    return found


FUNCTIONS = functions()


def parts(function: Callable[..., Any]) -> list[str]:
    """Regular expressions for what the docstring has after its first line. A source is named where there is one."""
    name = function.__name__
    arguments = [p for p in inspect.signature(function).parameters if p != "self"]
    return [
        rf"\n\n(?:::\n\n +|``){name}(?: :|\()",  # its type
        r"\bEquivalent\b",
        *([r"\n\nArguments:\n"] if arguments else []),
        r"\n\nReturns:\s",
        r"\n\nRaises:\s",
        r"\n\nCost: ",
        *([r"\n\nSource: "] if "\nSource:" in documentation(function) else []),
        r"\n>>> ",
    ]


def documentation(value: Any) -> str:
    return inspect.getdoc(value) or ""


def test_the_functions_are_found() -> None:
    assert {"scan", "jit", "custom_vjp.defvjp", "custom_jvp.defjvps", "checkpoint_policies.union"} <= FUNCTIONS.keys()
    assert len(FUNCTIONS) > 30


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parts_in_order(name: str) -> None:
    text = documentation(FUNCTIONS[name])
    first, *_ = text.split("\n")
    assert first.endswith("."), "the first line is a sentence"
    place = 0
    for part in parts(FUNCTIONS[name]):
        match = re.compile(part).search(text, place)
        assert match, f"no {part!r} after {text[:place]!r}"
        place = match.end()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_described(name: str) -> None:
    described = documentation(FUNCTIONS[name]).partition("\nArguments:\n")[2].partition("\n\n")[0]
    names = re.findall(r"^ {4}(\w[\w, ]*): ", described, re.MULTILINE)
    arguments = [p for p in inspect.signature(FUNCTIONS[name]).parameters if p != "self"]
    assert ", ".join(names).split(", ") == (arguments or [""])


@pytest.mark.parametrize("name", [name for name in fh.checkpoint_policies.__all__ if name.islower()])
def test_policies_are_in_the_table(name: str) -> None:
    assert re.search(rf"^``{name}\b.*``  ", documentation(fh.checkpoint_policies), re.MULTILINE)


@pytest.mark.parametrize("name", [*TYPES, "checkpoint_policies"])
def test_types_and_policies_have_an_example(name: str) -> None:
    assert ">>> " in documentation(getattr(fh, name))
