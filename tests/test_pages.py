"""Every Python example of the README and of the pages in docs/ runs as written, and gives what it says it gives.

The blocks of a page run one after another in one namespace. A block of prompts (`>>> `) is a doctest. In any other
block an expression that ends in a comment must have that for its `repr`; nan, ids and the like are left out by a
`...`."""

from __future__ import annotations

import ast
import doctest
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """Each Python block, padded with blank lines so that a traceback points at the page's own line."""
    text = page.read_text()
    found = [match for match in FENCE.finditer(text) if match[1] == "python"]
    return ["\n" * text.count("\n", 0, match.start(2)) + match[2] for match in found]


def run_script(block: str, page: Path, namespace: dict[str, object]) -> None:
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), str(page), "exec"), namespace)
            continue
        value = eval(compile(ast.Expression(statement.value), str(page), "eval"), namespace)
        _, _, expected = lines[statement.end_lineno - 1].partition("  # ")
        if expected:
            pattern = ".*".join(map(re.escape, expected.split("...")))
            assert re.fullmatch(pattern, repr(value), re.DOTALL), f"{page.name}:{statement.lineno}: {value!r}"


def run_prompts(block: str, page: Path, namespace: dict[str, object]) -> None:
    example = doctest.DocTestParser().get_doctest(block, namespace, page.name, str(page), 0)
    example.globs = namespace  # the parser's is a copy: later blocks see what this one defines
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():  # a page may change what warnings do
        for block in blocks(page):
            run = run_prompts if block.lstrip().startswith(">>> ") else run_script
            run(block, page, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    """No example escapes by another name for the same language."""
    assert {match[1] for match in FENCE.finditer(page.read_text())} <= {"python", "sh", "text", "mermaid"}
