"""Statements with control flow, whose bodies are programs again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from .expressions import EXPRESSIONS, WRITES, width_of
from .scope import NoOperandError, Scope

__all__ = ["body_of", "operands_of", "run", "statements", "text_of", "tree_of", "unpack"]

Tree = Any
"""A tree of the names of variables, as tuples, dictionaries and names."""


def statements(s: Scope, count: int, depth: int) -> None:
    """``count`` statements, which nest at most ``depth`` bodies."""
    from .regions import REGIONS  # which have bodies, too

    made = 0
    for _ in range(20 * count):
        if made == count:
            return
        try:
            kind = s.draw.random()
            if depth and kind < 0.35:
                s.draw.choice(REGIONS if s.chance(0.25) else _LOOPS)(s, depth - 1)
            elif kind < 0.45:
                WRITES(s)
            else:
                weights = [weight for weight, _ in EXPRESSIONS]
                s.let(s.draw.choices(EXPRESSIONS, weights)[0][1](s))
            made += 1
        except NoOperandError:
            continue


# ---------------------------------------------------------------------------------------------------------------------
# trees


def tree_of(s: Scope, names: list[str]) -> Tree:
    """The names, in a tree."""
    if len(names) == 1 and s.chance(0.6):
        return names[0]
    if s.chance(0.3):
        return {f"k{i}": name for i, name in enumerate(names)}
    if len(names) > 1 and s.chance(0.2):
        return (names[0], {"rest": tuple(names[1:])})
    return tuple(names)


def text_of(tree: Tree) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {text_of(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple):
        return "(" + "".join(f"{text_of(value)}, " for value in tree).rstrip() + ")"
    return str(tree)


def _values(s: Scope, tree: Tree) -> Any:
    return optree.tree_map(s.value, tree)


def unpack(s: Scope, source: str, value: Any) -> list[str]:
    """A variable for each tensor of a tree."""
    names = []
    for path, leaf in zip(optree.tree_paths(value), optree.tree_leaves(value)):
        if isinstance(leaf, Tensor):
            names.append(s.new("v"))
            s.say([f"{names[-1]} = {source}{''.join(f'[{key!r}]' for key in path)}"], names[-1:])
    return names


def _indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# bodies


def _fitted(s: Scope, like: Tensor, own: str | None) -> str:
    """An expression of the shape and dtype of ``like``; ``own`` is a variable of that kind, the carry itself."""
    matches = lambda x: x.shape == like.shape and x.dtype == like.dtype
    if s.chance(0.75):
        try:
            found = s.pick("any", where=matches)
        except NoOperandError:
            pass
        else:
            if like.is_floating_point():
                return s.one_of(found, found, f"torch.tanh({found})", f"{found} * 0.5")
            return found
    if own is None:
        own = s.pick("any", where=matches)
    if like.is_floating_point():
        return s.one_of("torch.tanh({c} + {a}.sum())", "{c} * 0.5 + {a}.mean()", "{c}.sin() * {a}.sum()").format(
            c=own, a=s.pick(where=lambda x: x.numel() > 0)
        )
    if like.dtype is torch.bool:
        return f"~{own}"
    if like.is_complex():
        return f"{own} * (0.4 + 0.3j)"
    return s.one_of("({c} * 3 + 1) % 7", "2 ** ({c} % 3)", "7 - {c} % 5").format(c=own)


def body_of(
    s: Scope, name: str, arguments: dict[str, Any], depth: int, result: Callable[[Scope, dict[str, list[str]]], str]
) -> list[str]:
    """The lines of a function of trees; ``result`` makes what it returns from its scope and its arguments' leaves."""
    inner = s.inner(arguments)
    leaves = {argument: unpack(inner, argument, value) for argument, value in arguments.items()}
    statements(inner, s.one_of(1, 1, 2, 2, 3), depth)
    returned = result(inner, leaves)
    return [f"def {name}({', '.join(arguments)}):", *_indented([*inner.lines, f"return {returned}"])]


