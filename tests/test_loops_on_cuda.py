"""Loops as Triton kernels: which are, which not and why, that each computes what eager does, and that it compiles.

Where there is no GPU, Triton's interpreter runs the kernels on tensors of the CPU, and Triton compiles them for a GPU
that is not there. Where there is one, the same programs run on it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from triton_plans import check, compiled, kernels, moved, on_cuda

import functorch_hops as fh
from functorch_hops import TensorSpec
from functorch_hops.derive.numbers import without_numbers
from functorch_hops.ir.subgraph import params_of
from functorch_hops.lowering.inductor import compile_graph, exact_code
from functorch_hops.lowering.loops import planning
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import LoopReport
from functorch_hops.ops.associative_scan.blocks import blocked_prefixes
from loop_plans import Program, normal, plan, taken
from modes import same

N, STEPS = 40, 7
C, XS, T = normal(N), normal(STEPS, N, seed=1), torch.arange(STEPS)


def scan(step: Callable[[Any, Any], Any], **how: Any) -> Callable[[Any, Any], Any]:
    return lambda c, xs: fh.scan(step, c, xs, **how)


def gradient(f: Callable[..., Any], n: int = 2) -> Callable[..., Any]:
    def loss(*args: Any) -> Any:
        return sum((y.square() * (i + 1)).sum() for i, y in enumerate(optree.tree_leaves(f(*args))))

    return fh.value_and_grad(loss, argnums=tuple(range(n)))


def cell(c: Any, x: Tensor) -> Any:
    new = torch.tanh(c * 0.9 + x) + 0.1 * torch.sigmoid(c)
    return new, new * c


def clipped(c: Any, x: Any) -> Any:
    return fh.cond(x[1] > 3, lambda c: torch.sin(c) * x[0], lambda c: c * 2 - x[0], c), c


def chosen(c: Any, x: Any) -> Any:
    inner = lambda c: fh.cond(x[1] > 4, torch.cos, lambda c: c - x[0], c)
    return fh.switch(x[1] % 3, [inner, lambda c: c * 2 - x[0], lambda c: c.clamp(-3, 3).exp()], c), c


def apart(steps: int, reverse: bool) -> Program:
    """A loop over two stacks with a row more, at either end: it reads each a step apart."""

    def f(c: Tensor, xs: Tensor) -> Any:
        before, after = torch.cat([c[None], xs])[:steps], torch.cat([xs, c[None]])[1:]
        return scan(lambda c, x: (c * x[0] + x[1], c), reverse=reverse)(c, (before, after))

    return f, (C, XS[:steps])


def timed(s: Any, x: Tensor) -> Any:
    """With a time that all lanes share."""
    t, c = s
    return (t * 0.9 + 0.1, torch.sin(c) * t + x), (t, t * 0.9 + 0.1, c)


def counted(n: Tensor, c: Tensor) -> Any:
    return fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, torch.sin(s[1]) * s[0]), (n, c))


def decayed(before: Any, after: Any) -> Any:
    return before[0] * after[0], before[1] * after[0] + after[1]


def states(rates: Tensor, xs: Tensor, reverse: bool = False) -> Any:
    return fh.associative_scan(decayed, (rates, xs), reverse=reverse)


def elements(*shape: int) -> tuple[Tensor, Tensor]:
    return normal(*shape).sigmoid(), normal(*shape, seed=1)


PREFIXES: dict[str, Program] = {
    **{f"of {n} elements": (states, elements(n, 3)) for n in (3, 32, 33, 64, 65, 100)},
    "in blocks of blocks": (states, elements(1100, 2)),
    "of numbers": (lambda xs: fh.associative_scan(torch.mul, xs), (1 + 0.1 * normal(70),)),
    "the larger one": (lambda xs: fh.associative_scan(torch.maximum, xs), (normal(70, 2),)),
    "vmapped": (fh.vmap(states, in_dims=1, out_dims=1), elements(40, 3)),
}

PROGRAMS: dict[str, Program] = {
    "scan": (scan(cell), (C, XS)),
    "backwards in time": (scan(cell, reverse=True), (C, XS)),
    "gradient": (gradient(scan(cell)), (C, XS)),
    "gradient, backwards in time": (gradient(scan(cell, reverse=True)), (C, XS)),
    "gradient of a gradient": (
        fh.grad(lambda c, xs: gradient(scan(cell))(c, xs)[1][0].square().sum(), argnums=(0, 1)),
        (C, XS),
    ),
    "one step": (gradient(scan(cell)), (C, XS[:1])),
    "two steps": (gradient(scan(cell)), (C, XS[:2])),
    **{f"a step apart, {n} steps{', reversed' * r}": apart(n, r) for n in (1, 2, 3, STEPS) for r in (False, True)},
    "carries that are swapped": (scan(lambda c, x: ((c[1], c[0] + x), (c[0], c[0]))), ((C, C * 2), XS)),
    "dtypes": (
        scan(lambda c, x: ((c[0] * 0.5 + x, c[1] * 3 + 1, c[2] ^ (x > 0), c[3] + 7), (c[1] // 2, c[2]))),
        ((C, torch.arange(N), C > 0, torch.arange(N, dtype=torch.int8)), XS),
    ),
    "double": (gradient(scan(cell)), (C.double(), XS.double())),
    "half": (gradient(scan(cell)), (C.half(), XS.half())),
    "divisions": (scan(lambda c, x: (c / (x.abs() + 0.3) / 3, torch.atan2(c, x))), (C, XS)),
    "nan": (
        scan(lambda c, x: (torch.clamp(c + x, -1, 1), torch.maximum(c, x))),
        (torch.where(C > 1, torch.nan, C), XS),
    ),
    "one lane": (scan(cell), (torch.tensor(0.3), normal(STEPS))),
    "two dimensions": (
        lambda c, xs, rows, columns: fh.scan(lambda c, x: (c * rows[:, None] + x * columns, c), c, xs),
        (normal(5, 8), normal(STEPS, 5, 8), normal(5), normal(8)),
    ),
    "many lanes": (scan(cell), (normal(1500), normal(3, 1500))),
    "read from a table": (lambda c, xs: fh.fori_loop(0, STEPS, lambda i, c: torch.tanh(c + xs[i]), c), (C, XS)),
    "a row that is padded": (
        scan(lambda c, x: (c * 0.9 + torch.nn.functional.pad(x[3:].sin(), (0, 3), value=0.5), c)),
        (C, XS),
    ),
    "nothing carried": (lambda xs: fh.map(lambda x: torch.sin(x) * 2, xs), (XS,)),
    "vmapped scan": (fh.vmap(scan(cell), in_dims=(0, 1)), (C, XS)),
    "time that lanes share": (lambda t, c, xs: scan(timed)((t, c), xs), (torch.tensor(1.0), C, XS)),
    "shared time, reversed": (lambda t, c, xs: scan(timed, reverse=True)((t, c), xs), (torch.tensor(1.0), C, XS)),
    "gradient at a shared time": (
        fh.grad(lambda c, xs, t: scan(timed)((t, c), xs)[0][1].sum(), argnums=(0, 1)),
        (C, XS, torch.tensor(1.0)),
    ),
    "while that counts": (counted, (torch.tensor(0), C)),
    "outputs of lanes, a carry of one": (scan(lambda c, x: (c * 0.5 + 0.1, c * x)), (torch.tensor(1.0), XS)),
    "gradient of a closed-over number": (
        gradient(lambda w, c, xs: scan(lambda c, x: (torch.tanh(c * w + x), c))(c, xs), 3),
        (torch.tensor(0.7), C, XS),
    ),
    "gradient of a closed-over row": (
        gradient(lambda w, c, xs: scan(lambda c, x: (torch.tanh(c * w + x), c))(c, xs), 3),
        (normal(8), normal(5, 8), normal(STEPS, 5, 8)),
    ),
    "cond": (scan(clipped), (C, (XS, T))),
    "gradient of a cond": (gradient(lambda c, xs, t: scan(clipped)(c, (xs, t))), (C, XS, T)),
    "switch around a cond": (scan(chosen), (C, (XS, T))),
    "while": (lambda c: fh.while_loop(lambda c: c < 50, lambda c: c * 1.3 + 0.1, c), (torch.tensor(0.3),)),
    "while of no step": (lambda c: fh.while_loop(lambda c: c < 0, lambda c: c * 1.3, c), (torch.tensor(0.3),)),
    "lanes that end by themselves": (
        fh.vmap(lambda c: fh.while_loop(lambda c: c.abs() > 1e-2, lambda c: c * 0.7, c)),
        (normal(100),),
    ),
    "Newton's iteration": (
        fh.vmap(
            lambda a: fh.while_loop(
                lambda s: (s[0] * s[0] - s[1]).abs() > 1e-4, lambda s: ((s[0] + s[1] / s[0]) / 2, s[1]), (a, a)
            )
        ),
        (normal(70).abs() + 0.5,),
    ),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_takes_its_lanes_through_all_steps(name: str) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, args = PROGRAMS[name]
    assert set(taken(check(f, *args))) == {"lanes"}


_LARGE = TensorSpec((3 << 30,), torch.float32, "cuda")


def large() -> Any:
    body = fh.jit(scan(lambda c, x: (c + x, c))).lower(_LARGE, TensorSpec((2, 3 << 30), torch.float32, "cuda"))._body
    with exact_code():
        (node,) = kernels(planned(body, {}))
    return node


@pytest.mark.slow
@pytest.mark.triton
def test_each_kernel_compiles_to_a_binary_that_keeps_its_carries_in_registers() -> None:
    nodes = [node for f, args in (PROGRAMS | DRAWING).values() for node in kernels(on_cuda(f, *args))]
    registers, spilled = compiled([*nodes, large()])
    assert len(registers) == len(nodes) + 1
    assert max(registers) <= 64
    assert set(spilled) == {0}


def test_places_beyond_2_to_the_31_are_numbers_of_64_bits() -> None:
    source = json.loads(large().args[1])
    assert "tl.program_id(0).to(tl.int64) * XBLOCK" in source
    assert f"row_1 += {3 << 30}" in source


def test_lanes_behind_the_last_one_read_and_assert_nothing() -> None:
    table = lambda i, xs: fh.fori_loop(0, STEPS, lambda _, i: (xs[i] * 3).long() % STEPS, i)
    (node,) = kernels(on_cuda(table, torch.arange(N) % STEPS, normal(STEPS)))
    source = json.loads(node.args[1])
    assert re.search(r"device_assert\(.* \| ~\(xmask\)", source)
    assert re.search(r"tl.load\(in_1 \+ \(tmp\d+\), xmask", source)


@pytest.mark.parametrize("name", PREFIXES)
def test_the_derivative_of_prefixes_is_that_of_loops_over_lanes(name: str) -> None:
    f, args = PREFIXES[name]
    body = fh.jit(f).lower(*args)._body
    (params,) = [params for node in body.module.graph.nodes if (params := params_of(node, body.module))]
    blocks = lambda *args: blocked_prefixes(params, [*args])
    elements = lambda *args: fh.associative_scan(lambda a, b: [*params.body(*a, *b)], [*args])
    leaves = optree.tree_leaves(args)
    assert params.n_leaves == len(leaves)
    found, expected = (gradient(g, len(leaves)) for g in (blocks, elements))
    same(found(*leaves), expected(*leaves))
    assert set(taken(list(on_cuda(found, *leaves).loops))) == {"lanes"}


@pytest.mark.cuda
@pytest.mark.parametrize("name", PREFIXES)
def test_a_gradient_of_prefixes_on_a_gpu(name: str) -> None:
    f, args = PREFIXES[name]
    operands = optree.tree_map(Tensor.cuda, args)
    run = fh.jit(gradient(lambda *args: [f(*args)], len(args)))
    same(run(*operands), gradient(lambda *args: [f(*args)], len(args))(*args), check_device=False)
    assert "lanes" in {loop.lowering for loop in fh.explain(run)(*operands).loops}


NATIVE: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "reads other lanes": (scan(lambda c, x: (c.flip(0) + x, c)), (C, XS), "at another lane"),
    "a reduction": (scan(lambda c, x: (c - c.mean() + x, c)), (C, XS), "a reduction reads many lanes"),
    "a product": (
        lambda c, w: fh.fori_loop(0, 3, lambda _, c: w @ c, c),
        (C, normal(N, N)),
        "aten.mm.out is no pointwise work",
    ),
    "a branch that may fail": (
        scan(lambda c, x: (fh.cond(x[0] > 0, lambda c: c // x, lambda c: c, c), c)),
        (T, torch.arange(1, 22).reshape(3, STEPS)),
        "not all lanes may run aten.floor_divide",
    ),
    "lanes of a cond": (
        fh.vmap(lambda c: fh.fori_loop(0, 3, lambda _, c: fh.cond(c > 0, torch.sin, torch.cos, c), c)),
        (C,),
        "cond is in its body, and not all lanes may run",
    ),
    "prefixes of products": (
        lambda xs: fh.associative_scan(torch.matmul, xs),
        (normal(5, 3, 3),),
        "all elements at once",
    ),
    "a shared carry of one lane": (
        lambda t, c, xs: scan(lambda s, x: ((s[1][0], s[1] * s[0] + x), s[0]))((t, c), xs),
        (torch.tensor(1.0), C, XS),
        "at another lane",
    ),
    "complex": (scan(lambda c, x: (c * x, c)), (C.cfloat(), XS), "complex64"),
}


@pytest.mark.parametrize("name", NATIVE)
def test_other_loops_are_torch_s_own_and_say_why(name: str) -> None:
    f, args, reason = NATIVE[name]
    reports = on_cuda(f, *args).loops
    assert any(report.taken == "native" and reason in str(report.reason) for report in reports), reports


def drawn(c: Tensor, _: Any) -> Any:
    return c, (
        torch.rand_like(c),
        torch.randn_like(c),
        torch.randint(3, 10, c.shape, device=c.device),
        torch.rand_like(c.double()),
    )


DRAWING: dict[str, Program] = {
    "each kind": (lambda c: fh.scan(drawn, c, length=STEPS), (C,)),
    "gradient of dropout": (
        fh.grad(lambda c: fh.fori_loop(0, STEPS, lambda _, c: torch.dropout(c, 0.3, True).sin(), c).square().sum()),
        (C,),
    ),
    "while": (
        lambda n, c: fh.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] + torch.randn_like(s[1])), (n, c)),
        (torch.tensor(0), C),
    ),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", DRAWING)
def test_random_numbers_are_those_of_a_kernel_on_a_cpu(name: str) -> None:
    import triton_libdevice

    triton_libdevice.provide()
    f, args = DRAWING[name]
    on_gpu, on_cpu = on_cuda(f, *args), plan(f, *args)
    assert set(taken(list(on_gpu.loops))) == {"lanes"}
    results = []
    for body in (moved(on_gpu.body, "cpu"), on_cpu.body):
        torch.manual_seed(0)
        results.append(list(body(*args)))
    same(*results)


def test_a_loop_in_a_native_loop_is_a_kernel() -> None:
    f = scan(lambda c, x: (fh.fori_loop(0, 3, lambda _, c: c * 0.5 + x, c).flip(0), c))
    assert taken(list(on_cuda(f, C, XS).loops)) == ["native", "lanes"]


def test_loops_on_several_devices_are_native() -> None:
    cuda = lambda *shape: TensorSpec(shape, torch.float32, "cuda")
    carry = cuda(N), TensorSpec((N,), torch.float32)
    body = fh.jit(scan(lambda c, x: ((c[0] + x, c[1] * 2), x))).lower(carry, cuda(STEPS, N))._body
    with exact_code():
        assert planned(body, {}).loops == (LoopReport("scan", "native", "it runs on several devices"),)


def test_python_numbers_are_operands_on_the_cpu() -> None:
    cuda = lambda *shape: TensorSpec(shape, torch.float32, "cuda")
    f = lambda c, xs, rate: fh.scan(lambda c, x: (c * rate + x, c), c, xs)
    body = without_numbers(fh.jit(f).lower(cuda(N), cuda(STEPS, N), 0.5)._body)
    with exact_code():
        (node,) = kernels(planned(body, {}))
    devices = [x.meta["val"].device.type for x in node.args[0]]
    assert sorted(devices) == ["cpu", "cuda", "cuda"]


def test_indices_of_steps_are_made_on_the_gpu() -> None:
    """On the CPU Inductor would compile C++ for them."""
    body = fh.jit(COUNTING["an index"][0]).lower(TensorSpec((N,), torch.float32, "cuda"))._body
    with exact_code():
        made = planned(without_numbers(body), {})
    (indices,) = [x for node in kernels(made) for x in node.args[0] if "arange" in str(x.target)]
    assert {node.device.type for node in made.body.inputs} == {indices.meta["val"].device.type} == {"cuda"}
    assert not [node for node in made.body.module.graph.nodes if _is_on_cpu(node.meta.get("val"))]


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


COUNTING: dict[str, Program] = {
    "an index": (lambda c: fh.fori_loop(0, STEPS, lambda i, c: c * 0.9 + i, c), (C,)),
    "an index that is stacked": (lambda c: fh.scan(lambda c, i: (c * 0.9 + i, i), c, torch.arange(STEPS)), (C,)),
    "a counter": (lambda n, c: counted(n, c)[1], (torch.tensor(0), C)),
    "a counter that is returned": (counted, (torch.tensor(0), C)),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", COUNTING)
def test_numbers_of_steps_may_be_on_the_cpu(name: str) -> None:
    """As in eager Python: a counter is no tensor of the GPU."""
    f, args = COUNTING[name]
    specs = [TensorSpec(tuple(x.shape), x.dtype, "cuda" if x.shape else "cpu") for x in args]
    body = without_numbers(fh.jit(f).lower(*specs)._body)
    with exact_code():
        made = planned(body, {})
    assert set(taken(list(made.loops))) == {"lanes"}
    assert [x.device for x in made.body.outputs] == [x.device for x in body.outputs]
    same(list(moved(made.body, "cpu")(*args)), optree.tree_leaves(fh.jit(f, backend="eager")(*args)))


def test_a_compiler_that_fails_gives_one_warning_and_torch_s_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("ptxas fatal: no room")

    monkeypatch.setattr(planning, "compile_launch", fail)
    with pytest.warns(RuntimeWarning, match="torch's own loop runs in its place.*\n.*ptxas fatal: no room"):
        (report,) = on_cuda(scan(cell), C, XS).loops
    assert report.taken == "native"


@pytest.mark.triton
def test_an_index_out_of_bounds_is_no_silent_value(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter
    from triton.runtime.errors import InterpreterError

    debugging = dataclasses.replace(interpreter.interpreter_builder.options, debug=True)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", debugging)
    plan = on_cuda(lambda c, xs, i: fh.scan(lambda c, i: (c + xs[i], c), c, i), C, XS, T)
    with pytest.raises(InterpreterError, match="index out of bounds"):
        moved(plan.body, "cpu")(C, XS, T + 1)


@pytest.mark.slow
@pytest.mark.triton
def test_inductor_calls_the_operator_of_a_kernel() -> None:
    body = moved(on_cuda(gradient(scan(lambda c, x: (c * x, c))), C, XS).body, "cpu")
    run = compile_graph(body.module, [C, XS], {})
    same(list(run([C, XS])), list(body(C, XS)))


@pytest.mark.cuda
@pytest.mark.parametrize("name", PROGRAMS | COUNTING)
def test_a_program_on_a_gpu(name: str) -> None:
    f, args = (PROGRAMS | COUNTING)[name]
    operands: Any = optree.tree_map(lambda x: x if name in COUNTING and not x.shape else x.cuda(), args)
    expected = optree.tree_leaves(fh.jit(f, backend="eager")(*operands))
    # Within a step a kernel computes in single precision, which eager's operators round to half.
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if name == "half" else {}
    same(optree.tree_leaves(fh.jit(f)(*operands)), expected, equal_nan=True, **tolerances)
    assert {loop.lowering for loop in fh.explain(f)(*operands).loops} - {"inside"} == {"lanes"}


@pytest.mark.cuda
@pytest.mark.parametrize("name", DRAWING)
def test_random_numbers_on_a_gpu_follow_the_seed(name: str) -> None:
    f, args = DRAWING[name]
    run, operands = fh.jit(f), [x.cuda() for x in args]
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(optree.tree_leaves(run(*operands)))
    same(results[0], results[1])
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2]))
