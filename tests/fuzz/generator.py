"""A seed to a program: Python text that stands by itself."""

from __future__ import annotations

import random
import sys
import types
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optree
import torch
from torch import Tensor, nn

from .loops import statements
from .oracle import Oracle, Strict
from .scope import NoOperandError, Scope, is_moderate

__all__ = ["Program", "generate", "is_runnable", "load", "result", "with_gradients"]

PREAMBLE = '''\
import optree
import torch
import torch.nn.functional as F
from torch import nn


def flat(tree):
    """The floating-point leaves of a tree as one vector, those of complex ones too."""
    leaves = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in optree.tree_leaves(tree)]
    return torch.cat([x.reshape(-1) for x in leaves if x.is_floating_point()])


def scalar(tree):
    """A linear form of the floating-point leaves of a tree, with unlike coefficients."""
    vector = flat(tree)
    return (vector * torch.linspace(0.5, 1.5, vector.numel(), dtype=vector.dtype)).sum()


def slopes(x):
    """A direction in which to differentiate at x."""
    return torch.linspace(-0.8, 1.1, x.numel(), dtype=x.dtype).reshape(x.shape)
'''


@dataclass(frozen=True)
class Program:
    """``source`` defines ``program(ns, *args)``, ``inputs(seed)``, and modules named ``net1``, ``net2``, …

    If ``is_trained``, plain autograd then differentiates the jitted program by its inputs and the modules' parameters.
    """

    seed: int
    source: str
    context: str
    is_trained: bool = False

    def __str__(self) -> str:
        return self.source


def load(source: str) -> dict[str, Any]:
    """The names that a program's text defines. They are those of a module, where Dynamo looks for them."""
    module = types.ModuleType(f"program_{zlib.crc32(source.encode())}")
    sys.modules[module.__name__] = module
    exec(compile(source, "<program>", "exec"), module.__dict__)
    return module.__dict__


def generate(seed: int) -> Program:
    """The first program of this seed's sequence that is fair."""
    for attempt in range(200):
        draw = random.Random(f"{seed} {attempt}")
        try:
            program = _draft(seed, draw)
        except NoOperandError:
            continue
        if program is not None and is_fair(program):
            return program
    raise AssertionError(f"no program for seed {seed}")


# ---------------------------------------------------------------------------------------------------------------------
# contexts

_FIRST_ORDER = ["value", "value", "value", "grad", "grad", "vjp", "jvp", "jacfwd", "jacrev", "vmap", "vmap", "trained"]
_PAIRS = [
    *["hessian", "grad vmap", "vmap grad", "grad grad", "jvp grad", "jvp jvp", "jacfwd jacfwd", "jacrev jacfwd"],
    *["vmap jacrev", "grad jvp", "vjp hessian", "jacfwd grad", "vmap vmap", "vmap jvp", "jvp vmap", "jacrev vmap"],
    *["vmap hessian", "grad jacrev", "jvp vjp", "vjp vjp", "jacfwd jacrev", "vmap jacfwd", "grad checkpoint"],
]
_SECOND_ORDER = ("hessian", "jac")


