"""Loops on CUDA without a GPU: planned as there, and run by Triton's interpreter on tensors of the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

import functorch_hops as fh
from functorch_hops._torch import new_fake_mode
from functorch_hops.ir.build import copy_of
from functorch_hops.ir.meta import TensorMeta
from functorch_hops.ir.subgraph import Subgraph, params_of
from functorch_hops.lowering.inductor import exact_code
from functorch_hops.lowering.loops.planning import planned
from functorch_hops.lowering.loops.plans import LoopReport, Plan
from functorch_hops.lowering.loops.triton.operator import launch_options, triton_loop
from functorch_hops.passes.hoisting import hoist_loops
from functorch_hops.passes.products import batch_products
from modes import same

__all__ = ["check", "compiled", "kernels", "moved", "on_cuda"]


def moved(body: Subgraph, device: str) -> Subgraph:
    """A graph on another device, with all that its operators run."""
    module, place, mode = copy_of(body), torch.device(device), new_fake_mode(body.shape_env)
    elsewhere = lambda value: place if isinstance(value, torch.device) else value
    for node in module.graph.nodes:
        params = params_of(node, module)
        if params is not None:
            setattr(module, node.args[0].target, params.with_bodies(lambda inner: moved(inner, device)))
        node.args = fx.node.map_aggregate(node.args, elsewhere)
        node.kwargs = fx.node.map_aggregate(node.kwargs, elsewhere)
        fake = lambda x: TensorMeta.of(x)._replace(device=place).fake(mode)
        node.meta["val"] = tree_map_only(Tensor, fake, node.meta.get("val"))
    module.recompile()
    metas = [[meta._replace(device=place) for meta in metas] for metas in (body.inputs, body.outputs)]
    return Subgraph.intern(module, *metas)


def on_cuda(f: Callable[..., Any], *args: Any, dynamic: bool = False) -> Plan:
    """What becomes of ``f`` if its tensors are on a GPU. ``dynamic``: their sizes are open."""
    body = batch_products(hoist_loops(fh.jit(f, dynamic=dynamic).lower(*args)._body))
    with exact_code():
        return planned(moved(body, "cuda:0"), {})


def kernels(plan: Plan) -> list[fx.Node]:
    return [node for node in plan.body.module.graph.nodes if node.target is triton_loop]


def check(f: Callable[..., Any], *args: Tensor, **tolerances: float) -> list[LoopReport]:
    """Run ``f`` with interpreted kernels, and without; how its loops were lowered."""
    plan = on_cuda(f, *args)
    expected = optree.tree_leaves(fh.jit(f, backend="eager")(*args))
    with np.errstate(all="ignore"):  # the interpreter computes lanes behind the last one too
        found = moved(plan.body, "cpu")(*optree.tree_leaves(args))
    same(list(found), expected, equal_nan=True, **tolerances)
    return list(plan.loops)


_COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path
import triton
from torch._inductor.codecache import PyCodeCache
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
for source, name, types, block, options in json.load(sys.stdin):
    kernel = getattr(PyCodeCache.load(source), name)
    signature = dict(zip(kernel.arg_names, [*types, "constexpr"]))
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind[0] == "*"}
    source = ASTSource(kernel, signature, {"XBLOCK": block}, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(binary)
        print(subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout)
"""
_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.bool: "*i1",
}


def compilable(node: Any) -> tuple[Any, ...]:
    inputs, source, name, _, block, warps, sizes, _, _, dtypes, _ = node.args
    types = [_POINTERS[dtype] for dtype in (*(x.meta["val"].dtype for x in inputs), *dtypes)] + ["i32"] * len(sizes)
    return json.loads(source), name, types, block, launch_options(source, warps)


def compiled(nodes: Sequence[fx.Node]) -> tuple[list[int], list[int]]:
    """Compile kernels for a GPU that is not there: how many registers each takes, and how many bytes are spilled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    given, run = json.dumps([compilable(node) for node in nodes]), [sys.executable, "-c", _COMPILE]
    out = subprocess.run(run, input=given, capture_output=True, text=True, check=True, env=environment).stdout
    registers, spilled = ([int(n) for n in re.findall(rf"{name}:(\d+)", out)] for name in ("REG", "LOCAL"))
    return registers, spilled
