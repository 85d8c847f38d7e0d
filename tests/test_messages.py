"""What the errors say, word for word: messages.txt has the text for each call of ``misuses``, the same in every mode.

After a change of words, ``python tests/test_messages.py`` writes that file anew; read its diff as a user would.
"""

from __future__ import annotations

import pathlib
import re

import pytest

from misuses import MISUSES, Misuse

GOLDEN = pathlib.Path(__file__).with_name("messages.txt")

CALLS = [pytest.param(name, mode, id=f"{name}-{mode}") for name, misuse in MISUSES.items() for mode in misuse.modes]


def recorded() -> dict[str, str]:
    """``[name]`` on a line of its own, then the text, then an empty line."""
    sections = re.split(r"^\[(\w+)\]\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.strip("\n") for name, text in zip(sections[::2], sections[1::2], strict=True)}


def text_of(misuse: Misuse, mode: str) -> str:
    """The error's class and message, the user's line without its number and folder."""
    with pytest.raises(misuse.error) as caught:
        misuse(mode)
    text = re.sub(r"^  at .*/(\w+\.py):\d+:", r"  at \1:", str(caught.value), flags=re.MULTILINE)
    return f"{type(caught.value).__name__}: {text}"


@pytest.mark.parametrize(("name", "mode"), CALLS)
def test_message(name: str, mode: str) -> None:
    assert text_of(MISUSES[name], mode) == recorded()[name]


def test_every_misuse_has_its_text() -> None:
    assert list(recorded()) == list(MISUSES)


if __name__ == "__main__":
    texts = (f"[{name}]\n{text_of(misuse, misuse.modes[0])}\n" for name, misuse in MISUSES.items())
    GOLDEN.write_text("\n".join(texts))
