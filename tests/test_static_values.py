"""One answer to one question: are these two static values the same?"""

import dataclasses
import decimal

import numpy as np
import pytest
import torch

import functorch_hops as fh
from functorch_hops.calls.static_values import same_static, static_key


@dataclasses.dataclass
class Unhashable:
    value: object


@dataclasses.dataclass(frozen=True)
class Hashable:
    value: object


SAME = [
    (float("nan"), float("nan")),
    (np.ones(3), np.ones(3)),
    ((1, 2.0), (1, 2.0)),
    (Unhashable(1), Unhashable(1)),
    (Hashable(1), Hashable(1)),
    ([1, 2], [1, 2]),
]
DIFFERENT = [
    (0.0, -0.0),
    (1, 1.0),
    (1, True),
    (np.ones(3), np.zeros(3)),
    (np.ones(3), np.ones(3, dtype=np.float32)),
    (Hashable(1), Hashable(1.0)),
    (Hashable(1), Unhashable(1)),
    (object(), object()),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same(a, b):
    assert same_static(a, b)
    assert same_static(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a, b):
    assert not same_static(a, b)
    assert static_key(a) != static_key(b)


@pytest.mark.parametrize("make", [lambda: decimal.Decimal("nan"), lambda: np.ones(3)], ids=["nan", "ndarray"])
def test_branches_and_steps_may_return_equal_values(make):
    x = torch.ones(2)

    def both(p):
        return fh.cond(p, lambda x: (x, make()), lambda x: (x, make()), x)

    assert same_static(fh.jit(both, backend="eager")(torch.tensor(True))[1], make())
    ys = fh.scan(lambda c, x: (c, (x, make())), torch.tensor(0.0), torch.ones(3))[1]
    assert same_static(ys[1], make())
