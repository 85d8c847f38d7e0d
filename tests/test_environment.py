"""What a captured function reads from closures, globals and modules: found, watched, fetched."""

import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import gc
import operator
import sys
import types
import weakref
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import functorch_hops as fh
from functorch_hops import environment
from functorch_hops.environment import difference, snapshot, written


class Program:
    """A module of the user's, as text: functions in it have globals of their own, which tests may change."""

    def __init__(self, text: str, name: str = "user_program") -> None:
        self.module = types.ModuleType(name)
        exec(compile(text, f"/home/user/{name}.py", "exec"), self.module.__dict__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def set(self, **values: Any) -> None:
        self.module.__dict__.update(values)


def noticed(func: Any, change: Any) -> list[str]:
    """Check that a change is noticed, and that nothing was before it; the lines that tell it."""
    before = snapshot(func)
    again = snapshot(func)
    assert before.statics == again.statics
    assert hash(before.statics) == hash(again.statics)
    assert difference(before, again) == []
    assert before.unchanged()
    assert written(before, again) == frozenset()
    change()
    after = snapshot(func)
    assert not before.unchanged()
    assert before.statics != after.statics
    assert after.unchanged()
    assert written(before, after)
    lines = difference(before, after)
    assert lines
    return lines


def unnoticed(func: Any, change: Any) -> None:
    """Check that a change does not count."""
    before = snapshot(func)
    change()
    assert before.statics == snapshot(func).statics
    assert difference(before, snapshot(func)) == []


def fetched_anew(func: Any, path: str, change: Any, tensor: torch.Tensor) -> None:
    """Check that a tensor that was bound anew is fetched from its place, without a new walk."""
    before = snapshot(func)
    guard = before.guard([path])
    assert before.tensors[path] is guard()[0]
    assert before.path_of(before.tensors[path]) == path
    change()
    assert guard()[0] is tensor
    assert before.unchanged()
    after = snapshot(func)
    assert after.statics == before.statics
    assert after.path_of(tensor) == path


def setter(owner: Any, name: str, value: Any) -> Any:
    return functools.partial(setattr, owner, name, value)


# Functions: closures, defaults, globals.


def closing_over(value: Any) -> Any:
    def func(x):
        return x, value

    return func


def rebind(func: Any, value: Any) -> None:
    (cell,) = func.__closure__
    cell.cell_contents = value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (2, 3),
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (1.5, 2.5),
        (2j, 3j),
        ("a", "b"),
        ("1", 1),
        (b"a", b"b"),
        (None, 0),
        (None, ...),
        (range(2), range(3)),
        (slice(1), slice(2)),
        (torch.float32, torch.float64),
        (torch.device("cpu"), torch.device("meta")),
        (torch.Size([2]), torch.Size([3])),
        (torch.Size([2]), (2,)),
        (torch.contiguous_format, torch.channels_last),
        (np.float32(1), np.float64(1)),
        (np.float32(1), np.float32(2)),
        (np.dtype("i4"), np.dtype("i8")),
        (torch.ones(2), None),
        (torch.ones(2), nn.Parameter(torch.ones(2))),
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ((1, (2, 3)), (1, (2, 4))),
        ({1, 2}, frozenset({1, 2})),
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
        ([torch.ones(2), 1], [torch.ones(2), 2]),
        (torch.relu, torch.tanh),
        (nn.ReLU(), nn.Tanh()),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False)),
        (nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3, stride=2)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (torch.Generator(), torch.Generator()),
        (int, float),
        (torch, np),
        (types.SimpleNamespace(), {}),
    ],
)
def test_a_closure_bound_anew_is_noticed(old: Any, new: Any) -> None:
    func = closing_over(old)
    noticed(func, lambda: rebind(func, new))


@pytest.mark.parametrize(
    "make",
    [
        lambda: int("1000"),
        lambda: float("1.5"),
        lambda: float("nan"),
        lambda: "".join(["a", "b c"]),
        lambda: (float("1.5"), ("".join(["a", "b c"]),)),
        lambda: [1000, 2000.0, "x y"],
        lambda: {"a": [1, 2], "b": {"c": (3, torch.ones(2))}},
        lambda: collections.OrderedDict(a=1),
        lambda: types.SimpleNamespace(a=1),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
        lambda: functools.partial(torch.add, 1, alpha=2),
        lambda: np.arange(3.0),
        lambda: np.float64(2.5),
        lambda: torch.distributions.Normal(torch.zeros(2), torch.ones(2)),
        lambda: closing_over(3),
        lambda: torch.ones(3),
    ],
)
def test_equal_values_are_equal_environments(make: Any) -> None:
    func = closing_over(make())
    unnoticed(func, lambda: rebind(func, make()))


