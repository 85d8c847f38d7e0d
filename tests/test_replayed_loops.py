"""Loops on a GPU that are launched step by step: which are replayed, and are the results right?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from triton_plans import on_cuda

import functorch_hops as fh
from functorch_hops._torch import new_fake_mode, recorded_on_cuda
from functorch_hops.ir.meta import TensorMeta
from functorch_hops.lowering.loops.triton.operator import triton_loop
from functorch_hops.lowering.replayed import bits, is_replayable, moves
from loop_plans import Program, normal
from modes import same

aten = torch.ops.aten

W, H, XS = normal(60, 60) / 8, normal(8, 60), normal(20, 8, 60)


def recurrent(w: Tensor, h: Tensor, xs: Tensor) -> Any:
    return fh.scan(lambda h, x: ((new := torch.tanh(h @ w + x)), new.sin()), h, xs)


def loss(w: Tensor, h: Tensor, xs: Tensor) -> Tensor:
    return recurrent(w, h, xs)[1].square().sum()


def repeated(step: Callable[[Any, Tensor, Tensor], Tensor], n: int = 20) -> Callable[..., Tensor]:
    return lambda w, h, *_: fh.fori_loop(0, n, lambda i, h: step(i, w, h), h)


def product(_: Any, w: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(h @ w)


def printed(h: Tensor) -> Tensor:
    fh.debug.print("{}", h)
    return h


def scaled(w: Tensor, h: Tensor, xs: Tensor, rate: Any) -> Tensor:
    return repeated(lambda i, w, h: torch.tanh(h @ w) * rate + i)(w, h)


@torch.library.custom_op("replayed_loops::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)

REPLAYED: dict[str, Program] = {
    "scan": (recurrent, (W, H, XS)),
    "its gradient": (fh.value_and_grad(loss, argnums=(0, 1, 2)), (W, H, XS)),
    "steps that are counted": (scaled, (W, H, XS, torch.tensor(0.5))),
    "loops in a loop": (repeated(lambda _, w, h: repeated(product, 3)(w, h)), (W, H, XS)),
    "a kernel in a loop": (repeated(lambda _, w, h: fh.fori_loop(0, 3, lambda _, h: h.sin(), h) @ w), (W, H, XS)),
    "a checkpoint around": (fh.checkpoint(recurrent), (W, H, XS)),
    "solved, sorted and summed": (
        repeated(lambda _, w, h: (torch.linalg.inv_ex(w)[0] @ h.T).T.sort(-1)[0].cumsum(-1).tanh()),
        (W, H, XS),
    ),
}

LAUNCHED: dict[str, Program] = {
    "no loop": (lambda w, h, xs: h @ w, (W, H, XS)),
    "a kernel": (repeated(lambda _, w, h: h.sin()), (W, H, XS)),
    "an end that is looked for": (
        lambda w, h, xs: fh.while_loop(lambda h: h.sum() > 1, lambda h: h @ w, h),
        (W, H, XS),
    ),
    "a branch": (
        repeated(lambda _, w, h: fh.cond(h.sum() > 0, lambda h: h @ w, lambda h: h.sum(0) + h, h)),
        (W, H, XS),
    ),
    "random numbers": (repeated(lambda _, w, h: torch.dropout(h @ w, 0.3, True)), (W, H, XS)),
    "what is printed": (repeated(lambda i, w, h: printed(h @ w)), (W, H, XS)),
    "many steps": (repeated(product, 10_000), (W, H, XS)),
    "code that waits for the device": (repeated(lambda _, w, h: torch.linalg.eigh(w @ w.T)[0] + h), (W, H, XS)),
    "large matrices in a batch": (
        repeated(lambda _, w, h: h @ torch.linalg.inv_ex(w.expand(2, 60, 60))[0][0]),
        (W, H, XS),
    ),
    "code of others": (repeated(lambda _, w, h: doubled(h @ w)), (W, H, XS)),
}


@pytest.mark.parametrize("name", REPLAYED | LAUNCHED)
def test_what_each_call_launches_alike_is_recorded(name: str) -> None:
    f, args = (REPLAYED | LAUNCHED)[name]
    assert is_replayable(on_cuda(f, *args).body) is (name in REPLAYED)


@pytest.mark.parametrize(
    ("operator", "given", "made", "is_moved"),
    [
        (aten.mul.Tensor, [("cuda:0", (3,)), ("cuda:0", (3,))], "cuda:0", False),
        (aten.mul.Tensor, [("cuda:0", (3,)), ("cpu", ())], "cuda:0", False),
        (aten.mul.Tensor, [("cpu", ()), ("cpu", ())], "cpu", False),
        (triton_loop, [("cuda:0", (3,)), ("cpu", ())], "cuda:0", False),
        (aten.add.Tensor, [("cuda:0", (3,)), ("cpu", (3,))], "cuda:0", True),
        (aten._to_copy.default, [("cpu", ())], "cuda:0", True),
        (aten._to_copy.default, [("cuda:0", (3,))], "meta", True),
        (aten.index_select.default, [("cuda:0", (3,)), ("cpu", ())], "cuda:0", True),
    ],
)
def test_what_moves_between_devices(operator: Any, given: Any, made: str, is_moved: bool) -> None:
    """torch waits for it, which a recording can't."""
    graph, mode = torch.fx.Graph(), new_fake_mode(None)

    def with_value(node: torch.fx.Node, device: str, shape: tuple[int, ...]) -> torch.fx.Node:
        node.meta["val"] = TensorMeta.of(torch.zeros(shape))._replace(device=torch.device(device)).fake(mode)
        return node

    args = [with_value(graph.placeholder(f"x{i}"), *each) for i, each in enumerate(given)]
    assert moves(with_value(graph.call_function(operator, tuple(args)), made, (3,))) is is_moved


