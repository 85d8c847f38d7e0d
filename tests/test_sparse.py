"""Sparse matrices in captured functions: products and all else that has a form in terms of their parts is right, the
rest is refused by name.
"""

from __future__ import annotations

import warnings

import pytest
import torch

import functorch_hops as fh
from modes import captured, every_mode, plain, same, while_capturing

F64 = torch.float64
DENSE = torch.tensor([[2.0, 0, 1, 0], [0, 3, 0, 0], [1, 0, 0, -1], [0, 5, 0, 0]], dtype=F64)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    MATRICES = {
        "coo": DENSE.to_sparse(),
        "with duplicates": torch.sparse_coo_tensor([[0, 0, 1], [2, 2, 0]], [1.0, 2.0, 3.0], (4, 4), dtype=F64),
        "csr": DENSE.to_sparse_csr(),
        "csc": DENSE.to_sparse_csc(),
    }
X = torch.tensor([[0.5, 1], [-1.0, 0.3], [2.0, -2], [0.1, 0.2]], dtype=F64)
matrices = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)

PRODUCTS = {
    "@": lambda s, x: s @ x,
    "mm": torch.mm,
    "of a vector": lambda s, x: torch.stack([s @ x[:, 0], torch.mv(s, x[:, 1])], 1),
    "sparse.mm": lambda s, x: torch.sparse.mm(s, x) if s.layout is not torch.strided else s @ x,
    "on the right": lambda s, x: (x.T @ s).T + (x[:, 0] @ s)[:, None],
    "transposed": lambda s, x: s.t() @ x,
    "dense": lambda s, x: (s.to_dense() + 1) @ x,
    "looked at": lambda s, x: s @ x if s.shape == (4, 4) and s.dtype is F64 and not s.requires_grad else x,
}


@every_mode
@matrices
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_products(run, matrix, product):
    dense = matrix.to_dense()
    oracle = lambda x: product(dense, product(dense, x))
    closed_over = lambda x: fh.scan(lambda c, _: (product(matrix, c), None), x, length=2)[0]
    argument = lambda s, x: fh.cond(x.sum() > -99, lambda s, x: product(s, x), lambda s, x: x, s, x)
    same(run(closed_over, X), oracle(X))
    same(run(argument, matrix, X), product(dense, X))
    if run is not plain:  # torch has no rules for most of them
        same(run(fh.grad(lambda x: closed_over(x).sum()), X), torch.func.grad(lambda x: oracle(x).sum())(X))
        same(run(lambda x: fh.jvp(closed_over, (x,), (x,))[1], X), torch.func.jvp(oracle, (X,), (X,))[1])
        lanes = torch.stack([X, 2 * X])
        same(run(fh.vmap(closed_over), lanes), torch.func.vmap(oracle)(lanes))
        same(
            run(fh.grad(lambda x, s: argument(s, x).sum()), X, matrix),
            run(fh.grad(lambda x: product(dense, x).sum()), X),
        )


@every_mode
def test_parts(run):
    s = MATRICES["coo"].coalesce()
    f = lambda x: (
        (x[s.indices()[1], 0] * s.values()).sum() * s.coalesce().values().sum() * s._nnz() + (s.T.mT.T @ x).sum()
    )
    same(run(lambda x: fh.cond(x.sum() > -99, f, lambda x: x.sum(), x), X), f(X))


def test_a_trace_is_for_one_matrix_and_its_values_of_the_moment():
    s = MATRICES["coo"].clone().coalesce()
    f = fh.jit(lambda s, x: s @ x if s.is_sparse else 2 * s @ x, backend="eager")
    for matrix, factor in ((s, 1), (DENSE, 2), (s, 1), (MATRICES["with duplicates"], 1)):
        same(f(matrix, X), factor * matrix.to_dense() @ X)
    s.values().mul_(3)
    same(f(s, X), 3 * DENSE @ X)
    assert f.cache_info().misses == 3
    holder = {"s": s}
    g = fh.jit(lambda x: holder["s"] @ x, backend="eager")
    same(g(X), 3 * DENSE @ X)
    holder["s"] = MATRICES["csr"]
    same(g(X), DENSE @ X)


@pytest.mark.slow
@matrices
def test_with_inductor(matrix):
    f = lambda x: fh.scan(lambda c, _: ((matrix @ c).sin(), None), x, length=2)[0]
    same(fh.jit(f)(X), f(X))
    same(fh.jit(fh.grad(lambda x: f(x).sum()))(X), fh.jit(fh.grad(lambda x: f(x).sum()), backend="eager")(X))


REFUSED = {
    "multiplied": (lambda s, x: (s * 2) @ x, r"Tensor\.__mul__ of a sparse tensor|mul of a sparse"),
    "two of them": (lambda s, x: (s @ s) @ x, "of a sparse tensor"),
    "product with a reduction": (lambda s, x: torch.sparse.mm(s, x, "sum"), "spmm of a sparse tensor|mm of a sparse"),
    "dense as another dtype": (lambda s, x: s.to_dense(dtype=torch.float32) @ x.float(), "to_dense of a sparse tensor"),
    "in a list": (lambda s, x: torch.cat([s, s]) @ x, "cat of a sparse tensor"),
    "made inside": (lambda s, x: torch.sparse_coo_tensor([[0], [0]], x[0, :1], (4, 4)) @ x, "making a sparse tensor"),
    "converted": (lambda s, x: x.to_sparse() @ x, "making a sparse tensor"),
    "returned": (lambda s, x: s, "as a value of a graph, or its result"),
    "not coalesced": (lambda s, x: MATRICES["with duplicates"].coalesce() @ x, "coalesce of a sparse tensor"),
    "of another shape": (lambda s, x: s @ x[1:], "reduction dim"),
    "of another dtype": (lambda s, x: s @ x.float(), "same dtype"),
}


@while_capturing
@pytest.mark.parametrize(("f", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(run, f, words):
    s = MATRICES["coo"]
    body = lambda x: fh.cond(x.sum() > -99, lambda x: f(s, x), lambda x: x * 1, x)
    with pytest.raises((fh.CaptureError, RuntimeError), match=words):
        run(body if run is captured else lambda x: f(s, x), X)


@while_capturing
def test_other_tensors_that_are_not_dense(run):
    parameter = MATRICES["coo"].detach().clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for t, words in ((parameter, "requires a gradient"), (nested, "of a nested tensor")):
        with pytest.raises(fh.CaptureError, match=words):
            run(lambda x, t=t: fh.cond(x.sum() > -99, lambda x: t @ x, lambda x: x, x), X)
    with pytest.raises(fh.CaptureError, match="as a value of a graph"):
        run(lambda s: fh.scan(lambda c, _: (c, None), s, length=2), MATRICES["coo"])
