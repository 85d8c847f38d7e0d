"""Wrong arguments of control flow."""

import numpy as np
import torch

import functorch_hops as fh
from misuses.registry import YES, X, misuse, misuse_captured

# --- cond and switch


@misuse(fh.ArgumentTypeError)
def cond_branch_not_callable():
    fh.cond(YES, X, torch.sin, X)


@misuse(fh.ArgumentTypeError)
def cond_other_branch_missing():
    fh.cond(YES, torch.sin, None, X)


@misuse(fh.ArgumentTypeError)
def cond_predicate_of_several_elements():
    fh.cond(X > 0, torch.sin, torch.cos, X)


@misuse(fh.ArgumentTypeError)
def cond_predicate_of_no_element():
    fh.cond(torch.zeros(0), torch.sin, torch.cos, X)


@misuse(fh.ArgumentTypeError)
def cond_predicate_is_a_string():
    fh.cond("yes", torch.sin, torch.cos, X)


@misuse(fh.ArgumentTypeError)
def cond_predicate_is_none():
    fh.cond(None, torch.sin, torch.cos, X)


@misuse(fh.ArgumentTypeError)
def cond_predicate_is_an_array():
    fh.cond(np.ones(2) > 0, torch.sin, torch.cos, X)


@misuse(fh.ArgumentTypeError)
def cond_predicate_is_a_function():
    fh.cond(lambda x: x > 0, torch.sin, torch.cos, X)


@misuse_captured(fh.ArgumentTypeError)
def cond_operand_is_a_string():
    fh.cond(YES, lambda s: s["x"], lambda s: s["x"], {"x": X, "mode": "fast"})


@misuse_captured(fh.ArgumentTypeError)
def cond_operand_is_a_module():
    fh.cond(YES, lambda m, x: x, lambda m, x: x, torch.nn.Identity(), X)


@misuse(TypeError)
def cond_operand_by_keyword():
    fh.cond(YES, torch.sin, torch.cos, x=X)


@misuse(fh.ArgumentValueError)
def switch_without_branches():
    fh.switch(YES, [], X)


@misuse(fh.ArgumentTypeError)
def switch_branch_not_callable():
    fh.switch(0, [torch.sin, None], X)


@misuse(fh.ArgumentTypeError)
def switch_branches_not_a_list():
    fh.switch(0, torch.sin, X)


@misuse(fh.ArgumentTypeError)
def switch_index_is_a_float():
    fh.switch(1.0, [torch.sin, torch.cos], X)


@misuse(fh.ArgumentTypeError)
def switch_index_is_a_float_tensor():
    fh.switch(torch.tensor(0.5), [torch.sin, torch.cos], X)


@misuse(fh.ArgumentTypeError)
def switch_index_of_several_elements():
    fh.switch(torch.tensor([0, 1]), [torch.sin, torch.cos], X)


# --- while_loop


@misuse(fh.ArgumentTypeError)
def while_loop_body_not_callable():
    fh.while_loop(lambda x: x < 3, 3, X)


@misuse(fh.ArgumentTypeError)
def while_loop_condition_not_callable():
    fh.while_loop(X.sum() < 3, lambda x: x + 1, X)


@misuse(fh.ArgumentTypeError)
def while_loop_condition_of_several_elements():
    fh.while_loop(lambda x: x < 3, lambda x: x + 1, X)


@misuse(fh.ArgumentTypeError)
def while_loop_condition_returns_nothing():
    fh.while_loop(lambda x: None, lambda x: x + 1, X)


@misuse(fh.ArgumentTypeError)
def while_loop_condition_returns_a_string():
    fh.while_loop(lambda x: "no", lambda x: x + 1, X, max_steps=2)


@misuse(fh.ArgumentTypeError)
def while_loop_max_steps_is_a_float():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, max_steps=2.0)


@misuse(fh.ArgumentTypeError)
def while_loop_max_steps_is_a_bool():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, max_steps=True)


@misuse(fh.ArgumentTypeError)
def while_loop_max_steps_is_a_tensor():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, max_steps=torch.tensor(3))


@misuse(fh.ArgumentValueError)
def while_loop_max_steps_negative():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, max_steps=-1)


@misuse(fh.ArgumentValueError)
def while_loop_checkpoints_zero():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, checkpoints=0)


@misuse(fh.ArgumentTypeError)
def while_loop_checkpoints_is_a_bool():
    fh.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, X, checkpoints=True)


