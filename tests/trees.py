"""Trees to transform, and how to compare them, for test_vmap.py and test_transforms.py."""

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as torch_pytree

from functorch_hops import pytree

D = torch.float64


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass
class Params:
    w: Any
    rest: Any = None


class Registered:
    def __init__(self, inner):
        self.inner = inner


torch_pytree.register_pytree_node(Registered, lambda r: ([r.inner], None), lambda c, _: Registered(*c))


def tensor(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def assert_equal(left, right):
    """Two trees agree."""
    (xs, left_spec), (ys, right_spec) = pytree.flatten(left), pytree.flatten(right)
    assert left_spec == right_spec
    for x, y in zip(xs, ys, strict=True):
        torch.testing.assert_close(x, y)


def numeric_jacobian(f, x, h=1e-6):
    """Central differences of a function from a tensor to a tensor."""
    columns = []
    for index in range(x.numel()):
        e = torch.zeros(x.numel(), dtype=D)
        e[index] = h
        e = e.reshape(x.shape)
        columns.append((f(x + e) - f(x - e)) / (2 * h))
    out = f(x)
    return torch.stack(columns, dim=-1).reshape(*out.shape, *x.shape)


def lines(caught):
    """A message without the line of the test that made the call, which every message names."""
    *text, where = str(caught.value).splitlines()
    assert where.startswith(f"  at {caught.traceback[0].path}:")
    return text


# Trees of two vectors `x`, `y` of length 3, and a way to read them again.
TREES = {
    "dict": (lambda x, y: {"y": y, "x": x}, lambda t: (t["x"], t["y"])),
    "ordered": (lambda x, y: OrderedDict(y=[y], x=x), lambda t: (t["x"], t["y"][0])),
    "namedtuple": (lambda x, y: Pair((x, None), y), lambda t: (t.a[0], t.b)),
    "dataclass": (lambda x, y: Params(x, {"y": y}), lambda t: (t.w, t.rest["y"])),
    "registered": (lambda x, y: [None, Registered(Pair(x, y))], lambda t: tuple(t[1].inner)),
}
trees = pytest.mark.parametrize(("make", "read"), TREES.values(), ids=TREES)


def smooth(x, y):
    return torch.sin(x) * y + (x * y).sum().tanh()
