"""Trees: what is a node, paths, prefixes, and the learning of types."""

import dataclasses
import functools
import threading
import time
import weakref
from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch.utils import _pytree as torch_pytree

import functorch_hops as fh
from functorch_hops import pytree
from leftovers import are_gone
from modes import every_mode, same


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class State:
    h: Any
    c: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    weight: Any
    inner: Any

    def __post_init__(self):
        if not isinstance(self.weight, int):
            raise TypeError("weight must be an int")


@dataclasses.dataclass
class Exported:
    hidden: Any
    c: Any = None


torch.export.register_dataclass(Exported, serialized_type_name="test_pytree.Exported")


@dataclasses.dataclass
class Opaque:
    __fh_leaf__ = True
    value: Any


class Box:
    def __init__(self, items, label):
        self.items, self.label = items, label


class Keyed(Box):
    pass


torch_pytree.register_pytree_node(Box, lambda b: (b.items, [b.label]), lambda items, context: Box(items, context[0]))
torch_pytree.register_pytree_node(
    Keyed,
    lambda b: ([b.items, b.label], None),
    lambda items, context: Keyed(*items),
    flatten_with_keys_fn=lambda b: (
        [(torch_pytree.GetAttrKey("items"), b.items), (torch_pytree.GetAttrKey("label"), b.label)],
        None,
    ),
)


TREES = {
    "leaf": (1, ["carry"]),
    "none": (None, []),
    "tuple": ((1, 2), ["carry[0]", "carry[1]"]),
    "empty": ((), []),
    "dict": ({"h": [1, (2,)]}, ["carry['h'][0]", "carry['h'][1][0]"]),
    "ordered": (OrderedDict(b=1, a=2), ["carry['b']", "carry['a']"]),
    "default": (defaultdict(int, a=2), ["carry['a']"]),
    "deque": (deque([1, 2]), ["carry[0]", "carry[1]"]),
    "namedtuple": (Point(1, None), ["carry.x"]),
    "dataclass": (State(1, [2]), ["carry.h", "carry.c[0]"]),
    "frozen": (Frozen(1, State(2, 3)), ["carry.weight", "carry.inner.h", "carry.inner.c"]),
}


@pytest.mark.parametrize("name", TREES)
def test_round_trip(name):
    tree, paths = TREES[name]
    leaves, spec = pytree.flatten(tree)
    assert pytree.leaf_paths(spec) == paths
    again = pytree.unflatten(spec, leaves)
    assert type(again) is type(tree)
    assert again == tree
    for path, leaf in zip(paths, leaves, strict=True):
        assert eval(path, {"carry": tree}) == leaf
    assert hash(spec) == hash(pytree.flatten(tree)[1])


def test_unflatten_does_not_run_the_validation_of_a_dataclass():
    _, spec = pytree.flatten(Frozen(1, 2))
    rebuilt = pytree.unflatten(spec, ["not an int", None])
    assert (rebuilt.weight, rebuilt.inner) == ("not an int", None)


def test_types_registered_with_torch():
    leaves, spec = pytree.flatten((Box([1, State(2)], "b"), Keyed(3, {"k": 4})))
    assert leaves == [1, 2, 3, 4]
    assert pytree.leaf_paths(spec, "t") == ["t[0][0]", "t[0][1].h", "t[1].items", "t[1].label['k']"]
    box, keyed = pytree.unflatten(spec, "abcd")
    assert (box.items[0], box.items[1].h, box.label) == ("a", "b", "b")
    assert (keyed.items, keyed.label) == ("c", {"k": "d"})


@every_mode
def test_dataclasses_registered_for_export(run):
    """The context that torch (2.13) gives with their keys is not that of their structure."""

    def f(state, x):
        step = lambda s, row: (Exported(s.hidden * row, s.c + 1), Exported(s.hidden))
        last, ys = fh.scan(step, state, x)
        pair = fh.cond(x.sum() > 0, lambda s: Exported(s.c, s.hidden), lambda s: s, state)
        assert [type(tree) for tree in (last, ys, pair)] == [Exported] * 3
        return last.hidden, last.c, ys.hidden, pair.hidden

    state, x = Exported(torch.tensor(2.0), torch.tensor(1.0)), torch.tensor([3.0, 5.0])
    assert pytree.leaf_paths(pytree.flatten(state)[1]) == ["carry.hidden", "carry.c"]
    last = torch.tensor(30.0), torch.tensor(3.0), torch.tensor([2.0, 6.0]), torch.tensor(1.0)
    same(run(f, state, x), last)


