"""Misuses of derivatives by hand and by the implicit function theorem."""

import torch

import functorch_hops as fh
from misuses.registry import X, misuse

# What has no derivative is refused where it is computed. In a jitted call what nobody reads is not computed, so a rule
# that fails shows where its result is returned; of a derivative that is missing, the line would be that of the call.


def _vjp(fwd, bwd, fun=lambda x: x * 2):
    f = fh.custom_vjp(fun)
    f.defvjp(fwd, bwd)
    return f


def _jvp(rule, fun=lambda x: x * 2):
    f = fh.custom_jvp(fun)
    f.defjvp(rule)
    return f


def _slope(f, x=X):
    return fh.grad(lambda x: f(x).sum())(x)


@misuse(fh.ArgumentTypeError)
def custom_vjp_of_no_function():
    fh.custom_vjp(X)


@misuse(fh.ArgumentTypeError)
def custom_vjp_without_a_rule():
    fh.custom_vjp(torch.sin)(X)


@misuse(fh.ArgumentTypeError)
def custom_jvp_without_a_rule():
    fh.custom_jvp(torch.sin)(X)


@misuse(fh.ArgumentTypeError)
def custom_vjp_rule_is_no_function():
    fh.custom_vjp(torch.sin).defvjp(torch.sin, None)


@misuse(fh.ArgumentValueError)
def custom_vjp_negative_argnums():
    fh.custom_vjp(torch.sin, nondiff_argnums=(-1,))


@misuse(fh.ArgumentTypeError)
def custom_vjp_keyword_only_argument():
    f = fh.custom_vjp(lambda x, *, scale: x * scale)
    f.defvjp(lambda x: (x, None), lambda res, ct: (ct,))
    f(X, scale=2.0)


@misuse(fh.ArgumentTypeError, "plain captured")
def custom_vjp_in_forward_mode():
    fh.jvp(_vjp(lambda x: (x * 2, None), lambda res, ct: (ct * 2,)), (X,), (X,))


@misuse(fh.TreeMismatchError)
def custom_vjp_fwd_returns_no_pair():
    return _slope(_vjp(lambda x: None, lambda res, ct: (ct,)))


@misuse(fh.TreeMismatchError)
def custom_vjp_fwd_returns_another_tree():
    return _slope(_vjp(lambda x: ([x * 2], None), lambda res, ct: (ct,)))


@misuse(fh.MetadataMismatchError)
def custom_vjp_fwd_returns_another_shape():
    return _slope(_vjp(lambda x: (x[:1] * 2, None), lambda res, ct: (ct,)))


@misuse(fh.TreeMismatchError)
def custom_vjp_bwd_returns_no_tuple():
    return _slope(_vjp(lambda x: (x * 2, None), lambda res, ct: ct * 2))


@misuse(fh.TreeMismatchError)
def custom_vjp_bwd_returns_too_many():
    return _slope(_vjp(lambda x: (x * 2, None), lambda res, ct: (ct, ct)))


@misuse(fh.TreeMismatchError)
def custom_vjp_bwd_returns_another_tree():
    f = _vjp(lambda p: (p["x"], None), lambda res, ct: ({"y": ct},), fun=lambda p: p["x"])
    return fh.grad(lambda p: f(p).sum())({"x": X})


@misuse(fh.MetadataMismatchError)
def custom_vjp_bwd_returns_another_shape():
    return _slope(_vjp(lambda x: (x * 2, None), lambda res, ct: (ct.sum(),)))


@misuse(fh.MetadataMismatchError)
def custom_vjp_bwd_returns_another_dtype():
    return _slope(_vjp(lambda x: (x * 2, None), lambda res, ct: (ct.double(),)))


@misuse(fh.ArgumentValueError, "plain captured")
def custom_vjp_closes_over_what_is_differentiated():
    fh.grad(lambda w: _vjp(lambda x: (x * w, None), lambda res, ct: (ct,), fun=lambda x: x * w)(X).sum())(X)


@misuse(fh.ArgumentValueError, "plain captured")
def custom_jvp_closes_over_what_is_differentiated():
    fh.jvp(lambda w: _jvp(lambda p, t: (p[0] * w, t[0]), fun=lambda x: x * w)(X), (X,), (X,))


@misuse(fh.ArgumentValueError, "plain captured")
def custom_jvp_hides_what_is_differentiated_in_an_argument_without_derivative():
    f = fh.custom_jvp(lambda h, x: h(x), nondiff_argnums=(0,))
    f.defjvp(lambda h, p, t: (f(h, *p), t[0]))
    fh.jvp(lambda x: f(lambda y: x + y, x), (X,), (X,))


