"""Kernels that an earlier process compiled: that they are found without Inductor, and never for another graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config

import functorch_hops as fh
from functorch_hops.lowering import backends
from functorch_hops.lowering.backends import compilation_of
from functorch_hops.lowering.loops import kept
from loop_plans import normal
from modes import same

C, XS = normal(5), normal(7, 5, seed=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each library was had: it was found, or compiled."""
    steps: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            result = call(*args)
            if result is not None:
                steps.append(name)
            return result

        return noting

    monkeypatch.setattr(kept, "found", noted("found", kept.found))
    monkeypatch.setattr(backends, "_planned_whole", noted("compiled", backends._planned_whole))
    return steps


def decaying(c: Tensor, xs: Tensor, factor: float = 0.75) -> Any:
    return fh.scan(lambda c, x: (c * factor + torch.tanh(x), c), c, xs)


def body_of(f: Callable[..., Any], *args: Any) -> Any:
    return fh.jit(f).lower(*args)._body


def name(f: Callable[..., Any] = decaying, *args: Any, **options: Any) -> str | None:
    return kept.name_of(body_of(f, *(args or (C, XS))), options)


def compiled_anew(f: Callable[..., Any], *args: Tensor, **options: Any) -> Any:
    """As another process would compile it: nothing that was derived from the graph is known."""
    body = body_of(f, *args)
    backend = fh.jit(f, options=options).lower(*args)._entry.params.backend
    with backends.compilation() as record:
        code: Any = backends._compile(body, backend, record)
    return code, record


def test_a_graph_is_compiled_once(made: list[str]) -> None:
    for _ in range(2):
        code, _ = compiled_anew(decaying, C, XS)
        same(list(code([C, XS])), list(decaying(C, XS)))
    assert made == ["compiled", "found"]


def test_gradients_are_found_too(made: list[str]) -> None:
    f = fh.value_and_grad(lambda c, xs: decaying(c, xs)[1].square().mean())
    for _ in range(2):
        code, _ = compiled_anew(f, C, XS)
        same(list(code([C, XS])), list(f(C, XS)))
    assert made == ["compiled", "found"]


def test_graphs_that_draw_are_found_and_draw_anew(made: list[str]) -> None:
    f = lambda c: fh.scan(lambda c, _: (c, torch.nn.functional.dropout(torch.rand_like(c), 0.5)), c, length=9)[1]
    drawn = []
    for _ in range(2):
        code, _ = compiled_anew(f, C)
        torch.manual_seed(0)
        drawn += [*code([C]), *code([C])]
    assert made == ["compiled", "found"]
    same(drawn[:2], drawn[2:])
    assert not torch.equal(drawn[0], drawn[1])


def test_explanations_are_those_of_the_compilation() -> None:
    (_, first), (_, second) = (compiled_anew(decaying, C, XS) for _ in range(2))
    assert first.reports() == second.reports() != ()
    assert first.source_bytes == second.source_bytes > 0


def reversed_(c: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda c, x: (c * 0.75 + torch.tanh(x), c), c, xs, reverse=True)


OTHERS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "as it is": (decaying, (C, XS)),
    "another length": (decaying, (C, XS[1:])),
    "another dtype": (decaying, (C.double(), XS.double())),
    "another direction": (reversed_, (C, XS)),
    "another number": (lambda c, xs: decaying(c, xs, 0.5), (C, XS)),
    "minus zero": (lambda c, xs: decaying(c, xs, -0.0), (C, XS)),
    "zero": (lambda c, xs: decaying(c, xs, 0.0), (C, XS)),
    "not a number": (lambda c, xs: decaying(c, xs, float("nan")), (C, XS)),
    "other results": (lambda c, xs: decaying(c, xs)[::-1], (C, XS)),
}


def test_other_graphs_have_other_names() -> None:
    names = {label: name(f, *args) for label, (f, args) in OTHERS.items()}
    assert None not in names.values()
    assert len({*names.values()}) == len(names)


def test_annotations_of_loops_change_the_name() -> None:
    """By name loops are functions of a kernel, and whether they may be kernels is said there."""
    names = {name(fh.annotate(decaying, name=x)) for x in ("a", "b")}
    names |= {name(), name(fh.annotate(decaying, name="a", loop_kernels=False))}
    assert len(names) == 4


def test_equal_graphs_have_one_name() -> None:
    assert name(lambda c, xs: decaying(c, xs)) == name(lambda a, b: decaying(a, b)) == name()


def test_what_code_depends_on_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name(), name(cpp_wrapper=True), name(**{"cpp.simdlen": 1})]
    with config.patch({"cpp.simdlen": 1}):
        names.append(name())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    names.append(name())
    torch.set_num_threads(threads)
    for part in ("_surroundings", "_compiler"):
        with monkeypatch.context() as patch:
            patch.setattr(kept, part, lambda: "another")
            names.append(name())
    torch.set_default_dtype(torch.float64)
    names.append(name())
    torch.set_default_dtype(torch.float32)
    assert len({*names}) == len(names)
    with config.patch({"cpp.simdlen": config.cpp.simdlen}):  # set, but to what it is
        assert name() == names[0]
    assert name() == names[0]


def test_what_has_no_description_has_no_name() -> None:
    assert name(lambda c, xs: fh.pure_callback(lambda c: c, c, decaying(c, xs)[0])) is None
    kept._surroundings.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_processor", Path("no such file").read_text)
        assert name() is None
        patch.undo()
        patch.setattr(kept, "_imported_at", kept._imported_at - 1e9)  # its files have changed since
        assert name() is None
    assert name() is not None