def run(s: Scope, lines: list[str], call: str) -> None:
    """Run a loop and name the tensors of its result."""
    out, before = s.new("r"), (dict(s.env), list(s.names), list(s.lines))
    try:
        s.say([*lines, f"{out} = {call}"], [])
        if not unpack(s, out, s.env[out]) and s.chance(0.9):
            raise NoOperandError
    except NoOperandError:
        s._restore(before[0])
        s.names[:], s.lines[:] = before[1], before[2]
        raise


def _start(s: Scope) -> str:
    """What a carry may start as."""
    form = s.one_of("own", "own", "own", "zeros", "zeros", "view", "expanded", "int", "bool", "complex", "number")
    if form == "own":
        return s.pick(s.one_of("float", "float", "float", "any"))
    if form == "zeros":
        a = s.pick()
        return s.one_of("torch.zeros({n}, dtype={a}.dtype)", "torch.zeros_like({a})", "{a}.new_zeros({n})").format(
            a=a, n=s.one_of("3", "4", "2, 2", str(tuple(s.env[a].shape) or "()"))
        )
    if form == "view":
        return s.pick(where=lambda x: x.ndim >= 1 and x.shape[0] > 0) + s.one_of(
            "[0]", "[-1]", ".transpose(0, -1)", "[:1]", "[..., 0]"
        )
    if form == "expanded":
        return s.pick(where=lambda x: x.ndim <= 1) + s.one_of(
            "[..., None].expand(-1, 2)", ".expand(2, -1)", ".expand(3)"
        )
    if form == "int":
        return s.one_of("torch.tensor(1)", "torch.tensor(0)", s.pick("int"), "torch.arange(3)")
    if form == "bool":
        return s.one_of("torch.tensor(True)", s.pick() + " > 0.137")
    if form == "complex":
        return s.one_of(s.pick("complex"), s.pick() + " * (0.5 + 0.5j)")
    return s.one_of("1", "2", "True")


def _carry(s: Scope) -> tuple[Tree, Any]:
    """A tree of expressions to start from, and its values."""
    starts = [_start(s) for _ in range(s.one_of(1, 1, 2, 2, 3))]
    tree = tree_of(s, starts)
    values = optree.tree_map(lambda x: x if isinstance(x, Tensor) else torch.tensor(x), _values(s, tree))
    return tree, values


def _next_carry(values: Any, inner: Scope, names: list[str]) -> str:
    """What a body returns for a carry whose leaves are ``names``."""
    leaves, spec = optree.tree_flatten(values)
    fitted = [_fitted(inner, leaf, name) for leaf, name in zip(leaves, names)]
    return text_of(spec.unflatten(fitted))


# ---------------------------------------------------------------------------------------------------------------------
# loops


def _rows(s: Scope) -> tuple[Tree, Any]:
    """A tree to scan or map over, and its first row, of zeros if there is none."""
    first = s.pick(s.one_of("float", "float", "float", "any"), where=lambda x: x.ndim >= 1 and x.shape[0] <= 4)
    length = s.env[first].shape[0]
    names = [first]
    if s.chance(0.3):
        names.append(s.pick("any", where=lambda x: x.ndim >= 1 and x.shape[0] == length))
    if s.chance(0.2):
        names.append(f"torch.arange({length})")
    cut = s.one_of("", "", "", "", "[:0]", "[:1]", "[:2]")
    tree = tree_of(s, [name + cut for name in names])
    row = optree.tree_map(lambda x: x[0] if x.shape[0] else x.new_zeros(x.shape[1:]), _values(s, tree))
    return tree, row


