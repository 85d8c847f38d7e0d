"""Make a failing program smaller: leave out statements and results, put operands in the place of expressions."""

from __future__ import annotations

import ast
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from .generator import Program, is_runnable

__all__ = ["shrunk"]


def shrunk(program: Program, fails: Callable[[Program], bool], seconds: float = 300.0) -> Program:
    """The smallest program found that plain Python still runs and that still fails."""
    end = time.monotonic() + seconds
    is_smaller = True
    while is_smaller and time.monotonic() < end:
        is_smaller = False
        for source in _smaller(program.source):
            if time.monotonic() > end:
                break
            candidate = replace(program, source=source)
            if is_runnable(candidate) and fails(candidate):
                program, is_smaller = candidate, True
                break
    return program


def _smaller(source: str) -> Iterator[str]:
    """Programs with one thing less, the largest pieces first."""
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for change in _changes(tree):
        copied = copy.deepcopy(tree)
        change(copied)
        text = ast.unparse(ast.fix_missing_locations(copied))
        if text not in seen:
            seen.add(text)
            yield text


def _functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """Those of the program, not of its preamble."""
    return [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef) and n.name not in ("flat", "scalar", "slopes", "inputs")
    ]


def _changes(tree: ast.Module) -> Iterator[Callable[[ast.Module], None]]:
    functions = _functions(tree)
    # Several statements, then one.
    for most in (8, 4, 2, 1):
        for i, function in enumerate(functions):
            for start in reversed(range(len(function.body) - 1)):
                if start + most < len(function.body):
                    yield lambda t, i=i, a=start, b=start + most: _functions(t)[i].body.__delitem__(slice(a, b))
    for i, statement in enumerate(tree.body):
        if isinstance(statement, ast.Assign):
            yield lambda t, i=i: t.body.__delitem__(i)
    # One element less of a tuple or dictionary that is returned.
    for i, node in enumerate(_returns(tree)):
        value = node.value
        if isinstance(value, ast.Tuple) and len(value.elts) > 1:
            for j in range(len(value.elts)):
                yield lambda t, i=i, j=j: _returns(t)[i].value.elts.__delitem__(j)
    # A part of an expression in place of all of it.
    for i, node in enumerate(_assigned(tree)):
        for j, part in enumerate(_parts(node.value)):
            if not isinstance(part, ast.Constant):
                yield lambda t, i=i, j=j: _replace_value(_assigned(t)[i], j)
    # A transform less.
    for i, function in enumerate(functions):
        if function.name == "program":
            for j, statement in enumerate(function.body[1:-1], 1):
                if isinstance(statement, ast.Assign):
                    yield lambda t, i=i, j=j: _skip_transform(_functions(t)[i], j)


def _returns(tree: ast.AST) -> list[ast.Return]:
    return [n for f in _functions(tree) for n in f.body if isinstance(n, ast.Return)]


def _assigned(tree: ast.AST) -> list[ast.Assign]:
    return [n for f in _functions(tree) if f.name != "program" for n in f.body if isinstance(n, ast.Assign)]


def _parts(value: ast.expr) -> list[ast.expr]:
    """Names and calls below an expression."""
    return [n for n in ast.walk(value) if n is not value and isinstance(n, ast.Name | ast.Call | ast.BinOp)][:6]


def _replace_value(node: ast.Assign, j: int) -> None:
    node.value = _parts(node.value)[j]


def _skip_transform(function: ast.FunctionDef, j: int) -> None:
    """The function that this transform is applied to, in its place."""
    before = function.body[j - 1]
    name = before.targets[0].id if isinstance(before, ast.Assign) else before.name  # type: ignore[attr-defined]
    function.body[j].value = ast.Name(name, ast.Load())  # type: ignore[attr-defined]
