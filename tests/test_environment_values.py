"""Of what a function reads: containers, objects, classes, modules; is a change noticed, and nothing else watched?"""

import array
import collections
import copy
import ctypes
import dataclasses
import enum
import operator
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from environments import (
    Data,
    Program,
    closing_over,
    fetched_anew,
    noticed,
    reading,
    rebind,
    scaled,
    setter,
    unnoticed,
)
from functorch_hops.environment import snapshot

# Containers.


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: [1, 2], lambda c: c.append(3)),
        (lambda: [1, 2], lambda c: c.reverse()),
        (lambda: [1, 2], lambda c: operator.setitem(c, 0, 5)),
        (list, lambda c: c.append(1)),
        (lambda: [torch.ones(1)], lambda c: c.append(torch.ones(1))),
        (lambda: [torch.ones(1), 1], lambda c: operator.setitem(c, 1, 2)),
        (lambda: [torch.ones(1), 1], lambda c: c.reverse()),
        (lambda: ([1],), lambda c: c[0].append(2)),
        (lambda: {"a": 1}, lambda c: operator.setitem(c, "a", 2)),
        (lambda: {"a": 1}, lambda c: operator.setitem(c, "b", 2)),
        (lambda: {"a": 1, "b": 2}, lambda c: operator.setitem(c, "a", c.pop("a"))),
        (lambda: {"a": torch.ones(1), "b": 2}, lambda c: operator.setitem(c, "b", 3)),
        (lambda: {"a": torch.ones(1), "b": 2}, lambda c: operator.setitem(c, "c", c.pop("b"))),
        (dict, lambda c: operator.setitem(c, "b", 2)),
        (lambda: {1: 2}, lambda c: operator.setitem(c, True, 3)),
        (lambda: {(1, "x"): {"y": 1}}, lambda c: operator.setitem(c[1, "x"], "y", 2)),
        (lambda: {1, 2}, lambda c: c.add(3)),
        (lambda: {1, 2}, lambda c: c.remove(2) or c.add(3)),
        (lambda: collections.deque([1, 2]), lambda c: c.rotate()),
        (lambda: bytearray(b"ab"), lambda c: operator.setitem(c, 0, 1)),
        (lambda: collections.OrderedDict(a=1, b=2), lambda c: c.move_to_end("a")),
        (lambda: collections.defaultdict(int), lambda c: setattr(c, "default_factory", list)),
        (lambda: collections.defaultdict(int, a=torch.ones(1)), lambda c: c["b"]),
        (lambda: collections.Counter("ab"), lambda c: c.update("a")),
        (lambda: collections.ChainMap({"a": 1}), lambda c: c.update(a=2)),
        (lambda: collections.UserDict(a=1), lambda c: c.update(a=2)),
        (lambda: np.arange(3), lambda c: operator.setitem(c, 0, 5)),
        (lambda: [np.arange(3)], lambda c: operator.setitem(c[0], 0, 5)),
        (lambda: np.float32([0.0]), lambda c: operator.setitem(c, 0, -0.0)),
        (lambda: nn.ModuleList([nn.ReLU()]), lambda c: c.append(nn.ReLU())),
        (lambda: nn.ParameterList([torch.ones(1)]), lambda c: c.append(torch.ones(1))),
    ],
)
def test_a_container_changed_in_place_is_noticed(make: Any, change: Any) -> None:
    container = make()
    noticed(closing_over(container), lambda: change(container))
    proxied = make()
    if isinstance(proxied, dict) and not isinstance(proxied, collections.defaultdict):
        noticed(closing_over(types.MappingProxyType(proxied)), lambda: change(proxied))


def test_tensors_in_containers_are_fetched() -> None:
    tensors = {"a": [torch.ones(1), 2], "b": (torch.ones(2), 3), ("k", 1): torch.ones(3)}
    func = closing_over(tensors)
    paths = ["closure value['a'][0]", "closure value['b'][0]", "closure value[('k', 1)]"]
    assert sorted(snapshot(func).tensors) == sorted(paths)
    new = torch.zeros(1)
    fetched_anew(func, paths[0], lambda: operator.setitem(tensors["a"], 0, new), new)
    new = torch.zeros(3)
    fetched_anew(func, paths[2], lambda: operator.setitem(tensors, ("k", 1), new), new)
    before = snapshot(func)
    tensors["b"] = (new := torch.zeros(9), 3)
    assert before.statics == snapshot(func).statics
    assert snapshot(func).fetch(paths[1:2])[0] is new


