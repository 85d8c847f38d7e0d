"""What the site has besides the pages in docs/: pages that are made from other files, and links between them.

A hook of mkdocs and an extension of griffe, both named in ``mkdocs.yml``. Nothing is written twice: the gallery is the
programs in tutorials/, the list of messages is what the tests compare messages with.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/RESULTS.md": "results.md",
    "tests/README.md": "tests.md",
    "tests/messages.txt": "messages.md",
    "docs/autodidax.py": "autodidax.md",
    "tutorials/README.md": "gallery/index.md",
    **{f"tutorials/{path.name}": f"gallery/{path.stem}.md" for path in (ROOT / "tutorials").glob("*.py")},
    **{f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")},
}
"""From files of the repository to pages of the site."""

API = re.findall(r"^::: functorch_hops\.(\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
ORIGINS = {page: source for source, page in PAGES.items() if source != "README.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=_content(ROOT / source)))
    pictures = [*(ROOT / "tutorials").rglob("*.png"), *(ROOT / "benchmarks").glob("*.svg")]
    for path in pictures:
        files.append(File.generated(config, _picture(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository, as they stand in its pages, become links between pages of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(ORIGINS[here])

    def follow(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        if not target or "://" in target:
            return match[0]
        source = posixpath.normpath(posixpath.join(folder, target))
        goal = PAGES.get(source) or _picture(ROOT / source)
        return f"]({posixpath.relpath(goal, posixpath.dirname(here) or '.')}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", follow, markdown)


def _picture(path: Path) -> str:
    return f"pictures/{path.name}"


def _content(source: Path) -> str:
    text = source.read_text()
    if source.name == "messages.txt":
        return _messages(text)
    return _program(text) if source.suffix == ".py" else text


def _program(text: str) -> str:
    """A program as a page: its docstring, and then its code. A comment ``# %% Title`` begins a section, and the comment
    below it is its text.
    """
    docstring = ast.get_docstring(ast.parse(text)) or ""
    title, _, introduction = docstring.partition("\n")
    body = text[text.index('"""', 3) + 3 :]
    parts = [f"# {title.rstrip('.')}\n\n{_markdown(introduction)}"]
    for number, cell in enumerate(re.split(r"^# %%", body, flags=re.MULTILINE)):
        if number:
            heading, _, cell = cell.partition("\n")
            parts.append(f"## {heading.strip()}")
            prose = re.match(r"(# ?.*\n)*", cell)[0]
            parts.append(re.sub(r"^# ?", "", prose, flags=re.MULTILINE))
            cell = cell[len(prose) :]
        if cell.strip():
            parts.append(f"```python\n{cell.strip()}\n```")
    return "\n\n".join(parts)


def _messages(text: str) -> str:
    """The messages under the names of their classes."""
    kinds: dict[str, list[str]] = {}
    for entry in re.split(r"\n\n(?=\[)", text.strip()):
        case, _, message = entry.partition("\n")
        kind = message.partition(":")[0]
        kinds.setdefault(kind, []).append(f"{case.strip('[]').replace('_', ' ')}\n\n```text\n{message}\n```")
    parts = ["# All messages", "Every misuse that the tests know, and what the library says to it. "]
    for kind in sorted(kinds):
        parts += [f"## {kind}", *kinds[kind]]
    return "\n\n".join(parts)


def _markdown(docstring: str) -> str:
    """A docstring in Markdown, which writes code after a double colon, references and tables in another way."""
    text = re.sub(r"^::$\n", "", docstring, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = re.sub(
        r":\w+:`(\w+)`",
        lambda name: f"[`{name[1]}`][functorch_hops.{name[1]}]" if name[1] in API else f"`{name[1]}`",
        text,
    )
    text = re.sub(r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE | re.DOTALL)
    rule = r"^=+ +=+\n"
    table = re.compile(rf"{rule}(.*?){rule}", re.MULTILINE | re.DOTALL)
    return table.sub(
        lambda rows: "| | |\n| --- | --- |\n" + re.sub(r"^(.*?)  +(.*)$", r"| \1 | \2 |", rows[1], flags=re.M), text
    )


class Docstrings(griffe.Extension):
    """Docstrings of the library, which are written for ``help()``, for the site."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """``functorch_hops.jit`` is the function, and not the file of that name that it stands in."""
        for name in API:
            found = pkg.members[name].final_target if pkg.members[name].is_alias else pkg.members[name]
            if found.is_module and name in found.members:
                pkg.set_member(name, griffe.Alias(name, found.members[name], parent=pkg))

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _markdown(obj.docstring.value)
