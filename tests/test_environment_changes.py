"""Of what a function reads: sharing, cycles, bounds, its own writes, and random changes of random trees."""

import collections
import contextlib
import operator
import sys
import types
import weakref
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from environments import Program, closing_over, noticed, reading, rebind, setter
from functorch_hops import environment
from functorch_hops.environment import difference, snapshot, written
from leftovers import are_gone

# Sharing, cycles, bounds.


def test_tied_tensors_that_part_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    before = snapshot(model)
    assert before.path_of(model[1].weight) == "self[0].weight"
    noticed(model, setter(model[1], "weight", nn.Parameter(torch.ones(2, 2))))


def test_tensors_that_become_one_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = snapshot(model)
    guard = before.guard()
    model[0].weight = nn.Parameter(torch.ones(2, 2))
    assert guard() is not None
    model[1].weight = model[0].weight
    assert guard() is None
    assert snapshot(model).statics != before.statics


def test_tied_tensors_bound_anew_together_are_fetched() -> None:
    table = {"a": torch.ones(1), "b": 0}
    table["b"] = table["a"]
    func = closing_over(table)
    guard = snapshot(func).guard(["closure value['a']"])
    table["a"] = table["b"] = new = torch.zeros(1)
    assert guard() == (new,)
    table["b"] = torch.zeros(1)
    assert guard() is None


def test_shared_objects_that_part_are_noticed() -> None:
    shared = [1]
    table = {"a": shared, "b": shared}
    assert noticed(closing_over(table), lambda: operator.setitem(table, "b", [1])) == [
        "closure 'value['b']' changed from the same object as closure value['a'] to [1]"
    ]


def test_cycles_end() -> None:
    node: Any = types.SimpleNamespace(value=1)
    node.parent = [node, {"self": node}]
    noticed(reading("c.parent.value", node), setter(node, "value", 2))

    user = Program("def even(x):\n    return odd(x - RATE)\ndef odd(x):\n    return even(x - 1)\nRATE = 1")
    noticed(user.odd, lambda: user.set(RATE=2))


def test_a_large_environment_is_bounded() -> None:
    table = {i: [object()] for i in range(environment.found.MOST)}
    found = snapshot(closing_over(table))
    assert found.truncated
    assert found.opaque
    assert found.unchanged()
    many = snapshot(closing_over([1, [[n] for n in range(environment.found.MOST + 1)], [2]]))
    assert many.opaque == ("closure value[1]",)
    assert "closure value[1]" in many.hidden


@pytest.mark.parametrize("kind", [list, dict, collections.deque, set])
def test_scalars_are_watched_however_many_they_are(kind: Any) -> None:
    numbers = range(environment.found.MOST + 1)
    table = dict.fromkeys(numbers, 1) if kind is dict else kind(numbers)
    change = {list: lambda: operator.setitem(table, -1, 0), dict: lambda: operator.setitem(table, 7, True)}
    noticed(closing_over(table), change.get(kind, lambda: table.remove(7)))
    assert not snapshot(closing_over([1])).truncated


def test_a_guard_keeps_no_tensor_alive() -> None:
    func = closing_over([torch.ones(2), 1])
    guard = snapshot(func).guard(["closure value[0]"])
    gone = weakref.ref(func.__closure__[0].cell_contents[0])
    func.__closure__[0].cell_contents[0] = torch.zeros(2)
    assert are_gone(gone)
    assert guard() is not None


def test_fetching_from_a_changed_environment_is_an_error() -> None:
    func = closing_over([torch.ones(2), 1])
    before = snapshot(func)
    assert len(before.fetch(["closure value[0]"])) == 1
    assert before.path_of(torch.ones(2)) is None
    rebind(func, [])
    with pytest.raises(LookupError, match="has changed"):
        before.fetch(["closure value[0]"])


# What a function changes by itself.


def counting_list() -> tuple[Any, Any]:
    calls: list[Any] = []
    scale = [2]

    def func(x):
        calls.append(x)
        return x * scale[0]

    return func, lambda: operator.setitem(scale, 0, 3)


def counting_cell() -> tuple[Any, Any]:
    calls, scale = 0, [2]

    def func(x):
        nonlocal calls
        calls += 1
        return x * scale[0]

    return func, lambda: operator.setitem(scale, 0, 3)


def counting_dict() -> tuple[Any, Any]:
    state = {"calls": 0, "scale": 2}

    def func(x):
        state["calls"] += 1
        return x * state["scale"]

    return func, lambda: state.update(scale=3)


def counting_attribute() -> tuple[Any, Any]:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.scale = 0, 2

        def forward(self, x):
            self.calls += 1
            return x * self.scale

    model = Counting()
    return model, setter(model, "scale", 3)


def counting_new_attribute() -> tuple[Any, Any]:
    config = types.SimpleNamespace(scale=2)

    def func(x):
        config.last = getattr(config, "last", 0) + 1
        return x * config.scale

    return func, setter(config, "scale", 3)


def counting_global() -> tuple[Any, Any]:
    user = Program("CALLS, SCALE = 0, 2\ndef func(x):\n    global CALLS\n    CALLS += 1\n    return x * SCALE")
    return user.func, lambda: user.set(SCALE=3)


