"""Results that do not fit: trees, shapes, dtypes, devices, constants."""

import collections
import dataclasses
from typing import Any

import torch

import functorch_hops as fh
from misuses.registry import YES, X, misuse, misuse_captured

Pair = collections.namedtuple("Pair", ["h", "w"])


class Named:
    """Equal to itself alone."""

    def __repr__(self) -> str:
        return "Named()"


@dataclasses.dataclass
class State:
    h: Any
    cells: Any


# --- branches


@misuse_captured(fh.TreeMismatchError)
def cond_trees_differ():
    fh.cond(YES, lambda x: {"h": (x, x)}, lambda x: {"h": [x, x]}, X)


@misuse_captured(fh.TreeMismatchError)
def cond_keys_differ():
    fh.cond(YES, lambda x: [{"a": x, "b": x}], lambda x: [{"a": x, "c": x}], X)


@misuse_captured(fh.TreeMismatchError)
def cond_branch_returns_nothing():
    fh.cond(YES, lambda x: x, lambda x: None, X)


@misuse_captured(fh.MetadataMismatchError)
def cond_shapes_differ():
    fh.cond(YES, lambda x: {"h": (x, x)}, lambda x: {"h": (x, x[:1])}, X)


@misuse_captured(fh.MetadataMismatchError)
def cond_shapes_differ_with_a_python_operand():
    fh.cond(YES, lambda x, k: x * k, lambda x, k: k, X, 2.0)


@misuse_captured(fh.MetadataMismatchError)
def cond_dtypes_differ():
    fh.cond(YES, lambda x: x, lambda x: x.double(), X)


@misuse_captured(fh.MetadataMismatchError)
def cond_devices_differ():
    fh.cond(YES, lambda x: x, lambda x: x.to("meta"), X)


@misuse_captured(fh.TreeMismatchError)
def cond_constants_differ():
    fh.cond(YES, lambda x: (x, "yes"), lambda x: (x, "no"), X)


@misuse_captured(fh.TreeMismatchError)
def cond_constant_against_tensor():
    fh.cond(YES, lambda x: (x, "mean"), lambda x: (x, x), X)


@misuse_captured(fh.MetadataMismatchError)
def cond_number_against_tensor():
    fh.cond(YES, lambda x: (x, 1), lambda x: (x, x), X)


@misuse_captured(fh.MetadataMismatchError)
def cond_number_against_number():
    fh.cond(YES, lambda: 1, lambda: 0.5)


@misuse_captured(fh.MetadataMismatchError)
def switch_shapes_differ():
    fh.switch(torch.tensor(1), [torch.sin, torch.cos, torch.sum], X)


# --- carries


