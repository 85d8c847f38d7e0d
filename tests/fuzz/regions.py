"""Statements around bodies that are no control flow: gradient modes, jitted functions, derivatives by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree

from .loops import body_of, operands_of, run, text_of, tree_of, unpack
from .scope import NoOperandError, Scope

__all__ = ["REGIONS"]


def _results(inner: Scope, leaves: dict[str, list[str]]) -> str:
    return text_of(tree_of(inner, [inner.pick("any") for _ in range(inner.one_of(1, 1, 2))]))


def _function(s: Scope, depth: int, result: Callable[..., str] = _results) -> tuple[str, list[str], list[str]]:
    """The name, the lines and the operands of a function."""
    names, values = operands_of(s)
    name = s.new("part")
    return name, body_of(s, name, {f"a{i}": value for i, value in enumerate(values)}, depth, result), list(names)


def _region(s: Scope, depth: int) -> None:
    """A function that runs in another gradient mode, or with autocast as it is."""
    name, lines, names = _function(s, depth)
    around = s.one_of(
        "torch.no_grad()", "torch.no_grad()", "torch.enable_grad()", "torch.autocast('cpu', enabled=False)"
    )
    run(s, [*lines, f"{name} = {around}({name})"], f"{name}({', '.join(names)})")


def _jitted(s: Scope, depth: int) -> None:
    """A jitted function in another one; of operands, their views, and values that it closes over."""
    name, lines, names = _function(s, depth)
    options = s.one_of("backend='eager'", "backend='eager'", "backend='eager', dynamic=True")
    run(s, lines, f"ns.jit({name}, {options})({', '.join(names)})")


def _in_place(s: Scope, depth: int) -> None:
    """A write to the result of a loop or function, which is nobody else's."""
    name, lines, names = _function(s, depth, lambda inner, leaves: inner.pick(where=lambda x: x.numel() > 0))
    made = s.new("r")
    write = s.one_of("{r}.mul_(0.5)", "{r}.reshape(-1)[:1].zero_()", "{r}[...] = {r} * 0.3", "{r}.add_(1.0)")
    again = s.one_of(*names) if names else s.pick()
    run(
        s,
        [*lines, f"{made} = ns.checkpoint({name})({', '.join(names)})", write.format(r=made)],
        f"({made}, {again} * 1)",
    )


def _by_hand(s: Scope, depth: int) -> None:
    """A function with a derivative of its own, which is the right one, as a rule of this library or of torch."""
    a = s.pick(where=lambda x: x.numel() > 0)
    name = s.new("rule")
    if s.chance(0.2):
        lines = [
            f"{name} = ns.custom_vjp(lambda x: x.sin() * x)",
            f"{name}.defvjp(lambda x: (x.sin() * x, x), lambda x, ct: (ct * (x.cos() * x + x.sin()),))",
        ]
    else:
        lines = [
            f"{name} = ns.custom_jvp(lambda x: x.sin() * x)",
            f"{name}.defjvp(lambda p, t: (p[0].sin() * p[0], t[0] * (p[0].cos() * p[0] + p[0].sin())))",
        ]
    run(s, lines, f"{name}({a})")


_FUNCTION = """\
class {name}(torch.autograd.Function):
    generate_vmap_rule = True
    @staticmethod
    def forward(x, factor):
        return x.sin() * factor
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.factor = inputs[1]
    @staticmethod
    def backward(ctx, ct):
        return ct * ctx.saved_tensors[0].cos() * ctx.factor, None
    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent * ctx.saved_tensors[0].cos() * ctx.factor
"""


def _function_of_torch(s: Scope, depth: int) -> None:
    """A ``torch.autograd.Function``, mostly where a loop calls it. torch (2.13) loses the second derivative of its rule
    in forward mode over forward mode, so the oracle is the function written out.
    """
    a = s.pick(where=lambda x: x.numel() > 0 and x.is_floating_point())
    name = s.new("Rule")
    factor = s.one_of("0.7", "2", "-0.4")
    written_out = f"{a}.sin() * {factor} if isinstance(ns, type) else"
    run(s, _FUNCTION.format(name=name).splitlines(), f"({written_out} {name}.apply({a}, {factor}))")


def _shared_data(s: Scope, depth: int) -> None:
    """Values of one memory and of histories of their own, written to in turn."""
    a = s.pick(where=lambda x: x.numel() > 0 and x.is_floating_point())
    y, z = s.new("y"), s.new("z")
    write = s.one_of("{y}.mul_(0.5)", "{z}.add_({a})", "{y}.reshape(-1)[0] = 0.3", "{z}.clamp_(max=0.4)", "pass")
    without = s.one_of("{y}.sub_(0.2)", "{z}.mul_(1.5)", "{y}.detach().zero_()", "pass")
    lines = [f"{y}, {z} = {a}.sin(), {a} * 0.7", f"{y}.data = {z}", write.format(y=y, z=z, a=a)]
    lines += ["with torch.no_grad():", f"    {without.format(y=y, z=z)}"]
    run(s, lines, f"({y} * 1, {z} * {y})")


def _written_to_later(s: Scope, depth: int) -> None:
    """A value that is written to after control flow has read it. The derivative reads none of it."""
    a = s.pick(where=lambda x: x.numel() > 0 and x.is_floating_point())
    y, r = s.new("y"), s.new("r")
    call = s.one_of(
        f"ns.fori_loop(0, 2, lambda i, c: c * 0.7 + {y}, {a})",
        f"ns.scan(lambda c, e: (c.sin() - {y}, e), {a}, {a}[None])[0]",
        f"ns.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * 0.7 + {y}), (torch.tensor(0), {a}))[1]",
        f"ns.cond({a}.sum() > 0.137, lambda v: v.sin() + {y}, lambda v: v * 0.7, {a})",
        f"ns.map(lambda v: v.cos() + {y}, {a}[None])[0]",
        f"ns.jit(lambda v: v.cos() - {y}, backend='eager')({a})",
    )
    write = s.one_of("{y}.mul_({k})", "{y}[...] = {r}", "{y}.reshape(-1)[:1].zero_()", "{y}.add_({a})", "{y}.tanh_()")
    lines = [f"{y} = {a} * {s.number}", f"{r} = {call}", write.format(y=y, r=r, a=a, k=s.number)]
    run(s, lines, f"({r} * 1, {y} * {a})")


def _nothing(s: Scope, depth: int) -> None:
    """A branch whose result has parts that are no tensors."""
    a = s.pick(where=lambda x: x.numel() > 0)
    name, tree = s.new("r"), s.one_of("(None, {b})", "{{'n': None, 't': ({b}, None)}}", "[{b}, (), {{}}]")
    yes, no = (tree.format(b=b) for b in (f"{a} * 0.5", f"{a}.sin()"))
    value = optree.tree_leaves(s.value(yes))
    if not value:
        raise NoOperandError
    s.say([f"{name} = ns.cond({a}.sum() > 0.137, lambda: {yes}, lambda: {no})"], [])
    unpack(s, name, s.env[name])


REGIONS: list[Callable[[Scope, int], Any]] = [_region, _region, _jitted, _jitted, _in_place, _by_hand, _nothing]
REGIONS += [_function_of_torch, _function_of_torch, _shared_data, _written_to_later]
