"""What the errors say, word for word: messages.txt has the text for each call of misuses.py.

Line numbers are left out, and the folder of the file. Plain eager and capture say the same.
"""

from __future__ import annotations

import contextlib
import pathlib
import re

import pytest
from misuses import MISUSES

import functorch_hops as fh

GOLDEN = pathlib.Path(__file__).with_name("messages.txt")


def expected() -> dict[str, str]:
    """``[name]`` on a line of its own, then the text, then an empty line."""
    sections = re.split(r"^\[(\w+)\]\n", GOLDEN.read_text(), flags=re.MULTILINE)[1:]
    return {name: text.strip("\n") for name, text in zip(sections[::2], sections[1::2], strict=True)}


def normalised(text: str) -> str:
    return re.sub(r"^  at .*/(\w+\.py):\d+:", r"  at \1:", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name, misuse in MISUSES.items()
        for mode in (["captured"] if misuse.captured else ["plain", "captured"])
    ],
)
def test_message(name: str, mode: str) -> None:
    misuse = MISUSES[name]
    around = fh.eager_capture() if mode == "captured" else contextlib.nullcontext()
    with around, pytest.raises(misuse.error) as caught:
        misuse.call()
    assert type(caught.value) is misuse.error
    assert normalised(str(caught.value)) == expected()[name]


def test_every_misuse_has_its_text() -> None:
    assert list(expected()) == list(MISUSES)
