"""Each program of the gallery runs, learns what it says, and agrees with its plain PyTorch twin."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "beam_search": ({"beams": 4}, lambda r: r.same_elsewhere and r.same_as_plain and min(r.steps) < max(r.steps)),
    "ensemble": ({"models": 6, "steps": 40}, lambda r: r.error < r.error_of_one and r.difference < 1e-4),
    "hmc": ({"chains": 8, "draws": 40}, lambda r: r.accepted > 0.8 and r.rhat.max() < 1.5),
    "implicit_layer": ({"epochs": 1}, lambda r: r.accuracy > 0.7 and r.difference < 1e-5),
    "kalman_smoother": ({"days": 100, "grid": 4}, lambda r: r.difference < 1e-9),
    "language_model": ({"epochs": 2, "units": 32}, lambda r: r.losses[1] < r.losses[0] and r.difference < 1e-4),
    "meta_learning": ({"rounds": 60, "batch": 8}, lambda r: r.accuracy > r.accuracy_before and r.difference < 1e-5),
    "neural_ode": ({"steps": 40}, lambda r: r.losses[-1] < 0.7 * r.losses[0] and r.difference < 1e-4),
    "policy_gradient": ({"rounds": 12, "carts": 32, "length": 48}, lambda r: r.lengths[-1] > 1.2 * r.lengths[0]),
    "selective_ssm": (
        {"epochs": 1, "channels": 8},
        lambda r: 3 * r.kept["remat='sqrt'"] < r.kept["plain loop"] and r.difference < 1e-2,
    ),
}


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tutorials"))


def test_all_programs_are_here() -> None:
    files = {path.stem for path in (ROOT / "tutorials").glob("*.py")}
    assert files - {"gallery", "quickstart"} == PROGRAMS.keys()
    listed = set(re.findall(r"\]\((\w+)\.py\)", (ROOT / "tutorials" / "README.md").read_text()))
    assert listed == {*PROGRAMS, "gallery", "quickstart"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_picture_is_small(name: str) -> None:
    picture = ROOT / "tutorials" / "pictures" / f"{name}.png"
    assert f"(pictures/{name}.png)" in (ROOT / "tutorials" / f"{name}.py").read_text()
    assert 5_000 < picture.stat().st_size < 60_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, of GRU cells under its vmap
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, tmp_path: Path) -> None:
    sizes, is_right = PROGRAMS[name]
    result = importlib.import_module(name).main(**sizes, backend="eager", pictures=tmp_path)
    assert is_right(result), result
    assert (tmp_path / f"{name}.png").exists()
