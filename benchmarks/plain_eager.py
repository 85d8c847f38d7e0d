"""What plain-eager control flow costs over the Python it stands for: `python benchmarks/plain_eager.py`.

The loops run a body of ten operators for 100 steps, and are compared with the loop of their docstring. The
branches are compared with a call of the branch that is taken, and with Python's `if`, which has to read the
predicate too.

Target: a scan takes at most 1.1 times its loop; a cond adds at most 20 us to its branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, print_table
from torch import Tensor

import functorch_hops as fh

STEPS = 100
SCAN_TARGET = 1.1
COND_TARGET = 20.0


def ten_operators(h: Tensor, x: Tensor) -> Tensor:
    a = h * x
    b = a.sin()
    c = b + h
    d = c.tanh()
    e = d * 0.5
    f = e + x
    g = f.sigmoid()
    i = g * d
    j = i - e
    return j.cos()


def tensor_step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = ten_operators(h, x)
    return h, h


def dict_step(carry: dict[str, Any], x: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    h = ten_operators(carry["h"], x["in"])
    return {"h": h, "last": (x["in"], carry["h"])}, {"out": h}


def python_scan(f: Callable[..., Any], carry: Any, xs: Tensor) -> tuple[Any, Tensor]:
    ys = []
    for x in xs:
        carry, y = f(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


def python_dict_scan(f: Callable[..., Any], carry: Any, xs: Tensor) -> tuple[Any, dict[str, Tensor]]:
    ys = []
    for x in xs:
        carry, y = f(carry, {"in": x})
        ys.append(y["out"])
    return carry, {"out": torch.stack(ys)}


def python_prefixes(combine: Callable[[Tensor, Tensor], Tensor], e: Tensor) -> Tensor:
    """The recursion that associative_scan stands for, for an even number of elements in one tensor."""
    if len(e) < 2:
        return e.clone()
    odd = python_prefixes(combine, combine(e[:-1:2], e[1::2]))
    if len(e) == 2:
        return torch.cat((e[:1], odd))
    even = torch.cat((e[:1], combine(odd[:-1], e[2::2])))
    return torch.stack((even, odd), 1).flatten(0, 1)


def loops() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Each loop in Python and in the library."""
    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for size in (1, 64, 1024, 8192):
        h, xs = torch.rand(size), torch.rand(STEPS, size)
        cases[f"scan, {size} floats"] = (
            lambda h=h, xs=xs: python_scan(tensor_step, h, xs),
            lambda h=h, xs=xs: fh.scan(tensor_step, h, xs),
        )
    h, xs = torch.rand(64), torch.rand(STEPS, 64)
    nested = {"h": h, "last": (h, h)}
    cases["scan, carry of 3 in a dict"] = (
        lambda: python_dict_scan(dict_step, nested, xs),
        lambda: fh.scan(dict_step, nested, {"in": xs}),
    )
    weight = torch.rand(64, requires_grad=True)

    def weighted(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return tensor_step(h * weight, x)

    cases["scan, with backward"] = (
        lambda: python_scan(weighted, h, xs)[1].sum().backward(),
        lambda: fh.scan(weighted, h, xs)[1].sum().backward(),
    )
    cases["scan, in torch.func.vmap"] = (
        lambda: torch.func.vmap(lambda h, xs: python_scan(tensor_step, h, xs))(h, xs.T.contiguous()),
        lambda: torch.func.vmap(lambda h, xs: fh.scan(tensor_step, h, xs))(h, xs.T.contiguous()),
    )
    return cases | other_loops(h, xs)


def other_loops(h: Tensor, xs: Tensor) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    def python_while() -> Any:
        n, v = torch.tensor(0), h
        while n < STEPS:
            n, v = n + 1, ten_operators(v, h)
        return v

    def python_for() -> Tensor:
        v = h
        for i in range(STEPS):
            v = ten_operators(v, torch.tensor(i))
        return v

    def library_while() -> Any:
        init = (torch.tensor(0), h)
        return fh.while_loop(lambda s: s[0] < STEPS, lambda s: (s[0] + 1, ten_operators(s[1], h)), init)

    def twice(x: Tensor) -> Tensor:
        return ten_operators(x, x)

    elems = torch.rand(1024, 64)
    combine = torch.func.vmap(torch.maximum)
    return {
        "while_loop": (python_while, library_while),
        "fori_loop": (python_for, lambda: fh.fori_loop(0, STEPS, lambda i, v: ten_operators(v, i), h)),
        "map": (lambda: torch.stack([twice(x) for x in xs]), lambda: fh.map(twice, xs)),
        "associative_scan, 1024 x 64": (
            lambda: python_prefixes(combine, elems),
            lambda: fh.associative_scan(torch.maximum, elems),
        ),
    }


def branches() -> dict[str, tuple[Callable[[], object], Callable[[], object], Callable[[], object]]]:
    """Each branch called, chosen by `if`, and chosen by the library."""
    x, yes, index = torch.rand(64), torch.tensor(True), torch.tensor(1)
    tree = {"a": x, "b": (x, x)}

    def one(x: Tensor) -> Tensor:
        return x.sin()

    def other(x: Tensor) -> Tensor:
        return x.cos()

    def one_tree(t: dict[str, Any]) -> dict[str, Any]:
        return {"a": t["a"].sin(), "b": t["b"]}

    def ten(x: Tensor) -> Tensor:
        return ten_operators(x, x)

    w = torch.rand(64, requires_grad=True)
    return {
        "cond, tensor predicate": (
            lambda: one(x),
            lambda: one(x) if yes else other(x),
            lambda: fh.cond(yes, one, other, x),
        ),
        "cond, Python predicate": (
            lambda: one(x),
            lambda: one(x) if STEPS else other(x),
            lambda: fh.cond(True, one, other, x),
        ),
        "cond, ten operators": (
            lambda: ten(x),
            lambda: ten(x) if yes else other(x),
            lambda: fh.cond(yes, ten, other, x),
        ),
        "cond, tree of 3": (
            lambda: one_tree(tree),
            lambda: one_tree(tree) if yes else tree,
            lambda: fh.cond(yes, one_tree, lambda t: t, tree),
        ),
        "cond, requires grad": (
            lambda: one(w),
            lambda: one(w) if yes else other(w),
            lambda: fh.cond(yes, one, other, w),
        ),
        "switch, 3 branches": (
            lambda: one(x),
            lambda: (other, one, other)[int(index.clamp(0, 2))](x),
            lambda: fh.switch(index, [other, one, other], x),
        ),
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, contenders in loops().items():
        python, library = interleaved(*contenders, seconds=2.0)
        figures = [f"{python.millis:.2f}", f"{library.millis:.2f}"]
        rows.append([name, *figures, f"{library.ratio:.2f}", f"{library.median_ratio:.2f}"])
    header = ["loop", "Python, ms", "library, ms", "ratio", "median ratio"]
    title = f"Loops of {STEPS} steps of ten operators (target for scan: ratio <= {SCAN_TARGET})"
    print_table(title, header, rows)
    rows = []
    for name, three in branches().items():
        branch, python, library = (timing.micros for timing in interleaved(*three, seconds=1.0))
        rows.append([name, *(f"{us:.1f}" for us in (branch, library, library - branch, library - python))])
    header = ["branch", "branch, us", "library, us", "over the branch, us", "over Python's if, us"]
    print_table(f"Branches (target: at most {COND_TARGET:.0f} us over the branch)", header, rows)


if __name__ == "__main__":
    main()
