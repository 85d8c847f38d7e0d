"""What graph passes leave of a program, looked at as text, and that it means the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import expecttest
import pytest
import torch
from torch import Tensor

import functorch_hops as fh
from functorch_hops.ir.printing import print_subgraph
from functorch_hops.passes.cleaning import clean
from functorch_hops.passes.hoisting import hoist_loops
from functorch_hops.passes.products import batch_products

F64 = torch.float64


def graph_of(f: Callable[..., Any], *args: Any) -> Any:
    return fh.make_graph(f)(*args).call.body


def text(f: Callable[..., Any], *args: Any) -> str:
    return print_subgraph(graph_of(f, *args), "f")


def compiled_text(f: Callable[..., Any], *args: Any) -> str:
    return print_subgraph(hoist_loops(graph_of(f, *args)), "f")


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=F64) for shape in shapes]


# ---------------------------------------------------------------------------------------------------------------------
# programs with something to find


def unchanged_carry(h, w, xs):
    step = lambda c, x: ({"h": (c["h"] * c["w"] + x).sin(), "w": c["w"]}, None)
    return fh.scan(step, {"h": h, "w": w}, xs)[0]


def carry_that_is_a_constant(h, w, xs):
    return fh.scan(lambda c, x: ((c[0] * c[1] + x, w), None), (h, w), xs)[0]


def exchanged_carries(h, w, xs):
    return fh.scan(lambda c, x: ((c[1], c[0], c[2] * c[0] * c[1] + x), None), (w, w, h), xs)[0]


def equal_carries(h, w, xs):
    return fh.scan(lambda c, x: (((c[0] * x).sin(),) * 2, c[0] + c[1]), (h, h), xs)


def stacks(h, w, xs):
    def step(c, x):
        c = (c * x).sin()
        return c, {"same": (c, c + 0), "x": x, "constant": w, "computed": c * w}

    return fh.scan(step, h, xs)


def invariant_work(h, w, xs):
    step = lambda c, x: ((c * (w * w.exp()).sum() + x).sin(), None)
    return fh.scan(step, h, xs)[0]


def invariant_in_a_nested_loop(h, w, xs):
    def step(c, x):
        return fh.fori_loop(0, 3, lambda i, c: (c * w.cos() * x.exp()).sin(), c), None

    return fh.scan(step, h, xs)[0]


def while_with_unchanged_carry(h, w, xs):
    body = lambda c: (c[0] + 1, (c[1] * c[2].exp()).sin(), c[2])
    return fh.while_loop(lambda c: c[0] < 3, body, (torch.zeros((), dtype=torch.int64), h, w))[1:]


def branches_that_hand_on(h, w, xs):
    return fh.cond(h.sum() > 0, lambda a, b, c: (a * c, b, a * c), lambda a, b, c: (a + c, b, a + c), h, w, h)


def unchanged_through_a_nested_loop(h, w, xs):
    def step(c, x):
        inner = lambda i, c: ((c[0] * c[1] + x).sin(), c[1])
        return fh.fori_loop(0, 2, inner, c), None

    return fh.scan(step, (h, w), xs)[0]


def repeated_work(h, w, xs):
    return (h * w).sin() + (h * w).sin().clone().reshape(3).expand(3) + torch.zeros(3, dtype=F64)


def recurrent(h, w, xs):
    u, v = w.outer(w) + 1, torch.diag(w) - 0.5
    return fh.scan(lambda c, x: ((x @ u + c @ v).tanh(), (x @ v).sin()), h, xs)


def recurrent_in_lanes(h, w, xs):
    return fh.vmap(lambda u: recurrent(h, u, xs))(torch.stack([w, w.sin()]))


def recurrent_of_vectors(h, w, xs):
    u, v = w.outer(w) + 1, torch.diag(w) - 0.5
    return fh.scan(lambda c, x: ((u @ x + v @ c).tanh(), (v @ x).sin()), h, xs)


def sums_of_outer_products(h, w, xs):
    def step(c, x):
        state, plain, lanes, deep = c
        state = (state * x + w).sin()
        rows = torch.stack([state, x])
        lanes = lanes + rows[:, :, None] * rows.flip(0)[:, None]
        return (
            state,
            plain + state.outer(x) + x[:, None] * w,
            lanes,
            deep + rows[:, None, None] * state[:, None],
        ), None

    zeros = lambda *shape: torch.zeros(shape, dtype=F64)
    return fh.scan(step, (h, zeros(3, 3), zeros(2, 3, 3), zeros(2, 1, 3, 3)), xs)[0]


PROGRAMS = [
    recurrent,
    recurrent_in_lanes,
    recurrent_of_vectors,
    sums_of_outer_products,
    unchanged_carry,
    carry_that_is_a_constant,
    exchanged_carries,
    equal_carries,
    stacks,
    invariant_work,
    invariant_in_a_nested_loop,
    while_with_unchanged_carry,
    branches_that_hand_on,
    unchanged_through_a_nested_loop,
    repeated_work,
]
every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)


def total(program):
    def f(*args):
        return sum((leaf.sin() * (i + 1)).sum() for i, leaf in enumerate(fh.pytree.flatten(program(*args))[0]))

    return f


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: fh.grad(f, argnums=(0, 1, 2)),
    "second gradient": lambda f: fh.grad(lambda *a: sum(g.square().sum() for g in fh.grad(f, (0, 1, 2))(*a)), (0, 1)),
    "jvp of grad": lambda f: lambda *a: fh.jvp(fh.grad(f, (0, 1)), a, a)[1],
    "vmap of grad": lambda f: (
        lambda h, w, xs: fh.vmap(fh.grad(f, (0, 1)), (0, None, None))(torch.stack([h, -h]), w, xs)
    ),
}


@every_program
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_meaning_stays(program, transform):
    args = inputs((3,), (3,), (4, 3))
    f = transform(total(program))
    jitted = transform(fh.jit(total(program), backend="eager"))
    expected = f(*args)
    for got in (fh.jit(f, backend="eager")(*args), jitted(*args)):
        torch.testing.assert_close(got, expected)


@every_program
def test_a_second_time_there_is_nothing_left_to_do(program):
    args = inputs((3,), (3,), (4, 3))
    for f in (program, fh.grad(total(program), (0, 1, 2))):
        body = batch_products(hoist_loops(graph_of(f, *args)))
        before = print_subgraph(body, "body")
        again = batch_products(hoist_loops(body))
        clean(again.module)
        assert print_subgraph(again, "body") == before


# ---------------------------------------------------------------------------------------------------------------------
# what is left


class Graphs(expecttest.TestCase):
    def setUp(self) -> None:
        self.args = inputs((3,), (3,), (4, 3))

    def check(self, f: Callable[..., Any], expected: str) -> None:
        self.assertExpectedInline(text(f, *self.args), expected, skip=1)

    def check_compiled(self, f: Callable[..., Any], expected: str) -> None:
        self.assertExpectedInline(compiled_text(f, *self.args), expected, skip=1)

    def test_repeated_work(self):
        self.check(
            repeated_work,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %mul: float64[3] = mul.Tensor(%arg0, %arg1)
  %sin: float64[3] = sin(%mul)
  %add: float64[3] = add.Tensor(%sin, %sin)
  %zeros: float64[3] = zeros([3], dtype=torch.float64, device=cpu, pin_memory=False)
  %add_1: float64[3] = add.Tensor(%add, %zeros)
  return (%add_1)""",
        )

    def test_what_repeats_is_not_random(self):
        self.check(
            lambda h, w, xs: torch.rand_like(h) + torch.rand_like(h),
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %rand_like: float64[3] = rand_like(%arg0, pin_memory=False)
  %rand_like_1: float64[3] = rand_like(%arg0, pin_memory=False)
  %add: float64[3] = add.Tensor(%rand_like, %rand_like_1)
  return (%add)""",
        )

    def test_unchanged_carry(self):
        self.check(
            unchanged_carry,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %arg1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
      %mul: float64[3] = mul.Tensor(%arg0, %arg2)
      %add: float64[3] = add.Tensor(%mul, %arg1)
      %sin: float64[3] = sin(%add)
      return (%sin)
  %getitem: float64[3] = getitem(%scan, 0)
  %clone: float64[3] = clone(%arg1)
  return (%getitem, %clone)""",
        )

    def test_carry_that_is_a_constant(self):
        self.check(
            carry_that_is_a_constant,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %arg1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
      %mul: float64[3] = mul.Tensor(%arg0, %arg2)
      %add: float64[3] = add.Tensor(%mul, %arg1)
      return (%add)
  %getitem: float64[3] = getitem(%scan, 0)
  %clone: float64[3] = clone(%arg1)
  return (%getitem, %clone)""",
        )

    def test_exchanged_carries(self):
        self.check(
            exchanged_carries,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %arg1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
      %mul: float64[3] = mul.Tensor(%arg0, %arg2)
      %mul_1: float64[3] = mul.Tensor(%mul, %arg2)
      %add: float64[3] = add.Tensor(%mul_1, %arg1)
      return (%add)
  %getitem: float64[3] = getitem(%scan, 0)
  %clone: float64[3] = clone(%arg1)
  %clone_1: float64[3] = clone(%arg1)
  return (%clone, %clone_1, %getitem)""",
        )

    def test_equal_carries(self):
        self.check(
            equal_carries,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2)
    body(%arg0: float64[3], %arg1: float64[3]):
      %mul: float64[3] = mul.Tensor(%arg0, %arg1)
      %sin: float64[3] = sin(%mul)
      %add: float64[3] = add.Tensor(%arg0, %arg0)
      return (%sin, %add)
  %getitem: float64[3] = getitem(%scan, 0)
  %getitem_1: float64[4, 3] = getitem(%scan, 1)
  %clone: float64[3] = clone(%getitem)
  return (%getitem, %clone, %getitem_1)""",
        )

    def test_stacks(self):
        self.check(
            stacks,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %arg1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
      %mul: float64[3] = mul.Tensor(%arg0, %arg1)
      %sin: float64[3] = sin(%mul)
      %add: float64[3] = add.Tensor(%sin, 0)
      %mul_1: float64[3] = mul.Tensor(%sin, %arg2)
      %clone_1: float64[3] = clone(%sin)
      return (%sin, %mul_1, %clone_1, %add)
  %getitem: float64[3] = getitem(%scan, 0)
  %getitem_1: float64[4, 3] = getitem(%scan, 1)
  %getitem_2: float64[4, 3] = getitem(%scan, 2)
  %getitem_3: float64[4, 3] = getitem(%scan, 3)
  %expand: float64[4, 3] = expand(%arg1, [4, -1])
  %clone: float64[4, 3] = clone(%expand)
  %clone_1: float64[4, 3] = clone(%arg2)
  return (%getitem, %getitem_1, %clone, %getitem_2, %getitem_3, %clone_1)""",
        )

    def test_branches_that_hand_on(self):
        self.check(
            branches_that_hand_on,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %sum_1: float64[] = sum(%arg0)
  %gt: bool[] = gt.Scalar(%sum_1, 0)
  %cond = cond[](%gt, %arg0)
    branch 0(%arg0: float64[3]):
      %add: float64[3] = add.Tensor(%arg0, %arg0)
      return (%add)
    branch 1(%arg0: float64[3]):
      %mul: float64[3] = mul.Tensor(%arg0, %arg0)
      return (%mul)
  %getitem: float64[3] = getitem(%cond, 0)
  %clone: float64[3] = clone(%arg1)
  %clone_1: float64[3] = clone(%getitem)
  return (%getitem, %clone, %clone_1)""",
        )

    def test_while_with_unchanged_carry(self):
        self.check(
            while_with_unchanged_carry,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %zeros: int64[] = zeros([], dtype=torch.int64, device=cpu, pin_memory=False)
  %while_loop = while_loop[n_carry=2, flags=(), checkpoints=None](%zeros, %arg0, %arg1)
    cond(%arg0: int64[], %arg1: float64[3], %arg2: float64[3]):
      %lt: bool[] = lt.Scalar(%arg0, 3)
      return (%lt)
    body(%arg0: int64[], %arg1: float64[3], %arg2: float64[3]):
      %add: int64[] = add.Tensor(%arg0, 1)
      %exp: float64[3] = exp(%arg2)
      %mul: float64[3] = mul.Tensor(%arg1, %exp)
      %sin: float64[3] = sin(%mul)
      return (%add, %sin)
  %getitem_1: float64[3] = getitem(%while_loop, 1)
  %clone: float64[3] = clone(%arg1)
  return (%getitem_1, %clone)""",
        )

    def test_while_is_hoisted_when_it_is_compiled(self):
        self.check_compiled(
            while_with_unchanged_carry,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %zeros: int64[] = zeros([], dtype=torch.int64, device=cpu, pin_memory=False)
  %exp: float64[3] = exp(%arg1)
  %while_loop = while_loop[n_carry=2, flags=(), checkpoints=None](%zeros, %arg0, %exp)
    cond(%arg0: int64[], %arg1: float64[3], %arg2: float64[3]):
      %lt: bool[] = lt.Scalar(%arg0, 3)
      return (%lt)
    body(%arg0: int64[], %arg1: float64[3], %arg2: float64[3]):
      %add: int64[] = add.Tensor(%arg0, 1)
      %mul: float64[3] = mul.Tensor(%arg1, %arg2)
      %sin: float64[3] = sin(%mul)
      return (%add, %sin)
  %getitem_1: float64[3] = getitem(%while_loop, 1)
  %clone: float64[3] = clone(%arg1)
  return (%getitem_1, %clone)""",
        )

    def test_unchanged_through_a_nested_loop(self):
        self.check(
            unchanged_through_a_nested_loop,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %arg1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
      %scan = scan[n_carry=1, n_xs=0, reverse=False](2, %arg0, %arg2, %arg1)
        body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
          %mul: float64[3] = mul.Tensor(%arg0, %arg1)
          %add: float64[3] = add.Tensor(%mul, %arg2)
          %sin: float64[3] = sin(%add)
          return (%sin)
      %getitem: float64[3] = getitem(%scan, 0)
      return (%getitem)
  %getitem: float64[3] = getitem(%scan, 0)
  %clone: float64[3] = clone(%arg1)
  return (%getitem, %clone)""",
        )

    def test_invariant_work(self):
        self.check(
            invariant_work,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %exp: float64[3] = exp(%arg1)
  %mul: float64[3] = mul.Tensor(%arg1, %exp)
  %sum_1: float64[] = sum(%mul)
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %sum_1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[]):
      %mul_1: float64[3] = mul.Tensor(%arg0, %arg2)
      %add: float64[3] = add.Tensor(%mul_1, %arg1)
      %sin: float64[3] = sin(%add)
      return (%sin)
  %getitem: float64[3] = getitem(%scan, 0)
  return (%getitem)""",
        )

    def test_invariant_in_a_nested_loop(self):
        self.check(
            invariant_in_a_nested_loop,
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %cos: float64[3] = cos(%arg1)
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %cos)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
      %exp: float64[3] = exp(%arg1)
      %scan = scan[n_carry=1, n_xs=0, reverse=False](3, %arg0, %arg2, %exp)
        body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[3]):
          %mul: float64[3] = mul.Tensor(%arg0, %arg1)
          %mul_1: float64[3] = mul.Tensor(%mul, %arg2)
          %sin: float64[3] = sin(%mul_1)
          return (%sin)
      %getitem: float64[3] = getitem(%scan, 0)
      return (%getitem)
  %getitem: float64[3] = getitem(%scan, 0)
  return (%getitem)""",
        )

    def test_gradient_of_invariant_work(self):
        self.check(
            fh.grad(lambda h, w, xs: invariant_work(h, w, xs).sum(), argnums=1),
            """\
f(%arg0: float64[3], %arg1: float64[3], %arg2: float64[4, 3]):
  %exp: float64[3] = exp(%arg1)
  %mul: float64[3] = mul.Tensor(%arg1, %exp)
  %sum_1: float64[] = sum(%mul)
  %scan = scan[n_carry=1, n_xs=1, reverse=False](4, %arg0, %arg2, %sum_1)
    body(%arg0: float64[3], %arg1: float64[3], %arg2: float64[]):
      %mul_1: float64[3] = mul.Tensor(%arg0, %arg2)
      %add: float64[3] = add.Tensor(%mul_1, %arg1)
      %sin: float64[3] = sin(%add)
      %clone: float64[3] = clone(%arg0)
      return (%sin, %clone)
  %getitem: float64[3] = getitem(%scan, 0)
  %getitem_1: float64[4, 3] = getitem(%scan, 1)
  %sum_2: float64[] = sum(%getitem)
  %ones_like: float64[] = ones_like(%sum_2, pin_memory=False)
  %expand: float64[3] = expand(%ones_like, [3])
  %zeros_like: float64[] = zeros_like(%sum_1, pin_memory=False)
  %scan_2 = scan[n_carry=2, n_xs=2, reverse=True](4, %expand, %zeros_like, %getitem_1, %arg2, %sum_1)
    body(%arg0: float64[3], %arg1: float64[], %arg2: float64[3], %arg3: float64[3], %arg4: float64[]):
      %mul: float64[3] = mul.Tensor(%arg2, %arg4)
      %add: float64[3] = add.Tensor(%mul, %arg3)
      %cos: float64[3] = cos(%add)
      %mul_1: float64[3] = mul.Tensor(%arg0, %cos)
      %mul_2: float64[3] = mul.Tensor(%mul_1, %arg2)
      %mul_3: float64[3] = mul.Tensor(%mul_1, %arg4)
      %sum_1: float64[] = sum(%mul_2)
      %add_1: float64[] = add.Tensor(%arg1, %sum_1)
      return (%mul_3, %add_1)
  %getitem_3: float64[] = getitem(%scan_2, 1)
  %expand_1: float64[3] = expand(%getitem_3, [3])
  %mul_1: float64[3] = mul.Tensor(%expand_1, %arg1)
  %mul_2: float64[3] = mul.Tensor(%expand_1, %exp)
  %mul_3: float64[3] = mul.Tensor(%mul_1, %exp)
  %add: float64[3] = add.Tensor(%mul_2, %mul_3)
  return (%add)""",
        )