def _scan(s: Scope, depth: int) -> None:
    name, (init, values) = s.new("step"), _carry(s)
    options = s.one_of([], [], [], ["reverse=True"], ["reverse=True"], ["unroll=2"], ["remat='step'"], ["remat='sqrt'"])
    if s.chance(0.2):
        xs, arguments = f"None, {s.one_of(0, 1, 2, 3)}", {"c": values, "_": None}
    else:
        tree, row = _rows(s)
        xs, arguments = text_of(tree), {"c": values, "x": row}

    def result(inner: Scope, leaves: dict[str, list[str]]) -> str:
        ys = [inner.pick("any") for _ in range(s.one_of(0, 1, 1, 2))]
        y = text_of(tree_of(s, ys)) if ys else "None"
        return f"{_next_carry(values, inner, leaves['c'])}, {y}"

    body = body_of(s, name, arguments, depth, result)
    run(s, body, f"ns.scan({', '.join([name, text_of(init), xs, *options])})")


def _recurrent(s: Scope, depth: int) -> None:
    """A stack of recurrent layers, whose initial states are equal, over the rows of a matrix; maybe bidirectional."""
    found = [n for n, v in s.env.items() if isinstance(v, (torch.nn.GRUCell, torch.nn.LSTMCell, torch.nn.RNNCell))]
    if not found:
        raise NoOperandError
    cell = s.draw.choice(found)
    width = width_of(s.env[cell])
    ys = s.pick(where=lambda x: x.ndim in (2, 3) and x.shape[-1] == width and x.shape[0] <= 4)
    state = f"torch.zeros({', '.join(map(str, s.env[ys].shape[1:]))}, dtype={ys}.dtype)"
    for layer in range(s.one_of(1, 2, 2, 3)):
        name, out = s.new("layer"), s.new("r")
        reverse = s.one_of("", "", ", reverse=True")
        if isinstance(s.env[cell], torch.nn.LSTMCell):
            lines = [f"def {name}(c, x):", f"    h, m = {cell}(x, c)", "    return (h, m), h"]
            start = f"({state}, {state})"
        else:
            lines = [f"def {name}(c, x):", f"    h = {cell}(x, c)", "    return h, h"]
            start = state
        s.say([*lines, f"{out} = ns.scan({name}, {start}, {ys}{reverse})"], [])
        names = unpack(s, out, s.env[out])
        ys = names[-1]
        if layer and s.chance(0.3):
            s.let(f"{names[0]} * {names[-1]}.sum(0)")


def _while(s: Scope, depth: int) -> None:
    name, go_on, (init, values) = s.new("step"), s.new("more"), _carry(s)
    most = s.one_of(0, 1, 2, 3)
    options = s.one_of(
        [], [], [], ["max_steps=2"], ["max_steps=1"], ["max_steps=0"], ["checkpoints=1"], ["checkpoints=2"]
    )
    floats = [
        path
        for path, leaf in zip(optree.tree_paths(values), optree.tree_leaves(values))
        if leaf.is_floating_point() and leaf.numel()
    ]
    test = f"c[0] < {most}"
    if floats and s.chance(0.5):
        where = "c[1]" + "".join(f"[{key!r}]" for key in s.draw.choice(floats))
        test = f"({test}) & ({where}.sum() < {s.one_of('1.137', '0.137', '2.371')})"

    def result(inner: Scope, leaves: dict[str, list[str]]) -> str:
        return _next_carry(values, inner, leaves["c"])

    inner_name = s.new("body")
    body = body_of(s, inner_name, {"c": values}, depth, result)
    lines = [
        *body,
        f"def {name}(c):",
        f"    return c[0] + 1, {inner_name}(c[1])",
        f"def {go_on}(c):",
        f"    return {test}",
    ]
    call = f"ns.while_loop({', '.join([go_on, name, f'(torch.tensor(0), {text_of(init)})', *options])})"
    run(s, lines, call)


def _fori(s: Scope, depth: int) -> None:
    name, (init, values) = s.new("step"), _carry(s)
    lower, upper = s.one_of("0", "0", "1"), str(s.one_of(0, 1, 2, 3))
    if s.chance(0.4):
        upper = f"{s.pick('int', where=lambda x: x.ndim == 0)} % 4"

    def result(inner: Scope, leaves: dict[str, list[str]]) -> str:
        return _next_carry(values, inner, leaves["c"])

    body = body_of(s, name, {"i": torch.tensor(0), "c": values}, depth, result)
    run(s, body, f"ns.fori_loop({lower}, {upper}, {name}, {text_of(init)})")


