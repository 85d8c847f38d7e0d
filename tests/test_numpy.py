"""NumPy's arrays as arguments of captured functions: operands, which the function gets as tensors."""

import numpy as np
import pytest
import torch

import functorch_hops as fh
from modes import jitted, same, while_capturing

F64 = torch.float64


def jit(func, **options):
    return fh.jit(func, backend="eager", **options)


ARRAYS = {
    "float64": np.linspace(-1, 1, 3),
    "float32": np.ones(3, np.float32),
    "int16": np.arange(3, dtype=np.int16),
    "bool": np.array([True, False]),
    "complex": np.array([1j, 2]),
    "no dimension": np.array(2.0),
    "empty": np.ones((0, 2)),
    "reversed": np.arange(3.0)[::-1],
    "expanded": np.broadcast_to(np.ones(1), (3,)),
    "big endian": np.arange(3, dtype=">f4"),
    "a field": np.zeros(3, [("a", "i1"), ("b", "f4")])["b"],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_an_operand(array):
    f = jit(lambda d: d["a"] + d["a"] if isinstance(d["a"], torch.Tensor) else None)
    for k in (0, 1, 2):
        value = array.copy() if k else array
        if k == 2:
            value[...] = 1
        expected = torch.tensor(np.array(value, value.dtype.newbyteorder("=")))
        same(f({"a": value}), expected + expected)
    assert f.cache_info()[:2] == (2, 1)


def test_an_array_and_a_tensor_share_a_trace():
    f = jit(lambda x: x.sin())
    same(f(np.ones(2)), torch.ones(2, dtype=F64).sin())
    same(f(torch.zeros(2, dtype=F64)), torch.zeros(2, dtype=F64))
    assert f.cache_info()[:2] == (1, 1)
    same(jit(lambda x: x * 2, dynamic=True)(np.ones(5)), torch.full((5,), 2.0, dtype=F64))


def test_an_array_that_is_returned_is_a_tensor_of_its_memory():
    array = np.zeros(2)
    jit(lambda x: x)(array).add_(1)
    assert (array == 1).all()


def test_an_array_is_not_written_to():
    array = np.ones(2)
    with pytest.raises(fh.InputMutationError):
        jit(lambda x: x.add_(1))(array)
    assert (array == 1).all()


def test_scalars_are_numbers():
    f = jit(lambda x, n: (x * n, type(n).__name__))
    x = torch.ones(2)
    for n, expected in [(np.float64(0.5), 0.5), (np.float32(0.25), 0.25), (0.75, 0.75), (np.int64(3), 3), (3, 3)]:
        same(f(x, n)[0], x * expected)
    assert f(x, np.int64(3))[1] == "int"
    assert f.cache_info()[:2] == (4, 2)


def test_what_torch_has_no_dtype_for_stays_as_it_is():
    f = jit(lambda names, x: x * len(names[0]))
    same(f(np.array(["ab", "c"]), torch.ones(2)), torch.full((2,), 2.0))
    same(f(np.array(["abc", "c"]), torch.ones(2)), torch.full((2,), 3.0))


def test_in_make_graph_and_eval_shape_and_a_jitted_body():
    graph = fh.make_graph(lambda x: x * 2)(np.ones(2))
    same(graph(np.zeros(2)), torch.zeros(2, dtype=F64))
    assert fh.eval_shape(lambda x: x * 2, np.ones(2)) == fh.TensorSpec((2,), F64)
    inner = jit(lambda a, x: a.sum() * x)
    outer = jit(lambda x: inner(np.arange(3.0), x))
    same(outer(torch.tensor(2.0, dtype=F64)), torch.tensor(6.0, dtype=F64))
    same(outer(torch.tensor(3.0, dtype=F64)), torch.tensor(9.0, dtype=F64))
    assert outer.cache_info()[:2] == (1, 1)


def test_a_checkpointed_function_gets_the_array_itself():
    f = fh.checkpoint(lambda a, x: x * float(np.sum(a)))
    x = torch.ones(2)
    for run in (f, jit(lambda x: f(np.ones(3), x))):
        same(run(np.ones(3), x) if run is f else run(x), x * 3)


# ---------------------------------------------------------------------------------------------------------------------
# options of backends


def test_options_are_compared_by_content():
    compiled = []

    def backend(module, inputs, options):
        compiled.append(options)
        return module

    func, given = lambda x: x.sin(), {"passes": ["a", {"b": [1, 2]}], "level": 3}
    for options in (given, {"level": 3, "passes": ["a", {"b": [1, 2]}]}, {"passes": []}):
        same(fh.jit(func, backend=backend, options=options)(torch.zeros(2)), torch.zeros(2))
    assert compiled == [given, {"passes": []}]
    later = fh.jit(lambda x: x.cos(), backend=backend, options=given)
    given["passes"].append("c")
    later(torch.zeros(2))
    assert compiled[-1]["passes"] == ["a", {"b": [1, 2]}]


WRITES = {
    "from_numpy": lambda a: torch.from_numpy(a).add_(1),
    "view": lambda a: torch.from_numpy(a)[1:].fill_(3.0),
    "as_tensor": lambda a: torch.as_tensor(a).mul_(2),
    "asarray": lambda a: torch.asarray(a).__setitem__(0, 5.0),
    "frombuffer": lambda a: torch.frombuffer(a, dtype=F64).add_(1),
    "from_dlpack": lambda a: torch.from_dlpack(a).add_(1),
    "out": lambda a: torch.add(torch.ones(2, dtype=F64), 1, out=torch.from_numpy(a)),
}


@while_capturing
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("is_closed_over", [True, False])
def test_writes_to_the_memory_of_an_array_are_refused(run, write, is_closed_over):
    """In eager the array changes, too, and NumPy may read it."""
    outer = np.ones(2)

    def f(x):
        write(outer if is_closed_over else np.ones(2))
        return x * 2

    loop = lambda x: fh.scan(lambda c, _: (f(c), None), x, length=1)[0]
    for program in (loop, *((f, fh.vmap(lambda x: f(x) * 1)) if run is jitted else ())):
        with pytest.raises(fh.InputMutationError, match=r"shares its memory with an array|that it closes over"):
            run(program, torch.ones(2, dtype=F64))
    assert outer.tolist() == [1.0, 1.0]


@while_capturing
@pytest.mark.filterwarnings("ignore:.* captured again at every call:RuntimeWarning")
def test_an_array_that_is_written_to_behind_a_tensor_is_refused(run):
    """The graph would read what NumPy wrote last. Each tensor of a copy is what it was."""

    def f(make, x):
        buffer = np.empty(2)
        for i in range(3):
            buffer[:] = i, np.nan if i == 1 else -0.0
            x = x + make(buffer).nan_to_num()
        return x

    buffers = lambda a: torch.frombuffer(a, dtype=F64), lambda a: torch.frombuffer(memoryview(a), dtype=F64)
    exchanged = torch.from_dlpack, lambda a: torch.utils.dlpack.from_dlpack(a.__dlpack__())
    for make in (torch.from_numpy, torch.as_tensor, torch.asarray, *buffers, *exchanged):
        loop = lambda x: fh.scan(lambda c, _: (f(make, c), None), x, length=1)[0]
        with pytest.raises(fh.CaptureError, match="written to after a tensor was made of it"):
            run(loop, torch.ones(2, dtype=F64))
    copies = (
        torch.tensor,
        lambda a: torch.from_numpy(a.copy()),
        lambda a: torch.tensor(a, dtype=torch.float32),
        lambda a: torch.as_tensor(data=a, dtype=torch.float32),
        lambda a: torch.asarray(a, copy=True),
    )
    for make in copies:
        loop = lambda x: fh.scan(lambda c, _: (f(make, c), None), x, length=1)[0]
        same(run(loop, torch.ones(2, dtype=F64)), torch.tensor([4.0, 1.0], dtype=F64))


def test_arrays_without_elements():
    """Whose strides may be any."""
    f = lambda x: torch.cat([x, torch.from_numpy(np.zeros(0)), torch.from_numpy(np.zeros((3, 0))).sum(1)])
    x = torch.ones(2, dtype=torch.float64)
    same(fh.make_graph(f)(x)(x), f(x))
