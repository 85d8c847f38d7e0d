"""Captures in a process that has imported neither Dynamo nor Inductor, and what is so when somebody does."""

import ast
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from functorch_hops._torch.parts import collections_paused
from processes import in_a_process

pytestmark = pytest.mark.skipif(
    not TorchVersion("2.13") <= TorchVersion(torch.__version__) < TorchVersion("2.15"),
    reason="other versions of torch have other parts: the packages are imported there",
)

CAPTURES = """
import sys
import torch
import functorch_hops as fh

def step(c, x):
    c = fh.cond(c.sum() > 0, lambda c: (c * x).tanh(), lambda c: (c + x).sin(), c)
    return c, c.softmax(0)

def f(c):
    c, ys = fh.scan(step, c, torch.linspace(-1.0, 1.0, 6).reshape(3, 2))
    return fh.while_loop(lambda c: c.norm() > 0.1, lambda c: c / 2, c).sum() + ys.var()

c = torch.tensor([0.5, -0.25])
many = torch.stack((c, 2 * c))
for g, x in ((f, c), (fh.grad(f), c), (fh.hessian(f), c), (fh.vmap(fh.grad(f)), many)):
    torch.testing.assert_close(fh.jit(g, backend="eager")(x), g(x))
fh.make_graph(f)(c)
"""
CAPTURE = """
import sys, torch
import functorch_hops as fh
fh.jit(torch.sin, backend="eager")(torch.ones(2))
"""
UNTOUCHED = """
assert not {"torch._dynamo", "torch._inductor"} & {*sys.modules}
"""
MARKS = """
import gc
from functorch_hops._torch.parts import _kept_from_dynamo
marks = {hasattr(f, "__dynamo_disable") for f in _kept_from_dynamo()}
"""
INTERRUPTED = """
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "torch._dynamo.symbolic_convert":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
try:
    import torch._dynamo
except KeyboardInterrupt:
    assert "torch._dynamo" not in sys.modules
"""


def test_captures_import_no_compiler() -> None:
    in_a_process(CAPTURES + UNTOUCHED, 120)


def test_dynamo_is_imported_as_ever_behind_a_capture() -> None:
    program = """
absent, config = torch._dynamo, torch._dynamo.config
assert torch.compile(lambda x: x.sin() + 1, backend="eager", fullgraph=True)(c).equal(c.sin() + 1)
assert torch._dynamo is sys.modules["torch._dynamo"] is not absent
for name in ("config", "exc", "utils", "metrics_context", "graph_utils"):
    assert getattr(torch._dynamo, name) is sys.modules[f"torch._dynamo.{name}"]
assert torch._dynamo.config is config and absent.eval_frame is torch._dynamo.eval_frame
assert torch._dynamo.compiled_autograd is sys.modules["torch._dynamo.compiled_autograd"]
assert torch._inductor.config is sys.modules["torch._inductor.config"]
fh.jit(fh.grad(f), backend="eager")(c + 1)
"""
    in_a_process(CAPTURES + UNTOUCHED + program, 120)


@pytest.mark.parametrize(
    "meanwhile", ["", "import importlib.util; importlib.util.find_spec('torch._dynamo')", "gc.freeze()", INTERRUPTED]
)
def test_functions_are_kept_from_dynamo_as_soon_as_there_is_one(meanwhile: str) -> None:
    """The marks of the first capture are gone; torch sets its own when a function is called."""
    program = """
import torch._dynamo
gc.unfreeze()
assert not any(vars(f).get("__dynamo_disable") is f for f in _kept_from_dynamo())
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert not any(getattr(finder, "name", None) == "torch._dynamo" for finder in sys.meta_path)
"""
    before = "assert True in marks\n"
    in_a_process(CAPTURE + MARKS + before + meanwhile + program, 120)


def test_dynamo_imported_in_a_capture_leaves_it_alone() -> None:
    """A function compiled in the first capture of a process runs as Python there, and is compiled behind it."""
    program = """
import torch
import functorch_hops as fh

kinds = []

def g(x):
    kinds.append(type(x))
    return x.sin()

x = torch.ones(2)
f = fh.jit(lambda x: 2 * torch.compile(g, backend="eager")(x), backend="eager")
assert f(x).equal(2 * x.sin()) and len(kinds) == 1 and kinds[0] is not torch.Tensor
assert torch._dynamo.eval_frame._stance.stance == "default"
torch.compile(torch.sin, backend="eager", fullgraph=True)(x)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""
    in_a_process(program, 120)


def test_a_first_capture_that_was_interrupted_can_be_repeated() -> None:
    program = """
import sys, torch
import functorch_hops as fh

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "torch._inductor.compiler_bisector":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
f = fh.jit(torch.sin, backend="eager")
try:
    f(torch.ones(2))
except KeyboardInterrupt:
    assert f(torch.ones(2)).equal(torch.ones(2).sin())
else:
    raise AssertionError