@misuse(fh.TreeMismatchError)
def scan_carry_changes_its_tree():
    fh.scan(lambda c, x: ((c[0], c), x), (X, X), torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_carry_loses_a_leaf_deep_in_a_namedtuple():
    def step(c, x):
        return Pair(c.h, {"gate": [c.w["gate"][0], None]}), x

    fh.scan(step, Pair(X, {"gate": [X, X]}), torch.ones(3))


@misuse(fh.MetadataMismatchError)
def scan_carry_changes_its_dtype_deep_in_a_dataclass():
    def step(s, x):
        return State(s.h, {"k": (s.cells["k"][0], s.cells["k"][1].double())}), x

    fh.scan(step, State(X, {"k": (X, X)}), torch.ones(3))


@misuse(fh.MetadataMismatchError)
def scan_carry_changes_its_shape():
    fh.scan(lambda c, x: ({"h": [c["h"][0], torch.cat([c["h"][1], x[None]])]}, x), {"h": [X, X]}, torch.ones(3))


@misuse(fh.MetadataMismatchError)
def scan_carry_grows_by_broadcasting():
    fh.scan(lambda c, x: (c + x, None), 0.0, torch.ones(3, 2))


@misuse(fh.MetadataMismatchError)
def scan_carry_changes_its_dtype():
    fh.scan(lambda c, x: (c + x, x), torch.tensor(0), torch.ones(3))


@misuse(fh.MetadataMismatchError)
def scan_float_becomes_an_int():
    fh.scan(lambda c, x: ({"k": c["k"].long()}, x), {"k": 0.5}, torch.ones(3))


@misuse(fh.MetadataMismatchError)
def scan_number_changes_its_dtype_in_every_step():
    fh.scan(lambda c, x: (c.float() if c.dtype == torch.int64 else c.long(), x), 0, torch.ones(3))


@misuse(fh.ArgumentValueError)
def scan_number_out_of_range():
    fh.scan(lambda c, x: ((c[0].to(torch.int8), x), x), (300, 0), torch.ones(3))


@misuse(fh.ArgumentValueError)
def fori_loop_number_out_of_range():
    fh.fori_loop(0, 3, lambda i, c: c.half(), 1e6)


@misuse(fh.MetadataMismatchError)
def scan_carry_changes_its_device():
    fh.scan(lambda c, x: (c.to("meta"), x), X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_carry_becomes_a_string():
    fh.scan(lambda c, x: ("c", x), X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_body_returns_no_pair():
    fh.scan(lambda c, x: c + x, X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_body_returns_a_list():
    fh.scan(lambda c, x: [c, x], X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_body_returns_three():
    fh.scan(lambda c, x: (c, x, x), X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_body_returns_nothing():
    fh.scan(lambda c, x: None, X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_body_is_a_generator():
    def step(c, x):
        yield c, x

    fh.scan(step, X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def scan_of_no_step_returns_no_pair():
    fh.scan(lambda c, x: c, X, torch.ones(0))


@misuse(fh.MetadataMismatchError)
def scan_in_a_scan_changes_its_carry():
    def outer(c, x):
        def inner(v, y):
            return {"v": torch.cat([v["v"], v["v"]])}, y

        return fh.scan(inner, {"v": c}, torch.ones(2))[0]["v"], x

    fh.scan(outer, X, torch.ones(3))


@misuse(fh.TreeMismatchError)
def while_loop_carry_gains_a_key():
    fh.while_loop(lambda s: s["a"].sum() < 9, lambda s: {**s, "b": X}, {"a": X})


@misuse(fh.TreeMismatchError)
def while_loop_body_returns_nothing():
    fh.while_loop(lambda x: x.sum() < 9, lambda x: None, X)


@misuse(fh.MetadataMismatchError)
def while_loop_carry_changes_its_dtype():
    fh.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 0.5, s[1]), (torch.tensor(0), X))


@misuse(fh.MetadataMismatchError)
def while_loop_with_max_steps_changes_its_carry():
    fh.while_loop(lambda s: s["k"] < 9, lambda s: {"k": s["k"] + 0.5}, {"k": torch.tensor(0)}, max_steps=3)


@misuse(fh.MetadataMismatchError)
def while_loop_with_max_steps_float_becomes_an_int():
    fh.while_loop(lambda s: s["k"] < 9, lambda s: {"k": s["k"].long() + 1}, {"k": 0.0}, max_steps=3)


@misuse(fh.MetadataMismatchError)
def while_loop_bool_becomes_a_number():
    fh.while_loop(lambda done: done < 1, lambda done: done + 1, torch.tensor(False))


@misuse(fh.MetadataMismatchError)
def fori_loop_carry_changes_its_shape():
    fh.fori_loop(0, 3, lambda i, x: torch.cat([x, x]), X)


@misuse(fh.MetadataMismatchError)
def fori_loop_carry_changes_its_dtype():
    fh.fori_loop(0, 3, lambda i, v: {"total": v["total"] + 0.5}, {"total": torch.tensor(0)})


@misuse(fh.TreeMismatchError)
def fori_loop_body_returns_nothing():
    fh.fori_loop(0, 3, lambda i, x: None, X)


@misuse(fh.MetadataMismatchError)
def fori_loop_with_tensor_bounds_changes_its_carry():
    fh.fori_loop(0, torch.tensor(3), lambda i, v: {"x": torch.cat([v["x"], v["x"]])}, {"x": X})


@misuse(fh.MetadataMismatchError)
def associative_scan_element_changes_its_shape():
    fh.associative_scan(lambda a, b: torch.cat([a, b]), torch.ones(4, 2))


@misuse(fh.MetadataMismatchError)
def associative_scan_element_changes_its_dtype():
    fh.associative_scan(lambda a, b: {"s": (a["s"] + b["s"]) * 0.5}, {"s": torch.arange(4)})


@misuse(fh.TreeMismatchError)
def associative_scan_element_changes_its_tree():
    fh.associative_scan(lambda a, b: [a[0], b[0]], (torch.ones(4), torch.ones(4)))


@misuse(fh.TreeMismatchError)
def associative_scan_function_returns_nothing():
    fh.associative_scan(lambda a, b: None, torch.ones(4))


# --- outputs that differ between steps: only plain eager calls a body more than once


@misuse(fh.TreeMismatchError, "plain")
def scan_output_changes_its_tree():
    seen = []
    fh.scan(lambda c, x: (c, {"ys": seen.append(x) or list(seen)}), X, torch.ones(3))


@misuse(fh.TreeMismatchError, "plain")
def scan_constant_changes():
    names = iter("abc")
    fh.scan(lambda c, x: (c, {"name": next(names)}), X, torch.ones(3))


@misuse(fh.MetadataMismatchError, "plain")
def scan_output_becomes_a_number():
    outputs = iter([X, 1.0, X])
    fh.scan(lambda c, x: (c, next(outputs)), X, torch.ones(3))


@misuse(fh.MetadataMismatchError, "plain")
def scan_output_changes_its_shape():
    sizes = iter(range(3))
    fh.scan(lambda c, x: (c, [x, torch.ones(next(sizes))]), X, torch.ones(3))


@misuse(fh.MetadataMismatchError, "plain")
def map_output_changes_its_dtype():
    dtypes = iter([torch.float32, torch.float64, torch.float32])
    fh.map(lambda x: x.to(next(dtypes)), torch.ones(3))


@misuse(fh.TreeMismatchError, "plain")
def map_output_changes_its_tree():
    seen = []
    fh.map(lambda x: seen.append(x) or tuple(seen), torch.ones(3))


@misuse(fh.TreeMismatchError)
def map_constant_changes_between_chunks():
    fh.map(lambda x: (x, Named()), torch.ones(3), batch_size=2)


@misuse_captured(fh.CaptureError)
def branch_returns_a_tensor_that_begins_a_history():
    fh.cond(YES, lambda x: x.detach().requires_grad_(), lambda x: x * 2, X)