def _map(s: Scope, depth: int) -> None:
    name, (tree, row) = s.new("each"), _rows(s)

    def result(inner: Scope, leaves: dict[str, list[str]]) -> str:
        return text_of(tree_of(s, [inner.pick("any") for _ in range(s.one_of(1, 1, 2))]))

    body = body_of(s, name, {"x": row}, depth, result)
    options = s.one_of("", "", ", batch_size=2", ", batch_size=3")
    run(s, body, f"ns.map({name}, {text_of(tree)}{options})")


def _associative(s: Scope, depth: int) -> None:
    a = s.pick(where=lambda x: 1 <= x.ndim <= 3)
    shape = s.env[a].shape
    name = s.new("both")
    dim = s.draw.randrange(len(shape)) if s.chance(0.5) else 0
    options = ("" if not dim else f", dim={dim}") + s.one_of("", "", ", reverse=True")
    if s.chance(0.5):
        k = s.one_of("0.3", "0.5")
        lines = [f"def {name}(a, b):", f"    return a + b + {k} * a * b"]
        elements = f"torch.tanh({a})"
    else:
        b = s.pick(where=lambda x: x.shape == shape)
        lines = [f"def {name}(a, b):", "    return a[0] * b[0], b[0] * a[1] + b[1]"]
        elements = f"(torch.sigmoid({a}), {b})"
    run(s, lines, f"ns.associative_scan({name}, {elements}{options})")


def operands_of(s: Scope) -> tuple[Tree, Any]:
    tree = tuple(s.pick("any") for _ in range(s.one_of(0, 1, 1, 2)))
    return tree, _values(s, tree)


def _branches(s: Scope, depth: int, count: int) -> tuple[list[str], list[str], str]:
    """Functions of the same operands whose results agree in shape and dtype."""
    operands, values = operands_of(s)
    arguments = {f"a{i}": value for i, value in enumerate(values)}
    lines: list[str] = []
    names: list[str] = []
    tree: list[Any] = []

    def first(inner: Scope, leaves: dict[str, list[str]]) -> str:
        chosen = tree_of(s, [inner.pick("any") for _ in range(s.one_of(1, 1, 1, 2))])
        tree.append(_values(inner, chosen))
        return text_of(chosen)

    def other(inner: Scope, leaves: dict[str, list[str]]) -> str:
        likes, spec = optree.tree_flatten(tree[0])
        found = [_alike(inner, like) for like in likes]
        if not all(_is_like(inner.value(text), like) for text, like in zip(found, likes)):
            raise NoOperandError
        return text_of(spec.unflatten(found))

    for _ in range(count):
        names.append(s.new("branch"))
        lines += body_of(s, names[-1], arguments, depth, other if tree else first)
    return lines, names, "".join(f", {operand}" for operand in operands)


def _is_like(x: Tensor, like: Tensor) -> bool:
    return x.shape == like.shape and x.dtype == like.dtype


