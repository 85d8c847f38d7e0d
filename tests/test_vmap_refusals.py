"""What torch's own vmap refuses: indices that differ between lanes, masks, operators without a batching rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

import functorch_hops as fh
from modes import captured, every_mode, lane_by_lane, plain, same, same_derivatives

F64 = torch.float64
CELL = nn.LSTMCell(3, 3, dtype=F64)
LSTM = nn.LSTM(3, 3, dtype=F64)


def with_write(write):
    def f(x):
        y = x * 1
        write(y)
        return y * x

    return f


def write_max(y):
    y[y[:, 0].argmax()] = y[0] * 2


def add_max(y):
    y[0, y[0].argmax()] += 1


def reset(y):
    y[y > 0] = 0.0


def reset_rows(y):
    y[y.sum(1) > 0] = y[1] * 2


def pointers(x):
    """A loop over the best choices and one along the pointers, backwards."""
    best, back = fh.scan(lambda s, e: ((m := (s[:, None] + x).max(0))[0] + e, m[1]), x[0], x[1:])
    first, path = fh.scan(lambda tag, row: (row[tag], tag), best.argmax(), back, reverse=True)
    return best.max() + x[first, path].sum()


FUNCTIONS = {
    "an index": lambda x: x[x[:, 0].argmax()] * x[0],
    "an index and a slice": lambda x: x[1:, x[0].argmax()].sin(),
    "two indices": lambda x: x[x[:, 0].argmax(), x[0].argmin()] * 2,
    "an index in a loop": lambda x: fh.scan(lambda c, r: (c + r[r.argmax()], x[r.argmin()]), x.new_zeros(()), x),
    "an index in a branch": lambda x: fh.cond(x.sum() > 0, lambda: x[x[:, 0].argmax()], lambda: x[x[:, 1].argmin()]),
    "pointers": pointers,
    "a write by an index": with_write(write_max),
    "an addition by an index": with_write(add_max),
    "a write by a mask": with_write(reset),
    "a write by a mask of rows": with_write(reset_rows),
    "values put by a mask": lambda x: x.new_zeros(3, 3).index_put((x > 0,), x.sum()) * x,
    "values added by a mask": lambda x: torch.index_put(x * 1, (x[:, 0] > 0,), x[0], accumulate=True) * x,
    "values put by a mask, named": lambda x: torch.index_put(input=x * 1, indices=(x > 0,), values=x[0, :1]) * x,
    "values put by a mask in place": lambda x: (x * 1).index_put_((x > 0,), x[0, 0]) * x,
    "writes in a loop": lambda x: fh.scan(lambda c, r: (with_write(reset)(c + r), c), x, x),
    "a cell": lambda x: CELL(x, (x * 2, x * 3)),
    "a cell in a loop": lambda x: fh.scan(lambda s, r: ((s := CELL(r, s)), s[0]), (x[0], x[1]), x)[1],
    "a network": lambda x: LSTM(x)[0],
    "a flip of a number": lambda x: x.sum().flip(-1) * torch.flip(x[0, 0], (0,)) * x.sum().flip(dims=(0,)),
    "complex numbers between the lanes": lambda x: fh.jacrev(lambda x: torch.view_as_real(x * (1 + 2j)))(x[0, 0]),
}


@every_mode
@pytest.mark.parametrize("name", FUNCTIONS)
def test_agrees_with_a_loop_over_the_lanes(name, run) -> None:
    f, x = FUNCTIONS[name], torch.randn(4, 3, 3, dtype=F64)
    same(run(fh.vmap(f), x), lane_by_lane(f, x))
    same(run(fh.vmap(fh.vmap(f)), x[None]), lane_by_lane(lambda x: lane_by_lane(f, x), x[None]))


@every_mode
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name, run) -> None:
    """Of the batch, and of each lane."""
    f, x = FUNCTIONS[name], torch.randn(3, 3, 3, dtype=F64)
    same_derivatives(run, fh.vmap(f), lambda x: lane_by_lane(f, x), x)
    loss = lambda x: sum(t.sin().sum() for t in torch.utils._pytree.tree_leaves(f(x)))
    same(run(fh.vmap(fh.grad(loss)), x), lane_by_lane(torch.func.grad(loss), x))
    pushed = lambda jvp: lambda x: jvp(loss, (x,), (x * 2 + 1,))[1]
    same(run(fh.vmap(pushed(fh.jvp)), x), lane_by_lane(pushed(torch.func.jvp), x))


@every_mode
def test_an_ensemble(run) -> None:
    """One network for each lane, on the same data."""
    cells = [nn.LSTMCell(3, 2, dtype=F64) for _ in range(3)]
    params, _ = torch.func.stack_module_state(cells)
    params = {name: p.detach() for name, p in params.items()}
    xs, zero = torch.randn(4, 3, dtype=F64), torch.zeros(2, dtype=F64)

    def loss(params):
        step = lambda state, x: ((state := functional_call(cells[0], params, (x, state))), state[0])
        return fh.scan(step, (zero, zero), xs)[1].square().sum()

    grads = run(fh.vmap(fh.grad(loss)), params)
    for i, cell in enumerate(cells):
        state, total = (zero, zero), 0
        for x in xs:
            state = cell(x, state)
            total = total + state[0].square().sum()
        total.backward()
        same({name: g[i] for name, g in grads.items()}, {name: p.grad for name, p in cell.named_parameters()})


def test_only_the_refused_call_runs_again() -> None:
    seen = []

    def f(x):
        seen.append("before")
        y = CELL(x, (x, x))[0] + x[x.argmax()]
        seen.append("after")
        return y.sum()

    fh.vmap(fh.grad(f))(torch.randn(2, 3, dtype=F64))
    assert seen == ["before", "after"]


@pytest.mark.parametrize("run", [plain, captured], ids=["plain", "captured"])
@pytest.mark.parametrize("around", [lambda f: f, fh.grad], ids=["value", "grad"])
def test_what_no_graph_can_do_is_refused(around, run) -> None:
    x = torch.randn(2, 3)
    with pytest.raises(fh.CaptureError, match="shape of an output depends on values"):
        run(fh.vmap(around(lambda x: x[x > 0].sum())), x)
    for read in (bool, float, torch.Tensor.item):
        with pytest.raises(fh.DataDependentError, match="has none yet"):
            run(fh.vmap(around(lambda x: x.sum() * read(x.sum()))), x)


@every_mode
def test_a_write_to_what_all_lanes_share_is_refused_in_words(run) -> None:
    def f(x):
        shared = torch.zeros(1, 3, dtype=F64)
        shared.transpose(0, -1).add_(x.sum())
        return shared + x

    with pytest.raises(fh.CaptureError, match="what differs between the examples is written to a tensor that is one"):
        run(fh.vmap(f), torch.ones(4, 3, dtype=F64))


@every_mode
def test_an_out_argument_that_all_lanes_share_is_refused_in_words(run) -> None:
    f = lambda x: torch.mul(x, 2, out=torch.empty(3, dtype=F64))
    with pytest.raises(fh.CaptureError, match="what differs between the examples is written to a tensor that is one"):
        run(fh.vmap(f), torch.ones(4, 3, dtype=F64))


@every_mode
def test_a_value_for_each_element_of_a_mask_is_refused_in_words(run) -> None:
    f = lambda x: (x * 1).index_put((x > -9,), x)
    with pytest.raises(fh.CaptureError, match=r"(?s)no way to make a call for all examples at once.*torch.where"):
        run(fh.vmap(f), torch.ones(4, 3, dtype=F64))


@every_mode
def test_a_collective_is_refused_by_name(run, tmp_path) -> None:
    """torch's vmap (2.13) runs one for each lane and waits for none of them."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD.group_name
        ops = torch.ops._c10d_functional
        f = lambda x: ops.wait_tensor(ops.all_reduce(x * 2, "sum", group)) + 0
        x = torch.ones(3, 2, dtype=F64)
        same(run(f, x), 2 * x)
        with pytest.raises(fh.CaptureError, match=r"the collective .*all_reduce.* can't be mapped over"):
            run(fh.vmap(f), x)
        with pytest.raises(fh.CaptureError, match=r"the collective .*all_reduce.* can't be mapped over"):
            run(fh.vmap(fh.jit(f, backend="eager")), x)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("sizes", "shape"), [((3, 1), (3,)), ((3, 3), (1, 1, 3))])
def test_values_that_do_not_fit_a_mask_are_refused(sizes, shape) -> None:
    f = lambda x: x.index_put((x[:, 0] > 0,), torch.ones(shape))
    with pytest.raises(RuntimeError):
        f(torch.ones(sizes))
    with pytest.raises((RuntimeError, fh.FunctorchHopsError)):
        fh.vmap(f)(torch.ones(4, *sizes))