def products(text: str) -> tuple[int, int]:
    """How many products a program takes outside and inside its loops."""
    lines = [line for line in text.splitlines() if any(f" {name}(" in line for name in ("mm", "bmm", "mv"))]
    outside = [line for line in lines if line.startswith("  %")]
    return len(outside), len(lines) - len(outside)


def check_products(loss: Callable[..., Any], args: Any, *, before: tuple[int, int], after: tuple[int, int]) -> None:
    """Of a loss's gradient by two matrices."""
    f = fh.grad(loss, argnums=(1, 2))
    body = graph_of(f, *args)
    assert products(print_subgraph(body, "body")) == before
    assert products(print_subgraph(batch_products(body), "body")) == after
    torch.testing.assert_close(fh.jit(f, backend="eager")(*args), f(*args))


def test_products_that_wait_for_no_carry_are_taken_for_all_steps():
    """``x @ u`` is taken before the loop, the gradients of ``u`` and ``v`` after it."""
    loss = lambda h, u, v, xs: fh.scan(lambda c, x: ((x @ u + c @ v).tanh(), None), h, xs)[0].sum()
    check_products(loss, inputs((2, 8), (8, 8), (8, 8), (5, 2, 8)), before=(0, 5), after=(3, 2))


def test_products_with_vectors_are_taken_for_all_steps():
    """The gradients of the matrices are outer products, whose sum is a product."""
    loss = lambda h, u, v, xs: fh.scan(lambda c, x: ((u @ x + v @ c).tanh(), None), h, xs)[0].sum()
    check_products(loss, inputs((8,), (8, 8), (8, 8), (5, 8)), before=(0, 3), after=(3, 2))


