"""Each call of ``misuses``, made once in each mode: it raises its error, leaves nothing behind, and says the text of
messages.txt word for word, the same in every mode.

After a change of words, ``python tests/test_messages.py`` writes that file anew; read its diff as a user would.
"""

from __future__ import annotations

import functools
import pathlib
import re

import pytest

from leftovers import nothing_left_behind
from misuses import MISUSES

GOLDEN = pathlib.Path(__file__).with_name("messages.txt")

CALLS = [pytest.param(name, mode, id=f"{name}-{mode}") for name, misuse in MISUSES.items() for mode in misuse.modes]


@functools.cache
def recorded() -> dict[str, str]:
    """``[name]`` on a line of its own, then the text, then an empty line."""
    sections = re.split(r"^\[(\w+)\]\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.strip("\n") for name, text in zip(sections[::2], sections[1::2], strict=True)}


def text_of(error: Exception) -> str:
    """The error's class and message, the user's line without its number and folder."""
    text = re.sub(r"^  at .*/(\w+\.py):\d+:", r"  at \1:", str(error), flags=re.MULTILINE)
    return f"{type(error).__name__}: {text}"


@pytest.mark.parametrize(("name", "mode"), CALLS)
def test_a_misuse(name: str, mode: str) -> None:
    misuse = MISUSES[name]
    then_call = mode == misuse.modes[-1]
    with nothing_left_behind(then_call), pytest.raises(misuse.error) as caught:
        misuse(mode)
    assert text_of(caught.value) == recorded()[name]


def test_every_misuse_has_its_text() -> None:
    assert list(recorded()) == list(MISUSES)


def test_every_message_says_what_to_do() -> None:
    """But for those of the user's own, and Python's."""
    texts = recorded().items()
    silent = {
        name for name, text in texts if "  help: " not in text and not text.startswith(("CheckError", "TypeError"))
    }
    assert not silent


def write() -> None:
    texts = []
    for name, misuse in MISUSES.items():
        with pytest.raises(misuse.error) as caught:
            misuse(misuse.modes[0])
        texts.append(f"[{name}]\n{text_of(caught.value)}\n")
    GOLDEN.write_text("\n".join(texts))


if __name__ == "__main__":
    write()
