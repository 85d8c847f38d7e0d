"""Every misuse that the library refuses; test_misuse.py checks each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import functorch_hops as fh

X = torch.ones(2)
YES = torch.tensor(True)


@dataclass(frozen=True)
class Misuse:
    error: type[Exception]
    call: Callable[[], Any]
    captured: bool
    """Whether it is seen only while capturing."""


MISUSES: dict[str, Misuse] = {}


def _misuse(error: type[Exception], *, captured: bool = False) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(call: Callable[[], Any]) -> Callable[[], Any]:
        MISUSES[call.__name__] = Misuse(error, call, captured)
        return call

    return register


# ---------------------------------------------------------------------------------------------------------------------
# arguments


@_misuse(fh.ArgumentTypeError)
def cond_branch_not_callable():
    fh.cond(YES, X, torch.sin, X)


@_misuse(fh.ArgumentTypeError)
def cond_predicate_of_several_elements():
    fh.cond(X > 0, torch.sin, torch.cos, X)


@_misuse(fh.ArgumentTypeError)
def cond_predicate_of_no_element():
    fh.cond(torch.zeros(0), torch.sin, torch.cos, X)


@_misuse(fh.ArgumentTypeError)
def cond_predicate_is_a_string():
    fh.cond("yes", torch.sin, torch.cos, X)


@_misuse(fh.ArgumentTypeError, captured=True)
def cond_operand_is_a_string():
    fh.cond(YES, lambda s: s["x"], lambda s: s["x"], {"x": X, "mode": "fast"})


@_misuse(fh.ArgumentValueError)
def switch_without_branches():
    fh.switch(YES, [], X)


@_misuse(fh.ArgumentTypeError)
def switch_branch_not_callable():
    fh.switch(0, [torch.sin, None], X)


@_misuse(fh.ArgumentTypeError)
def switch_index_is_a_float():
    fh.switch(torch.tensor(0.5), [torch.sin, torch.cos], X)


@_misuse(fh.ArgumentTypeError)
def switch_index_of_several_elements():
    fh.switch(torch.tensor([0, 1]), [torch.sin, torch.cos], X)


@_misuse(fh.ArgumentTypeError)
def while_loop_body_not_callable():
    fh.while_loop(lambda x: x < 3, 3, X)


@_misuse(fh.ArgumentTypeError)
def while_loop_condition_of_several_elements():
    fh.while_loop(lambda x: x < 3, lambda x: x + 1, X)


@_misuse(fh.ArgumentTypeError)
def while_loop_condition_returns_nothing():
    fh.while_loop(lambda x: None, lambda x: x + 1, X)


@_misuse(fh.ArgumentTypeError)
def while_loop_max_steps_is_a_float():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, max_steps=2.0)


@_misuse(fh.ArgumentValueError)
def while_loop_max_steps_negative():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, max_steps=-1)


@_misuse(fh.ArgumentValueError)
def while_loop_checkpoints_zero():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, checkpoints=0)


@_misuse(fh.ArgumentTypeError)
def while_loop_carry_holds_a_string():
    fh.while_loop(lambda s: s["x"].sum() < 3, lambda s: s, {"x": X, "name": "a"})


@_misuse(fh.ArgumentTypeError)
def fori_loop_float_bound():
    fh.fori_loop(0, 2.5, lambda i, x: x, X)


@_misuse(fh.ArgumentTypeError)
def fori_loop_float_tensor_bound():
    fh.fori_loop(torch.tensor(0.0), 2, lambda i, x: x, X)


@_misuse(fh.ArgumentValueError)
def fori_loop_unroll_of_tensor_bounds():
    fh.fori_loop(0, torch.tensor(2), lambda i, x: x, X, unroll=2)


@_misuse(fh.ArgumentValueError)
def scan_unroll_zero():
    fh.scan(lambda c, x: (c, x), X, X, unroll=0)


@_misuse(fh.ArgumentValueError)
def scan_unroll_is_a_bool():
    fh.scan(lambda c, x: (c, x), X, X, unroll=True)


@_misuse(fh.ArgumentTypeError)
def scan_body_not_callable():
    fh.scan(None, X, X)


@_misuse(fh.ArgumentValueError)
def scan_lengths_disagree():
    fh.scan(lambda c, x: (c, x["a"]), X, {"a": torch.ones(3, 2), "b": [torch.ones(4)]})


@_misuse(fh.ArgumentValueError)
def scan_length_argument_disagrees():
    fh.scan(lambda c, x: (c, x), X, torch.ones(3), length=4)


@_misuse(fh.ArgumentValueError)
def scan_without_length():
    fh.scan(lambda c, x: (c, x), X)


@_misuse(fh.ArgumentValueError)
def scan_length_negative():
    fh.scan(lambda c, x: (c, x), X, length=-1)


@_misuse(fh.ArgumentTypeError)
def scan_length_is_a_float():
    fh.scan(lambda c, x: (c, x), X, length=2.0)


@_misuse(fh.ArgumentValueError)
def scan_over_a_scalar():
    fh.scan(lambda c, x: (c, x), X, (torch.ones(3), torch.tensor(1.0)))


@_misuse(fh.ArgumentValueError)
def scan_unknown_remat():
    fh.scan(lambda c, x: (c, x), X, torch.ones(3), remat="everything")


@_misuse(fh.ArgumentValueError)
def map_sizes_disagree():
    fh.map(lambda x: x[0], (torch.ones(3), torch.ones(2)))


@_misuse(fh.ArgumentTypeError)
def map_over_nothing():
    fh.map(lambda x: x, ())


@_misuse(fh.ArgumentValueError)
def map_batch_size_zero():
    fh.map(lambda x: x, torch.ones(3), batch_size=0)


@_misuse(fh.ArgumentValueError)
def associative_scan_sizes_disagree():
    fh.associative_scan(lambda a, b: a, (torch.ones(3), torch.ones(2)))


@_misuse(fh.ArgumentValueError)
def associative_scan_no_such_dim():
    fh.associative_scan(torch.add, torch.ones(3), dim=1)


@_misuse(fh.ArgumentTypeError)
def associative_scan_over_nothing():
    fh.associative_scan(torch.add, {})


@_misuse(fh.ArgumentTypeError)
def grad_of_an_integer():
    fh.grad(lambda x: x.sum())(torch.arange(3))


@_misuse(fh.ArgumentTypeError)
def grad_of_no_scalar():
    fh.grad(torch.sin)(X)


@_misuse(fh.ArgumentValueError)
def vmap_over_no_dimension():
    fh.vmap(torch.sin)(torch.tensor(1.0))


@_misuse(fh.ArgumentTypeError)
def jit_not_callable():
    fh.jit(X)


@_misuse(fh.ArgumentTypeError)
def checkpoint_not_callable():
    fh.checkpoint(X)


@_misuse(fh.ArgumentValueError)
def checkpoint_policy_by_name():
    fh.checkpoint(torch.sin, policy="save_matmuls")


@_misuse(fh.ArgumentTypeError)
def checkpoint_no_policy():
    fh.checkpoint(torch.sin, policy=torch.sin)


@_misuse(fh.ArgumentTypeError)
def checkpoint_name_no_string():
    fh.checkpoint_name(X, 1)


# ---------------------------------------------------------------------------------------------------------------------
# trees and metadata


@_misuse(fh.TreeMismatchError, captured=True)
def cond_trees_differ():
    fh.cond(YES, lambda x: {"h": (x, x)}, lambda x: {"h": [x, x]}, X)


@_misuse(fh.MetadataMismatchError, captured=True)
def cond_shapes_differ():
    fh.cond(YES, lambda x: {"h": (x, x)}, lambda x: {"h": (x, x[:1])}, X)


@_misuse(fh.MetadataMismatchError, captured=True)
def cond_dtypes_differ():
    fh.cond(YES, lambda x: x, lambda x: x.double(), X)


@_misuse(fh.MetadataMismatchError, captured=True)
def cond_devices_differ():
    fh.cond(YES, lambda x: x, lambda x: x.to("meta"), X)


@_misuse(fh.TreeMismatchError, captured=True)
def cond_constants_differ():
    fh.cond(YES, lambda x: (x, "yes"), lambda x: (x, "no"), X)


@_misuse(fh.TreeMismatchError, captured=True)
def cond_constant_against_tensor():
    fh.cond(YES, lambda x: (x, 1), lambda x: (x, x), X)


@_misuse(fh.MetadataMismatchError, captured=True)
def switch_shapes_differ():
    fh.switch(torch.tensor(1), [torch.sin, torch.cos, torch.sum], X)


@_misuse(fh.TreeMismatchError)
def scan_carry_changes_its_tree():
    fh.scan(lambda c, x: ((c[0], c), x), (X, X), torch.ones(3))


@_misuse(fh.MetadataMismatchError)
def scan_carry_changes_its_shape():
    fh.scan(lambda c, x: ({"h": [c["h"][0], torch.cat([c["h"][1], x[None]])]}, x), {"h": [X, X]}, torch.ones(3))


@_misuse(fh.MetadataMismatchError)
def scan_carry_changes_its_dtype():
    fh.scan(lambda c, x: (c + x, x), 0, torch.ones(3))


@_misuse(fh.TreeMismatchError)
def scan_carry_becomes_a_string():
    fh.scan(lambda c, x: ("c", x), X, torch.ones(3))


@_misuse(fh.TreeMismatchError)
def scan_body_returns_no_pair():
    fh.scan(lambda c, x: c + x, X, torch.ones(3))


@_misuse(fh.TreeMismatchError)
def scan_body_returns_a_list():
    fh.scan(lambda c, x: [c, x], X, torch.ones(3))


@_misuse(fh.TreeMismatchError)
def while_loop_carry_changes_its_tree():
    fh.while_loop(lambda s: s["a"].sum() < 9, lambda s: {**s, "b": X}, {"a": X})


@_misuse(fh.MetadataMismatchError)
def while_loop_carry_changes_its_dtype():
    fh.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 0.5, s[1]), (0, X))


@_misuse(fh.MetadataMismatchError)
def fori_loop_carry_changes_its_shape():
    fh.fori_loop(0, 3, lambda i, x: torch.cat([x, x]), X)


@_misuse(fh.MetadataMismatchError)
def fori_loop_tensor_bounds_carry_changes_its_shape():
    fh.fori_loop(0, torch.tensor(3), lambda i, x: torch.cat([x, x]), X)


@_misuse(fh.MetadataMismatchError)
def associative_scan_element_changes_its_shape():
    fh.associative_scan(lambda a, b: torch.cat([a, b]), torch.ones(4, 2))


@_misuse(fh.TreeMismatchError)
def associative_scan_element_changes_its_tree():
    fh.associative_scan(lambda a, b: [a[0], b[0]], (torch.ones(4), torch.ones(4)))


# ---------------------------------------------------------------------------------------------------------------------
# bodies


@_misuse(fh.DataDependentError, captured=True)
def body_with_an_if():
    fh.cond(YES, lambda x: x if x.sum() > 0 else -x, lambda x: x, X)


@_misuse(fh.DataDependentError, captured=True)
def body_with_item():
    fh.scan(lambda c, x: (c * x.item(), x), X, torch.ones(3))


@_misuse(fh.DataDependentError, captured=True)
def body_with_int():
    fh.fori_loop(0, 3, lambda i, x: x[: int(i)], X)


@_misuse(fh.DataDependentError, captured=True)
def body_with_range():
    fh.fori_loop(0, 3, lambda i, x: sum((x for _ in range(i)), x), X)


@_misuse(fh.DataDependentError, captured=True)
def condition_with_and():
    fh.while_loop(lambda x: x.sum() < 9 and x[0] < 4, lambda x: x + 1, X)


@_misuse(fh.DataDependentError, captured=True)
def body_with_numpy():
    fh.map(lambda x: torch.from_numpy(x.numpy()), torch.ones(3, 2))


@_misuse(fh.CaptureError, captured=True)
def output_of_unknown_shape():
    fh.cond(YES, lambda x: x[x > 0], lambda x: x[x > 0], X)


@_misuse(fh.CaptureError, captured=True)
def carry_of_unknown_shape():
    fh.map(lambda x: x[x > 0], torch.ones(3, 2))


@_misuse(fh.DataDependentError)
def jit_with_an_if():
    fh.jit(lambda x: x if x.sum() > 0 else -x, backend="eager")(X)


@_misuse(fh.DataDependentError)
def jit_with_item_in_a_body():
    fh.jit(lambda x: fh.fori_loop(0, 3, lambda i, c: c * c.sum().item(), x), backend="eager")(X)


@_misuse(fh.LeakedTensorError)
def jit_leaks():
    kept = []
    fh.jit(lambda x: kept.append(x + 1) or x, backend="eager")(X)
    kept[0] * 2


@_misuse(fh.InfiniteLoopError)
def jit_of_an_infinite_loop():
    fh.jit(lambda x: fh.while_loop(lambda v: True, lambda v: v + 1, x), backend="eager")(X)


@_misuse(fh.MetadataMismatchError)
def make_graph_of_a_mismatch():
    fh.make_graph(lambda x: fh.cond(x.sum() > 0, lambda v: v, lambda v: v.double(), x))(X)


@_misuse(fh.InputMutationError, captured=True)
def body_writes_to_its_input():
    fh.cond(YES, lambda x: x.add_(1), lambda x: x, X.clone())


@_misuse(fh.InputMutationError, captured=True)
def body_writes_to_a_view_of_its_input():
    def write(c, x):
        c.view(2, 1)[0] = 1.0
        return c, x

    fh.scan(write, X.clone(), torch.ones(3))


@_misuse(fh.InputMutationError, captured=True)
def body_writes_to_a_closed_over_tensor():
    total = torch.zeros(2)

    def body(x):
        total.add_(x)
        return x + 1

    fh.while_loop(lambda x: x.sum() < 9, body, X)


@_misuse(fh.InputMutationError, captured=True)
def body_writes_to_an_element():
    fh.map(lambda x: x.mul_(2), torch.ones(3, 2))


@_misuse(fh.InputMutationError, captured=True)
def body_writes_by_a_traced_index():
    table = torch.zeros(3)

    def body(i, x):
        table[i] = 1.0
        return x

    fh.fori_loop(0, 3, body, X)


@_misuse(fh.InputMutationError, captured=True)
def body_writes_through_out():
    table = torch.zeros(2)
    fh.fori_loop(0, 3, lambda i, x: torch.add(x, 1, out=table), X)


@_misuse(fh.InfiniteLoopError, captured=True)
def condition_constantly_true():
    fh.while_loop(lambda x: True, lambda x: x + 1, X)


@_misuse(fh.LeakedTensorError, captured=True)
def leaked_tensor_of_a_finished_capture():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    kept[0] + 1


@_misuse(fh.LeakedTensorError, captured=True)
def leaked_input_of_a_finished_capture():
    kept = []
    fh.cond(YES, lambda x: kept.append(x) or x, lambda x: x, X)
    torch.stack([kept[0], X])


@_misuse(fh.LeakedTensorError, captured=True)
def leaked_tensor_in_another_capture():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    fh.cond(YES, lambda x: x + kept[0], lambda x: x, X)


@_misuse(fh.LeakedTensorError, captured=True)
def leaked_tensor_within_an_enclosing_capture():
    def outer(c, x):
        kept = []
        fh.cond(c.sum() > 0, lambda v: kept.append(v * 2) or v, lambda v: v, c)
        return c + kept[0], x

    fh.scan(outer, X, torch.ones(3))


@_misuse(fh.LeakedTensorError, captured=True)
def leaked_tensor_as_an_operand():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    fh.cond(YES, torch.sin, torch.cos, kept[0])


@_misuse(fh.LeakedTensorError, captured=True)
def leaked_tensor_of_a_sibling_branch():
    kept = []
    fh.cond(YES, lambda x: kept[0] + x if kept else x, lambda x: kept.append(x * 2) or x, X)