def test_an_equal_scalar_is_no_change_even_for_the_guard() -> None:
    func = closing_over(float("1.5"))
    guard = snapshot(func).guard()
    rebind(func, float("1.5"))
    assert guard() == ()
    rebind(func, 2.5)
    assert guard() is None


def test_the_difference_names_the_place_and_both_values() -> None:
    func = closing_over(2)
    assert noticed(func, lambda: rebind(func, 3)) == ["closure 'value' changed from 2 to 3"]
    func = closing_over([1, 2])
    assert noticed(func, lambda: rebind(func, [1])) == ["closure 'value' changed from [1, 2] to [1]"]
    func = closing_over({"n": [torch.ones(1)]})
    assert noticed(func, lambda: rebind(func, {"n": [torch.ones(1), None]})) == [
        "closure 'value['n']' changed from a list of 1 item to a list of 2 items"
    ]


def test_an_empty_cell_that_is_filled_is_noticed() -> None:
    def make() -> Any:
        func = lambda: later

        if False:
            later = None
        return func

    func = make()
    noticed(func, lambda: rebind(func, 1))


def test_a_closure_that_is_only_written_is_not_watched() -> None:
    def make() -> Any:
        last = 0

        def func(x):
            nonlocal last
            last = 7
            return x

        return func

    func = make()
    unnoticed(func, lambda: rebind(func, 5))


WEIGHT = torch.ones(2)


def test_defaults_are_noticed_and_their_tensors_fetched() -> None:
    def func(x, scale=2, w=WEIGHT, *, shift=1, **rest):
        return x * scale * w + shift

    assert noticed(func, setter(func, "__defaults__", (3, torch.ones(2)))) == ["default 'scale' changed from 2 to 3"]
    assert noticed(func, lambda: func.__kwdefaults__.update(shift=5)) == ["default 'shift' changed from 1 to 5"]
    noticed(func, setter(func, "__kwdefaults__", None))
    assert list(snapshot(func).tensors) == ["default w"]
    # A new tuple of defaults is a new place: the guard says so, and the new walk finds them equal.
    unnoticed(func, setter(func, "__defaults__", (3, torch.zeros(2))))


def test_a_replaced_code_object_is_noticed() -> None:
    func, other = closing_over(1), closing_over(1)
    other.__code__ = other.__code__.replace(co_name="other")
    noticed(func, setter(func, "__code__", other.__code__))


GLOBALS = """
import torch
SCALE = 2
UNUSED = 1
W = torch.ones(2)
def helper(x):
    return x * INNER
INNER = 3
def other(x):
    return x
def func(x):
    return helper(x) * SCALE * W
def reads_missing(x):
    return x * FLAG if "FLAG" in globals() else divmod(x, 2)
def nested(x):
    return [y * SCALE for y in x] + [(lambda z: helper(z))(x)]
"""


def test_globals_are_noticed() -> None:
    user = Program(GLOBALS)
    assert noticed(user.func, lambda: user.set(SCALE=5)) == ["global 'SCALE' changed from 2 to 5"]
    assert noticed(user.func, lambda: user.set(INNER=4)) == ["global 'INNER' changed from 3 to 4"]
    assert noticed(user.func, lambda: user.set(helper=user.other)) == [
        "global 'helper' changed from function helper to function other",
        "global 'INNER' is gone: 4",
    ]
    unnoticed(user.func, lambda: user.set(UNUSED=2, more=3))
    noticed(user.func, lambda: user.module.__dict__.pop("SCALE"))


def test_globals_of_nested_code_are_noticed() -> None:
    user = Program(GLOBALS)
    noticed(user.nested, lambda: user.set(SCALE=5))
    noticed(user.nested, lambda: user.set(INNER=5))


def test_a_global_that_appears_is_noticed() -> None:
    user = Program(GLOBALS)
    assert noticed(user.reads_missing, lambda: user.set(FLAG=2)) == ["global 'FLAG' is new: 2"]
    assert noticed(user.reads_missing, lambda: user.set(divmod=max)) == ["global 'divmod' changed from divmod to max"]


def test_a_replaced_builtin_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    user = Program(GLOBALS)
    noticed(user.reads_missing, lambda: monkeypatch.setattr("builtins.divmod", max))