def test_products_of_half_precision_are_summed_as_a_carry_of_more():
    """Among themselves their sum is more than half precision holds."""
    a, b = torch.full((50, 3), 200.0).half(), torch.full((50, 4), 100.0).half()
    for step in (
        lambda c, x: (c + x[0][:, None] * x[1], None),
        lambda c, x: (c + x[0][:, None] @ x[1][None], None),
    ):
        f = lambda a, b, step=step: fh.scan(step, torch.zeros(3, 4), (a, b))[0]
        assert torch.equal(fh.jit(f, backend="eager")(a, b), f(a, b))


def test_products_of_many_rows_stay_in_the_loop():
    h, u, v, xs = inputs((20, 4), (4, 4), (4, 4), (5, 20, 4))
    loss = lambda h, u, v, xs: fh.scan(lambda c, x: ((x @ u + c @ v).tanh(), None), h, xs)[0].sum()
    body = graph_of(fh.grad(loss, argnums=(1, 2)), h, u, v, xs)
    assert products(print_subgraph(batch_products(body), "body")) == (0, 5)


STAYS = {
    "views": lambda c, w: c + w[:, None].expand(3, 3)[0],
    "random numbers": lambda c, w: c + torch.rand(3, dtype=F64),
    "what is larger than all that it is made from": lambda c, w: c @ (w[:, None] * w),
    "what is made from nothing": lambda c, w: c + torch.zeros(3, dtype=F64),
    "the work of a branch": lambda c, w: fh.cond(c.sum() > 0, lambda: c * w.exp(), lambda: c),
}


