"""``table[i]`` by a traced index behaves as the view that it is in eager Python: written to, and seen to change.

Parts of a tensor that are written to by views and masks, batched and differentiated.
"""

from __future__ import annotations

import optree
import pytest
import torch

import functorch_hops as fh
from modes import every_mode, gradients, lane_by_lane, plain, same, same_derivatives, while_capturing

TABLE = torch.linspace(-1, 1, 27, dtype=torch.float64).reshape(3, 3, 3)


def reads(table, i):
    """Every kind of index around a traced one."""
    j = (i * 2) % 3
    by_list, by_tensor = table[[0, 2], i], table[torch.tensor([1, 0]), i]
    return (
        (table[i], table[i, j], table[..., j], table[:, i, 1:], table[i, ..., j], table[None, i], table[-1 - i]),
        (table[i][j][j], table[i, None], table[i, :, j][::2], table[i, 1:], by_list, by_tensor),
    )


def writes(table, i):
    """Every kind of write, by one index and by several in a row."""
    j = (i * 2) % 3
    table = table.clone()
    table[i] = table[j] * 2
    table[i, j] = table[0].sum()
    table[..., j] = table[..., j] * 0.5
    table[:, i, 1:] *= 2
    table[i][j] = table[i][j] + 3
    table[i][j][0] -= 1
    table[i].mul_(0.5)
    return table


def swaps(table, i):
    """The row is a view: it sees what is written to its table later, and a row of a row does."""
    table = table.clone()
    row = table[i]
    element = row[0]
    table[i] = table[2 - i]
    table[2 - i] = row
    table.mul_(0.5)
    taken = fh.cond(element.sum() > 0, lambda: row + 1, lambda: row * 2)
    last = table[i][1]
    row.neg_()
    return table, (element, taken, last, row)


def steps(f):
    def loop(table):
        return fh.scan(lambda c, i: (f(c, i)[0], f(c, i)[1]), table, torch.arange(3))

    def oracle(table):
        ys = []
        for i in range(3):
            table, y = optree.tree_map(torch.clone, f(table, i))
            ys.append(y)
        return table, optree.tree_map(lambda *rows: torch.stack(rows), *ys)

    return loop, oracle


def windows(table, i):
    """A window of rows that begins at a traced one is a view, too, and so is a part of it."""
    table = table.clone()
    window = table.narrow(0, i % 2, 2)
    before = window.sum(0) * torch.narrow(table, dim=-1, start=i - 3, length=1).clone()
    window[1] += 1
    window.narrow(2, (i + 1) % 2, 2).mul_(0.5)
    table[i] = table[2 - i] * 2
    return table, (before, window * 1, table.narrow(1, i, 0))


PROGRAMS = {
    "reads": steps(lambda c, i: (c, reads(c, i))),
    "writes": steps(lambda c, i: (writes(c, i), c[i])),
    "swaps": steps(swaps),
    "windows": steps(windows),
}


@every_mode
@pytest.mark.parametrize("name", PROGRAMS)
def test_agrees_with_python(run, name):
    loop, oracle = PROGRAMS[name]
    same(run(loop, TABLE), oracle(TABLE))
    lanes = torch.stack([TABLE, TABLE * 2])
    same(run(fh.vmap(loop), lanes), lane_by_lane(oracle, lanes))
    same_derivatives(run, loop, oracle, TABLE, order=1)


@every_mode
def test_a_row_read_after_a_write_to_its_table_in_loop_invariant_work(run):
    """The work is taken out of the loop, and reads the row as it is there."""

    def f(table, i):
        table = table * 1
        row = table[i]
        table.add_(10)
        return fh.scan(lambda c, x: (c + row.sin() * x, None), torch.zeros_like(row), torch.ones(2))[0]

    same(run(f, TABLE, torch.tensor(1)), 2 * (TABLE[1] + 10).sin())


