"""A vmap over an open number of examples: loops, models, and their derivatives in each lane.

Many of torch's batching rules (2.13) make a number of an open number of lanes, so that each number is traced anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import functorch_hops as fh

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")

F64 = torch.float64
SHIFT = torch.linspace(-1, 1, 2, dtype=F64)
Run = Callable[[Tensor], Any]


def rows(n: int) -> Tensor:
    return torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(n))


def parts_together(x: Tensor) -> Any:
    square = x.outer(x)
    floats = torch.cat((x[:1], SHIFT, x / 0, -0.0 * x, x.new_zeros(0)))
    mixed = torch.cat([x > 0, x < 1]), torch.concat((x, torch.arange(2)))
    return floats, torch.cat((square, square[:, :1]), -1), torch.cat((square[None], square[None].sin())), *mixed


def test_parts_put_together() -> None:
    in_two = lambda x: fh.vmap(lambda shift: parts_together(x + shift))(SHIFT)
    in_one, in_lanes_of_lanes = (fh.jit(fh.vmap(f), dynamic=True, backend="eager") for f in (parts_together, in_two))
    for x in (rows(4), rows(2), rows(7)):
        expected = [torch.stack(parts) for parts in zip(*map(parts_together, x))]
        torch.testing.assert_close(in_one(x), tuple(expected), equal_nan=True, rtol=0, atol=0)
        pairs = [[torch.stack(parts) for parts in zip(*(parts_together(row + s) for s in SHIFT))] for row in x]
        expected = [torch.stack(parts) for parts in zip(*pairs)]
        torch.testing.assert_close(in_lanes_of_lanes(x), tuple(expected), equal_nan=True, rtol=0, atol=0)
    assert in_one.cache_info().misses == in_lanes_of_lanes.cache_info().misses == 1


SQUARE = torch.linspace(-1, 2, 4, dtype=F64).reshape(2, 2)
ARRANGED: dict[str, Run] = {
    "along": lambda x: torch.take_along_dim(x.outer(x), torch.tensor([[0, 2, 2, 1]]), -1),
    "along places": lambda x: torch.take_along_dim(SQUARE.sum() * x, x.argsort(-1), 0),
    "kron": lambda x: torch.kron(x.outer(x), SQUARE) + torch.kron(SQUARE, x.outer(x)),
    "kron of ranks": lambda x: torch.kron(x.reshape(3, 1), x) + torch.kron(x[0], x),
    "blocks": lambda x: torch.block_diag(x, SQUARE, x.outer(x).sin(), x[0]),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_arranged_elements_and_their_derivatives(name: str) -> None:
    f = ARRANGED[name]
    for derivative in lambda f: f, fh.jacrev, lambda f: fh.hessian(lambda x: f(x).sin().sum()):
        in_lanes = fh.jit(fh.vmap(derivative(f)), dynamic=True, backend="eager")
        for x in (rows(4), rows(2), rows(7)):
            torch.testing.assert_close(in_lanes(x), torch.stack([derivative(f)(row) for row in x]))
        assert in_lanes.cache_info().misses == 1


def looped(row: Tensor, reverse: bool) -> Tensor:
    """A loop whose step has a loop: both derivatives read the carries before each step."""
    inner = lambda a, v: (torch.sin(a * v), None)
    step = lambda c, v: (torch.tanh(c * v + fh.scan(inner, c, row, reverse=reverse)[0]), None)
    return fh.scan(step, row[0], row, reverse=reverse)[0]


def looped_in_python(row: Tensor, reverse: bool) -> Tensor:
    order, c = (row.flip(0) if reverse else row), row[0]
    for v in order:
        a = c
        for w in order:
            a = torch.sin(a * w)
        c = torch.tanh(c * v + a)
    return c


ORDERS: dict[str, Callable[[Any, Run], Run]] = {
    "gradient": lambda by, f: by.grad(f),
    "Hessian": lambda by, f: by.hessian(f),
    "gradient of a gradient": lambda by, f: by.grad(lambda row: by.grad(f)(row).sin().sum()),
    "tangent of a gradient": lambda by, f: lambda row: by.jvp(by.grad(f), (row,), (row.cos(),))[1],
}
QUICK = {("gradient of a gradient", "jit"), ("gradient of a gradient", "compile"), ("gradient", "export")}
CASES = [
    pytest.param(order, how, marks=() if (order, how) in QUICK else pytest.mark.slow)
    for order in ORDERS
    for how in ("jit", "compile", "export", "strict export")
]


@pytest.mark.parametrize(("order", "how"), CASES)
def test_derivatives_of_loops_in_each_lane(order: str, how: str) -> None:
    reverse = order == "Hessian"
    of_lane = ORDERS[order](fh, lambda row: looped(row, reverse))
    compiled: list[Any] = []

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return fh.vmap(of_lane)(x)

    def counted(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    if how == "jit":
        run: Any = fh.jit(Model(), dynamic=True, backend="eager")
    elif how == "compile":
        run = torch.compile(Model(), dynamic=True, backend=counted, fullgraph=True)
    else:
        sizes = ({0: Dim("batch", min=2)},)
        run = torch.export.export(Model(), (rows(7),), dynamic_shapes=sizes, strict=how == "strict export").module()
    expected = ORDERS[order](torch.func, lambda row: looped_in_python(row, reverse))
    for x in (rows(7), rows(2), rows(5)):
        torch.testing.assert_close(run(x), torch.stack([expected(row) for row in x]))
    assert len(compiled) == (how == "compile")


PLACES = torch.tensor([0, 2, 2, 1])
WEIGHT = torch.linspace(-1, 1, 18, dtype=F64).reshape(3, 2, 3)
MASK = torch.ones(4, 4, dtype=torch.bool).tril()


def written(x: Tensor) -> Tensor:
    y = x.clone()
    y[0], y[1:3] = x[1] * 3, x[:2].sin()
    return y


F = nn.functional
IN_A_LANE: dict[str, Run] = {
    "slices": lambda x: x[1:] * x[:-1, :1],
    "slices of slices": lambda x: x[:, 1:][::2].narrow(1, 0, 2),
    "parts": lambda x: torch.stack([part.prod() for part in (*x.split([1, 3]), *x.unbind())]),
    "joined with what is empty": lambda x: torch.cat((torch.zeros(0, dtype=F64), x, x.sin()), 0),
    "a diagonal": lambda x: x.diagonal(1).sin(),
    "windows": lambda x: x.unfold(0, 2, 1),
    "gathered": lambda x: x.gather(0, PLACES[:, None]).sin() + x.gather(1, x.argsort(1))[:, :1],
    "selected": lambda x: x.index_select(1, PLACES) * x.index_select(0, x[:, 0].argsort())[:, :4],
    "gathered numbers": lambda x: x[0, 0].gather(0, torch.tensor(0)) * x[0].gather(0, torch.tensor(1)),
    "scattered": lambda x: torch.zeros_like(x).scatter_add(0, PLACES[:, None].expand(4, 6), x.sin()),
    "largest and smallest": lambda x: x.topk(2, 1).values * x.sort(1).values[:, :2] + x.max(),
    "written parts": written,
    "rows": lambda x: F.embedding(PLACES, x.sin(), padding_idx=1),
    "recurrent cell": lambda x: torch.rnn_tanh_cell(
        x, x[:, :2], WEIGHT[:2].reshape(2, 6), WEIGHT[0, :, :2], *WEIGHT[:2, 0, :2]
    ),
    "linear": lambda x: F.linear(x[None], WEIGHT.reshape(9, 2).mT.reshape(3, 6), WEIGHT[0, 0]),
    "convolution": lambda x: F.conv1d(x.reshape(2, 2, 6), WEIGHT, WEIGHT[:, 0, 0], padding=1),
    "convolution with weights": lambda x: F.conv1d(x.reshape(2, 2, 6).sin(), x[:2].reshape(2, 2, 3)),
    "grouped convolution": lambda x: F.conv1d(x.reshape(2, 2, 6), x[:2, :3].reshape(2, 1, 3), x[0, :2], groups=2),
    "pools": lambda x: F.max_pool2d(x[None], 2).sum() * F.avg_pool1d(x[None], 2) + F.adaptive_avg_pool1d(x[None], 3),
    "layer norm": lambda x: F.layer_norm(x, (6,), x[0]),
    "group norm": lambda x: F.group_norm(x[None], 2, x[:, 0], x[:, 1]),
    "batch norm": lambda x: F.batch_norm(x, PLACES.double().repeat(2)[:6], torch.ones(6, dtype=F64)),
    "attention": lambda x: F.scaled_dot_product_attention(*(x.reshape(1, 2, 4, 3),) * 3, is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(*(x[None, None],) * 3, attn_mask=MASK),
    "attention with weights": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=x[:, :4]),
    "padding": lambda x: F.pad(x[None], (1, 2), "reflect") * F.pad(x[None], (2, 1)),
    "enlarged": lambda x: F.interpolate(x[None, None], (5, 7), mode="bilinear"),
    "losses": lambda x: F.cross_entropy(x, PLACES) + F.binary_cross_entropy(x.sigmoid(), x.detach().sigmoid()),
}


@pytest.mark.parametrize("name", IN_A_LANE)
def test_lanes_of_a_model(name: str) -> None:
    f = IN_A_LANE[name]
    loss = lambda x: (f(x) ** 2).sum()
    value, gradient = (fh.jit(fh.vmap(g), dynamic=True, backend="eager") for g in (f, fh.grad(loss)))
    for n in (3, 2, 5):
        x = torch.randn(n, 4, 6, dtype=F64, generator=torch.Generator().manual_seed(n))
        torch.testing.assert_close(value(x), torch.stack([f(row) for row in x]))
        torch.testing.assert_close(gradient(x), torch.stack([torch.func.grad(loss)(row) for row in x]))
    assert value.cache_info().misses == gradient.cache_info().misses == 1


def test_numbers_that_were_first_read_in_a_call_that_vmap_refused() -> None:
    """It writes to a hidden state that all lanes share; the call is made of other operators, which read the same."""
    cell = nn.RNNCell(3, 2).double()
    weights = {name: w.detach() for name, w in cell.named_parameters()}
    run = lambda w, x: torch.ops.aten.rnn_tanh_cell(x, torch.zeros(x.shape[0], 2, dtype=F64), *w.values())
    slope = fh.grad(lambda w, x: run(w, x).square().sum())
    gradients = fh.jit(lambda w, x: fh.vmap(slope, in_dims=(None, 0))(w, x), dynamic=True, backend="eager")
    for n in (4, 2):
        x = torch.randn(n, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(n))
        each = [slope(weights, row) for row in x]
        torch.testing.assert_close(gradients(weights, x), {k: torch.stack([g[k] for g in each]) for k in weights})


@pytest.mark.parametrize("how", ["compile", "export", "strict export"])
def test_gradients_of_a_model_in_each_lane(how: str) -> None:
    weights = {"conv": WEIGHT, "linear": torch.linspace(-1, 1, 6, dtype=F64)}
    features = lambda w, x: F.max_pool1d(F.conv1d(x[None], w["conv"]), 2).flatten()
    loss = lambda w, x: (features(w, x) @ w["linear"]).square()

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return fh.vmap(lambda row: fh.grad(loss)(weights, row[:, 1:]))(x)

    x = torch.randn(6, 2, 7, dtype=F64)
    if how == "compile":
        run: Any = torch.compile(Model(), dynamic=True, backend="aot_eager", fullgraph=True)
    else:
        sizes = ({0: Dim("batch", min=2)},)
        run = torch.export.export(Model(), (x,), dynamic_shapes=sizes, strict=how == "strict export").module()
    for part in (x, x[:2]):
        each = [torch.func.grad(loss)(weights, row[:, 1:]) for row in part]
        torch.testing.assert_close(run(part), {name: torch.stack([g[name] for g in each]) for name in weights})


COUNTS: dict[str, Callable[[int], int]] = {"n - 5": lambda n: n - 5, "n // 4": lambda n: n // 4}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_steps_that_follow_from_an_open_size(name: str) -> None:
    """Of two or more steps, as every open size; torch asks for the smallest size with which that holds."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return fh.scan(lambda c, _: (torch.sin(c * 1.5), c), x[0], None, length=COUNTS[name](x.shape[0]))

    run = torch.export.export(Model(), (rows(12),), dynamic_shapes=({0: Dim("T", min=8)},)).module()
    for x in (rows(12), rows(8), rows(29)):
        torch.testing.assert_close(run(x), Model()(x))
    with pytest.raises(torch._dynamo.exc.UserError, match=r"T = Dim\('T', min=[78]\)"):
        torch.export.export(Model(), (rows(12),), dynamic_shapes=({0: Dim("T")},))