def test_tensors_bound_anew_are_fetched() -> None:
    user = Program(GLOBALS)
    new = torch.zeros(5)
    fetched_anew(user.func, "global W", lambda: user.set(W=new), new)
    func = closing_over(torch.ones(1))
    fetched_anew(func, "closure value", lambda: rebind(func, new), new)


def test_globals_of_another_module_carry_its_name() -> None:
    other = Program("RATE = 1\ndef helper(x):\n    return x * RATE", "other_program")
    user = Program("def func(x):\n    return helper(x)")
    user.set(helper=other.helper)
    assert noticed(user.func, lambda: other.set(RATE=2)) == ["global 'other_program.RATE' changed from 1 to 2"]


SETTINGS = """
import user_settings as settings
def func(x):
    return x * settings.RATE
def local(x):
    import user_settings
    from user_settings import DEPTH
    return x * user_settings.RATE * DEPTH
def maybe(x):
    return x if getattr(settings, "DEBUG", False) else -x
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = Program("RATE = 1\nDEPTH = 2\nUNUSED = 3", "user_settings").module
    monkeypatch.setitem(sys.modules, "user_settings", module)
    return module


def test_attributes_of_a_python_module_are_noticed(settings: Any) -> None:
    user = Program(SETTINGS)
    assert noticed(user.func, setter(settings, "RATE", 2)) == ["global 'settings.RATE' changed from 1 to 2"]
    unnoticed(user.func, setter(settings, "UNUSED", 2))
    noticed(user.maybe, setter(settings, "DEBUG", True))
    noticed(user.maybe, lambda: delattr(settings, "DEBUG"))


def test_imports_in_the_body_are_noticed(settings: Any) -> None:
    user = Program(SETTINGS)
    noticed(user.local, setter(settings, "RATE", 2))
    noticed(user.local, setter(settings, "DEPTH", 5))
    unnoticed(user.local, setter(settings, "UNUSED", 2))


def test_library_modules_are_not_followed() -> None:
    user = Program("import torch\ndef func(x):\n    return torch.nn.functional.relu(x).relu()")
    unnoticed(user.func, setter(torch.nn.functional, "user_made_this", 1))
    del torch.nn.functional.user_made_this
    assert len(snapshot(user.func).statics) == 2


def test_an_installed_package_is_followed_from_its_own_functions_only() -> None:
    installed = Program("RATE = 1\ndef func(x):\n    return x * RATE", "installed.core")
    installed.set(__file__="/home/user/env/lib/python3/site-packages/installed/core.py")
    noticed(installed.func, lambda: installed.set(RATE=2))
    noticed(decorated(installed.func), lambda: installed.set(RATE=3))
    unnoticed(closing_over(installed.func), lambda: installed.set(RATE=4))


def test_class_patterns_are_noticed() -> None:
    user = Program(
        """
def func(x):
    match CONFIG:
        case Data(rate=1):
            return x
def positional(x):
    match CONFIG:
        case Data(1):
            return x