@while_capturing
def test_a_write_to_a_row_of_an_input_is_refused(run):
    for write in (lambda t, i: t[i].add_(1), lambda t, i: t[i].zero_(), lambda t, i: t[i][0].fill_(2)):
        with pytest.raises(fh.InputMutationError):
            run(lambda t: fh.fori_loop(0, 2, lambda i, c: (write(c, i), c)[1], t), TABLE.clone())
        with pytest.raises(fh.InputMutationError):
            run(lambda t: fh.fori_loop(0, 2, lambda i, c: (write(t, i), c)[1], 0.0), TABLE.clone())


SQUARE = torch.linspace(-2, 2.5, 16, dtype=torch.float64).reshape(4, 4)


def with_write(write):
    """A step that writes to a new tensor and reads it all."""

    def step(x):
        h = x * 1.5
        write(h, x)
        return h.sin()

    return step


def masked(index, value):
    return with_write(lambda h, x: h.__setitem__(index(h), value(x)))


WRITES = {
    "mask": masked(lambda h: h > 0, lambda x: 0.5),
    "mask, one element": masked(lambda h: h > 0, lambda x: x.sum()),
    "mask, of another dtype": masked(lambda h: h > 0, lambda x: x.float().sum()),
    "mask of rows": masked(lambda h: h.sum(1) > 0, lambda x: x[0]),
    "mask of rows, leading ones": masked(lambda h: h.sum(1) > 0, lambda x: x[:1][None]),
    "mask of columns": masked(lambda h: (slice(1, 3), h.sum(0) > 0), lambda x: x[1:3, :1]),
    "mask after an ellipsis": masked(lambda h: (..., h[-1] > 0), lambda x: 2),
    "mask in a row": masked(lambda h: (None, -1, h[0] > 0), lambda x: x[0, 0]),
    "mask without dimensions": masked(lambda h: h[0, 0] > -2.9, lambda x: x + 1),
    "mask of a view": with_write(lambda h, x: h.t()[1:].__setitem__(h.t()[1:] > 0, x.mean())),
    "column": with_write(lambda h, x: h[:, -1].copy_(x[0] * x[:, 0])),
    "last columns": with_write(lambda h, x: h[:, -2:].mul_(x[:, :1])),
    "diagonal": with_write(lambda h, x: h.diagonal().copy_(x[1])),
    "places in memory": with_write(lambda h, x: h.as_strided((3,), (5,), 1).mul_(x[0].sum())),
}


@while_capturing
@pytest.mark.parametrize("name", WRITES)
def test_writes_to_parts(run, name):
    """Batched and differentiated in every order: torch's own vmap refuses a mask that differs between lanes."""
    step = WRITES[name]
    loop = lambda x: fh.fori_loop(0, 2, lambda i, x: step(x), x)
    oracle = lambda x: step(step(x))
    same_derivatives(run, loop, oracle, SQUARE)
    lanes = torch.stack([SQUARE, SQUARE * 0.5, SQUARE + 1])
    same_derivatives(run, fh.vmap(loop), lambda lanes: lane_by_lane(oracle, lanes), lanes)
    gradient = lambda tools, f: tools.grad(lambda x: f(x).square().sum())
    same(run(fh.vmap(gradient(fh, loop)), lanes), lane_by_lane(gradient(torch.func, oracle), lanes))


@while_capturing
def test_a_write_keeps_the_dtype(run):
    def step(x):
        h, mask = (x * 3).to(torch.int64), x > 0
        h.copy_(x * 2.7)
        h[mask] = 2.7
        return h * x

    same(run(lambda x: fh.fori_loop(0, 2, lambda i, x: step(x), x), SQUARE), step(step(SQUARE)))


@while_capturing
def test_a_mask_of_the_wrong_shape_is_refused(run):
    step = masked(lambda h: h[:1, 0] > 0, lambda x: 1.0)
    with pytest.raises(IndexError, match="shape of the mask"):
        run(lambda x: fh.fori_loop(0, 2, lambda i, x: step(x), x), SQUARE)


