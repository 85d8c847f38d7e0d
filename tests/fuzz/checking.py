"""Run a program in a mode of the library, and say how it differs from plain Python."""

from __future__ import annotations

import ast
import random
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import optree
import torch
from torch import Tensor
from torch._dynamo.exc import UserError

import functorch_hops as fh

from .generator import Program, load, with_gradients
from .oracle import Oracle, layer_norm

__all__ = ["MODES", "Failure", "failure_of"]

MODES = ("plain", "captured", "eager", "aot_eager", "inductor", "dynamo", "breaks")
"""Plain eager, ``eager_capture``, the backends of jit, ``torch.compile`` of a program as one graph, and of one with
graph breaks at random places.
"""


@dataclass(frozen=True)
class Failure:
    """``kind``: a wrong value, or an exception at capture, compilation or run; also a crash or a hang."""

    kind: str
    message: str
    is_refused: bool = False
    """Whether plain eager raises too, or Dynamo names what it can't trace, so that torch may not allow the program."""


Function = Callable[..., Any]


def failure_of(programs: Sequence[Program], mode: str) -> Failure | None:
    """What is wrong when these programs are run together, in one jitted function if the mode has one."""
    rewritten = {"dynamo": _for_dynamo, "breaks": _with_breaks}.get(mode, str)
    loaded = [load(rewritten(program.source)) for program in programs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        run = _function(loaded, mode)
        for seed in (0, 1, 0):
            arguments = [
                [_leaf(x, program.is_trained) for x in _inputs(names, seed)] for names, program in zip(loaded, programs)
            ]
            with patch.object(torch.nn.functional, "layer_norm", layer_norm):
                expected = _results(loaded, programs, _together(loaded, Oracle), arguments)
            before = optree.tree_map(torch.clone, arguments)
            try:
                got = _results(loaded, programs, run, arguments)
            except Exception as error:  # noqa: BLE001 (an exception is what is looked for)
                is_refused = _is_refused_by_dynamo(error) or _is_refused(loaded, programs, arguments)
                return Failure(_stage(error), _first_line(error), is_refused)
            for i, (a, b, program) in enumerate(zip(got, expected, programs)):
                is_tangent = any(name in program.source for name in ("ns.jvp", "ns.jacfwd", "ns.hessian"))
                difference = _difference(a, b, is_tangent)
                if difference:
                    return Failure("value", f"of program {i}, inputs({seed}): {difference}")
            if _difference(arguments, before):
                return Failure("value", "an input was written to")
    return None


def _for_dynamo(source: str) -> str:
    """Dynamo (torch 2.13) traces no definition of a class, and no class with a rule for forward mode."""
    tree = ast.parse(source)
    classes: list[ast.stmt] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            classes += [part for part in body if isinstance(part, ast.ClassDef)]
            node.body = [part for part in body if not _is_unknown_to_dynamo(part)]  # type: ignore[attr-defined]
    tree.body += classes
    return ast.unparse(tree)


_BREAKS = "torch._dynamo.graph_break()", "print(end='')", "unknown_to_dynamo()"
_WHOLE = ("inputs", "flat", "scalar", "slopes")
"""Functions that a program does not consist of."""


def _with_breaks(source: str) -> str:
    """The program with statements in its functions that end a graph of Dynamo's; the same for the same program."""
    draw, tree = random.Random(source), ast.parse(_for_dynamo(source))
    classes = {node for part in ast.walk(tree) if isinstance(part, ast.ClassDef) for node in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in _WHOLE and node not in classes:
            for place in reversed(range(len(node.body))):
                if draw.random() < 0.2:
                    node.body.insert(place, ast.parse(draw.choice(_BREAKS)).body[0])
    return "@torch.compiler.disable\ndef unknown_to_dynamo():\n    pass\n".join(["import torch\n", ast.unparse(tree)])


def _is_unknown_to_dynamo(part: ast.stmt) -> bool:
    return isinstance(part, ast.ClassDef) or (isinstance(part, ast.FunctionDef) and part.name == "jvp")


def _inputs(names: dict[str, Any], seed: int) -> list[Tensor]:
    """Drawn on the CPU, so that a seed has the same ones on every device."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        return [x.to(device) for x in names["inputs"](seed)]


def _leaf(x: Tensor, is_trained: bool) -> Tensor:
    return x.requires_grad_() if is_trained and x.is_floating_point() else x


def _together(loaded: Sequence[dict[str, Any]], namespace: Any) -> Function:
    return lambda arguments: tuple(names["program"](namespace, *args) for names, args in zip(loaded, arguments))


def _function(loaded: Sequence[dict[str, Any]], mode: str) -> Function:
    together = _together(loaded, fh)
    if mode == "plain":
        return together
    if mode == "captured":

        def captured(arguments: Any) -> Any:
            with fh.eager_capture():
                return together(arguments)

        return captured
    if mode in ("dynamo", "breaks"):
        torch.compiler.reset()
        # AOTAutograd (torch 2.13) loses what a part of a program writes to a 0-d tensor of another part.
        backend = "aot_eager" if mode == "dynamo" else "eager"
        return torch.compile(together, fullgraph=mode == "dynamo", backend=backend)
    return fh.jit(together, backend=mode)


def _results(loaded: Sequence[dict[str, Any]], programs: Sequence[Program], run: Function, arguments: Any) -> list[Any]:
    outs = run(arguments)
    return [with_gradients(*each) for each in zip(programs, loaded, arguments, outs)]


def _difference(got: Any, expected: Any, is_tangent: bool = False) -> str:
    """``is_tangent``: torch (2.13) makes float64 tangents of 0-d float32 values that are multiplied with numbers."""
    if optree.tree_structure(got) != optree.tree_structure(expected):
        return f"tree {optree.tree_structure(got)} for {optree.tree_structure(expected)}"
    for path, a, b in zip(optree.tree_paths(expected), optree.tree_leaves(got), optree.tree_leaves(expected)):
        if is_tangent and a.is_floating_point() and b.is_floating_point():
            a = a.to(b.dtype)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"{path}: {a.dtype} {tuple(a.shape)} for {b.dtype} {tuple(b.shape)}"
        if not b.numel():
            continue
        scale = max(1.0, float(b.abs().max())) if b.dtype is not torch.bool else 1.0
        is_single = b.dtype in (torch.float32, torch.complex64)
        rtol, atol = (2e-3, 5e-4 * scale) if is_single else (1e-6, 1e-8 * scale)
        if not torch.allclose(a, b, rtol=rtol, atol=atol):
            return f"{path}: {_short(a)} for {_short(b)}"
    return ""


def _short(x: Tensor) -> str:
    values = x.reshape(-1)[:4].tolist()
    return (
        "["
        + ", ".join(f"{v:.4g}" if not isinstance(v, bool) else str(v) for v in values)
        + ("…]" if x.numel() > 4 else "]")
    )


def _is_refused(loaded: Sequence[dict[str, Any]], programs: Sequence[Program], arguments: Any) -> bool:
    try:
        _results(loaded, programs, _function(loaded, "plain"), arguments)
    except Exception:  # noqa: BLE001
        return True
    return False


_REFUSED_BY_DYNAMO = ("define a custom `jvp` method", "supports mutating `.data` of tensor created outside")


def _is_refused_by_dynamo(error: Exception) -> bool:
    return isinstance(error, UserError) or any(text in str(error) for text in _REFUSED_BY_DYNAMO)


def _stage(error: BaseException) -> str:
    if isinstance(error, fh.FunctorchHopsError):
        return "capture"
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    name = type(error).__name__
    if name in ("InductorError", "BackendCompilerFailed", "CppCompileError") or any("compile_fx" in f for f in files):
        return "compile"
    if any("functorch_hops/capture" in f for f in files) and not any("inductor" in f for f in files):
        return "capture"
    return "run"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "functorch_hops" in f.filename]
    last = (ours or list(frames))[-1]
    place = f"{'/'.join(last.filename.split('/')[-2:])}:{last.lineno} {last.name}"
    return f"{type(error).__name__}: {' / '.join(lines[:3])[:400]} [{place}]"
