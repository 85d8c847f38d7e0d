"""The rooms of the package are in order: a file imports from its own room and from those below it, and no circle of
files is left. Every import counts, those inside functions and those for type checkers too.
"""

import ast
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "functorch_hops"

# From the ground up. A room may import from all lines above its own, and from the others on its line as long as no
# circle of files appears.
ROOMS = [
    ("errors", "_torch"),
    ("pytree",),
    ("ir", "environment"),
    ("passes",),
    ("trace",),
    ("derive",),
    ("calls", "lowering"),
    ("hop",),
    ("ops",),
    ("interop", "transforms"),
    ("tools",),
    ("functorch_hops",),
]
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
PRIVATE_TORCH = (
    "_torch/",
    "lowering/cures.py",
    "lowering/decompositions.py",
    "lowering/exact.py",
    "lowering/inductor.py",
    "lowering/loops/",
    "lowering/together.py",
)


def sources() -> dict[str, Path]:
    """Each module of the package, by its name in it; `functorch_hops` itself is the package."""
    found = {}
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                parts = (Path(folder) / name).relative_to(PACKAGE).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                found[".".join(parts) or "functorch_hops"] = Path(folder) / name
    return found


SOURCES = sources()


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, or imports from."""
    path = SOURCES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = _start(path, node)
            if start is not None:
                for alias in node.names:
                    inner = ".".join((*start, alias.name))
                    yield inner if inner in SOURCES else ".".join(start) or "functorch_hops"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "functorch_hops":
                    yield alias.name.removeprefix("functorch_hops.")


def _start(path: Path, node: ast.ImportFrom) -> tuple[str, ...] | None:
    """What is imported from, as a path in the package; None if it is outside."""
    names = tuple((node.module or "").split(".")) if node.module else ()
    if node.level == 0:
        return names[1:] if names[0] == "functorch_hops" else None
    folder = path.relative_to(PACKAGE).parent.parts
    return (*folder[: len(folder) - node.level + 1], *names)


@functools.cache
def all_imports() -> dict[str, set[str]]:
    return {module: {other for other in imports(module) if other != module} for module in SOURCES}


def test_every_room_has_its_floor() -> None:
    assert {room_of(module) for module in SOURCES} == FLOORS.keys()


def test_no_import_points_up() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in sorted(all_imports().items())
        for other in sorted(others)
        if FLOORS[room_of(other)] > FLOORS[room_of(module)]
    ]
    assert not upward


def test_no_circle_of_files() -> None:
    """Files that import nothing which is left are taken away; in the end none is left."""
    left = dict(all_imports())
    while free := [module for module, others in left.items() if others.isdisjoint(left)]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("operator", ["scan", "while_loop", "cond", "associative_scan"])
def test_operators_have_the_same_files(operator: str) -> None:
    """One file per rule, and the same names in each folder."""
    rules = {"op", "api", "eager", "batching", "jvp", "vjp", "dependence", "liveness", "passthrough", "lowering"}
    assert rules <= {module.split(".")[2] for module in SOURCES if module.startswith(f"ops.{operator}.")}


def test_private_torch_api_has_its_rooms() -> None:
    """Private torch API is used in its rooms alone; `torch._check` is documented, hence public."""
    private = re.compile(r"^\s*(?:from|import) torch\._|\btorch\.(?:utils\.)?_(?!check\b)[a-zA-Z]")
    offenders = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(SOURCES.values())
        if not str(path.relative_to(PACKAGE)).startswith(PRIVATE_TORCH)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if private.search(re.sub(r"``.*?``", "", line.split("#")[0]))
    ]
    assert not offenders
