"""The tutorial in docs/autodidax.py runs, its assertions hold, and it needs nothing but torch."""

import ast
import subprocess
import sys
from pathlib import Path

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "autodidax.py"


def test_it_runs() -> None:
    # In a process of its own: it registers an operator and hooks functorch. Warnings are errors there too, but for
    # torch's own on its first forward-mode derivative.
    options = ["-W", "error", "-W", "ignore:`torch.jit.script"]
    result = subprocess.run([sys.executable, *options, TUTORIAL], capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "autodidax: every part agrees with plain Python\n"


def test_it_is_self_contained() -> None:
    modules = set()
    for node in ast.walk(ast.parse(TUTORIAL.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    roots = {name.partition(".")[0] for name in modules}
    assert roots - set(sys.stdlib_module_names) == {"torch"}