@pytest.mark.parametrize(
    "make",
    [
        counting_list,
        counting_cell,
        counting_dict,
        counting_attribute,
        counting_new_attribute,
        counting_global,
    ],
)
def test_what_a_function_writes_itself_is_ignored(make: Any) -> None:
    func, change = make()
    before = snapshot(func)
    func(1)
    ignore = written(before, snapshot(func))
    assert len(ignore) == 1
    kept = snapshot(func, ignore=ignore)
    assert kept.statics == before.statics.without(ignore)
    func(1)
    func(1)
    assert kept.unchanged()
    assert snapshot(func, ignore=ignore).statics == kept.statics
    change()
    assert not kept.unchanged()
    assert snapshot(func, ignore=ignore).statics != kept.statics


def test_a_tensor_at_an_ignored_place_is_found() -> None:
    func = closing_over({"w": torch.ones(1), "more": [torch.ones(1)]})
    found = snapshot(func, ignore=frozenset({"closure value['w']", "closure value['more']"}))
    assert list(found.tensors) == ["closure value['w']"]
    new = torch.zeros(1)
    func.__closure__[0].cell_contents["w"] = new
    assert found.fetch(["closure value['w']"]) == (new,)


def test_a_module_imported_by_the_call_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    user = Program("def func(x):\n    import user_settings\n    return x * user_settings.RATE")
    before = snapshot(user.func)
    module = Program("RATE = 1", "user_settings").module
    monkeypatch.setitem(sys.modules, "user_settings", module)
    after = snapshot(user.func)
    assert before.statics != after.statics
    assert written(before, after) == frozenset()
    noticed(user.func, setter(module, "RATE", 2))


# Random environments against a slow description of them.

scalars = st.sampled_from([0, 1, True, 1.0, -0.0, 0.0, float("nan"), "a", None, (1, 2)])
trees = st.recursive(
    scalars | st.just("tensor"),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(lambda a: types.SimpleNamespace(a=a), inner),
    ),
    max_leaves=8,
)


def build(tree: Any) -> Any:
    """A copy, with a tensor of its own at each place marked for one."""
    match tree:
        case "tensor":
            return torch.ones(1)
        case list() | tuple():
            return type(tree)(build(item) for item in tree)
        case dict():
            return {key: build(item) for key, item in tree.items()}
        case types.SimpleNamespace():
            return types.SimpleNamespace(a=build(tree.a))
        case _:
            return tree


def described(value: Any) -> Any:
    match value:
        case torch.Tensor():
            return "a tensor"
        case list() | tuple():
            return (type(value).__name__, *map(described, value))
        case dict():
            return ("dict", *((key, described(item)) for key, item in value.items()))
        case types.SimpleNamespace():
            return ("namespace", *((key, described(item)) for key, item in vars(value).items()))
        case _:
            return (type(value).__name__, repr(value))


def mutable_parts(value: Any) -> list[Any]:
    match value:
        case list() | tuple():
            inner = list(value)
        case dict():
            inner = list(value.values())
        case types.SimpleNamespace():
            inner = [value.a]
        case _:
            return []
    here = [] if isinstance(value, tuple) else [value]
    return here + [part for item in inner for part in mutable_parts(item)]


def mutate(data: st.DataObject, root: list[Any]) -> None:
    part = data.draw(st.sampled_from([root, *mutable_parts(root[0])]))
    new = build(data.draw(trees))
    if isinstance(part, types.SimpleNamespace):
        part.a = new
    elif isinstance(part, dict):
        key = data.draw(st.sampled_from(["a", "b", "c"]))
        if data.draw(st.booleans()):
            part[key] = new
        else:
            part.pop(key, None)
    elif part is root:
        part[0] = new
    elif part and data.draw(st.booleans()):
        part[data.draw(st.integers(0, len(part) - 1))] = new
    elif part and data.draw(st.booleans()):
        del part[data.draw(st.integers(0, len(part) - 1))]
    else:
        part.append(new)


@hypothesis.settings(max_examples=200)
@hypothesis.given(first=trees, data=st.data())
def test_random_changes(first: Any, data: st.DataObject) -> None:
    root = [build(first)]
    func = reading("c[0].a", root)
    before, description = snapshot(func), described(root)
    paths = list(before.tensors)
    guard = before.guard(paths)
    for _ in range(data.draw(st.integers(0, 3))):
        mutate(data, root)
    after = snapshot(func)
    tensors = guard()
    same = described(root) == description
    assert (before.statics == after.statics) is same
    assert (hash(before.statics) == hash(after.statics)) or not same
    assert bool(difference(before, after)) is not same
    if tensors is not None:
        assert same
        assert len(tensors) == len(paths)
        assert all(now is after.tensors[path] for now, path in zip(tensors, paths, strict=True))


def test_no_user_code_runs_during_a_walk() -> None:
    class Touchy:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise AssertionError(name)

        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None

        @property
        def computed(self) -> Any:
            raise AssertionError

    value = Touchy()
    func = reading("c[0].computed + c[1].missing", [value, {"k": value}])
    before = snapshot(func)
    with contextlib.suppress(AssertionError):
        func(1)
    assert before.unchanged()
