"""What is installed: every package, its type marker, its licence and its dependencies."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folder in the repository -> package.
SOURCES = {"functorch_hops": "functorch_hops", "transforms": "functorch_hops/transforms"}


def modules_in_repository() -> set[str]:
    """The installed path of every module in the repository."""
    return {
        str(Path(package) / file.relative_to(ROOT / folder))
        for folder, package in SOURCES.items()
        for file in (ROOT / folder).rglob("*.py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built the way pip builds it, from a copy: setuptools leaves a build folder behind."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return zipfile.ZipFile(next(output.glob("*.whl")))


def test_wheel_holds_exactly_the_modules(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == modules_in_repository()


def test_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "functorch_hops/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for folder in SOURCES for file in (ROOT / folder).rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_transforms_are_a_subpackage_and_no_package_of_their_own() -> None:
    program = """
import functorch_hops.transforms, importlib.util
assert importlib.util.find_spec("transforms") is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_version_is_the_declared_one() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert importlib.metadata.version("functorch-hops") == declared


def test_importing_needs_only_the_declared_dependencies() -> None:
    optional = ["sklearn", "matplotlib", "tqdm", "hypothesis", "pytest", "expecttest", "scipy"]
    block = f"import sys; sys.modules.update(dict.fromkeys({optional!r})); import functorch_hops"
    subprocess.run([sys.executable, "-c", block], check=True, cwd="/")


def test_private_torch_api_has_its_rooms() -> None:
    """Private torch API is used in its rooms alone; `torch._check` is documented, hence public."""
    rooms = ("functorch_hops/_torch.py", "functorch_hops/interop/dynamo", "functorch_hops/lowering/inductor")
    private = re.compile(r"^\s*(?:from|import) torch\._|\btorch\._(?!check\b)[a-z]")
    offenders = [
        f"{file.relative_to(ROOT)}:{number}"
        for folder in SOURCES
        for file in sorted((ROOT / folder).rglob("*.py"))
        if not str(file.relative_to(ROOT)).startswith(rooms)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if private.search(line.split("#")[0])
    ]
    assert not offenders


def test_constraints_cover_the_direct_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", entry)[0] for group in groups for entry in group} - {"functorch-hops"}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert not names - pinned.keys()
