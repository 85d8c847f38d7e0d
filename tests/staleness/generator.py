"""Programs from a seed: a function that reads a number through holders in holders, and a change of one of them."""

from __future__ import annotations

import random
import re
import textwrap
from typing import NamedTuple

from staleness.containers import CONTAINERS
from staleness.functions import FUNCTIONS
from staleness.holder import Holder
from staleness.leaves import LEAVES
from staleness.objects import OBJECTS

__all__ = ["MAY_WARN", "Program", "generate"]

HOLDERS = [*CONTAINERS, *OBJECTS, *FUNCTIONS]
"""Those that hold anything."""

MAY_WARN = frozenset({"eval", "iterator", "generator"})
"""Holders of which one warning at capture is enough."""

HEADER = """\
import abc, array, collections, contextvars, ctypes, dataclasses, enum, functools, math, operator, os, sys, sysconfig
import threading, types, weakref
import numpy as np
import torch
from torch import nn
import functorch_hops as fh
get_attribute, NAME, INDEX = getattr, "a", 0
INSTALLED = sysconfig.get_path("purelib") + "/installed.py"
"""

# How the function gets at the root, which stands for ``R``; ``E`` is what it reads of it.
FORMS = {
    "global": """
    def f(x):
        return x * E
    """,
    "closure": """
    def make(R):
        def f(x):
            return x * E
        return f
    f = make(R)
    """,
    "default": """
    def f(x, h=R):
        R = h
        return x * E
    """,
    "keyword default": """
    def f(x, *, h=R):
        return x * (lambda R: E)(h)
    """,
    "helper": """
    def helper():
        return E
    def f(x):
        return x * helper()
    """,
    "helper of a helper": """
    def one():
        return E
    def two():
        return one()
    def f(x):
        return x * two()
    """,
    "comprehension": """
    def f(x):
        return x * [E for _ in range(1)][0]
    """,
    "generator": """
    def f(x):
        return x * sum(E for _ in range(1))
    """,
    "alias": """
    def f(x):
        h = R
        R_ = h
        return x * E
    """,
    "argument": """
    def read(R):
        return E
    def f(x):
        return x * read(R)
    """,
    "nested": """
    def f(x):
        def g():
            return E
        return x * g()
    """,
    "variable of an outer function": """
    def f(x):
        h = R
        def g():
            return (lambda R: E)(h)
        return x * g()
    """,
    "attribute": """
    class Owner:
        def run(self, x):
            R = self.h
            return x * E
    owner = Owner()
    owner.h = R
    f = owner.run
    """,
    "module": """
    class Owner(nn.Module):
        def forward(self, x):
            R = self.h
            return x * E
    f = Owner()
    f.h = R
    """,
    "call": """
    class Owner:
        def __call__(self, x):
            return x * E
    f = Owner()
    """,
    "globals()": """
    def f(x):
        R_ = globals()['R']
        return x * (lambda R: E)(R_)
    """,
    "globals() by a name": """
    root = 'R'
    def f(x):
        return x * (lambda R: E)(globals()[root])
    """,
    "import": """
    def f(x):
        import PROGRAM as other
        return x * (lambda R: E)(other.R)
    """,
    "import of the name": """
    def f(x):
        from PROGRAM import R
        return x * E
    """,
    "sys.modules": """
    def f(x):
        return x * (lambda R: E)(sys.modules['PROGRAM'].R)
    """,
    "own module": """
    def f(x):
        return x * (lambda R: E)(sys.modules[__name__].R)
    """,
    "partial": """
    def g(R, x):
        return x * E
    f = functools.partial(g, R)
    """,
    "wraps": """
    def g(x):
        return x * E
    @functools.wraps(g)
    def f(*args):
        return g(*args)
    """,
    "cached": """
    @functools.lru_cache
    def name():
        return 'unused'
    def f(x):
        return x * E
    """,
    "no_grad": """
    @torch.no_grad()
    def f(x):
        return x * E
    """,
    "try": """
    def f(x):
        try:
            return x * E
        finally:
            pass
    """,
    "match": """
    def f(x):
        match E:
            case value:
                return x * value
    """,
    "local class": """
    def f(x):
        class Local:
            def run(self):
                return E
        return x * Local().run()
    """,
    "vmap": """
    def f(x):
        return torch.func.vmap(lambda y: y * E)(x)
    """,
    "scan": """
    def f(x):
        return fh.scan(lambda c, _: (c * E, None), x, length=1)[0]
    """,
    "star": """
    from PROGRAM import *
    def f(x):
        return x * E
    """,
}


class Program(NamedTuple):
    seed: int
    name: str
    text: str
    """Binds ``f`` and ``change``."""
    may_warn: bool

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.name}\n{self.text}"


def generate(seed: int) -> Program:
    draw = random.Random(seed)
    leaf = draw.choice([*LEAVES, None, None])
    outer = draw.choices(HOLDERS, k=draw.choice([0, 0, 1, 1, 1, 2, 2, 3]) if leaf else draw.randint(1, 3))
    chain = [*outer, leaf] if leaf else outer
    lines, names = [], [f"h{i}" for i in range(len(chain))]
    value = "2.0"
    for name, holder in reversed(list(zip(names, chain))):
        lines.append(_filled(holder.make, N=name, V=value, W="3.0"))
        value = name
    read = names[0]
    for name, holder in zip(names, chain):
        read = _filled(draw.choice(holder.reads), N=name, H=read, V="2.0", W="3.0")
    levels = [i for i, holder in enumerate(chain) if holder.writes]
    form = draw.choice([*FORMS] if draw.random() < 0.7 else ["global", "closure"])
    level = draw.choice(levels) if levels else None
    change = "pass" if level is None else _change(draw, chain, names, level)
    reader = _form(FORMS[form], names[0], read)
    body = "\n".join([HEADER, *lines, reader, "def change():", textwrap.indent(change, "    ")])
    kinds = " in ".join(holder.name for holder in reversed(chain))
    may_warn = any(holder.name in MAY_WARN for holder in chain)
    return Program(seed, f"{kinds}, by {form}", body + "\n", may_warn)


def _change(draw: random.Random, chain: list[Holder], names: list[str], level: int) -> str:
    """Make the holder at one level hold another value, or another holder of one below."""
    lines, value = [], "3.0"
    for at in reversed(range(level + 1, len(chain))):
        name = f"new{at}"
        lines.append(_filled(chain[at].make, N=name, V=value, W="4.0"))
        value = name
    name = names[level]
    lines.append(_filled(draw.choice(chain[level].writes), N=name, H=name, V="2.0", W=value))
    declared = sorted({name for line in lines for name in re.findall(r"\b(?:new|h)\d+(?:_\w)?\b", line)})
    return "\n".join([*([f"global {', '.join(declared)}"] if declared else []), *lines])


def _form(form: str, root: str, read: str) -> str:
    return re.sub(r"\bE\b", lambda _: read, re.sub(r"\bR\b", root, textwrap.dedent(form).strip()))


def _filled(text: str, **parts: str) -> str:
    text = textwrap.dedent(text).strip()
    for letter, part in parts.items():
        text = re.sub(rf"\b{letter}(?=\b|_)", lambda _, part=part: part, text)
    return text