# ---------------------------------------------------------------------------------------------------------------------
# in a scan and a loop, under vmap, with gradients


@every_mode
def test_indexing(run):
    table = torch.arange(24.0, dtype=torch.float64).reshape(4, 3, 2)

    def read(t, i, j):
        return (
            t[i], t[-i - 1], t[i, j], t[:, j], t[..., i % 2], t[1:, j, ::1], t[i, 1:], t[None, i], t[i, :, 0], t[i][j],
            t[i, torch.tensor([0, 2])], t[torch.tensor([0, 2])][:, j],
        )  # fmt: skip

    f = lambda t: fh.scan(lambda c, e: (c, read(t, *e)), 0, (torch.tensor([3, 0, 2]), torch.tensor([1, 2, 0])))[1]
    rows = [read(table, i, j) for i, j in [(3, 1), (0, 2), (2, 0)]]
    same(run(f, table), tuple(torch.stack(column) for column in zip(*rows)))
    weights = [torch.randn_like(o) for o in f(table)]
    loss = lambda f: lambda t: sum((o * w).sum() for o, w in zip(f(t), weights))
    oracle = lambda t: tuple(torch.stack(c) for c in zip(*[read(t, i, j) for i, j in [(3, 1), (0, 2), (2, 0)]]))
    same(gradients(run, loss(f), table), gradients(plain, loss(oracle), table))


@every_mode
def test_indexed_writes(run):
    def write(b, i, j, v):
        b = b.clone()
        b[i] = v
        b[-j - 1, j] += 1.0
        b[:, i] = b[:, j] * 2
        b[i, 1:] = v[1:] * b[j, 0].clone()
        b[..., j] = 0.25
        b[i, j] = 7
        return b

    pairs = [(2, 1), (0, 2), (1, 0)]
    v = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def f(b, v):
        xs = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
        return fh.scan(lambda c, e: (write(c, e[0], e[1], v), None), b, xs)[0]

    def oracle(b, v):
        for i, j in pairs:
            b = write(b, i, j, v)
        return b

    b = torch.randn(3, 3, dtype=torch.float64)
    same(run(f, b, v), oracle(b, v))
    same(
        gradients(run, lambda b, v: f(b, v) ** 2, b, v),
        gradients(plain, lambda b, v: oracle(b, v) ** 2, b, v),
    )


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("bad", [3, -1])
def test_one_hot_of_no_class(backend, bad):
    """An error, as in eager: no row of zeros, and none counted from the end."""
    one_hot = lambda y: torch.nn.functional.one_hot(y, 3)
    in_steps = lambda y: fh.scan(lambda c, row: (c, one_hot(row)), 0, y)[1]
    classes = torch.tensor([0, 2, 1]), torch.tensor([0, bad, 1])
    with pytest.raises(RuntimeError):
        one_hot(classes[1])
    for f in (one_hot, fh.vmap(one_hot), in_steps):
        run = fh.jit(f, backend=backend)
        same(run(classes[0]), one_hot(classes[0]))
        with pytest.raises((RuntimeError, IndexError), match="out of"):
            run(classes[1])


@every_mode
@pytest.mark.parametrize(
    "derivative", [fh.grad, fh.jacrev, fh.jacfwd, lambda f: fh.grad(lambda x: fh.grad(f)(x).sum())]
)
def test_a_row_that_is_set_by_a_place_that_all_lanes_share(run, derivative):
    """Before it is set it is read, which saves nothing that the write changes."""

    def f(x, place):
        table = torch.ones(3, 2, dtype=x.dtype) * x.sum()
        table[place] = x.square()
        return table.sin()

    x, place = torch.linspace(0.1, 1, 4, dtype=torch.float64).reshape(2, 2), torch.tensor(1)
    loss = lambda place: lambda x: fh.vmap(f, (0, None))(x, place).sum()
    oracle = derivative(lambda x: torch.stack([f(row, 1) for row in x]).sum())(x)
    same(run(lambda x, place: derivative(loss(place))(x), x, place), oracle)