def test_tensors_in_sets_namedtuples_and_queues_are_found() -> None:
    class Pair(NamedTuple):
        left: Any
        right: Any

    w, v, u = torch.ones(1), torch.ones(1), torch.ones(1)
    found = snapshot(closing_over([{w}, Pair(v, 1), collections.deque([u])])).tensors
    assert found == {
        "closure value[0][0]": w,
        "closure value[1].left": v,
        "closure value[2][0]": u,
    }


def test_dict_keys_that_are_objects() -> None:
    key, tensor = object(), torch.ones(1)
    table = {key: 1, tensor: 2}
    func = closing_over(table)
    noticed(func, lambda: operator.setitem(table, tensor, 3))
    noticed(func, lambda: operator.setitem(table, object(), table.pop(key)))


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: np.zeros(2**20), lambda a: a.__setitem__(-1, 1)),
        (lambda: np.zeros((8, 8))[::2, ::3], lambda a: a.__setitem__((1, 1), 1)),
        (lambda: np.zeros(4).view(), lambda a: setattr(a, "shape", (2, 2))),
        (lambda: np.zeros(2, "M8[s]"), lambda a: a.__setitem__(0, 7)),
        (lambda: np.zeros(2, [("a", "f4"), ("b", "i8")]), lambda a: a["b"].__setitem__(0, 7)),
        (lambda: np.array([[1, 2]], object), lambda a: a[0, 0].append(2)),
        (lambda: array.array("d", [1.0]), lambda a: a.append(2.0)),
        (lambda: bytearray(10), lambda a: a.__setitem__(3, 1)),
        (lambda: memoryview(bytearray(10)), lambda a: a.__setitem__(3, 1)),
        (lambda: ctypes.c_double(2), lambda a: setattr(a, "value", 3)),
        (lambda: (ctypes.c_int * 3)(), lambda a: a.__setitem__(0, 3)),
    ],
)
def test_memory_is_compared_by_content(make: Any, change: Any) -> None:
    value = make()
    if getattr(getattr(value, "dtype", None), "hasobject", False):
        value[0, 0] = []
    noticed(closing_over(value), lambda: change(value))


def test_a_defaultdict_is_not_filled_by_looking() -> None:
    table = collections.defaultdict(int, a=1, b=torch.ones(1))
    before = snapshot(closing_over(table))
    del table["a"]
    assert not before.unchanged()
    assert list(table) == ["b"]


# Objects and classes.


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Config:
    depth = 1
    unused = 1

    def __init__(self) -> None:
        self.rate = 1
        self.other = 1

    @property
    def double(self):
        return self.rate * FACTOR

    @staticmethod
    def static(x):
        return x * FACTOR

    @classmethod
    def build(cls, x):
        return x * cls.depth

    def method(self, x):
        return x * self.rate

    def __call__(self, x):
        return x * self.rate

    def __getitem__(self, index):
        return self.rate


FACTOR = 2


class Derived(Config):
    extra = 1


class Slotted:
    __slots__ = ("_private", "rate", "unset")

    def __init__(self) -> None:
        self.rate = 1
        self._private = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    rate: Any = 1


