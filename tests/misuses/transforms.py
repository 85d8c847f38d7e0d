"""Misuses of transforms and compilation."""

import torch

import functorch_hops as fh
from misuses.registry import X, misuse, misuse_captured

# --- derivatives


@misuse(fh.ArgumentTypeError)
def grad_of_no_function():
    fh.grad(X)


@misuse(fh.ArgumentTypeError)
def grad_of_an_integer():
    fh.grad(lambda x: x.sum())(torch.arange(3))


@misuse(fh.ArgumentTypeError)
def grad_of_an_integer_in_a_tree():
    fh.grad(lambda p, x: (p["w"] * x).sum())({"w": X, "steps": [3]}, X)


@misuse(fh.ArgumentTypeError)
def grad_with_the_argument():
    fh.grad(torch.sum, X)


@misuse(fh.ArgumentTypeError)
def checkpoint_with_the_argument():
    fh.checkpoint(torch.sin, X)


@misuse(fh.ArgumentTypeError)
def grad_of_no_scalar():
    fh.grad(torch.sin)(X)


@misuse(fh.ArgumentTypeError)
def grad_of_an_integer_output():
    fh.grad(lambda x: x.argmax())(X)


@misuse(fh.ArgumentTypeError)
def value_and_grad_of_nothing():
    fh.value_and_grad(lambda x: None)(X)


@misuse(fh.TreeMismatchError)
def grad_with_aux_of_no_pair():
    fh.grad(lambda x: x.sum(), has_aux=True)(X)


@misuse(fh.ArgumentValueError)
def grad_of_an_argument_that_is_not_there():
    fh.grad(lambda x: x.sum(), argnums=1)(X)


@misuse(fh.ArgumentValueError)
def grad_of_an_argument_twice():
    fh.grad(lambda x, y: (x * y).sum(), argnums=(0, -2))(X, X)


@misuse(fh.ArgumentTypeError)
def grad_argnums_is_a_string():
    fh.grad(lambda x: x.sum(), argnums="x")(X)


@misuse(fh.ArgumentTypeError)
def grad_of_a_module():
    fh.grad(lambda module: module(X).sum())(torch.nn.Linear(2, 2))


@misuse(fh.ArgumentTypeError)
def grad_of_a_pair():
    fh.grad(lambda x: (x.sum(), x))(X)


@misuse(fh.ArgumentTypeError)
def vjp_of_an_integer_output():
    fh.vjp(lambda x: {"top": x.argmax()}, X)


@misuse(fh.TreeMismatchError)
def vjp_cotangent_of_another_tree():
    _, pull = fh.vjp(lambda x: {"y": x}, X)
    pull(X)


@misuse(fh.MetadataMismatchError)
def vjp_cotangent_of_another_shape():
    _, pull = fh.vjp(torch.sin, X)
    pull(torch.ones(3))


@misuse(fh.ArgumentTypeError)
def vjp_of_two_cotangents():
    _, pull = fh.vjp(lambda x: (x, x), X)
    pull(X, X)


@misuse(fh.ArgumentTypeError)
def jvp_primals_not_a_tuple():
    fh.jvp(torch.sin, X, X)


@misuse(fh.MetadataMismatchError)
def jvp_tangent_of_another_shape():
    fh.jvp(torch.sin, (X,), (torch.ones(3),))


@misuse(fh.ArgumentTypeError)
def jvp_of_an_integer():
    fh.jvp(torch.sin, (torch.arange(3),), (torch.ones(3),))


@misuse(fh.ArgumentTypeError)
def linearize_of_an_integer_output():
    fh.linearize(lambda x: x > 0, X)


@misuse(fh.ArgumentTypeError)
def jacrev_of_a_bool_output():
    fh.jacrev(lambda x: x > 0)(X)


@misuse(fh.ArgumentTypeError)
def jacfwd_of_an_integer():
    fh.jacfwd(torch.sin)(torch.arange(3))


@misuse(fh.ArgumentTypeError)
def hessian_of_an_integer():
    fh.hessian(lambda x: x.sum())(torch.arange(3))


@misuse(fh.ArgumentValueError)
def jacrev_chunk_size_zero():
    fh.jacrev(torch.sin, chunk_size=0)


# --- vmap


@misuse(fh.ArgumentValueError)
def jacfwd_of_random_numbers():
    fh.jacfwd(lambda x: x * torch.rand(2), chunk_size=1)(X)


@misuse(fh.ArgumentTypeError)
def vmap_as_a_decorator_of_no_function():
    fh.vmap(in_dims=1)(X)