@every_mode
def test_indexing_under_vmap(run):
    f = lambda t, k: fh.fori_loop(0, 3, lambda i, c: c + t[i] * t[(k + i) % 3], torch.zeros((), dtype=torch.float64))
    t, k = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    expected = torch.stack([sum(r[i] * r[(s + i) % 3] for i in range(3)) for r, s in zip(t, k.tolist())])
    same(run(fh.vmap(f), t, k), expected)


@every_mode
@pytest.mark.parametrize("part", [swaps, windows, writes])
def test_rows_are_views_in_lanes_of_their_own(run, part):
    """torch's vmap copies them, and what is written there is lost."""
    tables, rows = torch.stack([TABLE, TABLE.exp(), TABLE - 1]), torch.tensor([1, 0, 2])
    expected = [optree.tree_map(torch.clone, part(table, i)) for table, i in zip(tables, rows)]
    same(run(fh.vmap(part), tables, rows), optree.tree_map(lambda *lanes: torch.stack(lanes), *expected))


@every_mode
def test_rows_of_lanes_in_lanes_are_results_of_their_own(run):
    """What an inner vmap returns is no row any more: to write there changes no table."""

    def f(table, i):
        rows = fh.vmap(lambda j: table[i][j])(torch.tensor([2, 0]))
        rows.mul_(2)
        table = table * 1
        table[i][0] += 1
        return rows, table

    tables, places = torch.stack([TABLE, TABLE.exp()]), torch.tensor([1, 2])
    expected = [
        (2 * table[i][[2, 0]], table.index_add(0, i[None], torch.eye(3)[:1, :, None].expand(1, 3, 3).double()))
        for table, i in zip(tables, places)
    ]
    same(run(fh.vmap(f), tables, places), optree.tree_map(lambda *lanes: torch.stack(lanes), *expected))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_window_of_traced_rows(backend):
    """Outside of loops, as JAX's dynamic_slice; where there are too few rows, as any index out of bounds."""
    f = lambda table, i: table.narrow(0, i, 2)
    compiled = fh.jit(f, backend=backend)
    for i in (0, 1, -2):
        same(compiled(TABLE, torch.tensor(i)), TABLE.narrow(0, i, 2))
    with pytest.raises(IndexError, match="out of"):
        compiled(TABLE, torch.tensor(2))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_what_is_no_row_is_found_out(backend):
    def put(t, i):
        t = t.clone()
        t[i] = 7.0
        return t

    t = torch.arange(3.0)
    lanes, place = fh.jit(fh.vmap(lambda i: t[i]), backend=backend), fh.jit(fh.vmap(put), backend=backend)
    same(lanes(torch.arange(-3, 3)), t.repeat(2))
    for i in (-4, -6, -7, 3):
        with pytest.raises(IndexError, match="out of bounds"):
            lanes(torch.tensor([i]))
        with pytest.raises(IndexError, match="out of bounds"):
            place(t[None], torch.tensor([i]))


def test_what_is_no_row_is_found_out_where_inductor_compiles_torchs_operators():
    class Module(torch.nn.Module):
        def forward(self, t, i):
            return fh.jit(lambda t, i: t[i])(t, i)

    t = torch.arange(3.0)
    program = torch.export.export(Module(), (t, torch.tensor(1)))
    compiled = torch.compile(program.module())
    same(compiled(t, torch.tensor(-3)), t[0])
    for i in (-4, -6, 3):
        with pytest.raises(RuntimeError, match="out of bounds"):
            compiled(t, torch.tensor(i))


@every_mode
def test_indexing_by_an_argmax(run):
    def f(t):
        return fh.scan(lambda c, row: (c + row[row.argmax()], t[row.argmin()]), t.new_zeros(()), t)

    t = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    same(run(f, t), (torch.tensor(8.0), torch.stack([t[0], t[1]])))