@pytest.mark.parametrize(
    ("text", "make", "change"),
    [
        ("c.rate", Config, lambda c: setattr(c, "rate", 2)),
        ("c.rate", Derived, lambda c: setattr(c, "rate", 2)),
        ("c.rate", Slotted, lambda c: setattr(c, "rate", 2)),
        ("c.rate", Data, lambda c: setattr(c, "rate", 2)),
        ("c.rate", types.SimpleNamespace, lambda c: setattr(c, "rate", 2)),
        ("c.rate", Config, lambda c: delattr(c, "rate")),
        ("c.unset", Slotted, lambda c: setattr(c, "unset", 2)),
        ("c.double", Config, lambda c: setattr(c, "rate", 2)),
        ("c.method(x)", Config, lambda c: setattr(c, "rate", 2)),
        ("c.method(x)", Config, lambda c: setattr(c, "method", abs)),
        ("c(x)", Config, lambda c: setattr(c, "rate", 2)),
        ("c[x]", Config, lambda c: setattr(c, "rate", 2)),
        ("c.depth", Config, lambda c: setattr(c, "depth", 2)),
        ("c.depth", Config, lambda c: setattr(c, "__class__", Derived)),
        ("c.depth", Config, lambda c: setattr(c, "__dict__", {"depth": 3})),
        ("getattr(c, 'rate')", Config, lambda c: setattr(c, "rate", 2)),
        ("getattr(c, 'missing', 3)", Config, lambda c: setattr(c, "missing", 2)),
        ("hasattr(c, 'missing')", Config, lambda c: setattr(c, "missing", 2)),
        ("getattr(c, f'ra{x}')", Config, lambda c: setattr(c, "rate", 2)),
        ("getattr(c, 'ra' + x, None)", Config, lambda c: setattr(c, "rate", 2)),
        ("getattr(c, 'rate', getattr(c, 'other', 1 + x))", Config, lambda c: setattr(c, "other", 2)),
        ("getattr(c, x)", Config, lambda c: setattr(c, "rate", 2)),
        ("[getattr(c, n) for n in dir(c)]", Config, lambda c: setattr(c, "rate", 2)),
        (
            "(lambda name: (getattr(c, name(), 3), slice(0, 'other')))(lambda: 'missing')",
            Config,
            lambda c: setattr(c, "missing", 2),
        ),
        ("operator.attrgetter('other.rate')(c)", Config, lambda c: setattr(c, "rate", 2)),
        ("vars(c)", Config, lambda c: setattr(c, "other", 2)),
        ("c.__dict__['other']", Config, lambda c: setattr(c, "other", 2)),
        ("dataclasses.asdict(c)", Data, lambda c: setattr(c, "rate", 2)),
        ("torch.func.vmap(len)(c)", Data, lambda c: setattr(c, "rate", 2)),
        ("x.rate(c)", lambda: [Config()], lambda c: setattr(c[0], "rate", 2)),
        ("c.other.rate", Config, lambda c: setattr(c, "other", Data(5))),
    ],
)
def test_an_attribute_that_is_read_is_noticed(text: str, make: Any, change: Any) -> None:
    value = make()
    if isinstance(value, types.SimpleNamespace):
        value.rate = 1
    noticed(reading(text, value), lambda: change(value))


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("c.rate", Config),
        ("c.double + c.method(x) + c(x)", Config),
        ("getattr(c, 'rate', None)", Config),
        ("c.rate", lambda: types.SimpleNamespace(rate=1)),
        ("torch.other(x) + c.rate", Config),
    ],
)
def test_an_attribute_that_is_not_read_is_not_watched(text: str, make: Any) -> None:
    value = make()
    func = reading(text, value)
    guard = snapshot(func).guard()
    unnoticed(func, setter(value, "other", 2))
    unnoticed(func, setter(value, "more", 2))
    assert guard() is not None


def test_a_dataclass_that_is_only_read_by_attribute_is_watched_by_attribute() -> None:
    value = Data(1, torch.ones(2))
    unnoticed(reading("c.w * 2", value), setter(value, "rate", 5))
    noticed(reading("torch.use(c)", value), setter(value, "rate", 6))
    assert list(snapshot(reading("torch.use(c)", value)).tensors) == ["closure c.w"]


def test_class_attributes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = noticed(reading("c.depth", Config()), lambda: monkeypatch.setattr(Config, "depth", 2))
    assert lines == ["class 'Config.depth' changed from 1 to 2"]
    noticed(reading("c.depth", Derived()), lambda: monkeypatch.setattr(Config, "depth", 3))
    noticed(reading("c.depth", Derived()), lambda: monkeypatch.setattr(Derived, "depth", 4, raising=False))
    noticed(reading("c.depth", Config), lambda: monkeypatch.setattr(Config, "depth", 5))
    noticed(reading("c.build(x)", Config), lambda: monkeypatch.setattr(Config, "depth", 6))
    unnoticed(reading("c.depth", Config()), lambda: monkeypatch.setattr(Config, "unused", 2))
    noticed(
        reading("c.method(x)", Config()),
        lambda: monkeypatch.setattr(Config, "method", lambda self, x: x),
    )
    noticed(reading("c(x)", Config()), lambda: monkeypatch.setattr(Config, "__call__", lambda self, x: x))