@misuse(fh.ArgumentTypeError)
def jit_options_are_a_list():
    fh.jit(torch.sin, options=["fast"])


@misuse(fh.ArgumentTypeError)
def jit_as_a_decorator_of_no_function():
    fh.jit(backend="eager")(X)


@misuse(fh.ArgumentTypeError)
def vmap_of_no_function():
    fh.vmap(X)


@misuse(fh.ArgumentValueError)
def vmap_over_no_dimension():
    fh.vmap(torch.sin)(torch.tensor(1.0))


@misuse(fh.ArgumentValueError)
def vmap_sizes_disagree():
    fh.vmap(lambda p, x: p["w"] * x)({"w": torch.ones(3)}, torch.ones(4))


@misuse(fh.ArgumentValueError)
def vmap_over_nothing():
    fh.vmap(torch.sin, in_dims=None)(X)


@misuse(fh.ArgumentTypeError)
def vmap_over_a_string():
    fh.vmap(lambda s: s["x"])({"x": X, "mode": "fast"})


@misuse(fh.ArgumentValueError)
def vmap_in_dims_of_another_tree():
    fh.vmap(lambda p: p["w"], in_dims=({"v": 0},))({"w": X})


@misuse(fh.ArgumentValueError)
def vmap_in_dims_is_a_bool():
    fh.vmap(torch.sin, in_dims=(True,))(torch.ones(2, 2))


@misuse(fh.ArgumentValueError)
def vmap_output_with_none_depends_on_the_example():
    fh.vmap(lambda x: {"mean": x}, out_dims=None)(X)


@misuse(fh.ArgumentTypeError)
def vmap_output_is_a_string():
    fh.vmap(lambda x: {"x": x, "mode": "fast"})(X)


@misuse(fh.ArgumentValueError)
def vmap_unknown_randomness():
    fh.vmap(torch.sin, randomness="all")


@misuse(fh.ArgumentTypeError)
def vmap_given_the_argument():
    fh.vmap(torch.sin, X)


@misuse(fh.ArgumentTypeError)
def vmap_chunk_size_is_a_float():
    fh.vmap(torch.sin, chunk_size=1.5)


@misuse(fh.DataDependentError, "plain captured")
def vmap_with_an_if():
    def relu(x):
        if x > 0:
            return x
        return 0 * x

    fh.vmap(relu)(X)


@misuse(fh.DataDependentError, "plain captured")
def vmap_with_item():
    fh.vmap(lambda x: x * x.item())(X)


@misuse(fh.CaptureError)
def vmap_that_writes_to_what_is_not_mapped():
    def one_hot(x):
        result = torch.zeros(3)
        result[1] = x
        return result

    fh.vmap(one_hot)(X)


# --- checkpoint


@misuse(fh.ArgumentTypeError)
def checkpoint_not_callable():
    fh.checkpoint(X)


@misuse_captured(fh.DataDependentError)
def checkpoint_with_an_if():
    fh.checkpoint(lambda x: x if x.sum() > 0 else -x)(X)


@misuse(fh.DataDependentError)
def checkpoint_with_an_if_in_a_gradient():
    def block(x):
        if x.sum() > 0:
            return x.sum()
        return -x.sum()

    fh.grad(fh.checkpoint(block))(X)


@misuse(fh.InputMutationError)
def checkpoint_writes_to_its_argument():
    fh.grad(fh.checkpoint(lambda x: x.mul_(2).sum()))(X)


# --- capture


@misuse(fh.ArgumentTypeError)
def jit_not_callable():
    fh.jit(X)


@misuse(fh.ArgumentTypeError)
def jit_with_a_backend_that_is_none():
    fh.jit(torch.sin, backend=X)


@misuse(fh.DataDependentError)
def jit_with_an_if():
    def model(x):
        y = x * 2
        return y if y.sum() > 0 else -y

    fh.jit(model, backend="eager")(X)


@misuse(fh.DataDependentError)
def jit_with_item_in_a_body():
    fh.jit(lambda x: fh.fori_loop(0, 3, lambda i, c: c * c.sum().item(), x), backend="eager")(X)


@misuse(fh.DataDependentError, "plain captured")
def jit_with_a_cumulative_batch_norm():
    fh.jit(torch.nn.BatchNorm1d(3, momentum=None), backend="eager")(torch.ones(2, 3))


@misuse(fh.CaptureError, "plain captured")
def jit_of_a_lazy_module():
    fh.jit(torch.nn.LazyLinear(2), backend="eager")(X)


@misuse(fh.LeakedTensorError)
def jit_leaks():
    kept = []
    fh.jit(lambda x: kept.append(x + 1) or x, backend="eager")(X)
    kept[0] * 2