"""
    in_a_process(program + UNTOUCHED + "import torch._dynamo; torch._dynamo.exc, torch._inductor.config", 120)


def test_a_thread_imports_dynamo_while_another_captures_first() -> None:
    """Python gives it the module whose import failed."""
    program = """
import sys, threading, time
import torch
import functorch_hops as fh

is_loading = threading.Event()

class Wait:
    def find_spec(self, name, path, target=None):
        if name == "torch._dynamo.utils":
            is_loading.set()
            time.sleep(0.5)

def use():
    is_loading.wait()
    from torch._dynamo import optimize
    found.append(optimize)

sys.meta_path.insert(0, Wait())
found, thread = [], threading.Thread(target=use)
thread.start()
fh.jit(torch.sin, backend="eager")(torch.ones(2))
thread.join()
assert found == [torch._dynamo.optimize]
"""
    in_a_process(program, 120)


@pytest.mark.parametrize(
    "use",
    [
        "torch._dynamo.reset()",
        "import torch._dynamo.source",
        "from torch._dynamo import optimize",
        "from torch._inductor import compile_fx",
        "torch._dynamo.added = 3; assert sys.modules['torch._dynamo'].added == 3; del torch._dynamo.added",
        "from unittest import mock\nwith mock.patch.object(torch._dynamo, 'reset'): torch._dynamo.reset()",
        "assert 'optimize' in dir(torch._dynamo)",
        "assert torch._dynamo.config.patch(verbose=True) and torch._inductor.config.patch(debug=True)",
    ],
)
def test_every_way_to_a_package_leads_to_it(use: str) -> None:
    program = f"""{CAPTURE}
{use}
import torch._dynamo, torch._inductor
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._inductor is sys.modules["torch._inductor"]
assert torch._inductor.config is sys.modules["torch._inductor.config"]
assert torch.compile(lambda x: x.sin(), backend="aot_eager")(torch.ones(2)).equal(torch.ones(2).sin())
"""
    in_a_process(program, 120)


def test_threads_capture_first_at_once() -> None:
    program = """
import sys, threading
import torch
import functorch_hops as fh

barrier, failures = threading.Barrier(4), []

def capture():
    barrier.wait()
    try:
        f = fh.jit(fh.grad(lambda x: fh.scan(lambda c, t: (c * t, c), x, torch.ones(3))[0]), backend="eager")
        assert f(torch.tensor(2.0)) == 1
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=capture) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert not failures, failures
"""
    in_a_process(program + UNTOUCHED, 120)


def test_what_was_imported_before_stays() -> None:
    program = "import torch._dynamo; before = torch._dynamo\n" + CAPTURES + "assert torch._dynamo is before"
    in_a_process(program, 120)


def test_collections_go_on_behind_imports() -> None:
    class Loop:
        pass

    with collections_paused():
        assert not gc.isenabled()
        loop = Loop()
        loop.itself, gone = loop, weakref.ref(loop)  # type: ignore[attr-defined]
        del loop
    assert gc.isenabled()
    gc.collect()
    assert gone() is None


FOUND = """
import json, sys, types
import torch
import functorch_hops
from functorch_hops._torch.parts import load_parts

load_parts()

def missing(chains):
    found = []
    for chain in chains:
        value = torch
        for i, name in enumerate(chain):
            if not isinstance(value, types.ModuleType) or (value is torch and name in ("_dynamo", "_inductor")):
                break
            if not hasattr(value, name):
                found.append(".".join(chain[: i + 1]))
                break
            value = getattr(value, name)
    return {*found}

chains = json.load(sys.stdin)
before = missing(chains)
import torch._dynamo, torch._inductor.compile_fx
print(json.dumps(sorted(before - missing(chains))))
"""
READ_BY_CAPTURES = ("_subclasses", "fx/experimental", "_library", "_prims_common", "_prims", "_refs", "_decomp")


@pytest.mark.slow
def test_torch_finds_what_its_modes_read() -> None:
    """Which modules torch reads as attributes of others that Dynamo happens to import, in all that a capture runs."""
    root = Path(torch.__file__).parent
    files = [file for folder in READ_BY_CAPTURES for file in (root / folder).rglob("*.py")]
    files += [root / name for name in ("_ops.py", "_meta_registrations.py", "_guards.py", "overrides.py", "_tensor.py")]
    files += [root / "_functorch" / f"{name}.py" for name in ("vmap", "eager_transforms", "apis", "functional_call")]
    chains = sorted({chain for file in files for chain in _chains(ast.parse(file.read_text()))})
    assert ("_higher_order_ops", "triton_kernel_wrap", "TritonKernelWrapperMutation") in chains
    run = [sys.executable, "-W", "ignore", "-c", FOUND]
    shown = subprocess.run(run, input=json.dumps(chains), check=True, capture_output=True, text=True).stdout
    assert json.loads(shown) == []


def _chains(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """``torch.a.b`` as ("a", "b")."""
    for node in ast.walk(tree):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if names and isinstance(node, ast.Name) and node.id == "torch":
            yield tuple(reversed(names))
