"""Operators of which each element depends on those at the same place, said by torch or by a list of ours."""

from __future__ import annotations

import pytest
import torch

from functorch_hops._torch.pointwise import UNTAGGED, is_pointwise

aten = torch.ops.aten
ROWS = torch.linspace(-4, 4, 24).reshape(4, 6)


def arguments(operator: torch._ops.OpOverload) -> list:
    """Tensors for tensors, numbers for numbers, and what a mask has to be."""
    values: list = []
    for argument in operator._schema.arguments:
        kind = str(argument.type)
        if kind == "Tensor":
            is_value = argument.name in ("value", "weight")
            values.append(torch.tensor(0.5) if is_value else ROWS.roll(len(values), 1))
        elif not argument.has_default_value():
            values.append({"bool": False}.get(kind, 0.5))
    if "mask" in [argument.name for argument in operator._schema.arguments]:
        values[1] = ROWS > 0
    return values


@pytest.mark.parametrize("operator", UNTAGGED, ids=str)
def test_a_row_is_computed_from_its_row(operator):
    assert torch.Tag.pointwise not in operator.tags, "torch tags it by now: leave it out of the list"
    args = arguments(operator)
    row = lambda x, i: x[i : i + 1] if isinstance(x, torch.Tensor) and x.dim() else x
    rows = [operator(*(row(x, i) for x in args)) for i in range(len(ROWS))]
    torch.testing.assert_close(operator(*args), torch.cat(rows))


def test_reductions_and_views_are_not_pointwise():
    assert is_pointwise(aten.sin.default)
    assert not any(map(is_pointwise, (aten.sum.default, aten.view.default, aten.mm.default, torch.sin)))
