"""Of what a function reads: closures, defaults, globals, and what stands for a function; is each change noticed?"""

import collections
import functools
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import functorch_hops as fh
from environments import (
    Data,
    Program,
    closing_over,
    decorated,
    fetched_anew,
    noticed,
    rebind,
    scaled,
    setter,
    unnoticed,
)
from functorch_hops.environment import snapshot

# Functions: closures, defaults, globals.


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


def test_a_closure_that_is_only_written_is_watched() -> None:
    """Running the function again would set it back."""

    def make() -> Any:
        last = 0

        def func(x):
            nonlocal last
            last = 7
            return x

        return func

    func = make()
    noticed(func, lambda: rebind(func, 5))


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
    new = torch.zeros_like(user.W)
    fetched_anew(user.func, "global W", lambda: user.set(W=new), new)
    func = closing_over(torch.ones_like(new))
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


def test_a_replaced_function_of_a_library_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    user = Program("import torch\ndef func(x):\n    return torch.nn.functional.relu(x).relu()")
    noticed(user.func, lambda: monkeypatch.setattr(torch.nn.functional, "relu", torch.nn.functional.silu))
    noticed(user.func, lambda: monkeypatch.setattr(torch.Tensor, "relu", torch.nn.functional.silu))
    model = torch.nn.Linear(2, 2)
    noticed(model, lambda: monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.bilinear))


def test_an_installed_package_is_followed_from_its_own_functions_only() -> None:
    installed = Program("RATE = 1\ndef func(x):\n    return x * RATE", "installed.core")
    installed.set(__file__="/home/user/env/lib/python3/site-packages/installed/core.py")
    noticed(installed.func, lambda: installed.set(RATE=2))
    noticed(decorated(installed.func), lambda: installed.set(RATE=3))
    unnoticed(closing_over(installed.func), lambda: installed.set(RATE=4))


INSTALLED = """
import functools

def scale_of(thing):
    return thing.scale

def through_another(thing):
    return inner(thing)

def inner(thing):
    return thing.hidden

def computed(thing, end):
    return getattr(thing, "sc" + end)

class Runner:
    def __init__(self, thing):
        self.thing = thing

    @functools.wraps(scale_of)
    def run(self):
        return self.thing.deep

class Base:
    def forward(self, x):
        return x * self.factor
"""


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("installed.scale_of(THING)", "scale"),
        ("scale_of(THING)", "scale"),
        ("LIBRARIES.core.scale_of(THING)", "scale"),
        ("LIBRARIES.core.computed(THING, 'ale')", "scale"),
        ("installed.through_another(THING)", "hidden"),
        ("installed.computed(THING, 'ale')", "scale"),
        ("RUNNER.run()", "deep"),
        ("installed.Runner(THING).run()", "deep"),
        ("list(map(scale_of, [THING]))[0]", "scale"),
        ("functools.reduce(lambda a, b: a * b(THING), [scale_of], 1)", "scale"),
        ("DERIVED.forward(1)", "factor"),
        ("float('{0.scale}'.format(THING))", "scale"),
    ],
)
def test_what_a_library_reads_of_the_users_objects(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Program(INSTALLED, "installed.core")
    monkeypatch.setitem(sys.modules, "installed.core", installed.module)
    installed.set(__file__="/home/user/env/lib/python3/site-packages/installed/core.py")
    thing = types.SimpleNamespace(scale=1, hidden=2, deep=3, unused=4)
    derived = type("Derived", (installed.Base,), {"__module__": __name__})()
    derived.factor = 2
    user = Program(f"import functools\ndef func(x):\n    return x * {source}")
    user.set(installed=installed.module, scale_of=installed.scale_of, THING=thing, DERIVED=derived)
    user.set(RUNNER=installed.Runner(thing), LIBRARIES=types.SimpleNamespace(core=installed.module))
    noticed(user.func, setter(derived if name == "factor" else thing, name, 5))
    if "computed" not in source:
        unnoticed(user.func, setter(thing, "unused", 5))


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