ONE_HOT = {
    "grad": lambda f, w, y: fh.grad(lambda w: f(w, y))(w),
    "jvp": lambda f, w, y: fh.jvp(lambda w: f(w, y), (w,), (w,)),
    "vmap of grad": lambda f, w, y: fh.vmap(fh.grad(lambda w, y: f(w, y)))(w, y),
    "vmap of jvp": lambda f, w, y: fh.vmap(lambda w, y: fh.jvp(lambda w: f(w, y), (w,), (w,)))(w, y),
    "jvp of vmap": lambda f, w, y: fh.jvp(lambda w: fh.vmap(f)(w, y), (w,), (w,)),
    "in a branch": lambda f, w, y: fh.grad(lambda w: fh.cond(w.sum() > -9, f, lambda w, y: w.sum(), w, y))(w),
}


@every_mode
@pytest.mark.parametrize("around", ONE_HOT.values(), ids=ONE_HOT)
def test_one_hot_of_traced_classes(around, run):
    w, y = TABLE[0], torch.tensor([2, 0, 1])
    one_hot = lambda y: torch.eye(3, dtype=torch.int64)[y]
    of = lambda encode: lambda w, y: (w * encode(y)).sum() ** 2
    got = run(lambda w, y: around(of(lambda y: torch.nn.functional.one_hot(y, 3)), w, y), w, y)
    same(got, plain(lambda w, y: around(of(one_hot), w, y), w, y))
    assert run(lambda y: torch.nn.functional.one_hot(y, 4), y).dtype is torch.int64


def adds_to_masked(x):
    y = x * 1.5
    y[y > 0] += y.sum()
    return y.square()


def scales_masked(x):
    y = x * 1.5
    positive = y > 0
    y[positive] *= y[positive]
    return y


def sums_selected(x, select=torch.masked_select):
    return select(x * x, x[0] > 0).square().sum()


def writes_to_found(x):
    y = x * 1.5
    places = (y > 0).nonzero(as_tuple=True)
    y[places] = y[places] ** 2
    return y


@pytest.mark.parametrize("derivative", ["grad", "jvp", "jacfwd", "jacrev", "hessian"])
@pytest.mark.parametrize("function", [adds_to_masked, scales_masked, sums_selected, writes_to_found])
def test_masks_are_differentiated(function, derivative):
    """How many elements a mask chooses is no matter of the trace; none and one are, like any other number."""

    def derived(fh, function):
        if derivative == "jvp":
            return lambda x: fh.jvp(function, (x,), (x.cos(),))
        scalar = lambda x: (function(x) * torch.arange(1.0, 1 + x.shape[-1], dtype=x.dtype)).sum()
        return getattr(fh, derivative)(scalar if derivative in ("grad", "hessian") else function)

    jitted = fh.jit(derived(fh, function), backend="eager")
    is_old = torch.__version__ < (2, 13)  # it asks how many elements the mask chooses for the tangent that it writes
    if is_old and function in (adds_to_masked, scales_masked) and derivative in ("jvp", "jacfwd", "hessian"):
        with pytest.raises(fh.DataDependentError):
            jitted(torch.ones(4))
        return
    oracle = function
    if function is sums_selected:  # torch's own masked_select warns under vmap
        oracle = lambda x: sums_selected(x, lambda y, mask: y[:, mask])
    for row in ([1.0, -2.0, 3.0], [-1.0, -2.0, -3.0], [-1.0, 2.0, -3.0], [1.0, 2.0, 3.0]):
        x = torch.tensor([row, row], dtype=torch.float64)
        same(jitted(x), derived(torch.func, oracle)(x))
    assert jitted.cache_info().misses == 1