def test_types_registered_with_torch_after_their_first_use():
    class Late:
        def __init__(self, value):
            self.value = value

    @dataclasses.dataclass
    class LateData:
        value: Any
        name: Any

    double = fh.jit(lambda thing, x: x * thing.value, backend="eager")
    late, data, x = Late(torch.tensor(3.0)), LateData(1, "n"), torch.ones(2)
    assert pytree.flatten([late, data])[0] == [late, 1, "n"]
    same(double(late, x), 3 * x)
    torch_pytree.register_pytree_node(Late, lambda t: ([t.value], None), lambda children, _: Late(*children))
    torch_pytree.register_pytree_node(LateData, lambda t: ([t.value], t.name), lambda c, name: LateData(*c, name))
    assert pytree.flatten([late, data])[0] == [late.value, 1]
    same(double(Late(torch.tensor(4.0)), x), 4 * x)
    same(fh.grad(lambda t: t.value**2)(late).value, torch.tensor(6.0))


def test_types_of_leaves_are_not_kept_alive():
    class Leaf:
        pass

    pytree.flatten([Leaf()])
    reference = weakref.ref(Leaf)
    del Leaf
    assert are_gone(reference)


def test_types_of_static_arguments_are_not_kept_alive():
    class Leaf:
        pass

    same(fh.jit(lambda x, leaf: x * 2, backend="eager")(torch.ones(2), Leaf()), 2 * torch.ones(2))
    reference = weakref.ref(Leaf)
    del Leaf
    assert are_gone(reference)


def test_the_context_of_a_torch_type_is_part_of_the_structure():
    same, again, other = (pytree.flatten(Box([1], label))[1] for label in "aab")
    assert same == again
    assert hash(same) == hash(again)
    assert same != other


def test_type_registered_with_optree_wins():
    @dataclasses.dataclass
    class Static:
        value: Any
        name: Any

    optree.register_pytree_node(
        Static, lambda s: ((s.value,), s.name), lambda name, c: Static(*c, name), namespace="mine"
    )
    assert pytree.flatten(Static(1, "n"))[0] == [1, "n"]  # another library's namespace says nothing here

    @optree.register_pytree_node_class(namespace=optree.registry.__GLOBAL_NAMESPACE)
    @dataclasses.dataclass
    class Global:
        value: Any
        name: Any

        def __tree_flatten__(self):
            return (self.value,), self.name

        @classmethod
        def __tree_unflatten__(cls, name, children):
            return cls(*children, name)

        tree_flatten, tree_unflatten = __tree_flatten__, __tree_unflatten__

    assert pytree.flatten(Global(1, "n"))[0] == [1]


def test_opaque_class_is_a_leaf():
    value = Opaque(1)
    assert pytree.flatten([value])[0] == [value]


def test_dataclasses_that_are_more_than_their_fields_are_leaves():
    @dataclasses.dataclass
    class Numbers(dict):
        total: int = 0

    @dataclasses.dataclass(eq=False)
    class Layer(torch.nn.Module):
        size: int

        def __post_init__(self):
            super().__init__()

    for value in (Numbers(), Layer(3), State):
        leaves, _ = pytree.flatten([value])
        assert leaves[0] is value


def test_structures_of_threads_agree():
    for _ in range(20):
        cls = dataclasses.make_dataclass("Fresh", ["a", "b"])
        barrier, found = threading.Barrier(4), []

        def work():
            barrier.wait()
            found.append(pytree.flatten([cls(1, cls(2, 3))]))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [leaves for leaves, _ in found] == [[1, 2, 3]] * 4
        assert len({spec for _, spec in found}) == 1


def test_map():
    tree = {"a": torch.ones(2), "b": State(torch.zeros(1))}
    result = pytree.map(lambda x, y: x + y, tree, tree)
    assert result["a"].tolist() == [2, 2]
    assert result["b"].h.tolist() == [0]
    assert result["b"].c is None


def test_map_of_different_trees():
    with pytest.raises(fh.TreeMismatchError) as caught:
        pytree.map(lambda x, y: x, {"a": (1, 2)}, {"a": (1, None)})
    assert str(caught.value).splitlines()[:4] == [
        "pytree.map: the trees differ",
        "  where: tree['a'][1]",
        "  expected: *",
        "  got: None",
    ]


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (1, "*"),
        (None, "None"),
        ((1,), "(*,)"),
        ([], "[]"),
        ({"h": 1, "c": (1, 2)}, "{'c': (*, *), 'h': *}"),
        (OrderedDict(b=1), "OrderedDict({'b': *})"),
        (Point(1, None), "Point(x=*, y=None)"),
        (State([1], 2), "State(h=[*], c=*)"),
        (Box([1, 2], "a"), "Box(*, *)"),
        (deque([1]), "deque(*)"),
        (torch.return_types.max((1, 2)), "max(values=*, indices=*)"),
    ],
)
def test_describe(tree, text):
    assert pytree.describe(pytree.flatten(tree)[1]) == text


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        ((1, 2), (3, 4), None),
        (1, (1,), ("carry", "*", "(*,)")),
        ({"a": 1}, {"b": 1}, ("carry", "{'a': *}", "{'b': *}")),
        ([1, State(1)], [1, State(1, 2)], ("carry[1].c", "None", "*")),
        ((1, 2), (1, 2, 3), ("carry", "(*, *)", "(*, *, *)")),
        ([Box([1], "a")], [Box([1], "b")], ("carry[0]", "Box(*)", "Box(*)")),
    ],
)
def test_difference(left, right, found):
    assert pytree.difference(pytree.flatten(left)[1], pytree.flatten(right)[1]) == found


