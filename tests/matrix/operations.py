"""The rows of the matrix: a program around each operation, and the plain Python loop that it must equal.

A program is a function of differentiable weights ``p``, which the bodies close over, and of one example ``x``, which
travels as operand, as carry or as ``xs``. Where an operation decides something by data, the decision depends on ``x``,
so that the lanes of a vmap disagree: ``decision`` says how, and test_grid.py asserts that they do.

The oracles use no function of the library, and no ``torch.where``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import functorch_hops as fh

Weights = dict[str, Tensor]
Program = Callable[[Weights, Tensor], Any]


@dataclass(frozen=True)
class Operation:
    """One row: the public function that it is about, the program with it, and the one without."""

    name: str
    public: str
    program: Program
    oracle: Program
    decision: Callable[[Weights, Tensor], Any] | None = None
    refused: tuple[str, ...] = ()
    """The contexts that are an error."""


OPERATIONS: dict[str, Operation] = {}


def operation(
    name: str, public: str, *, oracle: Program, decision: Any = None, refused: tuple[str, ...] = ()
) -> Callable[[Program], Program]:
    def register(program: Program) -> Program:
        assert name not in OPERATIONS
        OPERATIONS[name] = Operation(name, public, program, oracle, decision, refused)
        return program

    return register


def weights() -> Weights:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(3, generator=generator, dtype=torch.float64)
    return {"w": 0.5 * w, "b": 0.5 * b}


def examples() -> Tensor:
    """Four lanes, which disagree about every decision below."""
    return torch.tensor([[0.5, -0.9, 0.2], [0.3, 0.6, -0.1], [-0.8, -0.4, -0.7], [1.1, 0.7, 0.9]], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# branches


def _is_positive(p: Weights, x: Tensor) -> Tensor:
    return x.sum() > 0


def _cond_true(p: Weights, s: dict[str, Tensor]) -> dict[str, Any]:
    return {"y": torch.tanh(p["w"] @ s["x"]), "n": s["n"] * s["n"], "none": None}


def _cond_false(p: Weights, s: dict[str, Tensor]) -> dict[str, Any]:
    return {"y": torch.sin(s["x"]) * p["b"], "n": s["n"] + p["b"].sum(), "none": None}


def _cond_oracle(p: Weights, x: Tensor) -> Any:
    s = {"x": x * 2, "n": x[0]}
    return _cond_true(p, s) if _is_positive(p, x) else _cond_false(p, s)


@operation("cond", "cond", oracle=_cond_oracle, decision=_is_positive)
def _cond(p: Weights, x: Tensor) -> Any:
    operand = {"x": x * 2, "n": x[0]}
    return fh.cond(_is_positive(p, x), lambda s: _cond_true(p, s), lambda s: _cond_false(p, s), operand)


def _cond_closed_oracle(p: Weights, x: Tensor) -> Any:
    y = torch.exp(x)
    return (y * p["b"], x) if p["b"][2] + x[1] > 0 else (x, y @ p["w"])


@operation(
    "cond without operands",
    "cond",
    oracle=_cond_closed_oracle,
    decision=lambda p, x: bool(p["b"][2] + x[1] > 0),
)
def _cond_closed(p: Weights, x: Tensor) -> Any:
    y = torch.exp(x)
    return fh.cond(p["b"][2] + x[1] > 0, lambda: (y * p["b"], x), lambda: (x, y @ p["w"]))


def _index(p: Weights, x: Tensor) -> Tensor:
    return (x.sum() * 2).floor().to(torch.int64) + 1


def _branches(p: Weights) -> list[Callable[[Tensor, Any], Any]]:
    return [
        lambda a, k: (a * p["b"], k),
        lambda a, k: (torch.sin(p["w"] @ a), k + 1),
        lambda a, k: (a + a.sum() * p["b"], k * 3),
    ]


def _switch_oracle(p: Weights, x: Tensor) -> Any:
    index = min(max(int(_index(p, x)), 0), 2)
    return _branches(p)[index](x, torch.tensor(5))


@operation("switch", "switch", oracle=_switch_oracle, decision=_index)
def _switch(p: Weights, x: Tensor) -> Any:
    return fh.switch(_index(p, x), _branches(p), x, 5)


# ---------------------------------------------------------------------------------------------------------------------
# while


def _grow(p: Weights, state: Any) -> Any:
    n, s = state["n"], state["s"]
    return {"n": n + 1, "s": (s[0] * 1.5 + 0.1 * torch.tanh(p["w"] @ s[0]), s[1] + s[0].sum() * p["b"])}


def _is_small(state: Any) -> Tensor:
    return (state["s"][0] ** 2).sum() < 12


def _while_oracle(p: Weights, x: Tensor, most: int = 1000) -> Any:
    state = {"n": x.new_zeros((), dtype=torch.int64), "s": (x, p["b"])}
    while state["n"] < most and _is_small(state):
        state = _grow(p, state)
    return state


def _trips(p: Weights, x: Tensor) -> Tensor:
    return _while_oracle(p, x)["n"]


@operation("while_loop", "while_loop", oracle=_while_oracle, decision=_trips)
def _while(p: Weights, x: Tensor) -> Any:
    return fh.while_loop(_is_small, lambda s: _grow(p, s), {"n": 0, "s": (x, p["b"])})


@operation(
    "while_loop max_steps",
    "while_loop",
    oracle=lambda p, x: _while_oracle(p, x, 4),
    decision=lambda p, x: _while_oracle(p, x, 4)["n"],
)
def _while_max(p: Weights, x: Tensor) -> Any:
    return fh.while_loop(_is_small, lambda s: _grow(p, s), {"n": 0, "s": (x, p["b"])}, max_steps=4)


@operation("while_loop checkpoints", "while_loop", oracle=_while_oracle, decision=_trips)
def _while_checkpoints(p: Weights, x: Tensor) -> Any:
    return fh.while_loop(_is_small, lambda s: _grow(p, s), {"n": 0, "s": (x, p["b"])}, checkpoints=2)


def _countdown_oracle(p: Weights, x: Tensor) -> Any:
    value = x
    for _ in range(4):
        value = value * p["b"] + torch.sin(p["w"] @ value)
    return value


@operation("while_loop in step", "while_loop", oracle=_countdown_oracle)
def _countdown(p: Weights, x: Tensor) -> Any:
    """All lanes take the same number of steps: the condition is not batched."""

    def body(state: Any) -> Any:
        n, value = state
        return n - 1, value * p["b"] + torch.sin(p["w"] @ value)

    return fh.while_loop(lambda state: state[0], body, (4, x))[1]


@operation("while_loop checkpoints in step", "while_loop", oracle=_countdown_oracle)
def _countdown_checkpoints(p: Weights, x: Tensor) -> Any:
    def body(value: Tensor) -> Any:
        return value * p["b"] + torch.sin(p["w"] @ value)

    return fh.while_loop(lambda value: True, body, x, max_steps=4, checkpoints=1)


# ---------------------------------------------------------------------------------------------------------------------
# fori


def _fori_body(p: Weights, i: Any, state: Any) -> Any:
    a, total = state
    return torch.cos(p["w"] @ a) * (i + 1), total + a[i % 3] * p["b"][i % 3]


def _fori_oracle(p: Weights, x: Tensor, lower: int = 1, upper: int = 5) -> Any:
    state = (x, x.new_zeros(()))
    for i in range(lower, upper):
        state = _fori_body(p, i, state)
    return state


@operation("fori_loop", "fori_loop", oracle=_fori_oracle)
def _fori(p: Weights, x: Tensor) -> Any:
    return fh.fori_loop(1, 5, lambda i, s: _fori_body(p, i, s), (x, x.new_zeros(())))


@operation("fori_loop unroll", "fori_loop", oracle=_fori_oracle)
def _fori_unroll(p: Weights, x: Tensor) -> Any:
    init = (x, x.new_zeros(()))
    return fh.fori_loop(1, 5, lambda i, s: _fori_body(p, i, s), init, unroll=2)


def _positives(p: Weights, x: Tensor) -> Tensor:
    return (x > 0).sum()


@operation(
    "fori_loop tensor bounds",
    "fori_loop",
    oracle=lambda p, x: _fori_oracle(p, x, 0, int(_positives(p, x))),
    decision=_positives,
)
def _fori_tensor(p: Weights, x: Tensor) -> Any:
    init = (x, x.new_zeros(()))
    return fh.fori_loop(0, _positives(p, x), lambda i, s: _fori_body(p, i, s), init)


# ---------------------------------------------------------------------------------------------------------------------
# scan


def _sequence(x: Tensor) -> dict[str, Tensor]:
    return {"a": torch.stack([x, x * 2, x.sin(), x - 1, x.flip(0)]), "k": torch.arange(5, device=x.device)}


def _scan_step(p: Weights, carry: Any, x: Any) -> Any:
    h, count = carry["h"], carry["count"]
    new = torch.tanh(p["w"] @ h + x["a"] * p["b"])
    return {"h": new, "count": count + x["k"]}, (new * x["a"], x["k"], h.sum())


def _stack(rows: list[Any]) -> Any:
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _scan_oracle(p: Weights, x: Tensor, order: range = range(5)) -> Any:
    xs = _sequence(x)
    carry, rows = {"h": x, "count": x.new_zeros((), dtype=torch.int64)}, {}
    for t in order:
        carry, rows[t] = _scan_step(p, carry, {"a": xs["a"][t], "k": xs["k"][t]})
    return carry, _stack([rows[t] for t in range(5)])


@operation("scan", "scan", oracle=_scan_oracle)
def _scan(p: Weights, x: Tensor) -> Any:
    return fh.scan(lambda c, e: _scan_step(p, c, e), {"h": x, "count": 0}, _sequence(x))


@operation("scan reverse", "scan", oracle=lambda p, x: _scan_oracle(p, x, range(4, -1, -1)))
def _scan_reverse(p: Weights, x: Tensor) -> Any:
    return fh.scan(lambda c, e: _scan_step(p, c, e), {"h": x, "count": 0}, _sequence(x), reverse=True)


@operation("scan unroll", "scan", oracle=_scan_oracle)
def _scan_unroll(p: Weights, x: Tensor) -> Any:
    return fh.scan(lambda c, e: _scan_step(p, c, e), {"h": x, "count": 0}, _sequence(x), unroll=2)


@operation("scan reverse unroll", "scan", oracle=lambda p, x: _scan_oracle(p, x, range(4, -1, -1)))
def _scan_reverse_unroll(p: Weights, x: Tensor) -> Any:
    step = lambda c, e: _scan_step(p, c, e)
    return fh.scan(step, {"h": x, "count": 0}, _sequence(x), reverse=True, unroll=2)


def _no_xs_step(p: Weights, a: Tensor, b: Tensor) -> Any:
    return (b, p["w"] @ a * b.exp().sum()), a * b


def _scan_length_oracle(p: Weights, x: Tensor) -> Any:
    carry, ys = (x, p["b"]), []
    for _ in range(3):
        carry, y = _no_xs_step(p, *carry)
        ys.append(y)
    return carry, torch.stack(ys)


@operation("scan length", "scan", oracle=_scan_length_oracle)
def _scan_length(p: Weights, x: Tensor) -> Any:
    """No xs, and the carries change places in every step."""
    return fh.scan(lambda c, _: _no_xs_step(p, *c), (x, p["b"]), length=3)


# ---------------------------------------------------------------------------------------------------------------------
# associative_scan, map


def _pair(p: Weights, a: Any, b: Any) -> Any:
    """``u + v + c u v`` is associative, and so is the composition of affine maps."""
    c = p["b"][0]
    return {
        "u": a["u"] + b["u"] + c * a["u"] * b["u"],
        "f": (a["f"][0] * b["f"][0], b["f"][0] * a["f"][1] + b["f"][1]),
    }


def _elements(x: Tensor) -> dict[str, Any]:
    rows = torch.stack([x, x.sin(), x * 0.5, x.cos(), x - 0.5])
    return {"u": rows, "f": (rows.tanh(), rows.flip(0)[:, 0])}


def _associative_oracle(p: Weights, x: Tensor) -> Any:
    elems = _elements(x)
    rows = [{"u": elems["u"][t], "f": (elems["f"][0][t], elems["f"][1][t])} for t in range(5)]
    # The second affine coefficient is one number per row: both coefficients act on each component alone.
    rows = [{"u": r["u"], "f": (r["f"][0], r["f"][1].expand(3))} for r in rows]
    results = [rows[0]]
    for row in rows[1:]:
        results.append(_pair(p, results[-1], row))
    u, f0, f1 = _stack([(r["u"], *r["f"]) for r in results])
    return {"u": u, "f": (f0, f1)}


@operation("associative_scan", "associative_scan", oracle=_associative_oracle)
def _associative(p: Weights, x: Tensor) -> Any:
    elems = _elements(x)
    elems["f"] = (elems["f"][0], elems["f"][1][:, None].expand(5, 3))
    return fh.associative_scan(lambda a, b: _pair(p, a, b), elems)


def _associative_reverse_oracle(p: Weights, x: Tensor) -> Any:
    rows = x.outer(p["b"])
    results = [rows[:, 2]]
    for t in (1, 0):
        results.append(results[-1] + rows[:, t] + p["w"][0, 0] * results[-1] * rows[:, t])
    return torch.stack(results[::-1], dim=1)


@operation("associative_scan reverse dim", "associative_scan", oracle=_associative_reverse_oracle)
def _associative_reverse(p: Weights, x: Tensor) -> Any:
    fn = lambda a, b: a + b + p["w"][0, 0] * a * b
    return fh.associative_scan(fn, x.outer(p["b"]), dim=1, reverse=True)


def _map_body(p: Weights, x: Tensor, e: Any) -> Any:
    return {"y": torch.sin(p["w"] @ e["a"]) * x, "k": e["k"] * 2}


def _map_oracle(p: Weights, x: Tensor) -> Any:
    xs = _sequence(x)
    outs = [_map_body(p, x, {"a": xs["a"][t], "k": xs["k"][t]}) for t in range(5)]
    return {"y": torch.stack([o["y"] for o in outs]), "k": torch.stack([o["k"] for o in outs])}


@operation("map", "map", oracle=_map_oracle)
def _map(p: Weights, x: Tensor) -> Any:
    return fh.map(lambda e: _map_body(p, x, e), _sequence(x))


@operation("map batch_size", "map", oracle=_map_oracle)
def _map_batched(p: Weights, x: Tensor) -> Any:
    return fh.map(lambda e: _map_body(p, x, e), _sequence(x), batch_size=2)


# ---------------------------------------------------------------------------------------------------------------------
# closed calls


def _layer(p: Weights, s: dict[str, Tensor]) -> dict[str, Tensor]:
    h = torch.tanh(p["w"] @ s["x"])
    return {"h": h, "y": torch.sin(h) * p["b"] + s["x"]}


def _layers_oracle(p: Weights, x: Tensor) -> Any:
    return _layer(p, {"x": _layer(p, {"x": x * 2})["y"]})


@operation("checkpoint", "checkpoint", oracle=_layers_oracle)
def _checkpoint(p: Weights, x: Tensor) -> Any:
    layer = fh.checkpoint(lambda s: _layer(p, s))
    return layer({"x": layer({"x": x * 2})["y"]})


@operation("jit", "jit", oracle=_layers_oracle)
def _jit(p: Weights, x: Tensor) -> Any:
    layer = fh.jit(lambda s: _layer(p, s), backend="eager")
    return layer({"x": layer({"x": x * 2})["y"]})


# ---------------------------------------------------------------------------------------------------------------------
# derivatives by hand


def _layer_fwd(p: Weights, s: dict[str, Tensor]) -> Any:
    out = _vjp_layer(p, s)
    return out, (p, s["x"], out["h"])


def _layer_bwd(residuals: Any, ct: dict[str, Tensor]) -> Any:
    p, x, h = residuals
    z = (ct["h"] + ct["y"] * torch.cos(h) * p["b"]) * (1 - h**2)
    return {"w": z[:, None] * x, "b": ct["y"] * torch.sin(h)}, {"x": p["w"].T @ z + ct["y"]}


def _layer_rule(primals: Any, tangents: Any) -> Any:
    (p, s), (tp, ts) = primals, tangents
    out = _jvp_layer(p, s)
    h = out["h"]
    th = (1 - h**2) * (tp["w"] @ s["x"] + p["w"] @ ts["x"])
    return out, {"h": th, "y": torch.cos(h) * th * p["b"] + torch.sin(h) * tp["b"] + ts["x"]}


_vjp_layer = fh.custom_vjp(_layer)
_vjp_layer.defvjp(_layer_fwd, _layer_bwd)
_jvp_layer = fh.custom_jvp(_layer)
_jvp_layer.defjvp(_layer_rule)


@operation("custom_vjp", "custom_vjp", oracle=_layers_oracle, refused=("jvp", "jacfwd", "jvp(vmap)", "grad(jvp)"))
def _custom_vjp(p: Weights, x: Tensor) -> Any:
    return _vjp_layer(p, {"x": _vjp_layer(p, {"x": x * 2})["y"]})


@operation("custom_jvp", "custom_jvp", oracle=_layers_oracle)
def _custom_jvp(p: Weights, x: Tensor) -> Any:
    return _jvp_layer(p, {"x": _jvp_layer(p, {"x": x * 2})["y"]})


def _rule_scan_oracle(p: Weights, x: Tensor) -> Any:
    ys = []
    for row in p["w"]:
        out = _layer(p, {"x": x + row})
        x = out["y"] if x.sum() > 0 else out["h"]
        ys.append(x)
    return x, torch.stack(ys)


@operation("custom_jvp in cond in scan", "custom_jvp", oracle=_rule_scan_oracle, decision=_is_positive)
def _rule_scan(p: Weights, x: Tensor) -> Any:
    def step(x: Tensor, row: Tensor) -> Any:
        y = fh.cond(x.sum() > 0, lambda: _jvp_layer(p, {"x": x + row})["y"], lambda: _jvp_layer(p, {"x": x + row})["h"])
        return y, y

    return fh.scan(step, x, p["w"])


def _pull(p: Weights, x: Tensor, v: dict[str, Tensor]) -> dict[str, Tensor]:
    """A contraction."""
    return {"v": x - 0.4 * torch.tanh(p["w"] @ v["v"] + v["s"]), "s": 0.3 * torch.sin(v["v"] * p["b"]).sum()}


def _root_oracle(p: Weights, x: Tensor) -> Any:
    v = {"v": torch.zeros_like(x), "s": x.new_zeros(())}
    for _ in range(80):
        v = _pull(p, x, v)
    return v


def _settled(f: Any, v: Any) -> Any:
    """Iterate ``v - f(v)``, as long as each lane needs."""
    is_far = lambda v: (f(v)["v"] ** 2).sum() + f(v)["s"] ** 2 > 1e-28
    minus = lambda v, r: {"v": v["v"] - r["v"], "s": v["s"] - r["s"]}
    return fh.while_loop(is_far, lambda v: minus(v, f(v)), v)


def _settled_linear(g: Any, y: Any) -> Any:
    minus = lambda a, b: {"v": a["v"] - b["v"], "s": a["s"] - b["s"]}
    return _settled(lambda v: minus(g(v), y), y)


@operation("custom_root", "custom_root", oracle=_root_oracle)
def _root(p: Weights, x: Tensor) -> Any:
    def residual(v: dict[str, Tensor]) -> dict[str, Tensor]:
        w = _pull(p, x, v)
        return {"v": v["v"] - w["v"], "s": v["s"] - w["s"]}

    init = {"v": torch.zeros_like(x), "s": x.new_zeros(())}
    solve = lambda g, y: fh.custom_linear_solve(g, y, _settled_linear, _settled_linear)
    return fh.custom_root(residual, init, _settled, solve)


def _system(p: Weights, x: Tensor, v: dict[str, Tensor]) -> dict[str, Tensor]:
    """Linear in ``v``, and not symmetric."""
    v, s = v["v"], v["s"]
    return {"v": v + 0.4 * p["w"] @ v + 0.2 * torch.sin(x) * s, "s": s + 0.3 * (p["b"] * v).sum()}


def _linear_oracle(p: Weights, x: Tensor) -> Any:
    columns = []
    for e in torch.eye(4, dtype=x.dtype, device=x.device):
        column = _system(p, x, {"v": e[:3], "s": e[3]})
        columns.append(torch.cat([column["v"], column["s"][None]]))
    solution = torch.linalg.inv(torch.stack(columns, dim=1)) @ torch.cat([x * p["b"], x[:1]])
    return {"v": solution[:3], "s": solution[3]}


@operation("custom_linear_solve", "custom_linear_solve", oracle=_linear_oracle)
def _linear(p: Weights, x: Tensor) -> Any:
    b = {"v": x * p["b"], "s": x[0]}
    return fh.custom_linear_solve(lambda v: _system(p, x, v), b, _settled_linear, _settled_linear)


# ---------------------------------------------------------------------------------------------------------------------
# control flow in control flow


def _cond_while_oracle(p: Weights, x: Tensor) -> Any:
    if not _is_positive(p, x):
        return x * p["b"]
    value = x
    while value.sum() < 6:
        value = value * 1.5 + torch.tanh(p["w"] @ x) * 0.1 + 0.05
    return value


@operation("while_loop in cond", "while_loop", oracle=_cond_while_oracle, decision=_is_positive)
def _cond_while(p: Weights, x: Tensor) -> Any:
    """The loop would never end for the lanes that do not take its branch (jax-ml/jax 2947)."""

    def grow(value: Tensor) -> Tensor:
        return value * 1.5 + torch.tanh(p["w"] @ x) * 0.1 + 0.05

    return fh.cond(_is_positive(p, x), lambda v: fh.while_loop(lambda s: s.sum() < 6, grow, v), lambda v: v * p["b"], x)


def _cond_cond_oracle(p: Weights, x: Tensor) -> Any:
    if not _is_positive(p, x):
        return x - p["b"]
    return torch.sqrt(x + 1) @ p["w"] if x[2] > 0 else x * p["b"]


@operation("cond in cond", "cond", oracle=_cond_cond_oracle, decision=_is_positive)
def _cond_cond(p: Weights, x: Tensor) -> Any:
    """Each branch closes over what the others do not."""
    inner = lambda v: fh.cond(v[2] > 0, lambda u: torch.sqrt(u + 1) @ p["w"], lambda u: u * p["b"], v)
    return fh.cond(_is_positive(p, x), inner, lambda v: v - p["b"], x)


def _while_cond_oracle(p: Weights, x: Tensor) -> Any:
    value, n = x, torch.tensor(0)
    while (value.abs() < 3).all():
        value = value * 1.7 + p["b"] if value[0] > 0.4 else value - 1.1 * p["b"].exp()
        n = n + 1
    return value, n


@operation("cond in while_loop", "cond", oracle=_while_cond_oracle, decision=lambda p, x: _while_cond_oracle(p, x)[1])
def _while_cond(p: Weights, x: Tensor) -> Any:
    def body(state: Any) -> Any:
        value, n = state
        value = fh.cond(value[0] > 0.4, lambda v: v * 1.7 + p["b"], lambda v: v - 1.1 * p["b"].exp(), value)
        return value, n + 1

    return fh.while_loop(lambda s: (s[0].abs() < 3).all(), body, (x, 0))


def _halving(p: Weights, value: Tensor) -> Tensor:
    return value * 0.5 + 0.1 * torch.sin(p["b"])


def _scan_while_oracle(p: Weights, x: Tensor) -> Any:
    carry, ys = x, []
    for t in range(3):
        bound = x[t] ** 2 + 0.5
        value = carry + p["w"][t]
        while (value**2).sum() > bound:
            value = _halving(p, value)
        carry = value * 2
        ys.append(value.sum() * carry)
    return carry, torch.stack(ys)


def _scan_while_trips(p: Weights, x: Tensor) -> int:
    value, trips = x + p["w"][0], 0
    while (value**2).sum() > x[0] ** 2 + 0.5:
        value, trips = _halving(p, value), trips + 1
    return trips


@operation("while_loop in scan", "while_loop", oracle=_scan_while_oracle, decision=_scan_while_trips)
def _scan_while(p: Weights, x: Tensor) -> Any:
    """The inner condition closes over the element of the outer loop."""

    def step(carry: Tensor, e: Any) -> Any:
        row, a = e
        is_large = lambda v: (v**2).sum() > a**2 + 0.5
        value = fh.while_loop(is_large, lambda v: _halving(p, v), carry + row)
        return value * 2, value.sum() * (value * 2)

    return fh.scan(step, x, (p["w"], x))


def _descent_oracle(p: Weights, x: Tensor) -> Any:
    value, energies = x, []
    for _ in range(3):
        residual = p["w"] @ value - p["b"]
        energies.append((residual**2).sum() + (value**4).sum())
        value = value - 0.1 * (2 * p["w"].T @ residual + 4 * value**3)
    return value, torch.stack(energies)


@operation("value_and_grad in scan", "scan", oracle=_descent_oracle)
def _descent(p: Weights, x: Tensor) -> Any:
    """Gradient descent, the gradient taken inside the body; the oracle has it by hand."""

    def energy(value: Tensor) -> Tensor:
        return ((p["w"] @ value - p["b"]) ** 2).sum() + (value**4).sum()

    def step(value: Tensor, _: None) -> Any:
        e, slope = fh.value_and_grad(energy)(value)
        return value - 0.1 * slope, e

    return fh.scan(step, x, length=3)


def _map_vmap_oracle(p: Weights, x: Tensor) -> Any:
    rows = []
    for r in p["w"]:
        rows.append(torch.stack([v * r.sum() if v + r[0] > 0 else torch.sin(v) * x.sum() for v in x]))
    return torch.stack(rows)


@operation("vmap of cond in map", "map", oracle=_map_vmap_oracle, decision=lambda p, x: bool(x[0] + p["w"][0, 0] > 0))
def _map_vmap(p: Weights, x: Tensor) -> Any:
    def row(r: Tensor) -> Tensor:
        return fh.vmap(lambda v: fh.cond(v + r[0] > 0, lambda: v * r.sum(), lambda: torch.sin(v) * x.sum()))(x)

    return fh.map(row, p["w"])
