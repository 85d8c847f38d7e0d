"""What is installed: every package, its type marker, its licence and its dependencies."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import functorch_hops as fh

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "functorch_hops"


def modules_in_repository() -> set[str]:
    """The installed path of every module in the repository."""
    return {str(Path("functorch_hops") / file) for file in _files() if file.suffix == ".py"}


def _files() -> list[Path]:
    """The files of the package, those behind its symbolic link included."""
    found = (Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names)
    return sorted(file.relative_to(PACKAGE) for file in found if "__pycache__" not in file.parts)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built the way pip builds it, from a copy: setuptools leaves a build folder behind."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(PACKAGE, source / PACKAGE.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    if (PACKAGE / "transforms").is_symlink():  # not in what a source distribution holds
        shutil.copytree(ROOT / "transforms", source / "transforms", ignore=shutil.ignore_patterns("__pycache__"))
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
    folders = {file.parent for file in _files() if file.suffix == ".py"}
    assert not [str(folder) for folder in folders if not (PACKAGE / folder / "__init__.py").exists()]


def test_transforms_are_a_subpackage_and_no_package_of_their_own() -> None:
    program = """
import functorch_hops.transforms, importlib.util
assert importlib.util.find_spec("transforms") is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_version_is_that_of_the_package() -> None:
    assert importlib.metadata.version("functorch-hops") == fh.__version__


def test_importing_needs_only_the_declared_dependencies() -> None:
    optional = ["sklearn", "matplotlib", "tqdm", "hypothesis", "pytest", "expecttest", "scipy"]
    block = f"import sys; sys.modules.update(dict.fromkeys({optional!r})); import functorch_hops"
    subprocess.run([sys.executable, "-c", block], check=True, cwd="/")


def test_constraints_cover_the_direct_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", entry)[0] for group in groups for entry in group} - {"functorch-hops"}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert not names - pinned.keys()
