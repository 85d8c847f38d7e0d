"""What `import functorch_hops` brings with it, and what it shows."""

import json
import subprocess
import sys

import functorch_hops as fh

ADDED = """
import json, sys
import torch
before = set(sys.modules)
import functorch_hops
print(json.dumps(sorted(set(sys.modules) - before)))
"""
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