@misuse(fh.TreeMismatchError)
def custom_jvp_rule_returns_no_pair():
    return _slope(_jvp(lambda p, t: p[0] * 2))


@misuse(fh.TreeMismatchError)
def custom_jvp_tangent_of_another_tree():
    return _slope(_jvp(lambda p, t: (p[0] * 2, (t[0],))))


@misuse(fh.MetadataMismatchError)
def custom_jvp_tangent_of_another_shape():
    return _slope(_jvp(lambda p, t: (p[0] * 2, t[0].sum())))


@misuse(fh.MetadataMismatchError)
def custom_jvp_output_of_another_dtype():
    return _slope(_jvp(lambda p, t: (p[0].double() * 2, t[0].double())))


@misuse(fh.CaptureError)
def custom_vjp_differentiates_itself():
    f = _vjp(lambda x: (f(x), x), lambda x, ct: (ct * fh.grad(lambda x: f(x).sum())(x),))
    return _slope(f)


def _divide(g, y):
    return y / g(1.0)


def _root(f=lambda x: x * x - 4, init=1.0, solve=lambda f, x: x + 1, tangent_solve=_divide):
    return fh.custom_root(f, torch.tensor(init) if isinstance(init, float) else init, solve, tangent_solve)


@misuse(fh.ArgumentTypeError)
def custom_root_solve_is_no_function():
    _root(solve=None)


@misuse(fh.ArgumentTypeError)
def custom_root_init_is_an_integer():
    _root(init=torch.tensor(1))


@misuse(fh.TreeMismatchError)
def custom_root_function_of_another_tree():
    _root(f=lambda x: (x,))


@misuse(fh.MetadataMismatchError)
def custom_root_function_of_another_shape():
    _root(f=lambda x: x + torch.zeros(3))


@misuse(fh.TreeMismatchError)
def custom_root_solution_of_another_tree():
    _root(solve=lambda f, x: [x])


@misuse(fh.MetadataMismatchError)
def custom_root_solution_of_another_shape():
    _root(solve=lambda f, x: x.expand(2))


@misuse(fh.MetadataMismatchError)
def custom_root_solution_of_another_dtype():
    _root(solve=lambda f, x: x.double())


@misuse(fh.MetadataMismatchError)
def custom_root_tangent_of_another_shape():
    return fh.grad(lambda a: _root(f=lambda x: x - a, tangent_solve=lambda g, y: y.expand(2)))(torch.tensor(2.0))


@misuse(fh.ArgumentTypeError, "plain captured")
def custom_root_in_reverse_by_a_tangent_solver_that_stops():
    settle = lambda g, y: fh.while_loop(lambda x: (g(x) - y).abs() > 1e-3, lambda x: x - (g(x) - y), y)
    root = lambda a: _root(f=lambda x: x - a, init=torch.tensor(0.0), solve=lambda f, x: x - f(x), tangent_solve=settle)
    return fh.grad(root)(torch.tensor(2.0))


@misuse(fh.ArgumentTypeError, "plain captured")
def custom_jvp_in_reverse_by_a_rule_that_decides_by_tangents():
    return _slope(_jvp(lambda p, t: (p[0] * 2, torch.where(t[0] > 0, t[0], 2 * t[0]))))


@misuse(fh.TreeMismatchError)
def custom_linear_solve_matvec_of_another_tree():
    fh.custom_linear_solve(lambda x: (x, x), X, lambda matvec, b: b)


@misuse(fh.MetadataMismatchError)
def custom_linear_solve_solution_of_another_shape():
    fh.custom_linear_solve(lambda x: x * 2, X, lambda matvec, b: b[:1])


@misuse(fh.ArgumentTypeError)
def custom_linear_solve_of_integers():
    fh.custom_linear_solve(lambda x: x * 2, torch.ones(2, dtype=torch.int64), lambda matvec, b: b)


@misuse(fh.ArgumentTypeError, "plain captured")
def custom_linear_solve_in_reverse_without_transpose():
    fh.grad(lambda b: fh.custom_linear_solve(lambda x: x * 2, b, lambda matvec, b: b / 2).sum())(X)


@misuse(fh.MetadataMismatchError)
def custom_linear_solve_transposed_solution_of_another_shape():
    solution = lambda w: fh.custom_linear_solve(lambda x: x * w, X, lambda m, b: b / w, lambda m, b: b[:1])
    return fh.grad(lambda w: solution(w).sum())(X)