@misuse(fh.ArgumentValueError)
def while_loop_checkpoints_of_random_numbers_elsewhere():
    body = lambda v: v + torch.rand(2, device="meta").sum().to("cpu")
    fh.grad(lambda x: fh.while_loop(lambda v: v.sum() < 9, body, x, checkpoints=2).sum())(X)


@misuse(fh.ArgumentTypeError)
def while_loop_carry_holds_a_string():
    fh.while_loop(lambda s: s["x"].sum() < 3, lambda s: s, {"x": X, "name": "a"})


@misuse(fh.ArgumentTypeError)
def while_loop_carry_holds_an_array():
    fh.while_loop(lambda s: s[0].sum() < 3, lambda s: s, (X, [np.ones(2)]))


# --- fori_loop


@misuse(fh.ArgumentTypeError)
def fori_loop_body_not_callable():
    fh.fori_loop(0, 2, X, X)


@misuse(fh.ArgumentTypeError)
def fori_loop_float_bound():
    fh.fori_loop(0, 2.5, lambda i, x: x, X)


@misuse(fh.ArgumentTypeError)
def fori_loop_bool_bound():
    fh.fori_loop(0, True, lambda i, x: x, X)


@misuse(fh.ArgumentTypeError)
def fori_loop_float_tensor_bound():
    fh.fori_loop(torch.tensor(0.0), 2, lambda i, x: x, X)


@misuse(fh.ArgumentTypeError)
def fori_loop_bool_tensor_bound():
    fh.fori_loop(0, YES, lambda i, x: x, X)


@misuse(fh.ArgumentTypeError)
def fori_loop_bound_of_several_elements():
    fh.fori_loop(0, torch.tensor([1, 2]), lambda i, x: x, X)


@misuse(fh.ArgumentValueError)
def fori_loop_unroll_of_tensor_bounds():
    fh.fori_loop(0, torch.tensor(2), lambda i, x: x, X, unroll=2)


@misuse(fh.ArgumentValueError)
def fori_loop_unroll_negative():
    fh.fori_loop(0, 2, lambda i, x: x, X, unroll=-1)


# --- scan


@misuse(fh.ArgumentTypeError)
def scan_body_not_callable():
    fh.scan(None, X, X)


@misuse(fh.ArgumentValueError)
def scan_unroll_zero():
    fh.scan(lambda c, x: (c, x), X, X, unroll=0)


@misuse(fh.ArgumentTypeError)
def scan_unroll_is_a_bool():
    fh.scan(lambda c, x: (c, x), X, X, unroll=True)


@misuse(fh.ArgumentTypeError)
def scan_reverse_is_a_tensor():
    fh.scan(lambda c, x: (c, x), X, X, reverse=YES)


@misuse(fh.ArgumentValueError)
def scan_lengths_disagree():
    fh.scan(lambda c, x: (c, x["a"]), X, {"a": torch.ones(3, 2), "b": [torch.ones(4)]})


@misuse(fh.ArgumentValueError)
def scan_length_argument_disagrees():
    fh.scan(lambda c, x: (c, x), X, torch.ones(3), length=4)


@misuse(fh.ArgumentValueError)
def scan_without_length():
    fh.scan(lambda c, x: (c, x), X)


@misuse(fh.ArgumentValueError)
def scan_over_no_leaf():
    fh.scan(lambda c, x: (c, x), X, {"a": []})


@misuse(fh.ArgumentValueError)
def scan_length_negative():
    fh.scan(lambda c, x: (c, x), X, length=-1)


@misuse(fh.ArgumentTypeError)
def scan_length_is_a_float():
    fh.scan(lambda c, x: (c, x), X, length=2.0)


@misuse(fh.ArgumentTypeError)
def scan_length_is_a_tensor():
    fh.scan(lambda c, x: (c, x), X, length=torch.tensor(2))


@misuse(fh.ArgumentValueError)
def scan_over_a_scalar():
    fh.scan(lambda c, x: (c, x), X, (torch.ones(3), torch.tensor(1.0)))


@misuse(fh.ArgumentValueError)
def scan_over_a_list_of_numbers():
    fh.scan(lambda c, x: (c, x), X, [1.0, 2.0, 3.0])


@misuse(fh.ArgumentTypeError)
def scan_over_an_array():
    fh.scan(lambda c, x: (c, x), X, np.ones(3))


@misuse(fh.ArgumentTypeError)
def scan_over_a_range():
    fh.scan(lambda c, x: (c, x), X, range(3))


