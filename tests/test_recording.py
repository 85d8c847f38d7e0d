"""Operators are recorded alike, whether torch records them or a call like one that torch recorded before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import functorch_hops as fh
from functorch_hops._torch import recording
from functorch_hops.ir.meta import TensorMeta
from functorch_hops.ir.printing import print_subgraph
from functorch_hops.ir.subgraph import Subgraph
from functorch_hops.trace.speculate import speculate_subgraph


@pytest.fixture(autouse=True)
def _nothing_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recording, "_results", {})


def captured(body: Callable[..., Any], *inputs: Tensor) -> tuple[Subgraph, list[Tensor]]:
    """The graph of a body, and what it reads besides its inputs."""
    return speculate_subgraph(
        lambda *xs: [*body(*xs)], [TensorMeta.of(x) for x in inputs], operation="test", parameter="body"
    )


def description(graph: Subgraph) -> list[Any]:
    """The graph as text, and what its nodes say of their values, among others which ones share memory."""
    rows: list[Any] = [print_subgraph(graph, "f")]
    memory: dict[int, int] = {}
    for node in graph.module.graph.nodes:
        value = node.meta.get("val")
        rows.append((node.name, node.meta.get("tensor_meta")))
        for t in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(t, Tensor):
                place = memory.setdefault(t.untyped_storage()._cdata, len(memory))
                form = t.shape, t.stride(), t.storage_offset(), t.dtype, t.device, t.is_conj(), t.is_neg()
                rows.append((*form, t.requires_grad, t.untyped_storage().nbytes(), place, type(t)))
    return rows


def _views(x: Tensor, y: Tensor) -> list[Tensor]:
    rows = x.sin()
    return [rows.t()[1:], rows.view(6)[2:4], rows.expand(2, 2, 3)[0, 1], rows.select(0, 1), torch.stack([x, y])[..., 1]]


def _writes(x: Tensor, y: Tensor) -> list[Tensor]:
    rows, other = x.cos(), y.clone()
    rows.t()[0].add_(1)
    rows[0, 1:] = other[1, :2]
    other.unsqueeze_(0).mul_(2).squeeze_(0)
    return [rows, other, rows.t_() * 2]


def _factories(x: Tensor, y: Tensor) -> list[Tensor]:
    made = (
        torch.arange(3),
        torch.ones(3),
        torch.zeros(3, dtype=torch.int32),
        torch.full((), 2.5),
        x.new_empty(2).zero_(),
    )
    return [x * made[0] + made[1], y + made[2], made[3] * x, made[4] + 1]


def _numbers(x: Tensor, y: Tensor) -> list[Tensor]:
    return [x * 2, x * 2.0, x > True, x.int() * 2, x.int() * 2.0, x + 1j, (x / float("nan")), x.to(torch.float16) + y]


def _known_values(x: Tensor, y: Tensor) -> list[Tensor]:
    number, others = torch.tensor(2), torch.tensor([1.0, 2.0, 3.0])
    return [x.narrow(1, 0, int(number)), x * number + others, x.roll(int(number + 1), 0)]


def _choices(x: Tensor, y: Tensor) -> list[Tensor]:
    places, mask = torch.tensor([1, 0]), x > 0
    return [
        x[places],
        torch.where(mask, x, x),
        torch.where(mask, x, y),
        x.gather(0, mask.long()),
        x.masked_fill(mask, 1),
    ]


def _lazy(x: Tensor, y: Tensor) -> list[Tensor]:
    z = torch.complex(x, y)
    return [z.conj() * z, z.conj().imag + 1, z.real, torch.view_as_real(z).sum(-1), z.conj().resolve_conj().abs()]


def _several(x: Tensor, y: Tensor) -> list[Tensor]:
    largest, places = x.max(1)
    first, second = y.split([1, 2], dim=1)
    return [largest, places, first + 1, second, *torch.linalg.qr(x), torch.var_mean(x, 0)[0]]


def _without_gradients(x: Tensor, y: Tensor) -> list[Tensor]:
    with torch.no_grad():
        factor = y.exp()
        view = factor.view(6)
    return [x * factor, view.sin(), (x.detach() * y).t()]


BODIES = [_views, _writes, _factories, _numbers, _known_values, _choices, _lazy, _several, _without_gradients]
EXAMPLES = torch.linspace(-1, 1, 6).reshape(2, 3), torch.linspace(2, 0.5, 6).reshape(2, 3)


@pytest.mark.parametrize("body", BODIES)
def test_a_second_capture_gives_the_same(body: Callable[..., list[Tensor]]) -> None:
    first = description(captured(body, *EXAMPLES)[0])  # which lets go of the graph: equal ones are one object
    again, lifted = captured(body, *EXAMPLES)
    assert description(again) == first
    torch.testing.assert_close([*again(*EXAMPLES, *lifted)], body(*EXAMPLES), equal_nan=True)


@pytest.mark.parametrize("transform", [fh.grad, lambda f: lambda x, y: fh.jvp(f, (x, y), (y, x))[1], fh.vmap])
def test_a_transform_of_what_was_seen(transform: Callable[..., Any]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return (x.sin().unsqueeze(0) * y.expand(2, -1)).tanh().t().sum()

    xs = EXAMPLES if transform is fh.vmap else (EXAMPLES[0][0], EXAMPLES[1][0])
    f_of = transform(f)
    first = description(fh.make_graph(f_of)(*xs).call.body)
    again = fh.make_graph(f_of)(*xs)
    assert description(again.call.body) == first
    torch.testing.assert_close(again(*xs), f_of(*xs))


def test_what_was_seen_goes_through_no_mode() -> None:
    def body(x: Tensor, y: Tensor) -> list[Tensor]:
        return [(x * y.sin()).t().expand(2, 3, 2).sum(0) + 1]

    captured(body, *EXAMPLES)
    before = FakeTensorMode.cache_info()
    captured(body, *EXAMPLES)
    assert FakeTensorMode.cache_info() == before


def test_the_default_dtype_decides() -> None:
    def body(x: Tensor) -> list[Tensor]:
        return [x / 2, torch.ones(2) * x]

    whole = torch.tensor([1, 2])
    assert [meta.dtype for meta in captured(body, whole)[0].outputs] == [torch.float32] * 2
    torch.set_default_dtype(torch.float64)
    try:
        assert [meta.dtype for meta in captured(body, whole)[0].outputs] == [torch.float64] * 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_errors_are_raised_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broadcast"):
            captured(lambda x, y: [x + y.t()], *EXAMPLES)


def test_a_table_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_MAX_RESULTS", 3)
    for body in BODIES:
        graph, lifted = captured(body, *EXAMPLES)
        torch.testing.assert_close([*graph(*EXAMPLES, *lifted)], body(*EXAMPLES), equal_nan=True)
        assert len(recording._results) <= 3


def test_metadata_of_a_value_may_change_after_it_was_recorded() -> None:
    """The value itself is not what its node shows."""
    for _ in range(2):
        graph, _ = captured(lambda x: [x.sin().t_().unsqueeze_(0) + 1], EXAMPLES[0])
        shapes = {node.name: tuple(node.meta["val"].shape) for node in graph.module.graph.nodes if "val" in node.meta}
        assert shapes["sin"] == (2, 3)
        assert graph.outputs[0].shape == (1, 3, 2)