def test_globals_of_methods_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    noticed(reading("c.double", Config()), lambda: monkeypatch.setitem(globals(), "FACTOR", 3))
    noticed(reading("c.static(x)", Config), lambda: monkeypatch.setitem(globals(), "FACTOR", 4))


def test_constructors_of_a_class_that_is_called_are_followed() -> None:
    user = Program(
        """
RATE = 1
class Made:
    def __init__(self):
        self.rate = RATE
def func(x):
    return Made().rate * x
"""
    )
    noticed(user.func, lambda: user.set(RATE=2))
    # An instance that exists has been constructed.
    func = reading("c.rate", user.Made())
    unnoticed(func, lambda: user.set(RATE=3))


def test_a_class_defined_anew_is_noticed() -> None:
    text = "class Made:\n    rate = 1\ndef func(x):\n    return Made.rate * x"
    user, again = Program(text), Program(text)
    noticed(user.func, lambda: user.set(Made=again.Made))


def test_enum_members_are_compared_by_name() -> None:
    func = closing_over(Color.RED)
    assert noticed(func, lambda: rebind(func, Color.BLUE)) == ["closure 'value' changed from Color.RED to Color.BLUE"]


def test_a_frozen_dataclass_is_compared_by_fields() -> None:
    func = closing_over(Frozen(1))
    unnoticed(func, lambda: rebind(func, Frozen(1)))
    noticed(func, lambda: rebind(func, Frozen(2)))


def test_tensors_of_a_distribution_are_found() -> None:
    normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    func = reading("c.log_prob(x)", normal)
    assert {"closure c.loc", "closure c.scale"} <= set(snapshot(func).tensors)
    new = torch.ones(2)
    fetched_anew(func, "closure c.loc", setter(normal, "loc", new), new)


def test_a_class_may_name_what_is_read() -> None:
    class Transform:
        __environment__ = ("inner", "absent")

        def __init__(self, inner: Any) -> None:
            self.inner, self.calls = inner, 0

        def __call__(self, x):
            self.calls += 1
            return self.inner(x)

    inner = scaled(1.0)
    transform = Transform(inner)
    unnoticed(transform, setter(transform, "calls", 5))
    noticed(transform, lambda: rebind(inner, 2.0))
    noticed(transform, setter(transform, "inner", torch.relu))


def test_a_library_object_counts_by_identity_and_by_what_is_mentioned() -> None:
    bar = Program("class Bar:\n    pass").Bar()
    type(bar).__module__ = "fractions"
    bar.n, bar.hidden = 1, 1
    unnoticed(reading("c.update(x)", bar), setter(bar, "n", 2))
    noticed(reading("c.n", bar), setter(bar, "n", 3))
    other = type(bar)()
    other.__dict__.update(bar.__dict__)
    func = closing_over(bar)
    noticed(func, lambda: rebind(func, other))