def test_files_that_were_replaced_since_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an installer that leaves their time as it was."""
    file = tmp_path / "package" / "lowering" / "loops" / "kept.py"
    file.parent.mkdir(parents=True)
    file.write_text("another version")
    os.utime(file, (0, 0))
    monkeypatch.setattr(kept, "__file__", str(file))
    monkeypatch.setattr(kept, "_imported_at", time.time() - 60)
    with pytest.raises(kept._NotByContent):
        kept._own_files()
    monkeypatch.setattr(kept, "_imported_at", time.time() + 60)
    assert kept._own_files()


@pytest.mark.parametrize("is_imported", [False, True])
def test_variables_that_changed_around_the_import_of_inductor(
    is_imported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read them once, and nobody knows which."""
    module = kept._torch.inductor_environment.__globals__
    for attribute, value in [("_is_read", False), ("_config", lambda: None), ("_seen", {})]:
        monkeypatch.setitem(module, attribute, value)
    names = [name()]
    if is_imported:
        monkeypatch.setitem(module, "_config", lambda: config)
    monkeypatch.setenv("TORCHINDUCTOR_EMULATE_PRECISION_CASTS", "1")
    names.append(name())
    assert names[0] is not None
    assert names[1] != names[0]
    assert (names[1] is None) == is_imported


def test_nothing_is_kept_where_inductor_keeps_nothing(folder: Path) -> None:
    assert name(fx_graph_cache=False) is None
    assert name(force_disable_caches=True) is None
    with config.patch(fx_graph_cache=False):
        assert name() is None
        compiled_anew(decaying, C, XS)
    with config.patch(force_disable_caches=True):
        assert name() is None
    assert not [*folder.iterdir()]


def test_open_sizes_have_no_name() -> None:
    body = fh.jit(decaying, dynamic=True).lower(C, XS)._body
    assert kept.name_of(body, {}) is None


@pytest.mark.parametrize("suffix", [".so", ".json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "gone"])
def test_what_is_damaged_is_made_anew(suffix: str, damage: str, folder: Path, made: list[str]) -> None:
    compiled_anew(decaying, C, XS)
    (file,) = folder.glob(f"*{suffix}")
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes({"cut": content[:-9], "empty": b"", "changed": content}[damage])
    for _ in range(2):
        code, _ = compiled_anew(decaying, C, XS)
        same(list(code([C, XS])), list(decaying(C, XS)))
    assert made == ["compiled", "compiled", "found"]
    assert {path.suffix for path in folder.iterdir()} == {".so", ".json"}  # and nothing half-written


def test_a_folder_that_is_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_folder", lambda: folder / "file" / "below")
    (folder / "file").write_text("no folder")
    code, _ = compiled_anew(decaying, C, XS)
    same(list(code([C, XS])), list(decaying(C, XS)))


def test_writers_at_the_same_time(folder: Path) -> None:
    compiled_anew(decaying, C, XS)
    (record,) = folder.glob("*.json")
    library = kept.found(record.stem)
    assert library is not None
    writers = [threading.Thread(target=lambda: [kept.keep(record.stem, library) for _ in range(50)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert kept.found(record.stem) is not None
    assert len([*folder.iterdir()]) == 2


def test_a_library_is_noted_for_processors_like_this(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kept.is_noted(b"a library")
    kept.note(b"a library")
    assert kept.is_noted(b"a library")
    assert not kept.is_noted(b"another one")
    monkeypatch.setattr(kept, "_surroundings", lambda: "another processor")
    assert not kept.is_noted(b"a library")


PROGRAM = """
import json, pathlib, sys
import torch
import functorch_hops as fh
from functorch_hops.lowering.loops import kept
kept._folder = lambda: pathlib.Path(sys.argv[1])
torch.set_num_threads(1)

def decaying(c, xs):
    return fh.scan(lambda c, x: (c * 0.75 + torch.tanh(x), c), c, xs)

c, xs = torch.linspace(-1, 1, 5), torch.linspace(-2, 2, 35).reshape(7, 5)
value = fh.jit(decaying)
results = [*value(c, xs), *fh.jit(fh.grad(lambda c, xs: decaying(c, xs)[1].square().mean(), argnums=(0, 1)))(c, xs)]
needs_grad = c.clone().requires_grad_()
fh.jit(lambda c, xs: decaying(c, xs)[1].square().mean())(needs_grad, xs).backward()
results.append(needs_grad.grad)
has_inductor = "torch._dynamo" in sys.modules
import torch._inductor.compile_fx
value(c, xs)  # of a trace that Inductor's import leaves valid
print(json.dumps([[x.tolist() for x in results], has_inductor, value.cache_info().misses]))
"""


@pytest.mark.slow
def test_another_process_imports_no_compiler(folder: Path) -> None:
    def run() -> Any:
        command = [sys.executable, "-c", PROGRAM, str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    first, second = run(), run()
    assert first[1:] == [True, 1]
    assert second[1:] == [False, 1]
    assert first[0] == second[0]  # to the last bit


def test_compilations_tell_what_was_found(made: list[str]) -> None:
    compiled_anew(decaying, C, XS)
    f = fh.jit(decaying)
    same(f(C, XS), decaying(C, XS))
    record = compilation_of(body_of(decaying, C, XS), f.lower(C, XS)._entry.params.backend)
    assert [report.taken for report in record.reports()] == ["lanes"]


@pytest.mark.slow
def test_a_library_of_which_a_part_is_there_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compiler leaves it that was killed."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))

    def run() -> Any:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / uuid.uuid4().hex)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    first = run()
    libraries = [*(tmp_path / "inductor").glob("**/*.main.so")]
    assert libraries
    for library in libraries:
        library.write_bytes(b"")
    assert run()[0] == first[0]
    assert all(library.stat().st_size for library in libraries)