"""
    )
    config = types.SimpleNamespace(rate=1)
    user.set(CONFIG=config, Data=Data)
    noticed(user.func, setter(config, "rate", 2))
    noticed(user.positional, setter(config, "rate", 3))


# What stands for a function.


def scaled(scale: float) -> Any:
    def func(x):
        return (x * scale).sum()

    return func


def decorated(func: Any) -> Any:
    @functools.wraps(func)
    def wrapper(*args: Any) -> Any:
        return func(*args)

    return wrapper


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        decorated,
        torch.no_grad(),
        torch.func.vmap,
        torch.func.grad,
        lambda f: torch.func.grad(torch.func.vmap(torch.func.jacrev(f))),
        lambda f: functools.partial(f, 1),
        lambda f: functools.partial(torch.func.vmap(f), 1),
        functools.lru_cache,
        lambda f: types.MethodType(f, torch.ones(2)),
        lambda f: [f, {"f": f}],
        lambda f: types.SimpleNamespace(mentioned=f),
        lambda f: staticmethod(f),
        fh.vmap,
        fh.checkpoint,
        fh.jit,
        lambda f: fh.grad(fh.vmap(fh.jit(f))),
    ],
)
def test_a_wrapped_function_is_followed(wrap: Any) -> None:
    inner = scaled(2.0)
    wrapped = wrap(inner)

    def func(x):
        return wrapped.mentioned(x)

    lines = noticed(func, lambda: rebind(inner, 3.0))
    assert len(lines) == 1
    assert lines[0].endswith("scale' changed from 2.0 to 3.0")
    if callable(wrapped):
        noticed(wrapped, lambda: rebind(inner, 4.0))


def test_partial_arguments_are_noticed_and_fetched() -> None:
    w, v = torch.ones(2), torch.ones(3)
    func = functools.partial(scaled(1.0), w, flag=1, v=v)
    assert list(snapshot(func).tensors.items()) == [("args[0]", w), ("keywords['v']", v)]
    noticed(func, lambda: func.keywords.update(flag=2))
    new = torch.zeros(3)
    fetched_anew(func, "keywords['v']", lambda: func.keywords.update(v=new), new)


def test_a_bound_method_has_its_instance() -> None:
    class Step:
        def __init__(self) -> None:
            self.rate, self.unused, self.w = 1, 1, torch.ones(2)

        def step(self, x):
            return x * self.rate * self.w

    owner = Step()
    assert noticed(owner.step, setter(owner, "rate", 2)) == ["'self.rate' changed from 1 to 2"]
    unnoticed(owner.step, setter(owner, "unused", 2))
    new = torch.zeros(2)
    fetched_anew(owner.step, "self.w", setter(owner, "w", new), new)


def test_a_builtin_method_has_its_owner() -> None:
    table = {"a": 1}
    func = closing_over(table.get)
    noticed(func, lambda: table.update(a=2))


def test_function_attributes_are_noticed() -> None:
    user = Program("def helper(x):\n    return x\nhelper.rate = 1\ndef func(x):\n    return helper(x) * helper.rate")
    noticed(user.func, setter(user.helper, "rate", 2))
    unnoticed(user.func, setter(user.helper, "unused", 2))
    bare = Program("def helper(x):\n    return x\ndef func(x):\n    return getattr(helper, 'rate', x)")
    noticed(bare.func, setter(bare.helper, "rate", 2))


def test_an_autograd_function_is_followed() -> None:
    user = Program(
        """
import torch
RATE = 1
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * RATE
    @staticmethod
    def backward(ctx, g):
        return g * BACK
BACK = 1
def func(x):
    return Scale.apply(x)
"""
    )
    noticed(user.func, lambda: user.set(RATE=2))
    noticed(user.func, lambda: user.set(BACK=2))
    apply = user.Scale.apply
    noticed(lambda x: apply(x), lambda: user.set(BACK=3))


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
    new = torch.zeros(7)
    fetched_anew(func, paths[0], lambda: operator.setitem(tensors["a"], 0, new), new)
    new = torch.zeros(8)
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


def test_a_large_array_is_taken_by_identity() -> None:
    small, large = np.zeros(10), np.zeros(2**18)
    found = snapshot(closing_over([small, large, np.array([object()])]))
    assert found.opaque == ("closure value[1]", "closure value[2]")


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


@dataclasses.dataclass
class Data:
    rate: Any = 1
    w: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    rate: Any = 1


def reading(text: str, value: Any) -> Any:
    """A function that closes over `value` as ``c``."""
    space: dict[str, Any] = {
        "torch": torch,
        "FACTOR": FACTOR,
        "operator": operator,
        "dataclasses": dataclasses,
    }
    exec(f"def make(c):\n    def func(x):\n        return {text}\n    return func", space)
    return space["make"](value)


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


# Sharing, cycles, bounds.


def test_tied_tensors_that_part_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    before = snapshot(model)
    assert before.path_of(model[1].weight) == "self[0].weight"
    noticed(model, setter(model[1], "weight", nn.Parameter(torch.ones(2, 2))))


def test_tensors_that_become_one_are_noticed_by_who_asks() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = snapshot(model)
    loose, strict = before.guard(), before.guard(distinct=True)
    model[0].weight = nn.Parameter(torch.ones(2, 2))
    assert loose() is not None
    assert strict() is not None
    model[1].weight = model[0].weight
    assert loose() is not None
    assert strict() is None
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
    table = {i: [object()] for i in range(environment.walk.MOST)}
    found = snapshot(closing_over(table))
    assert found.truncated
    assert found.opaque
    assert found.unchanged()
    many = snapshot(closing_over([1, list(range(environment.walk.MOST + 1)), [2]]))
    assert many.opaque == ("closure value[1]",)
    assert not snapshot(closing_over([1])).truncated


def test_a_guard_keeps_no_tensor_alive() -> None:
    func = closing_over([torch.ones(2), 1])
    guard = snapshot(func).guard(["closure value[0]"])
    gone = weakref.ref(func.__closure__[0].cell_contents[0])
    func.__closure__[0].cell_contents[0] = torch.zeros(2)
    gc.collect()
    assert gone() is None
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
