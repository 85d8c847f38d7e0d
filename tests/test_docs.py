"""The pages in docs/ refer to notes in the code and to one another by names that exist."""

import re
from pathlib import Path

import pytest

import functorch_hops as fh

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".py"))
LINKED = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tutorials/README.md", "tests/README.md")
]
LINKED += [page for page in PAGES if page.suffix == ".md"]
SOURCES = [path for room in ("functorch_hops", "transforms") for path in (ROOT / room).rglob("*.py")]


def notes(text: str) -> set[str]:
    """The titles of the notes that a text has or refers to, which may be broken over lines."""
    return {re.sub(r"[\s#]+", " ", title) for title in re.findall(r"NOTE \[([^]]+)\]", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_notes_exist(page: Path) -> None:
    known = set().union(*(notes(path.read_text()) for path in SOURCES))
    assert notes(page.read_text()) <= known


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    anchors.update(re.findall(r'<a id="([^"]+)">', text))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: functorch_hops\.(\w+)", text, re.MULTILINE)) == sorted(fh.__all__)
    members = re.search(r"^::: functorch_hops\.debug\n    options: { members: \[(.*?)\] }", text, re.MULTILINE)[1]
    assert sorted(members.split(", ")) == sorted(fh.debug.__all__)


def test_every_error_is_explained() -> None:
    errors = {
        name for name in fh.__all__ if isinstance(value := getattr(fh, name), type) and issubclass(value, Exception)
    }
    explained = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert set(explained) == errors - {"FunctorchHopsError"}


def test_glossary_is_alphabetical() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = re.findall(r"^- .*?\*\*(.+?)\.?\*\*", text, re.MULTILINE)
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.lower)