def _draft(seed: int, draw: random.Random) -> Program | None:
    context = draw.choice(_FIRST_ORDER) if draw.random() < 0.65 else draw.choice(_PAIRS)
    transforms = [name for name in context.split() if name not in ("value", "trained")]
    is_small = any(name.startswith(_SECOND_ORDER) for name in transforms)
    dtype = draw.choice(["torch.float64", "torch.float64", "torch.float32"])
    lanes = [draw.choice([1, 2, 3]) for name in transforms if name == "vmap"]

    shapes = [_shape(draw, is_small and not i) for i in range(draw.choice([1, 2, 2]))]
    mapped = [[draw.random() < 0.7 for _ in shapes] for _ in lanes]
    for flags in mapped:
        flags[0] = True
    texts = [
        _input(draw, tuple(n for n, flags in zip(lanes, mapped) if flags[i]) + shape, dtype)
        for i, shape in enumerate(shapes)
    ]
    has_integer = draw.random() < 0.4
    if has_integer:
        texts.append(draw.choice(["torch.tensor(2)", "torch.arange(3)", "torch.randint(0, 4, (2, 3), generator=g)"]))
    setup = [
        *_modules(draw, dtype, seed, context == "trained"),
        "",
        "",
        f"def inputs(seed={seed}):",
        "    g = torch.Generator().manual_seed(seed)",
        *[f"    {'uwn'[i]} = {text}" for i, text in enumerate(texts)],
        f"    return {'(' + ', '.join('uwn'[: len(texts)]) + ',)'}",
    ]
    env = load("\n".join([PREAMBLE, *setup]))
    env["ns"] = Oracle
    args: list[Tensor] = list(env["inputs"]())
    for flags in mapped:
        args = [x[0] if i < len(flags) and flags[i] else x for i, x in enumerate(args)]
    names = list("uwn"[: len(args)])
    s = Scope(draw, {**env, **dict(zip(names, args))}, list(names), [0])
    statements(
        s,
        draw.choice([3, 4, 5, 6] if not is_small else [2, 3, 4]),
        draw.choice([1, 2, 2, 3] if not is_small else [1, 2]),
    )
    if not any(line.lstrip().startswith("def ") for line in s.lines):
        return None  # no control flow
    body = [
        f"def f(ns, {', '.join(names)}):",
        *["    " + line for line in s.lines],
        f"    return {_returned(s, names)}",
    ]
    source = "\n".join(
        [PREAMBLE, *setup, "", "", *body, "", "", *_applied(transforms, len(shapes), has_integer, mapped), ""]
    )
    return Program(seed, source, context, context == "trained")


def _shape(draw: random.Random, is_small: bool) -> tuple[int, ...]:
    if is_small:
        return draw.choice([(3,), (2, 2), (4,), (2, 3), (), (1,)])
    if draw.random() < 0.06:
        return draw.choice([(0,), (0, 3), (3, 0), (2, 0, 3)])
    return draw.choice(
        [
            (3,),
            (4,),
            (3, 3),
            (2, 3),
            (3, 4),
            (2, 3, 4),
            (1, 3),
            (3, 1),
            (),
            (1,),
            (17,),
            (3, 17),
            (2, 33),
            (4, 8),
            (2, 2, 2),
        ]
    )


def _input(draw: random.Random, shape: tuple[int, ...], dtype: str) -> str:
    """A tensor, mostly contiguous."""
    layout = draw.random()
    if shape and layout < 0.1:
        return f"torch.randn({(*shape[:-1], 2 * shape[-1])}, generator=g, dtype={dtype})[..., ::2]"
    if len(shape) > 1 and layout < 0.2:
        turned = (*shape[:-2], shape[-1], shape[-2])
        return f"torch.randn({turned}, generator=g, dtype={dtype}).mT"
    if shape and layout < 0.25:
        return f"torch.randn({shape[1:]}, generator=g, dtype={dtype}).expand{shape}"
    return f"torch.randn({shape}, generator=g, dtype={dtype})"


def _modules(draw: random.Random, dtype: str, seed: int, is_trained: bool) -> list[str]:
    """Modules that programs may close over."""
    frozen = "" if is_trained else ".requires_grad_(False)"
    if draw.random() < 0.4:
        return []
    width = draw.choice([3, 3, 4, 17])
    kinds = [f"Linear({width}, {width})", f"Linear({width}, 2)", f"LayerNorm({width})", f"GRUCell({width}, {width})"]
    kinds += [f"LSTMCell({width}, {width})", f"RNNCell({width}, {width})", f"BatchNorm1d({width}).eval()"]
    kinds += [f"Sequential(nn.Linear({width}, {width}), nn.Dropout(0.5), nn.GELU()).eval()"]
    chosen = draw.sample(kinds, draw.choice([1, 1, 2]))
    lines = [f"net{i} = nn.{kind}.to({dtype}){frozen}" for i, kind in enumerate(chosen, 1)]
    return ["", f"torch.manual_seed({seed})", *lines]


def _returned(s: Scope, arguments: list[str]) -> str:
    made = [name for name in s.names if name not in arguments] or arguments
    floats = [name for name in made if s.env[name].is_floating_point() or s.env[name].is_complex()]
    if not floats:
        raise NoOperandError
    count = min(len(made), s.one_of(2, 3, 4, 5))
    chosen = dict.fromkeys([*made[-2:], *s.draw.sample(made, count), floats[-1]])
    return f"({', '.join(chosen)},)"


