"""What the programs of the gallery share: a clock that is fair to both sides, and the look of their pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

PICTURES = Path(__file__).parent / "pictures"


class Times(NamedTuple):
    """Seconds of the first call, which compiles; then milliseconds of a call, and of the plain PyTorch loop."""

    first_call: float
    library: float
    plain: float

    def __str__(self) -> str:
        return (
            f"{self.library:.3g} ms, plain PyTorch {self.plain:.3g} ms: {self.plain / self.library:.3g} times as fast; "
            f"the first call took {self.first_call:.2g} s"
        )


def race(library: Callable[[], Any], plain: Callable[[], Any], rounds: int = 5) -> Times:
    """CPU time, the best of some rounds in which the two take turns: other work on the machine counts little."""

    def milliseconds(function: Callable[[], Any]) -> float:
        start = time.process_time()
        function()
        return 1e3 * (time.process_time() - start)

    start = time.perf_counter()
    library()
    first_call = time.perf_counter() - start
    library(), plain()
    times = [(milliseconds(library), milliseconds(plain)) for _ in range(rounds)]
    return Times(first_call, min(ours for ours, _ in times), min(theirs for _, theirs in times))


def figure(columns: int) -> tuple[Any, Any]:
    drawing, axes = plt.subplots(1, columns, figsize=(4.2 * columns, 3.2), layout="constrained", squeeze=False)
    for one in axes[0]:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return drawing, axes[0]


def save(drawing: Any, program: str, folder: Path) -> None:
    """The picture under the program's name, in few colours: it is checked in."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(program).stem}.png"
    drawing.savefig(path, dpi=90)
    plt.close(drawing)
    Image.open(path).quantize(48).save(path, optimize=True)