def test_numbers_are_compared_to_the_bit() -> None:
    zero, negative, nan = (torch.tensor(x) for x in (0.0, -0.0, torch.nan))
    assert bits(zero) != bits(negative)
    assert bits(nan) == bits(nan.clone())
    assert bits(torch.tensor(True)) != bits(torch.tensor(False))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that are replayed, in turn."""
    seen: list[Any] = []
    original: Any = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (seen.append(graph), original(graph))[1])
    return seen


def on_gpu(args: Any, seed: int) -> Any:
    change = lambda x: x.cuda() + 0.01 * seed if x.shape else x
    return optree.tree_map(change, args)


@pytest.mark.cuda
@pytest.mark.parametrize("name", REPLAYED)
def test_each_call_has_its_own_results(name: str, replays: list[Any]) -> None:
    f, args = REPLAYED[name]
    run, plain = fh.jit(f), fh.jit(f, backend="eager")
    operands = [on_gpu(args, seed) for seed in range(4)]
    found = [run(*each) for each in operands]
    assert len(replays) == 3
    assert "replayed" in {loop.lowering for loop in fh.explain(run)(*operands[0]).loops}
    for got, each in zip(found, operands):
        same(optree.tree_leaves(got), optree.tree_leaves(plain(*each)), rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_a_number_may_change(replays: list[Any]) -> None:
    run, plain = fh.jit(scaled), fh.jit(scaled, backend="eager")
    operands = on_gpu((W, H, XS), 0)
    for rate, n_replays in ((0.5, 0), (0.5, 1), (0.25, 1), (0.5, 2)):
        same(run(*operands, rate), plain(*operands, rate), rtol=1e-4, atol=1e-4)
        assert len(replays) == n_replays


@pytest.mark.cuda
def test_training(replays: list[Any]) -> None:
    def trained(f: Callable[..., Tensor]) -> Tensor:
        w = W.cuda().requires_grad_()
        h, xs = on_gpu((H, XS), 0)
        optimizer = torch.optim.SGD([w], lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            f(w, h, xs).backward()
            optimizer.step()
        return w.detach()

    same(trained(fh.jit(loss)), trained(fh.jit(loss, backend="eager")), rtol=1e-4, atol=1e-4)
    assert len(replays) == 6  # forward and backward


@pytest.mark.cuda
def test_streams_and_threads_take_turns() -> None:
    run = fh.jit(recurrent)
    operands = [on_gpu((W, H, XS), seed) for seed in range(4)]
    expected = [fh.jit(recurrent, backend="eager")(*each) for each in operands]
    run(*operands[0])
    run(*operands[0])
    torch.cuda.synchronize()
    found: list[list[Any]] = [[] for _ in operands]

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[i] += [run(*operands[i]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    for results, right in zip(found, expected):
        assert len(results) == 20
        for result in results:
            same(result, right, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_a_graph_of_the_user_s_around() -> None:
    run, operands = fh.jit(recurrent), on_gpu((W, H, XS), 0)
    for _ in range(3):
        run(*operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(*operands)
    operands[1].add_(1)
    graph.replay()
    same(results, fh.jit(recurrent, backend="eager")(*operands), rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("step", [lambda w, h: torch.linalg.eigh(w @ w.T)[0] + h, lambda w, h: doubled(h @ w)])
def test_what_may_wait_for_the_device_is_launched(step: Callable[..., Tensor], replays: list[Any]) -> None:
    """CUDA could not record it, and some libraries do not work any more once that has failed."""
    run, operands = fh.jit(repeated(lambda _, w, h: step(w, h) * 0.1)), on_gpu((W, H, XS), 0)
    expected = fh.jit(run.__wrapped__, backend="eager")(*operands)
    for _ in range(3):
        same(run(*operands), expected, rtol=1e-3, atol=1e-3)
    assert not replays


@pytest.mark.cuda
def test_a_recording_that_fails_leaves_all_as_it_was() -> None:
    stream = torch.cuda.current_stream()

    def work() -> Any:
        return torch.ones(3, device="cuda").sum().item()

    with pytest.raises(RuntimeError):
        recorded_on_cuda(torch.device("cuda", torch.cuda.current_device()), work)
    assert torch.cuda.current_stream() == stream
    assert torch.rand(3, device="cuda").sum() > 0
    run, operands = fh.jit(recurrent), on_gpu((W, H, XS), 0)
    for _ in range(3):
        same(run(*operands), recurrent(*operands), rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_products_that_inductor_pads() -> None:
    """Their results are parts of larger ones, where a loop's carry is not."""

    def f(w: Tensor, h: Tensor) -> Tensor:
        return fh.while_loop(lambda h: h.sum() < 100, lambda h: (h @ w).abs() + 1, h)

    w, h = normal(13, 13).cuda() / 8, normal(13, 13).cuda()
    run = fh.jit(f, options={"force_shape_pad": True})
    same(run(w, h), f(w, h), rtol=1e-4, atol=1e-4)
    same(torch.compile(f, options={"force_shape_pad": True})(w, h), f(w, h), rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_what_inference_mode_recorded_is_replayed_outside(replays: list[Any]) -> None:
    run, operands = fh.jit(recurrent), on_gpu((W, H, XS), 0)
    with torch.inference_mode():
        for _ in range(2):
            run(*operands)
    same(run(*operands), recurrent(*operands), rtol=1e-4, atol=1e-4)