@misuse(fh.ArgumentTypeError)
def scan_over_a_generator():
    fh.scan(lambda c, x: (c, x), X, (torch.ones(2) for _ in range(3)))


@misuse(fh.ArgumentTypeError)
def scan_carry_holds_a_string():
    fh.scan(lambda c, x: (c, x), {"h": X, "cell": "lstm"}, X)


@misuse(fh.ArgumentValueError)
def scan_unknown_remat():
    fh.scan(lambda c, x: (c, x), X, torch.ones(3), remat="everything")


@misuse(TypeError)
def scan_misspelt_keyword():
    fh.scan(lambda c, x: (c, x), X, lenght=3)


# --- map and associative_scan


@misuse(fh.ArgumentTypeError)
def map_function_not_callable():
    fh.map(X, X)


@misuse(fh.ArgumentValueError)
def map_sizes_disagree():
    fh.map(lambda x: x[0], (torch.ones(3), torch.ones(2)))


@misuse(fh.ArgumentValueError)
def map_over_a_scalar():
    fh.map(torch.sin, torch.tensor(1.0))


@misuse(fh.ArgumentTypeError)
def map_over_nothing():
    fh.map(lambda x: x, ())


@misuse(fh.ArgumentTypeError)
def map_over_a_string():
    fh.map(torch.sin, {"xs": "abc"})


@misuse(fh.ArgumentValueError)
def map_batch_size_zero():
    fh.map(lambda x: x, torch.ones(3), batch_size=0)


@misuse(fh.ArgumentTypeError)
def map_batch_size_is_a_float():
    fh.map(lambda x: x, torch.ones(3), batch_size=1.0)


@misuse(fh.ArgumentTypeError)
def associative_scan_function_not_callable():
    fh.associative_scan("add", torch.ones(3))


@misuse(fh.ArgumentValueError)
def associative_scan_sizes_disagree():
    fh.associative_scan(lambda a, b: a, (torch.ones(3), torch.ones(2)))


@misuse(fh.ArgumentValueError)
def associative_scan_no_such_dim():
    fh.associative_scan(torch.add, torch.ones(3), dim=1)


@misuse(fh.ArgumentValueError)
def associative_scan_over_a_scalar():
    fh.associative_scan(torch.add, {"a": torch.ones(3), "b": 1.0})


@misuse(fh.ArgumentTypeError)
def associative_scan_dim_is_a_bool():
    fh.associative_scan(torch.add, torch.ones(3), dim=False)


@misuse(fh.ArgumentTypeError)
def associative_scan_reverse_is_a_number():
    fh.associative_scan(torch.add, torch.ones(3), reverse=1)


@misuse(fh.ArgumentTypeError)
def associative_scan_over_nothing():
    fh.associative_scan(torch.add, {})


@misuse(fh.ArgumentValueError)
def checkpoint_policy_by_name():
    fh.checkpoint(torch.sin, policy="save_matmuls")


@misuse(fh.ArgumentTypeError)
def checkpoint_no_policy():
    fh.checkpoint(torch.sin, policy=3)


@misuse(fh.ArgumentTypeError)
def checkpoint_name_no_string():
    fh.checkpoint_name(X, 1)


# --- sharded scans


@misuse(fh.ArgumentValueError)
def sharded_scan_without_a_process_group():
    fh.sharded_scan(lambda c, x: (c + x, x), torch.tensor(0.0), X)


@misuse(fh.ArgumentTypeError)
def sharded_associative_scan_of_no_function():
    fh.sharded_associative_scan(X, X)


# --- keywords of JAX and of torch


@misuse(fh.ArgumentTypeError)
def cond_operands_as_in_torch():
    fh.cond(YES, torch.sin, torch.cos, operands=(X,))


@misuse(fh.ArgumentTypeError)
def while_loop_by_jax_keywords():
    fh.while_loop(cond_fun=lambda c: c < 3, body_fun=lambda c: c + 1, init_val=0)


@misuse(fh.ArgumentTypeError)
def fori_loop_by_jax_keywords():
    fh.fori_loop(0, 3, body_fun=lambda i, c: c + i, init_val=0)


@misuse(fh.ArgumentTypeError)
def scan_over_another_dimension():
    fh.scan(lambda c, x: (c, x), 0.0, X, dim=1)


@misuse(fh.ArgumentTypeError)
def associative_scan_by_axis():
    fh.associative_scan(torch.add, X, axis=0)
