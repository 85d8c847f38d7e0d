"""``annotate``: names of loops in graphs, pictures, explanations and profiles, whatever is made of them; hints."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import functorch_hops as fh
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.operator import loop_kernel
from functorch_hops.lowering.loops.planning import planned
from modes import every_mode, same

XS = torch.tensor([1.0, 2.0, 3.0])


@fh.annotate(name="attention")
def attention(xs):
    return fh.scan(lambda c, x: (c * x.sin(), None), xs[0], xs)[0]


@fh.annotate
def decoder(xs):
    y = attention(xs)
    return fh.cond(y > 0, torch.sin, torch.cos, y) + fh.while_loop(lambda c: c < 9, lambda c: c + attention(xs) + 1, y)


NAMES = ["decoder/attention scan", "decoder cond", "decoder while_loop", "decoder/attention scan"]


def names(f, *args) -> list[str]:
    return [f"{x.name} {x.operator}" for x in fh.explain(fh.jit(f, backend="eager"))(*args).loops]


def profiled(f, *args) -> list[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        f(*args)
    return [event.name for event in found.events()]


@every_mode
def test_the_function_is_the_same(run) -> None:
    plain = decoder.__wrapped__
    for around in (lambda f: f, fh.grad, lambda f: lambda xs: fh.vmap(f)(torch.stack([xs, xs + 1]))):
        same(run(around(decoder), XS), around(plain)(XS))
    assert decoder.__name__ == "decoder" and decoder.__doc__ == plain.__doc__


def test_names_are_joined_and_end_with_the_call() -> None:
    f = lambda xs: decoder(xs) + fh.scan(lambda c, x: (c + x, None), 0.0, xs)[0]
    assert names(f, XS) == [*NAMES, " scan"]


@pytest.mark.parametrize("around", [fh.grad, fh.vmap, fh.checkpoint, lambda f: fh.vmap(fh.grad(f)), fh.hessian])
def test_names_survive_transforms(around) -> None:
    argument = torch.stack([XS, XS + 1]) if "vmap" in around.__name__ or around.__name__ == "<lambda>" else XS
    found = names(around(attention), argument)
    assert found and set(found) == {"attention scan"}


def test_names_in_text_and_picture(tmp_path) -> None:
    graph = fh.make_graph(decoder)(XS)
    named = [line.split() for line in str(graph).splitlines() if "  # " in line]
    assert [(words[2].partition("[")[0], words[-1]) for words in named] == [
        ("scan", "decoder/attention"),
        ("cond", "decoder"),
        ("while_loop", "decoder"),
        ("scan", "decoder/attention"),
    ]
    picture = fh.draw(graph, tmp_path / "decoder.svg").read_text()
    assert ">decoder/attention/scan, 3 steps<" in picture and ">decoder/cond<" in picture


def test_names_in_profiles() -> None:
    assert [name for name in profiled(decoder, XS) if not name.startswith("aten::")][:2] == ["decoder", "attention"]
    jitted = fh.jit(decoder, backend="eager")
    for _ in range(2):
        found = [name for name in profiled(jitted, XS) if "scan" in name]
        assert found and all(name.startswith("decoder/attention/scan, ") and "3 steps" in name for name in found)


def test_loops_of_a_kernel_are_functions_and_ranges_of_that_name() -> None:
    name = '2nd "layer"? \\ \u00e9'
    f = fh.annotate(attention.__wrapped__, name=name)  # type: ignore[attr-defined]
    with exact_code():
        ((label, source),) = {
            (node.args[4], node.args[3][-1])
            for node in planned(fh.jit(f).lower(XS)._body, {}).body.module.graph.nodes
            if node.target is loop_kernel
        }
    assert label.endswith("::_2nd__layer_______scan")
    assert "C10_NOINLINE" in source
    jitted = fh.jit(f)
    same(jitted(XS), f(XS))
    assert f"{name}/scan, 3 steps" in profiled(jitted, XS)


def test_loops_without_a_name_share_their_code() -> None:
    """Wherever they are; names split it."""

    def code(f) -> str:
        with exact_code():
            nodes = planned(fh.jit(f).lower(XS)._body, {}).body.module.graph.nodes
        return str([node.args[3:5] for node in nodes if node.target is loop_kernel])

    first = code(lambda xs: fh.scan(lambda c, x: (c * x, None), xs[0], xs)[0])
    second = code(lambda xs: fh.scan(lambda c, x: (c * x, None), xs[0], xs)[0])
    assert first == second
    assert code(fh.annotate(lambda xs: fh.scan(lambda c, x: (c * x, None), xs[0], xs)[0], name="mine")) != first


def test_a_trace_knows_the_names_inside_of_it() -> None:
    """It may serve calls elsewhere."""
    inner = fh.jit(attention, backend="eager")
    for name in ("first", "second"):
        outer = fh.annotate(lambda xs: inner(xs) + attention(xs), name=name)
        assert names(outer, XS) == ["attention scan", f"{name}/attention scan"]
    assert inner.cache_info().misses == 1


def test_names_under_torch_compile() -> None:
    """In and around bodies, made there or before; a loop outside of the function has none."""

    def run(xs):
        made = fh.annotate(lambda xs: fh.map(attention, xs), name="made")
        return decoder(xs) + made(torch.stack([xs, xs])).sum() + fh.scan(lambda c, x: (c + x, None), 0.0, xs)[0]

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    same(compiled(XS), run(XS))
    loops = lambda f: [name for name in profiled(f, XS) if " steps" in name or "while_loop" in name]
    jitted = fh.jit(run, backend="eager")
    same(jitted(XS), run(XS))
    assert loops(compiled) == loops(jitted)
    assert [name.partition(",")[0] for name in loops(compiled)][-1] == "scan"


def test_names_and_hints_under_inductor() -> None:
    named = torch.compile(lambda xs: attention(xs) * 2, fullgraph=True)
    same(named(XS), attention(XS) * 2)
    assert "attention/scan, 3 steps" in profiled(named, XS)
    left = fh.annotate(attention.__wrapped__, name="left", loop_kernels=False)  # type: ignore[attr-defined]
    kernels = torch.compile(lambda xs: left(xs) * 3, fullgraph=True)
    same(kernels(XS), left(XS) * 3)
    assert "left/scan, 3 steps" not in profiled(kernels, XS)  # it is torch's own


def test_an_annotated_function_is_watched() -> None:
    factor = [2.0]
    f = fh.jit(fh.annotate(lambda x: x * factor[0], name="scaled"), backend="eager")
    same(f(XS), XS * 2)
    factor[0] = 3.0
    same(f(XS), XS * 3)


def test_a_loop_that_is_to_be_no_kernel() -> None:
    plain = fh.annotate(lambda xs: fh.scan(lambda c, x: (c * x, None), xs[0], xs)[0], name="plain", loop_kernels=False)
    loop, other = fh.explain(lambda xs: plain(xs) + attention(xs))(XS).loops
    assert (loop.name, loop.lowering) == ("plain", "native") and "loop_kernels=False" in str(loop.reason)
    assert (other.name, other.lowering) == ("attention", "lanes")


def test_ranges_of_torch_in_a_body() -> None:
    def f(xs):
        def step(c, x):
            with record_function("mine"):
                return c * x, None

        return fh.scan(step, torch.tensor(1.0), xs)[0]

    jitted = fh.jit(f, backend="eager")
    same(jitted(XS), torch.tensor(6.0))
    assert profiled(jitted, XS).count("mine") == 3
    same(fh.jit(fh.grad(f), backend="eager")(XS), torch.tensor([6.0, 3.0, 2.0]))
    same(fh.export(f, (XS,)).module()(XS), torch.tensor(6.0))
    (loop,) = fh.explain(f)(XS).loops
    assert loop.lowering == "lanes"
