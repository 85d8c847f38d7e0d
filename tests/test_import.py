"""What `import functorch_hops` brings with it, and what it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import functorch_hops as fh

ADDED = """
import json, sys
import torch
before = set(sys.modules)
import functorch_hops
print(json.dumps(sorted(set(sys.modules) - before)))
"""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "importing.md"
SLOW = {"networkx", "sympy", "torch._dynamo", "torch._inductor"}


def test_import_loads_no_compiler() -> None:
    """Dynamo, Inductor, sympy and networkx are loaded when something needs them, if torch has not loaded them."""
    run = subprocess.run([sys.executable, "-c", ADDED], check=True, capture_output=True, text=True)
    added = json.loads(run.stdout)
    assert "functorch_hops.transforms.jit" in added
    assert not [name for name in added if any(name == slow or name.startswith(f"{slow}.") for slow in SLOW)]


SEEDED = """
import torch
import torch._dynamo
import functorch_hops as fh
fh.jit(lambda x: torch.manual_seed(0) and x, backend="eager")(torch.ones(2))
"""


def test_seeds_are_refused_whatever_was_imported_before() -> None:
    """Dynamo wraps what it finds in torch."""
    run = subprocess.run([sys.executable, "-c", SEEDED], capture_output=True, text=True)
    assert "jit: manual_seed() sets the state of a random number generator" in run.stderr


def test_only_public_names_are_shown() -> None:
    assert set(dir(fh)) == {*fh.__all__, "__version__"}
    assert all(hasattr(fh, name) for name in dir(fh))


CHANGED = """
import json, logging, sys, types
import torch
from torch._ops import _higher_order_ops

modules = [name for name in sys.modules if name.split(".")[0] == "torch"]

def places():
    found = {}
    for module_name in modules:
        module = sys.modules[module_name]
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == module_name:
                found.update({f"{module_name}.{name}.{inner}": v for inner, v in vars(value).items()})
            if not isinstance(value, types.ModuleType):
                found[f"{module_name}.{name}"] = value
    return found

def filtered():
    loggers = logging.root.manager.loggerDict.items()
    return {name: list(logger.filters) for name, logger in loggers if isinstance(logger, logging.Logger)}

def registered():
    return {*_higher_order_ops, *("::".join(key.split("/")[:2]) for key in torch.library._impls)}

def snapshot():
    return places(), filtered(), registered(), set(torch.utils._pytree.SUPPORTED_NODES)

old, filters, names, nodes = snapshot()
import functorch_hops
new, new_filters, new_names, new_nodes = snapshot()
assert new_nodes == nodes
changed = [p for p in new if new[p] is not old.get(p) and not p.endswith("__warningregistry__")]
changed += [name for name in new_filters if new_filters[name] != filters.get(name, [])]
print(json.dumps(sorted({*changed, *(new_names - names)})))
"""
BY_VERSION = {
    "torch.autograd.function._SingleLevelFunction.apply",
    "torch.autograd.function.BackwardCFunction.__init__",
    "torch.utils.checkpoint._checkpoint_without_reentrant_generator",
    "torch.utils.checkpoint._checkpoint_without_reentrant_generator_impl",
}


def test_the_page_names_all_that_is_changed_in_torch() -> None:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", CHANGED], check=True, capture_output=True, text=True)
    changed = set(json.loads(run.stdout))
    tables = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = set(re.findall(r"`((?:torch\._?[a-z]|aten::|functorch_hops::|fh_[a-z])[\w.:]*)`", "".join(tables)))
    listed = {name for name in listed if not name.startswith("torch.func.")}
    assert changed | BY_VERSION == listed | BY_VERSION


PROGRAMS = """
import re, sys, warnings
warnings.simplefilter("ignore")
import torch
if sys.argv[1] == "imported":
    import functorch_hops
from torch.func import grad, hessian, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, ct):
        return 2 * ctx.saved_tensors[0] * ct

programs = [
    Square.apply,
    vmap(torch.sin),
    vmap(grad(torch.sin)),
    grad(lambda x: Square.apply(x).sum()),
    # from torch 2.14 on Dynamo refuses the former, but where this library is imported
    vmap(Square.apply if torch.__version__ < (2, 14) else lambda x: Square.apply(x)),
    lambda x: jvp(torch.sin, (x,), (x,)),
    lambda x: vjp(Square.apply, x)[1](x),
    hessian(lambda x: (x**3).sum()),
    lambda x: Square.apply(x.clone().requires_grad_()),
    lambda x: torch.autograd.grad(Square.apply(x.clone().requires_grad_()).sum(), x, allow_unused=True),
    vmap(lambda x: torch.mm(x, x)),
]

def shown(run):
    try:
        return re.sub("0x[0-9a-f]+", "", str(run()))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"

def graph_of(program):
    graphs = []
    torch._dynamo.reset()
    torch.compile(program, fullgraph=True, backend=lambda module, _: graphs.append(str(module.graph)) or module)(x)
    return graphs

x = torch.arange(3.0)
for program in programs:
    print(shown(lambda: program(x)))
    print(shown(lambda: make_fx(program)(x).code))
    print(shown(lambda: graph_of(program)))
"""


@pytest.mark.slow
def test_nothing_is_observed_outside_of_captures() -> None:
    """Values, messages, and what torch's tracers make of transforms and of ``autograd.Function``."""
    outputs = [
        subprocess.run([sys.executable, "-c", PROGRAMS, when], check=True, capture_output=True, text=True).stdout
        for when in ("alone", "imported")
    ]
    assert "RuntimeError" in outputs[0]
    assert "num_users" in outputs[0]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("name", "remedy"), [("lax", "fh.scan"), ("grad_and_value", "fh.value_and_grad"), ("nada", "")]
)
def test_names_that_are_elsewhere(name: str, remedy: str) -> None:
    assert not hasattr(fh, name)
    with pytest.raises(AttributeError, match=f"^module 'functorch_hops' has no attribute '{name}'") as caught:
        getattr(fh, name)
    assert remedy in str(caught.value) and ("help" in str(caught.value)) is bool(remedy)


def test_policies_that_are_elsewhere() -> None:
    with pytest.raises(AttributeError, match=r"(?s)dots_saveable.*help: write .*save_matmuls"):
        fh.checkpoint_policies.dots_saveable
    with pytest.raises(AttributeError) as caught:
        fh.checkpoint_policies.save_matmul
    assert caught.value.obj is fh.checkpoint_policies  # so that Python names the one that is most like it