@pytest.mark.parametrize(
    ("prefix", "tree", "dims"),
    [
        (0, {"a": 1, "b": (2, None)}, [0, 0]),
        (None, [1, 2], [None, None]),
        ((0, None), ([1, 2], {"a": 3}), [0, 0, None]),
        ((0, 1), (None, 3), [1]),
        ([{"b": -1, "a": (None, 2)}], [{"a": ((1, 2), 3), "b": 4}], [None, None, 2, -1]),
        (State(1, None), State([1, 2], [3]), [1, 1, None]),
        (Point(None, 0), Point(1, State(2, 3)), [None, 0, 0]),
        ((), (), []),
    ],
)
def test_broadcast_prefix(prefix, tree, dims):
    assert pytree.broadcast_prefix(prefix, tree, "in_dims") == dims
    assert pytree.broadcast_prefix(prefix, pytree.flatten(tree)[1], "in_dims") == dims


def test_broadcast_of_what_is_no_prefix():
    with pytest.raises(fh.ArgumentValueError) as caught:
        pytree.broadcast_prefix((0, {"a": (0, 1)}), (1, {"a": [1, 2]}), "in_dims")
    assert str(caught.value).splitlines()[:4] == [
        "vmap: in_dims does not match the tree",
        "  where: in_dims[1]['a'] for args[1]['a']",
        "  expected: an int, None, or a tree that starts like [*, *]",
        "  got: (*, *)",
    ]


@pytest.mark.parametrize(
    ("prefix", "tree"),
    [
        ({"a": 0}, {}),
        ({}, {"a": 1}),
        ((0,), ()),
        ((0, 0), Point(1, 2)),
        (OrderedDict(a=0), {"a": 1}),
        ({"a": {"b": 0}}, {"a": 1}),
        (State(0, State(1)), State(1, Point(1, 2))),
    ],
)
def test_broadcast_needs_the_same_nodes(prefix, tree):
    with pytest.raises(fh.ArgumentValueError, match="does not match the tree"):
        pytree.broadcast_prefix(prefix, tree, "in_dims")


def test_broadcast_of_something_else_than_dimensions():
    with pytest.raises(fh.ArgumentValueError) as caught:
        pytree.broadcast_prefix((0, [1.5]), (1, [2]), "out_dims")
    assert str(caught.value).splitlines()[:4] == [
        "vmap: out_dims holds something else than dimensions",
        "  where: out_dims[1][0] for args[1][0]",
        "  expected: an int or None",
        "  got: 1.5",
    ]


def test_flatten_costs_little_more_than_optree():
    tree = {"h": [torch.zeros(1)] * 3, "c": (torch.zeros(1), torch.zeros(1))}

    def best(flatten):
        times = []
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(100):
                flatten(tree)
            times.append(time.perf_counter() - start)
        return min(times) / 100

    assert best(pytree.flatten) - best(optree.tree_flatten) < 5e-6


@dataclasses.dataclass
class Computes:
    """`__post_init__` computes an attribute that is no field; another one is computed when it is asked for."""

    h: object
    order: object = 2

    def __post_init__(self):
        self.gain = self.order * 10

    @functools.cached_property
    def later(self):
        return self.order + 1


def test_what_a_dataclass_computes_is_part_of_the_tree():
    tree = Computes(1)
    assert tree.later == 3
    leaves, spec = pytree.flatten(tree)
    assert leaves == [1, 2, 20]
    assert pytree.leaf_paths(spec) == ["carry.h", "carry.order", "carry.gain"]
    again = pytree.unflatten(spec, [5, 6, 7])
    assert (again.h, again.order, again.gain, again.later) == (5, 6, 7, 7)


@every_mode
def test_what_a_dataclass_computes_passes_through_operators_and_transforms(run):
    x = torch.ones(3)
    same(run(lambda x: fh.vmap(lambda v: Computes(v, v))(x).gain, x), 10 * x)
    step = lambda d, _: (Computes(d.h * d.gain, d.order), None)
    same(run(lambda x: fh.scan(step, Computes(x), length=2)[0].h, x), 400 * x)
    same(run(lambda x: fh.cond(x.sum() > 0, lambda d: d.h * d.gain, lambda d: d.h, Computes(x)), x), 20 * x)
    same(run(lambda x: fh.grad(lambda d: (d.h * d.gain).sum())(Computes(x, x)).h, x), 10 * x)
    same(run(lambda d: d.h * d.gain, Computes(x)), 20 * x)