# nn.Module.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.rest = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(2))
        self.depth = 2
        self.unused = 1
        self.register_buffer("shift", torch.ones(2))
        self.config = types.SimpleNamespace(rate=1, other=1)

    def forward(self, x):
        for _ in range(self.depth):
            x = self.rest(self.first(x)) + self.shift * self.config.rate
        return self.finish(x)

    def finish(self, x):
        return x


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.eval(), "'self.training' changed from True to False"),
        (lambda m: m.rest[0].eval(), "'self.rest[0].training' changed from True to False"),
        (lambda m: setattr(m, "depth", 3), "'self.depth' changed from 2 to 3"),
        (lambda m: setattr(m.rest[0], "p", 0.5), "'self.rest[0].p' changed from 0.1 to 0.5"),
        (lambda m: setattr(m.rest[1], "momentum", None), "'self.rest[1].momentum' changed from 0.1 to None"),
        (lambda m: setattr(m.config, "rate", 3), "'self.config.rate' changed from 1 to 3"),
        (
            lambda m: setattr(m, "first", nn.Identity()),
            "'self.first' changed from module Linear to module Identity",
        ),
        (lambda m: setattr(m.first, "bias", None), "'self.first.bias' changed from a Parameter to None"),
        (lambda m: setattr(m, "shift", None), "'self.shift' changed from a Tensor to None"),
        (lambda m: m.rest.append(nn.ReLU()), "'self.rest[2]' is new: module ReLU"),
        (lambda m: m.register_parameter("w", nn.Parameter(torch.ones(1))), "'self.w' is new: a Parameter"),
        (lambda m: m.first.register_forward_hook(lambda *a: None), None),
        (lambda m: m.register_forward_pre_hook(lambda *a: None), None),
        (lambda m: m.first.register_full_backward_hook(lambda *a: None), None),
        (lambda m: setattr(m, "forward", lambda x: x), None),
        (lambda m: setattr(m.first, "forward", lambda x: x), None),
        (lambda m: setattr(m, "finish", lambda x: x), None),
        (lambda m: setattr(m.rest[0], "__class__", nn.AlphaDropout), None),
        (lambda m: setattr(m, "__class__", type("Sub", (Net,), {})), None),
        (lambda m: m.rest._modules.move_to_end("0"), None),
        (lambda m: nn.utils.parametrize.register_parametrization(m.first, "weight", nn.Identity()), None),
        (lambda m: nn.utils.parametrizations.weight_norm(m.first), None),
    ],
)
def test_a_change_of_a_module_is_noticed(change: Any, line: str | None) -> None:
    model = Net()
    if not isinstance(model.rest._modules, collections.OrderedDict):
        model.rest._modules = collections.OrderedDict(model.rest._modules)
    lines = noticed(model, lambda: change(model))
    if line is not None:
        assert line in lines
    model = Net()
    if not isinstance(model.rest._modules, collections.OrderedDict):
        model.rest._modules = collections.OrderedDict(model.rest._modules)
    noticed(reading("c(x)", model), lambda: change(model))


def test_hooks_are_followed() -> None:
    model, inner = Net(), scaled(1.0)

    def hook(module, args):
        return inner(args[0])

    handle = model.first.register_forward_pre_hook(hook)
    noticed(model, lambda: rebind(inner, 2.0))
    noticed(model, handle.remove)


def test_a_method_of_the_class_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    noticed(Net(), lambda: monkeypatch.setattr(Net, "forward", lambda self, x: x))
    noticed(Net(), lambda: monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x))


def test_what_forward_does_not_read_is_not_watched() -> None:
    model = Net()
    unnoticed(model, setter(model, "unused", 2))
    unnoticed(model, setter(model, "more", 2))
    unnoticed(model, setter(model.config, "other", 2))
    unnoticed(model, setter(model.first, "in_features", 7))


def test_parameters_and_buffers_bound_anew_are_fetched() -> None:
    model = Net()
    new = nn.Parameter(torch.zeros(2, 2))
    fetched_anew(model, "self.first.weight", setter(model.first, "weight", new), new)
    new = torch.zeros(2)
    fetched_anew(model, "self.rest[1].running_mean", setter(model.rest[1], "running_mean", new), new)
    assert set(snapshot(model).tensors.values()) == {*model.parameters(), *model.buffers()}
    func = reading("c(x)", model)
    assert "closure c.first.weight" in snapshot(func).tensors


def test_loading_and_moving_a_module_is_no_change() -> None:
    model = Net()
    guard = snapshot(model).guard()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert guard() is not None
    unnoticed(closing_over(model), lambda: model.load_state_dict(Net().state_dict()))
    func = closing_over(model)
    unnoticed(func, lambda: rebind(func, copy.deepcopy(model)))


def test_a_recurrent_module() -> None:
    model = nn.LSTM(2, 3)
    before = snapshot(model)
    assert set(before.tensors.values()) == set(model.parameters())
    noticed(model, setter(model, "batch_first", True))
    model.weight_ih_l0 = nn.Parameter(torch.zeros(12, 2))
    assert snapshot(model).path_of(model.weight_ih_l0) == "self.weight_ih_l0"


def test_a_subclass_of_a_library_module() -> None:
    class Scaled(nn.Conv1d):
        def forward(self, x):
            return super().forward(x) * self.rate

    model = Scaled(2, 2, 3)
    model.rate = 1
    noticed(model, setter(model, "rate", 2))
    noticed(model, setter(model, "stride", (2,)))
    noticed(model, setter(model, "_conv_forward", lambda *a: None))