def _applied(transforms: list[str], floats: int, has_integer: bool, mapped: list[list[bool]]) -> list[str]:
    """``program``: the transforms around ``f``, the last one first."""
    lines, inner, flags = [], "f0", [tuple(row) for row in mapped]
    tail = f", *a[{floats}:]" if has_integer else ""
    every = f"a[:{floats}]" if has_integer else "a"
    for level, name in enumerate(reversed(transforms), 1):
        outer = f"f{level}"
        if name == "vmap":
            dims = tuple(0 if flag else None for flag in flags.pop()) + ((None,) if has_integer else ())
            text = f"{outer} = ns.vmap({inner}, in_dims={dims})"
        elif name == "grad":
            text = f"{outer} = ns.grad(lambda *a: scalar({inner}(*a)), argnums={tuple(range(floats))})"
        elif name == "hessian":
            text = f"{outer} = ns.hessian(lambda *a: scalar({inner}(*a)), argnums=0)"
        elif name in ("jacfwd", "jacrev"):
            text = f"{outer} = ns.{name}(lambda *a: flat({inner}(*a)), argnums=0)"
        elif name == "checkpoint":
            text = f"{outer} = ns.checkpoint({inner})"
        elif name == "jvp":
            function = f"lambda *d: flat({inner}(*d{tail}))"
            text = f"{outer} = lambda *a: ns.jvp({function}, {every}, tuple(map(slopes, {every})))"
        else:
            function = f"lambda *d: flat({inner}(*d{tail}))"
            lines += [f"def {outer}(*a):", f"    out, pull = ns.vjp({function}, *{every})"]
            text = "    return out, pull(slopes(out))"
        lines.append(text)
        inner = outer
    start = "f0 = lambda *a: f(ns, *a)"
    return ["def program(ns, *args):", *["    " + line for line in [start, *lines]], f"    return {inner}(*args)"]


# ---------------------------------------------------------------------------------------------------------------------
# fairness


def is_fair(program: Program) -> bool:
    """Whether plain Python runs the program at two inputs, and a small change of these changes its result little."""
    try:
        return all(_is_fair_at(program, seed) for seed in (0, 1))
    except Exception:  # noqa: BLE001 (whatever plain Python can't do is no program)
        return False


def _is_fair_at(program: Program, seed: int) -> bool:
    names = load(program.source)
    function = lambda *args: names["program"](Oracle, *args)
    args = names["inputs"](seed)
    near = [x * (1 + 1e-6) + 1e-6 if x.is_floating_point() else x for x in args]
    out = result(program, names, function, args)
    close = result(program, names, function, near)
    strict = result(program, names, lambda *args: names["program"](Strict, *args), args)
    return all(is_moderate(tree, 1e4) and _are_close(tree, out) for tree in (out, close, strict))


def is_runnable(program: Program) -> bool:
    """Whether plain Python runs the program, and its result is moderate."""
    try:
        names = load(program.source)
        function = lambda *args: names["program"](Strict, *args)
        return all(is_moderate(result(program, names, function, names["inputs"](seed)), 1e4) for seed in (0, 1))
    except Exception:  # noqa: BLE001
        return False


def result(program: Program, names: dict[str, Any], function: Callable[..., Any], args: Sequence[Tensor]) -> Any:
    """What a function makes of arguments, and the gradients if the program is to be trained."""
    if program.is_trained:
        args = [x.detach().requires_grad_() if x.is_floating_point() else x for x in args]
    return with_gradients(program, names, args, function(*args))


def with_gradients(program: Program, names: dict[str, Any], args: Sequence[Tensor], out: Any) -> Any:
    """The value, and the gradients of ``scalar`` of it by the arguments and the modules' parameters."""
    gradients: tuple[Tensor, ...] = ()
    if program.is_trained:
        modules = [value for value in names.values() if isinstance(value, nn.Module)]
        wanted = [x for x in args if x.requires_grad] + [p for net in modules for p in net.parameters()]
        loss = names["scalar"](out)
        gradients = tuple(torch.zeros_like(x) for x in wanted)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, wanted, retain_graph=True, materialize_grads=True)
    return optree.tree_map(Tensor.detach, (out, gradients))


def _are_close(a: Any, b: Any) -> bool:
    first, second = optree.tree_leaves(a), optree.tree_leaves(b)
    return len(first) == len(second) and all(map(_is_close, first, second))


def _is_close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or not x.numel():
        return x.shape == y.shape
    x, y = x * 1.0, y * 1.0
    return bool(((x - y).abs() <= 2e-3 * (1 + x.abs().max())).all())
