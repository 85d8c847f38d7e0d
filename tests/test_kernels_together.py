"""The kernels of one graph are compiled together: one run of the compiler, the same values and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from modes import same


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is given to the C++ compiler, or found in its cache."""
    with exact_code():  # Inductor is imported
        from torch._inductor.codecache import CppPythonBindingsCodeCache
    given: list[str] = []
    original = CppPythonBindingsCodeCache.load_async

    def load(source: str, *args: Any, **kwargs: Any) -> Any:
        given.append(source)
        return original(source, *args, **kwargs)

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_async", load)
    return given


def chain(x: Tensor, w: Tensor) -> Tensor:
    """Products part it into kernels of several kinds."""
    y = torch.softmax(x.sin() @ w, -1) @ w
    z = (y.relu() + 1).sqrt() @ w
    return torch.where(z > z.mean(), z, y.exp()).cumsum(0) @ w.to(z.dtype)


ARGS = torch.rand(5, 7, dtype=torch.float64), torch.rand(7, 7, dtype=torch.float64)


def test_one_source_for_all_kernels(sources: list[str]) -> None:
    same(fh.jit(chain)(*ARGS), chain(*ARGS))
    (source,) = sources
    assert source.count('extern "C"') >= 4


def test_long_sources_are_cut(sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from functorch_hops.lowering.loops import libraries

    monkeypatch.setattr(libraries, "_ENOUGH", 1)
    same(fh.jit(lambda x, w: chain(x, w) + 1)(*ARGS), chain(*ARGS) + 1)
    assert len(sources) >= 4 and all(source.count('extern "C"') == 1 for source in sources)


def test_what_inductor_finds_in_its_cache_is_compiled_in_the_same_way(sources: list[str]) -> None:
    from torch._inductor.codecache import PyCodeCache

    for options in ({}, {"compile_threads": 1}):  # which Inductor's cache ignores
        same(fh.jit(lambda x, w: chain(x, w) - 1, options=options)(*ARGS), chain(*ARGS) - 1)
        PyCodeCache.cache_clear()
    assert sources[0] == sources[1] and len(sources) == 2


DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool


def test_dtypes_and_open_sizes(sources: list[str]) -> None:
    """What Python hands to a kernel: tensors of all kinds, and numbers."""

    def f(*xs: Tensor) -> list[Tensor]:
        return [(x.to(torch.float64).flip(0) * len(x) + 1).to(x.dtype) for x in xs]

    jitted = fh.jit(f, dynamic=True)
    for n in (6, 9):
        xs = [torch.arange(n).to(dtype) for dtype in DTYPES]
        for got, expected in zip(jitted(*xs), f(*xs)):
            assert torch.equal(got, expected) and got.dtype == expected.dtype
    assert all("fh::method" in source for source in sources)


def rows(c: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Two loops, the second of which reads what the first stacked, from its second row on; torch's product between."""
    last, ys = fh.scan(lambda c, x: (torch.tanh(c @ w + x),) * 2, c, x)
    again = fh.scan(lambda c, y: (torch.sin(c) + y.sum(), c), last, ys[1:], reverse=True)
    return again[1] @ torch.geqrf(w)[1]


def test_the_loops_of_a_graph_are_one_library(sources: list[str]) -> None:
    args = torch.rand(7), torch.rand(5, 7), torch.rand(7, 7) + 7 * torch.eye(7)
    same(fh.jit(rows)(*args), rows(*args))
    (loops,) = {source for source in sources if "fh::Call call" in source}
    assert loops.count('extern "C"') == 2 and sources.count(loops) == 2


def test_loops_are_compiled_one_by_one_where_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay kernels."""
    with exact_code():
        from torch._inductor.codecache import CppPythonBindingsCodeCache
    original: Any = CppPythonBindingsCodeCache.load_async

    def load(cache: Any, source: str, *args: Any, **kwargs: Any) -> Any:
        if "fh::Call call" in source and "fh::sin(tmp" in source:
            raise OSError("it has a sine")
        return original.__func__(cache, source, *args, **kwargs)

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_async", classmethod(load))
    args = torch.rand(7), torch.rand(5, 7), torch.rand(7, 7) + 7 * torch.eye(7)
    with pytest.warns(RuntimeWarning, match="it has a sine"):
        loops = fh.explain(lambda *args: rows(*args) + 1)(*args).loops
    assert [loop.lowering for loop in loops] == ["steps", "native"]
    same(fh.jit(lambda *args: rows(*args) + 1)(*args), rows(*args) + 1)


@pytest.mark.parametrize("place", [0, 1])
def test_the_kernel_that_fails_raises(place: int) -> None:
    def f(x: Tensor, w: Tensor, i: Tensor) -> Tensor:
        rows = x[i[0]].cos() @ w
        return rows.sin()[i[1]] @ w

    i = torch.tensor([[0, 1], [1, 0]])
    jitted = fh.jit(f)
    same(jitted(*ARGS, i), f(*ARGS, i))
    i[place, 0] = 5
    with pytest.raises(IndexError, match=r"an index from 0 to \d"):
        jitted(*ARGS, i)


def test_several_functions_are_compiled_by_themselves(sources: list[str]) -> None:
    """Templates define functions beside their kernel that have the same names in each."""
    from functorch_hops.lowering.together import AsyncCompile

    code = AsyncCompile()
    for name in ("kernel_part", "other"):
        part = f"static float {name}(float x) {{ return 2 * x; }}"
        entry = f'extern "C" void kernel(float* x) {{ *x = {name}(*x); }}'
        scope = {"double": code.cpp_pybinding(["float*"], f"{part}\n{entry}\n")}
        code.wait(scope)
        x = torch.ones(1)
        scope["double"](x)  # type: ignore[operator]
        assert x.item() == 2
        with pytest.raises(RuntimeError, match=r"args|arguments"):
            scope["double"](x, x)  # type: ignore[operator]
    assert len(sources) == 2 and "fh::method" not in sources[0] and "fh::method" in sources[1]