def _alike(s: Scope, like: Tensor) -> str:
    """A value of this shape and dtype, often in another layout."""
    size, shape = like.numel(), tuple(like.shape)
    if s.chance(0.4):
        try:
            return _fitted(s, like, None)
        except NoOperandError:
            pass
    turned = tuple(reversed(shape))
    forms = []
    for name in s.names:
        x = s.env[name]
        if x.dtype != like.dtype:
            continue
        if x.shape == like.shape:
            forms += [
                f"{name}.transpose(0, -1).contiguous().transpose(0, -1)"
                if x.ndim >= 2
                else f"{name}.flip(0)"
                if x.ndim
                else name
            ]
        if x.ndim == 2 and tuple(x.shape) == turned:
            forms += [f"{name}.T", f"{name}.T"]
        if x.numel() == size:
            forms += [
                f"{name}.reshape({shape})",
                f"{name}.reshape({turned}).permute({tuple(reversed(range(len(shape))))})",
            ]
        if x.ndim == 0 and shape:
            forms += [f"{name}.expand({shape})"]
        if x.ndim and shape and x.shape[-1] == shape[-1] and x.ndim < len(shape):
            forms += [f"{name}.expand({shape})"]
        if x.ndim == len(shape) and shape and x.shape[:-1] == like.shape[:-1] and x.shape[-1] > shape[-1]:
            forms += [f"{name}[..., :{shape[-1]}]", f"{name}[..., -{shape[-1]}:]" if shape[-1] else f"{name}[..., 1:1]"]
    dtype = str(like.dtype)
    forms += [f"torch.zeros({shape}, dtype={dtype})", f"torch.ones((), dtype={dtype}).expand({shape})"]
    return str(s.draw.choice(forms))


def _predicate(s: Scope) -> str:
    if s.chance(0.25):
        return s.pick("bool", where=lambda x: x.ndim == 0)
    a = s.pick(where=lambda x: x.numel() > 0)
    return s.one_of("{a}.sum() > 0.137", "{a}.mean() < 0.219", "{a}.reshape(-1)[0] > -0.137").format(a=a)


def _cond(s: Scope, depth: int) -> None:
    lines, (yes, no), operands = _branches(s, depth, 2)
    run(s, lines, f"ns.cond({_predicate(s)}, {yes}, {no}{operands})")


def _switch(s: Scope, depth: int) -> None:
    lines, names, operands = _branches(s, depth, s.one_of(1, 2, 3))
    index = s.pick("int", where=lambda x: x.ndim == 0)
    run(s, lines, f"ns.switch({index} - {s.one_of(0, 1)}, [{', '.join(names)}]{operands})")


def _checkpoint(s: Scope, depth: int) -> None:
    operands, values = operands_of(s)
    name = s.new("block")

    def result(inner: Scope, leaves: dict[str, list[str]]) -> str:
        return text_of(tree_of(s, [inner.pick("any") for _ in range(s.one_of(1, 1, 2))]))

    body = body_of(s, name, {f"a{i}": value for i, value in enumerate(values)}, depth, result)
    run(s, body, f"ns.checkpoint({name})({', '.join(operands)})")


def _transformed(s: Scope, depth: int) -> None:
    """A derivative, or lanes, inside a body."""
    a = s.pick(where=lambda x: 0 < x.numel() <= 6)
    name = s.new("g")
    like = s.env[a]
    form = s.one_of("grad", "grad", "jvp", "vjp", "jacfwd", "jacrev", "hessian", "vmap", "vmap")
    if form == "vmap" and (not like.ndim or not like.shape[0]):
        form = "grad"

    def result(inner: Scope, leaves: dict[str, list[str]]) -> str:
        if form == "vmap":
            return inner.pick()
        read = inner.pick(where=lambda x: x.numel() > 0)
        value = f"{read}.sum() * {leaves['x'][0]}.sin().sum()"
        return f"({value})" if form in ("grad", "hessian") else f"({value}) * {leaves['x'][0]}"

    body = body_of(s, name, {"x": like[0] if form == "vmap" else like}, depth, result)
    call = {
        "jvp": f"ns.jvp({name}, ({a},), ({a} * 0.3,))",
        "vjp": f"ns.vjp({name}, {a})[1]({a})",
        "vmap": f"ns.vmap({name})({a})",
    }.get(form, f"ns.{form}({name})({a})")
    run(s, body, call)


_LOOPS: list[Callable[[Scope, int], None]] = [
    _scan,
    _scan,
    _scan,
    _recurrent,
    _while,
    _while,
    _fori,
    _fori,
    _map,
    _map,
    _associative,
    _cond,
    _cond,
    _cond,
    _switch,
    _checkpoint,
    _checkpoint,
    _transformed,
]
