"""What `import functorch_hops` brings with it, and what it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

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
}


def test_the_page_names_all_that_is_changed_in_torch() -> None:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", CHANGED], check=True, capture_output=True, text=True)
    changed = set(json.loads(run.stdout))
    tables = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = set(re.findall(r"`((?:torch\._?[a-z]|aten::|functorch_hops::|fh_[a-z])[\w.:]*)`", "".join(tables)))
    listed = {name for name in listed if not name.startswith("torch.func.")}
    assert changed | BY_VERSION == listed | BY_VERSION
