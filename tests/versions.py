"""Run the quick tests with other versions of torch, each in an environment of its own.

    python tests/versions.py 2.12.1 2.14.1 -- -k test_jit

The environment `.venv-torch-VERSION` holds the versions of constraints.txt, but for torch and what it requires. What
follows `--` is for pytest. A row of the table in docs/versions.md is printed for each version.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WITH_TORCH = re.compile(r"(torch|triton|setuptools|sympy|mpmath|networkx|fsspec|filelock)==")
SETTINGS = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}


def environment(version: str) -> Path:
    """The Python of the environment, made if it is not there."""
    folder = ROOT / f".venv-torch-{version}"
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    others = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not WITH_TORCH.match(line)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join([*others, f"torch=={version}"]))
        constraints.flush()
        subprocess.run([*pip, "-c", constraints.name, f"torch=={version}", *requirements()], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)  # its metadata name a bound
    (folder / "installed").touch()
    return python


def requirements() -> list[str]:
    """What the library and its tests require besides torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        name
        for name in (*project["dependencies"], *project["optional-dependencies"]["test"])
        if not name.startswith("torch")
    ]


def run(version: str, arguments: list[str]) -> str:
    """The row for this version."""
    try:
        python = environment(version)
    except subprocess.CalledProcessError:
        return f"| {version} | - | nothing: it can't be installed | - |"
    command = [python, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **SETTINGS}, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    failed = sorted({line.split()[1].partition("::")[0] for line in lines if line.startswith(("FAILED", "ERROR"))})
    what = " ".join(["the quick tests", *arguments])
    return f"| {version} | {sys.platform} | {what}: {lines[-1] if lines else ''} | {', '.join(failed) or 'nothing'} |"


def main() -> None:
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    if not given[:end]:
        sys.exit(__doc__)
    rows = [run(version, given[end + 1 :]) for version in given[:end]]
    print("| torch | where | what was run | what failed |\n| --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    main()