@pytest.mark.parametrize("step", STAYS.values(), ids=STAYS)
def test_what_stays_in_a_loop(step):
    f = lambda h, w, xs: fh.scan(lambda c, x: (step(c, w) * x, None), h, xs)[0]
    before_loop = compiled_text(f, *inputs((3,), (3,), (4, 3))).split("= scan")[0]
    assert before_loop.count("\n") == 1, before_loop


def test_a_while_loop_keeps_what_might_fail():
    def f(a, x):
        return fh.while_loop(lambda c: c.sum() < -1e6, lambda c: torch.linalg.solve(a, c), x)

    singular, x = torch.zeros(3, 3), torch.zeros(3)
    torch.testing.assert_close(fh.jit(f, backend="eager")(singular, x), x)


@pytest.mark.parametrize("inside", [True, False])
def test_a_loop_that_takes_no_step_has_a_finite_gradient(inside):
    def f(w, x):
        return fh.while_loop(lambda c: c.sum() < -1e6, lambda c: c * w.sqrt(), x).sum()

    jit = lambda f: fh.jit(f, backend="eager")
    g = jit(fh.grad(f)) if inside else fh.grad(jit(f))
    torch.testing.assert_close(g(torch.zeros(3), torch.zeros(3)), torch.zeros(3))


