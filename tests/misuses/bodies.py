"""What a captured function may not do: read, write, leak, run autograd, go on for ever."""

import copy
import math

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import functorch_hops as fh
from misuses.registry import YES, X, misuse, misuse_captured

# --- reading a traced tensor


@misuse_captured(fh.DataDependentError)
def body_with_an_if():
    def step(c, x):
        y = c + x
        if y.sum() > 0:
            return y, x
        return c, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def sections_that_are_traced():
    fh.scan(lambda c, ends: (c, torch.tensor_split(c, ends)[0].sum()), X, torch.ones(2, 2, dtype=torch.int64))


@misuse_captured(fh.DataDependentError)
def branch_with_an_if():
    fh.cond(YES, lambda x: x if x.sum() > 0 else -x, lambda x: x, X)


@misuse_captured(fh.DataDependentError)
def condition_with_and():
    fh.while_loop(lambda x: x.sum() < 9 and x[0] < 4, lambda x: x + 1, X)


@misuse_captured(fh.DataDependentError)
def body_with_item():
    fh.scan(lambda c, x: (c * x.item(), x), X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_tolist():
    fh.scan(lambda c, x: (c * sum(c.tolist()), x), X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_int():
    fh.fori_loop(0, 3, lambda i, x: x[: int(i)], X)


@misuse_captured(fh.DataDependentError)
def body_with_float():
    fh.fori_loop(0, torch.tensor(3), lambda i, x: x * float(i), X)


@misuse_captured(fh.DataDependentError)
def body_that_catches_what_is_refused():
    def step(c, x):
        try:
            return c * x.item(), x
        except RuntimeError:
            return c, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_a_list_of_tensors():
    fh.scan(lambda c, x: (c + torch.as_tensor([c.sum(), x]).sum(), x), X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_packed_sequences():
    packed = lambda x: torch.nn.utils.rnn.pack_padded_sequence(x, [2, 1])
    rnn = torch.nn.RNN(2, 3)
    fh.map(lambda x: rnn(packed(x))[1], torch.ones(3, 2, 2, 2))


@misuse_captured(fh.DataDependentError)
def body_with_math():
    fh.map(lambda x: x * math.sin(x), torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_range():
    fh.fori_loop(0, 3, lambda i, x: sum((x for _ in range(i)), x), X)


@misuse_captured(fh.DataDependentError)
def body_looks_up_in_a_list():
    weights = [1.0, 2.0, 3.0]
    fh.fori_loop(0, 3, lambda i, x: x * weights[i], X)


@misuse_captured(fh.DataDependentError)
def body_with_a_traced_slice():
    fh.fori_loop(0, 3, lambda i, x: x + X[:i].sum(), X)


@misuse_captured(fh.DataDependentError)
def body_with_numpy():
    fh.map(lambda x: torch.from_numpy(x.numpy()), torch.ones(3, 2))


@misuse_captured(fh.DataDependentError)
def body_with_a_function_of_numpy():
    fh.map(lambda x: torch.as_tensor(np.sin(x)), torch.ones(3, 2))


@misuse_captured(fh.DataDependentError)
def body_with_in_a_list():
    fh.fori_loop(0, 3, lambda i, x: -x if i in [0, 2] else x, X)


@misuse_captured(fh.DataDependentError)
def body_with_in_a_tensor():
    fh.scan(lambda c, x: (-c if 1.0 in c else c, x), X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_max_of_python():
    fh.scan(lambda c, x: (max(c, x), None), torch.tensor(0.0), torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_allclose():
    fh.cond(YES, lambda x: x if torch.allclose(x, X) else -x, lambda x: x, X)


@misuse_captured(fh.DataDependentError)
def body_with_torch_tensor():
    fh.scan(lambda c, x: (c, torch.tensor([x, x])), X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_formats_a_number():
    def step(c, x):
        print(f"carry {c} and {x:.3f}")
        return c, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def body_with_data_ptr():
    fh.cond(YES, lambda x: x if x.data_ptr() else -x, lambda x: x, X)


@misuse(fh.DataDependentError)
def associative_function_with_an_if():
    fh.associative_scan(lambda a, b: a if a > b else b, torch.ones(4))


@misuse(fh.DataDependentError)
def map_in_chunks_with_an_if():
    fh.map(lambda x: x if x.sum() > 0 else -x, torch.ones(4, 2), batch_size=2)


@misuse(fh.CaptureError)
def map_in_chunks_that_writes_to_what_is_not_mapped():
    def masked(x):
        result = X * 1
        result[result > 0] = x
        return result

    fh.map(masked, X, batch_size=2)


@misuse(fh.DataDependentError)
def body_of_no_step_with_item():
    fh.map(lambda x: x * x.item(), torch.ones(0))


@misuse_captured(fh.DataDependentError)
def if_in_a_vmap_in_a_body():
    def lane(v):
        return v if v > 0 else -v

    fh.scan(lambda c, x: (fh.vmap(lane)(c), x), X, torch.ones(3))


@misuse_captured(fh.DataDependentError)
def if_in_a_branch_in_a_loop_in_a_map():
    def branch(v):
        return v if v > 0 else -v

    def loop(x):
        return fh.while_loop(lambda v: v < 3, lambda v: fh.cond(v > 1, branch, torch.exp, v), x)

    fh.map(loop, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_draws_from_a_generator():
    generator = torch.Generator()
    fh.map(lambda x: x + torch.randn(2, generator=generator), torch.ones(3, 2))


# --- shapes that depend on values


@misuse_captured(fh.CaptureError)
def branch_output_of_unknown_shape():
    fh.cond(YES, lambda x: x[x > 0], lambda x: x[x > 0], X)


@misuse_captured(fh.CaptureError)
def map_output_of_unknown_shape():
    fh.map(lambda x: x.nonzero(), torch.ones(3, 2))


@misuse_captured(fh.CaptureError)
def size_from_a_traced_integer():
    fh.cond(YES, lambda n: torch.zeros(n), lambda n: torch.zeros(n), torch.tensor(3))


# --- writing


@misuse_captured(fh.InputMutationError)
def branch_writes_to_its_operand():
    fh.cond(YES, lambda x: x.add_(1), lambda x: x, X.clone())


@misuse_captured(fh.InputMutationError)
def body_writes_to_a_view_of_its_carry():
    def write(c, x):
        c.view(2, 1)[0] = 1.0
        return c, x

    fh.scan(write, X.clone(), torch.ones(3))


@misuse_captured(fh.InputMutationError)
def body_writes_to_its_carry_by_an_operator():
    def step(c, x):
        c += x
        return c, x

    fh.scan(step, X.clone(), torch.ones(3))


@misuse_captured(fh.InputMutationError)
def body_writes_to_a_closed_over_tensor():
    total = torch.zeros(2)

    def body(x):
        total.add_(x)
        return x + 1

    fh.while_loop(lambda x: x.sum() < 9, body, X)


@misuse_captured(fh.InputMutationError)
def body_writes_to_a_parameter():
    weight = torch.nn.Parameter(torch.zeros(2))

    def body(i, x):
        with torch.no_grad():
            weight.sub_(x)
        return x

    fh.fori_loop(0, 3, body, X)


@misuse_captured(fh.InputMutationError)
def body_writes_to_data():
    weight = torch.nn.Parameter(torch.zeros(2))

    def body(i, x):
        weight.data.mul_(0.9)
        return x

    fh.fori_loop(0, torch.tensor(3), body, X)


@misuse(fh.InputMutationError, "captured")
def body_updates_a_buffer():
    norm = torch.nn.BatchNorm1d(2)
    fh.scan(lambda c, x: (c, norm(x)), X, torch.ones(3, 4, 2))


@misuse_captured(fh.InputMutationError)
def map_writes_to_its_element():
    fh.map(lambda x: x.mul_(2), torch.ones(3, 2))


@misuse_captured(fh.InputMutationError)
def associative_function_writes_to_its_operand():
    fh.associative_scan(lambda a, b: a.add_(b), torch.ones(4, 2))


@misuse_captured(fh.InputMutationError)
def condition_writes_to_the_carry():
    fh.while_loop(lambda x: x.add_(1).sum() < 9, lambda x: x, X.clone())


@misuse_captured(fh.InputMutationError)
def body_writes_by_a_traced_index():
    table = torch.zeros(3)

    def body(i, x):
        table[i] = 1.0
        return x

    fh.fori_loop(0, 3, body, X)


@misuse_captured(fh.InputMutationError)
def body_writes_through_out():
    table = torch.zeros(2)
    fh.fori_loop(0, 3, lambda i, x: torch.add(x, 1, out=table), X)


@misuse_captured(fh.InputMutationError)
def body_writes_to_a_value_of_the_enclosing_body():
    def outer(c, x):
        total = c * 2
        fh.fori_loop(0, 3, lambda i, v: v + total.add_(1), c)
        return total, x

    fh.scan(outer, X, torch.ones(3))


# --- random number generators


@misuse_captured(fh.CaptureError)
def body_seeds_the_generator():
    def step(c, x):
        torch.manual_seed(0)
        return c + torch.rand(2), x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_forks_the_generator():
    def step(c, x):
        with torch.random.fork_rng():
            return c + torch.rand(2), x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def gradient_of_prefixes_with_random_numbers():
    noisy = lambda a, b: a + b * torch.rand(())
    fh.grad(lambda x: fh.associative_scan(noisy, x).sum())(torch.ones(4))


# --- autograd's own interface


@misuse_captured(fh.CaptureError)
def body_calls_backward():
    weight = torch.ones(2, requires_grad=True)

    def step(c, x):
        (c * weight).sum().backward()
        return c, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_calls_autograd_grad_by_a_carry():
    weight = torch.ones(2, requires_grad=True)

    def step(i, v):
        (g,) = torch.autograd.grad((v * weight).sum(), v, create_graph=True)
        return v * g

    fh.fori_loop(0, 3, step, X * weight)


@misuse_captured(fh.CaptureError)
def body_batches_derivatives_by_autograd():
    loop = lambda x: fh.scan(lambda c, r: (c * r, c), x[0], x)[1]
    fh.checkpoint(lambda x: torch.autograd.functional.jacobian(loop, x, vectorize=True))(X)


@misuse_captured(fh.CaptureError)
def body_reads_grad():
    fh.scan(lambda c, x: (c if x.grad is None else c + x, x), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_steps_an_optimizer():
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)

    def step(c, x):
        optimizer.step()
        return c * weight, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_makes_a_subclass():
    fh.scan(lambda c, x: (c.as_subclass(torch.Tensor) * x, None), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_makes_a_parameter_of_a_value():
    fh.scan(lambda c, x: (c.as_subclass(torch.nn.Parameter) * x, None), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_copies_an_object():
    fh.scan(lambda c, x: (copy.copy(c) * x, None), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_copies_two_views_of_one_memory():
    def step(c, x):
        table = torch.zeros(3)
        copied, row = copy.deepcopy([table, table[1:]])
        copied.add_(1)
        return c * row.sum(), x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_copies_an_expanded_value():
    fh.scan(lambda c, x: (c * copy.deepcopy(torch.zeros(()).expand(2)).add_(x).sum(), x), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_puts_a_tensor_on_other_memory():
    def step(c, x):
        y = torch.zeros(2).set_(c)
        c.add_(x)  # which y would have to see
        return c, y.sum()

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_resizes_a_tensor():
    fh.scan(lambda c, x: (c * x, (c + x).resize_(1).sum()), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_retains_a_gradient():
    def step(c, x):
        y = c * x
        y.retain_grad()
        return y, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_assigns_data_of_a_parameter():
    weight = torch.ones(2, requires_grad=True)

    def step(c, x):
        weight.data = c
        return c * x, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_marks_its_input():
    def step(c, x):
        x.requires_grad_()
        return c * x, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def hook_on_a_closed_over_tensor():
    weight = torch.ones(2, requires_grad=True)

    def step(c, x):
        weight.register_hook(lambda g: g * 2)
        return c * weight, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def hook_on_a_used_value():
    weight = torch.ones(2, requires_grad=True)

    def step(c, x):
        y = c * weight
        z = y * x
        y.register_hook(lambda g: g * 2)
        return z, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def carry_asked_for_a_history_that_begins_later():
    weight = torch.ones(2, requires_grad=True)
    fh.scan(lambda c, x: (c * weight if c.requires_grad else c + weight, x), X, torch.ones(3))


# --- without end


@misuse_captured(fh.InfiniteLoopError)
def condition_constantly_true():
    fh.while_loop(lambda x: True, lambda x: x + 1, X)


@misuse_captured(fh.InfiniteLoopError)
def condition_is_a_constant_tensor():
    fh.while_loop(lambda x: torch.tensor(True), lambda x: x + 1, X)


@misuse_captured(fh.CaptureError)
def branch_that_calls_itself():
    def halved(x):
        return fh.cond(x.sum() > 1, halved, torch.sin, x / 2)

    halved(X)


# --- leaking


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_of_a_finished_capture():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    kept[0] + 1


@misuse_captured(fh.LeakedTensorError)
def leaked_loss():
    losses = []

    def step(c, x):
        losses.append((c - x).sum())
        return c + x, x

    fh.scan(step, X, torch.ones(3))
    torch.stack(losses).mean()


@misuse_captured(fh.LeakedTensorError)
def leaked_input_of_a_finished_capture():
    kept = []
    fh.map(lambda x: kept.append(x) or x, torch.ones(3, 2))
    torch.stack([kept[0], X])


@misuse_captured(fh.LeakedTensorError)
def leaked_into_a_module():
    cell = torch.nn.Linear(2, 2)

    def step(h, x):
        cell.last = torch.tanh(cell(h))
        return cell.last, x

    fh.scan(step, X, torch.ones(3))
    cell.last.norm()


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_is_read():
    kept = []
    fh.while_loop(lambda x: x.sum() < 9, lambda x: kept.append(x.sum()) or x + 1, X)
    kept[0].item()


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_in_another_capture():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    fh.fori_loop(0, 3, lambda i, x: x + kept[0], X)


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_within_an_enclosing_capture():
    def outer(c, x):
        kept = []
        fh.cond(c.sum() > 0, lambda v: kept.append(v * 2) or v, lambda v: v, c)
        return c + kept[0], x

    fh.scan(outer, X, torch.ones(3))


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_as_an_operand():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    fh.cond(YES, torch.sin, torch.cos, kept[0])


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_as_a_carry():
    kept = []
    fh.cond(YES, lambda x: kept.append(x + 1) or x, lambda x: x, X)
    fh.scan(lambda c, x: (c, x), kept[0], torch.ones(3))


@misuse_captured(fh.InputMutationError)
def body_writes_to_the_memory_of_an_array():
    array = np.ones(2, np.float32)

    def step(c, x):
        torch.from_numpy(array).add_(1)
        return c, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def array_is_written_to_behind_its_tensor():
    def step(c, x):
        array = np.ones(2, np.float32)
        c = c + torch.from_numpy(array)
        array[:] = 2
        return c, x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def version_of_an_input():
    fh.scan(lambda c, x: (c * c._version, x), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def lazy_bit_of_a_view_of_a_conjugated_input():
    z = torch.ones(2, 2, dtype=torch.complex64).conj()
    fh.scan(lambda c, x: (c * z[0].is_conj(), x), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def carry_that_is_conjugated_in_the_first_step():
    fh.fori_loop(0, 2, lambda i, c: c * (2 if c.is_conj() else 1), torch.ones(2, dtype=torch.complex64).conj())


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_of_a_sibling_branch():
    kept = []
    fh.cond(YES, lambda x: kept[0] + x if kept else x, lambda x: kept.append(x * 2) or x, X)


@misuse_captured(fh.LeakedTensorError)
def leaked_tensor_of_the_step_before():
    before = {}

    def step(c, x):
        previous = before.get("c", c)
        before["c"] = c + 1
        return c + previous, x

    fh.scan(step, X, torch.ones(3))
    fh.scan(step, X, torch.ones(3))


# --- what a graph does not hold


@misuse_captured(fh.CaptureError)
def operator_of_torch_that_holds_a_function():
    strictly = torch.ops.higher_order.strict_mode
    fh.scan(lambda c, x: (strictly(torch.sin, (c,)), x), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def gradient_that_may_flow_outside():
    weight = torch.ones(2, requires_grad=True)
    other = weight.sin()

    def step(c, x):
        y = (other * weight).sum()
        return c * torch.autograd.grad(y, weight, create_graph=True)[0], x

    fh.scan(step, X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def full_backward_hook_in_a_body():
    layer = torch.nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    weight = torch.ones(2, requires_grad=True)
    fh.scan(lambda c, x: (layer(c * weight), x), X, torch.ones(3))


SPARSE = torch.eye(2).to_sparse()


@misuse_captured(fh.CaptureError)
def sum_of_sparse_matrices():
    fh.map(lambda x: torch.add(SPARSE, SPARSE) @ x, torch.ones(3, 2))


@misuse_captured(fh.CaptureError)
def sparse_matrix_made_inside():
    fh.map(lambda x: x.diag().to_sparse() @ x, torch.ones(3, 2))


@misuse_captured(fh.InputMutationError)
def write_through_a_view_of_what_is_strided():
    def turned(x):
        y = (x * 2).mT
        y.view(-1)[1:].tanh_()
        return y

    fh.checkpoint(turned)(torch.ones(2, 3).mT)


@misuse_captured(fh.CaptureError)
def body_leaves_gradients_off():
    def step(c, x):
        torch.set_grad_enabled(False)
        return c * x, x

    try:
        fh.scan(step, X, torch.ones(3))
    finally:
        torch.set_grad_enabled(True)


@misuse_captured(fh.CaptureError)
def body_changes_the_default_dtype():
    def step(c, x):
        torch.set_default_dtype(torch.float64)
        return c * x, torch.zeros(2)

    try:
        fh.scan(step, X, torch.ones(3))
    finally:
        torch.set_default_dtype(torch.float32)


@misuse_captured(fh.CaptureError)
def body_fills_an_expanded_value():
    fh.scan(lambda c, x: (c * (x * 1).expand(2).zero_(), x), X, torch.ones(3))


@misuse_captured(fh.CaptureError)
def body_makes_a_dual_number_for_a_level_around_the_loop():
    with forward_ad.dual_level():
        fh.scan(lambda c, x: (forward_ad.make_dual(c * x, c), None), X, torch.ones(3))


class Observing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@misuse(fh.CaptureError, "plain")
def body_within_a_dispatch_mode():
    def f(x):
        with Observing():
            return fh.scan(lambda c, x: (c + x, c), x, torch.ones(3))

    fh.jit(f, backend="eager")(X)