@misuse(fh.InfiniteLoopError)
def jit_of_an_infinite_loop():
    fh.jit(lambda x: fh.while_loop(lambda v: True, lambda v: v + 1, x), backend="eager")(X)


@misuse(fh.CaptureError)
def jit_of_unknown_shape():
    fh.jit(lambda x: x[x > 0], backend="eager")(X)


@misuse(fh.CaptureError)
def jit_with_backward():
    def train(w, x):
        loss = (w * x).sum()
        loss.backward()
        return loss

    fh.jit(train, backend="eager")(torch.ones(2, requires_grad=True), X)


@misuse(fh.ArgumentValueError)
def jit_static_argument_beyond_the_last():
    fh.jit(lambda x, sizes: x.sum(), static_argnums=2, backend="eager")


@misuse(fh.ArgumentValueError)
def jit_static_argument_of_another_name():
    fh.jit(lambda x, *, size: x.sum(), static_argnames="sizes", backend="eager")


@misuse(fh.ArgumentTypeError)
def jit_static_argument_not_hashable():
    fh.jit(lambda x, sizes: x.sum(), static_argnums=1, backend="eager")(X, [1, 2])


@misuse(fh.ArgumentValueError)
def jit_compiled_for_another_shape():
    fh.jit(torch.sin, backend="eager").lower(X).compile()(torch.ones(3))


@misuse(fh.MetadataMismatchError)
def make_graph_of_a_mismatch():
    fh.make_graph(lambda x: fh.cond(x.sum() > 0, lambda v: v, lambda v: v.double(), x))(X)


@misuse(fh.ArgumentTypeError)
def make_graph_not_callable():
    fh.make_graph("f")


@misuse(fh.ArgumentValueError)
def make_graph_called_with_another_shape():
    fh.make_graph(torch.sin)(X)(torch.ones(3))


@misuse(fh.DataDependentError)
def eval_shape_with_an_if():
    fh.eval_shape(lambda x: x if x.sum() > 0 else -x, fh.TensorSpec((2,), torch.float32))


@misuse(fh.ArgumentTypeError)
def export_arguments_not_a_tuple():
    fh.export(torch.sin, X)


@misuse(fh.DataDependentError, "plain captured")
def export_with_an_if():
    fh.export(lambda x: x if x.sum() > 0 else -x, (X,))


@misuse(fh.ArgumentTypeError)
def export_dynamic_shapes_of_a_string():
    fh.export(torch.sin, (X,), dynamic_shapes="auto")


@misuse(fh.ArgumentValueError)
def export_dynamic_shapes_of_another_length():
    fh.export(torch.sin, (X,), dynamic_shapes=({0: torch.export.Dim("n")}, None))


@misuse(fh.ArgumentTypeError)
def vmap_by_axes():
    fh.vmap(torch.sin, in_axes=0)(X)


@misuse(fh.ArgumentTypeError)
def grad_of_integers_as_in_jax():
    fh.grad(lambda x: x.sum(), allow_int=True)(X)


@misuse(fh.ArgumentTypeError)
def jacobian_of_a_holomorphic_function():
    fh.jacrev(torch.sin, holomorphic=True)(X.to(torch.complex64))


@misuse(fh.ArgumentTypeError)
def hessian_with_an_auxiliary_output():
    fh.hessian(lambda x: (x.sum(), x), has_aux=True)(X)


@misuse(fh.ArgumentTypeError)
def jit_with_shardings():
    fh.jit(torch.sin, in_shardings=None)(X)


@misuse(fh.ArgumentTypeError)
def rule_with_symbolic_zeros():
    fh.custom_vjp(torch.sin).defvjp(lambda x: (x.sin(), x), lambda x, ct: (ct * x.cos(),), symbolic_zeros=True)


@misuse(fh.ArgumentTypeError)
def jit_of_a_full_graph():
    fh.jit(torch.sin, fullgraph=True)(X)


@misuse(fh.ArgumentTypeError)
def checkpoint_as_in_torch():
    fh.checkpoint(torch.sin, use_reentrant=False)(X)


@misuse(fh.CaptureError)
def vmap_of_values_by_a_mask():
    fh.vmap(lambda x: x.index_put((x > 0,), x))(torch.ones(3, 4))


@misuse(fh.CaptureError, "plain")
def vmap_of_what_torch_composes_by_known_sizes():
    fh.jit(fh.vmap(lambda x: torch.gradient(x)[0]), dynamic=True, backend="eager")(torch.ones(3, 4))