def test_a_bound_that_loops_within_loops_share():
    """The outer condition reads one operand, the outer body another one, and both are the bound."""
    inner = lambda n, x: fh.fori_loop(0, n, lambda i, x: 0.5 * x + i, x)
    f = lambda x, n: fh.fori_loop(0, n, lambda i, x: inner(n, x) + i, x)
    x, n = torch.ones(3), torch.tensor(3)
    torch.testing.assert_close(fh.jit(f)(x, n), f(x, n))


def test_an_unchanged_carry_is_not_saved_for_the_backward_pass():
    """JAX-style code carries its parameters; each step of a scan would save them."""
    w, xs = torch.randn(50, 50), torch.randn(7, 50)
    loss = lambda w, xs: fh.scan(lambda c, x: ((c[0], torch.tanh(c[0] @ c[1] + x)), None), (w, xs[0]), xs)[0][1].sum()
    assert "float32[7, 50, 50]" not in text(fh.grad(loss), w, xs)


def test_random_numbers_come_in_the_order_of_the_program():
    def f(x):
        a, b = torch.rand(3), torch.rand(3)
        return (b * x.sin()).sum(), (a * x.cos()).sum()

    def loss(x):
        first, second = fh.checkpoint(f)(x)
        return second + 2 * first

    x = torch.ones(3)
    torch.manual_seed(1)
    a, b = torch.rand(3), torch.rand(3)
    torch.manual_seed(1)
    with fh.eager_capture():
        got = fh.grad(loss)(x)
    torch.testing.assert_close(got, 2 * b * x.cos() - a * x.sin())