def test_how_many_elements_a_mask_chooses_is_no_question_for_python():
    def asks(x):
        chosen = x[x > 0]
        return chosen.sum() if chosen.shape[0] > 1 else x.sum()

    with pytest.raises(fh.DataDependentError, match="use as a size"):
        fh.jit(fh.jacfwd(asks), backend="eager")(torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("derivative", ["jvp", "jacfwd", "jacrev", "hessian"])
@pytest.mark.parametrize(
    "write",
    {
        "zero_": lambda y, x: y.zero_(),
        "fill_": lambda y, x: y[1:].fill_(0.5),
        "fill_ by a value": lambda y, x: y.fill_(x.sum()),
        "polygamma_": lambda y, x: y.polygamma_(1),
    }.values(),
)
def test_what_is_written_all_over(write, derivative):
    """The derivative of a function that writes, and of a branch that does: functorch's forward rules would write to the
    tangents.
    """

    def branch(x):
        y = x * 1
        write(y, x)
        return (y * x).sum() if derivative == "hessian" else y * x

    f = lambda x: fh.cond(x.sum() > 0, branch, branch, x * x)
    oracle = lambda x: branch(x * x)
    x = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)
    for g in (f, oracle):
        if derivative == "jvp":
            same(fh.jit(lambda x, g=g: fh.jvp(g, (x,), (x,)), backend="eager")(x), torch.func.jvp(oracle, (x,), (x,)))
        else:
            same(fh.jit(getattr(fh, derivative)(g), backend="eager")(x), getattr(torch.func, derivative)(oracle)(x))
    assert fh.jit(f, backend="eager")(x.requires_grad_()).requires_grad


COUNTED = {
    "cov": torch.cov,
    "cov of one variable": lambda x: torch.cov(x[0], correction=0),
    "corrcoef": torch.corrcoef,
    "combinations": lambda x: torch.combinations(x[0]),
    "combinations of three": lambda x: torch.combinations(x[1], 3, with_replacement=True),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", COUNTED)
def test_functions_whose_sizes_torch_reads_from_values(name, dtype):
    """They follow from the shape of their operand."""
    function = COUNTED[name]
    x = torch.tensor([[0.3, -0.8, 1.1], [0.5, 0.9, -0.2]], dtype=torch.float64).to(dtype)
    x = x * (1 + 0.5j) if dtype.is_complex else x
    same(fh.jit(function, backend="eager")(x), function(x))
    same(fh.jit(fh.vmap(function), backend="eager")(x[None])[0], function(x))
    if not dtype.is_complex:
        scalar = lambda x: function(x).sin().sum()
        same(fh.jit(fh.grad(scalar), backend="eager")(x), torch.func.grad(scalar)(x))


def test_polygamma_of_whole_numbers_does_not_fit_into_them():
    f = lambda x: x.clone().polygamma_(1)
    for call in (f, fh.jit(f, backend="eager")):
        with pytest.raises(RuntimeError, match="cast"):
            call(torch.tensor([3, 4]))


@pytest.mark.parametrize("derivative", [fh.jacfwd, lambda f: fh.jacfwd(fh.jacfwd(f))], ids=["jacfwd", "jacfwd twice"])
@pytest.mark.parametrize("run", [plain, lambda f, *a: fh.jit(f, backend="eager")(*a)], ids=["plain", "jit"])
def test_tangents_of_lanes_that_write_to_rows_of_their_own(run, derivative):
    """The tangents are lanes as well, in which the index is the same."""

    def writes_where_it_says(x, i):
        table = x * x
        table[i] = x.sum() * x[0]
        return table

    x, rows = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3), torch.tensor([0, 2, 1, 2])
    one = lambda v, i: derivative(lambda u: torch.where(torch.arange(3) == i, u.sum() * u[0], u * u))(v)
    got = run(fh.vmap(lambda v, i: derivative(lambda u: writes_where_it_says(u, i))(v)), x, rows)
    same(got, torch.stack([one(v, i) for v, i in zip(x, rows.tolist())]))