SHARED = torch.linspace(0, 1, 3, dtype=F64)
BRANCHES = {
    "no operands": lambda s: fh.cond(s > 0, lambda: torch.ones((), dtype=F64), lambda: torch.zeros((), dtype=F64)),
    "closed over": lambda s: fh.cond(s > 0, lambda: SHARED.sum(), lambda: SHARED[0]),
    "an operand of no lane": lambda s: fh.cond(s > 0, lambda v: v.sum(), lambda v: v[0], SHARED),
    "a switch": lambda s: fh.switch((s > 0).long(), [lambda: SHARED[0], lambda: SHARED.sum()]),
    "a loop in it": lambda s: fh.cond(
        s > 0, lambda: fh.scan(lambda c, a: (c + a, None), 0.0, SHARED)[0], lambda: SHARED[0]
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_that_read_nothing_of_a_lane(name: str) -> None:
    f = lambda row: row.sum() * BRANCHES[name](row[0])
    expected_of = lambda row: row.sum() * (0.0 if row[0] <= 0 else 1.0 if name == "no operands" else SHARED.sum())
    run, gradient = (fh.jit(fh.vmap(g), dynamic=True, backend="eager") for g in (f, fh.grad(f)))
    for x in (rows(4), rows(2), rows(7)):
        expected = torch.stack([torch.as_tensor(expected_of(row), dtype=F64) for row in x])
        torch.testing.assert_close(run(x), expected)
        torch.testing.assert_close(gradient(x), (expected / x.sum(1))[:, None].expand_as(x))
    assert run.cache_info().misses == gradient.cache_info().misses == 1


SAME_IN_ALL = {
    "scan": lambda note: fh.scan(lambda c, a: (note(c + a), None), torch.zeros((), dtype=F64), SHARED)[0],
    "while_loop": lambda note: fh.while_loop(lambda c: c < 1.5, lambda c: note(c + 0.5), torch.zeros((), dtype=F64)),
    "cond": lambda note: fh.cond(SHARED.sum() > 0, lambda: note(SHARED.sum()), lambda: SHARED[0]),
    "checkpoint": lambda note: fh.checkpoint(lambda v: note(v.sum()))(SHARED),
    "a gradient": lambda note: fh.grad(lambda v: note(v.sin()) * 1.5)(torch.zeros((), dtype=F64)),
}


@pytest.mark.parametrize("name", SAME_IN_ALL)
def test_what_is_seen_in_each_lane_of_what_all_share(name: str) -> None:
    seen: list[float] = []

    def note(v: Tensor) -> Tensor:
        fh.debug.callback(lambda v: seen.append(v.item()), v)
        return v

    SAME_IN_ALL[name](note)
    alone = seen.copy()
    run = fh.jit(fh.vmap(lambda row: row.sum() + SAME_IN_ALL[name](note)), dynamic=True, backend="eager")
    for x in (rows(4), rows(2)):
        seen.clear()
        torch.testing.assert_close(run(x), x.sum(1) + 1.5)
        assert seen == [v for v in alone for _ in x]
    assert run.cache_info().misses == 1


def test_lanes_that_nothing_counts_are_refused() -> None:
    def f(row: Tensor) -> Tensor:
        says = lambda: (fh.debug.print("taken"), torch.ones(()))[1]
        return row.sum() + fh.cond(SHARED.sum() > 0, says, lambda: torch.zeros(()))

    with pytest.raises(fh.CaptureError, match=r"cond: a body without operands(?s:.*)dynamic=False"):
        fh.jit(fh.vmap(f), dynamic=True, backend="eager")(rows(4))
