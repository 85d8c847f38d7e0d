"""The README's Python blocks run as written, one after another, and give what their comments say."""

import ast
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    """Each block, padded with blank lines so that a traceback points at the README's own line."""
    text = README.read_text()
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match[1]
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def run_and_compare(block: str, namespace: dict[str, object]) -> None:
    """Runs a block; an expression that ends in a comment must have that for its `repr`."""
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), str(README), "exec"), namespace)
            continue
        value = eval(compile(ast.Expression(statement.value), str(README), "eval"), namespace)
        _, _, expected = lines[statement.end_lineno - 1].partition("  # ")
        if expected:
            assert repr(value) == expected, f"README.md:{statement.lineno}"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = python_blocks()
    assert len(blocks) == 8
    for block in blocks:
        run_and_compare(block, namespace)


def test_local_links_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]
