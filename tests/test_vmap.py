"""vmap over trees: dimensions, outputs, randomness, chunks and messages, against stacks of single calls."""

import dataclasses

import pytest
import torch

import functorch_hops as fh
from functorch_hops import vmap
from trees import D, Pair, Params, assert_equal, lines, smooth, tensor, trees


@trees
def test_vmap_over_trees(make, read):
    xs, ys = tensor(4, 3), tensor(4, 3, seed=1)

    def f(tree, scale):
        x, y = read(tree)
        return make(smooth(x, y), x.sum() * scale)

    result = vmap(f, in_dims=(0, None))(make(xs, ys), 2.0)
    expected = [read(f(make(x, y), 2.0)) for x, y in zip(xs, ys, strict=True)]
    assert_equal(result, make(*(torch.stack(column) for column in zip(*expected, strict=True))))


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 4, 100])
@pytest.mark.parametrize(
    ("in_dims", "out_dims"), [((0, 0), 0), ([0, None], 1), ((-1, 1), -1), ((None, 1), (0, -2)), (1, (1, 1))]
)
def test_vmap_dimensions(in_dims, out_dims, chunk_size):
    x, y = tensor(4, 4, 4), tensor(4, 4, 4, seed=1)
    f = lambda x, y: (x @ y.mT, y.cos())
    dims = (in_dims, in_dims) if isinstance(in_dims, int) else in_dims
    lanes = [
        f(*(t if dim is None else t.select(dim, lane) for t, dim in zip((x, y), dims, strict=True)))
        for lane in range(4)
    ]
    places = out_dims if isinstance(out_dims, tuple) else (out_dims, out_dims)
    columns = zip(zip(*lanes, strict=True), places, strict=True)
    expected = tuple(torch.stack(column, dim) for column, dim in columns)
    assert_equal(vmap(f, in_dims, out_dims, chunk_size=chunk_size)(x, y), expected)


def test_vmap_prefixes_within_trees():
    params = Params(tensor(3, 2), {"a": tensor(5), "b": [tensor(2, 3)]})
    f = lambda p, x: Pair({"out": p.w * x + p.rest["a"].sum()}, p.rest["b"][0])
    result = vmap(f, in_dims=(Params(1, {"a": None, "b": [0]}), None), out_dims=Pair(1, 0))(params, tensor(3))
    for lane in range(2):
        one = f(Params(params.w[:, lane], {"a": params.rest["a"], "b": [params.rest["b"][0][lane]]}), tensor(3))
        assert_equal(Pair({"out": result.a["out"][:, lane]}, result.b[lane]), one)


def test_vmap_keyword_arguments_are_not_mapped():
    x = tensor(2, 5)
    f = lambda x, scale: x * scale
    assert_equal(vmap(f)(x, scale=x), torch.func.vmap(f)(x, scale=x))


def test_vmap_outputs_that_are_not_mapped():
    constant = tensor(3)
    f = lambda x: {"x": x * 2, "same": constant, "name": "n", "none": None}
    result = vmap(f, out_dims={"x": 0, "same": None, "name": None, "none": 0})(tensor(2, 3))
    assert result["same"] is constant
    assert (result["name"], result["none"]) == ("n", None)


def test_vmap_expands_what_does_not_depend_on_the_example():
    constant = tensor(3)
    assert_equal(vmap(lambda x: constant)(tensor(2)), constant.expand(2, 3))
    assert_equal(vmap(lambda x: constant, out_dims=1)(tensor(2)), constant[:, None].expand(3, 2))


def test_vmap_of_an_inner_output_that_only_the_outer_vmap_maps():
    xs, ys = tensor(2, 3), tensor(4)
    result = vmap(lambda x: vmap(lambda y: (y * 2, x), out_dims=(0, None))(ys))(xs)
    assert_equal(result, ((ys * 2).expand(2, 4), xs))


def test_vmap_single_output_with_out_dims_tuple():
    assert_equal(vmap(lambda x: x, out_dims=(1,))(tensor(2, 3)), tensor(2, 3).T)


def test_vmap_empty_trees():
    assert vmap(lambda x: {})(tensor(2)) == {}
    assert_equal(vmap(lambda x, nothing: (x, nothing))(tensor(2), None), (tensor(2), None))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_vmap_empty_batch(chunk_size):
    f = lambda x: (x.sum(), x * 2)
    assert_equal(vmap(f, chunk_size=chunk_size)(tensor(0, 3)), (torch.zeros(0, dtype=D), tensor(0, 3)))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_vmap_randomness(chunk_size):
    f = lambda x: x + torch.rand(())
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(f)(torch.zeros(4))
    same = vmap(f, randomness="same", chunk_size=chunk_size)(torch.zeros(4))
    different = vmap(f, randomness="different", chunk_size=chunk_size)(torch.zeros(4))
    assert len(set(same.tolist())) == 1
    assert len(set(different.tolist())) == 4


def test_vmap_hands_on_what_holds_nothing_mapped():
    @dataclasses.dataclass
    class Config:
        scale: float

    config = Config(2.0)
    config.seen = None  # not a field, so a copy would lose it

    def f(x, config, other):
        config.seen = other
        return x * config.scale

    vmap(f, in_dims=(0, None, None))(tensor(3), config, "other")
    assert config.seen == "other"


def test_vmap_of_different_sizes():
    with pytest.raises(fh.ArgumentValueError) as caught:
        vmap(lambda p, x: x, in_dims=(0, 1))({"w": torch.zeros(2), "v": torch.zeros(2)}, torch.zeros(2, 3))
    assert lines(caught) == [
        "vmap: the mapped dimensions have different sizes",
        "  where: args[1]",
        "  expected: 2, as in args[0]['v']",
        "  got: 3",
        "  help: give in_dims None for what is the same for all examples",
    ]


@pytest.mark.parametrize(
    ("in_dims", "text"),
    [
        (
            ({"w": 1}, 0),
            [
                "vmap: an argument has no such dimension",
                "  where: args[0]['w']",
                "  expected: in_dims from -1 to 0",
                "  got: in_dims 1 for a tensor float32[2]@cpu",
                "  help: set in_dims to None for what is the same for all examples",
            ],
        ),
        (
            (None, None),
            [
                "vmap: there is nothing to map over",
                "  where: in_dims",
                "  expected: at least one tensor among the positional arguments with an integer",
                "  got: (None, None)",
                "  help: keyword arguments are not mapped: pass by position what is",
            ],
        ),
        (
            ({"v": 0}, 0),
            [
                "vmap: in_dims does not match the tree",
                "  where: in_dims[0] for args[0]",
                "  expected: an int, None, or a tree that starts like {'w': *}",
                "  got: {'v': *}",
                "  help: write one int or None for all of it, or one for each part",
            ],
        ),
        (
            (0, 0, 0),
            [
                "vmap: in_dims does not match the tree",
                "  where: in_dims for args",
                "  expected: an int, None, or a tree that starts like ({'w': *}, *)",
                "  got: (*, *, *)",
                "  help: write one int or None for all of it, or one for each part",
            ],
        ),
        (
            (0.5, 0),
            [
                "vmap: in_dims holds something else than dimensions",
                "  where: in_dims[0] for args[0]",
                "  expected: an int or None",
                "  got: 0.5",
                "  help: name a dimension by its number; None is for what is not mapped over",
            ],
        ),
    ],
)
def test_vmap_of_wrong_in_dims(in_dims, text):
    with pytest.raises(fh.ArgumentValueError) as caught:
        vmap(lambda p, x: x, in_dims=in_dims)({"w": torch.zeros(2)}, torch.zeros(2))
    assert lines(caught) == text


def test_vmap_over_what_is_no_tensor():
    with pytest.raises(fh.ArgumentTypeError) as caught:
        vmap(lambda p: p)([torch.zeros(2), {"n": 3}])
    assert lines(caught) == [
        "vmap: only tensors can be mapped over",
        "  where: args[0][1]['n']",
        "  expected: a tensor",
        "  got: int 3",
        "  help: set in_dims to None for it, or pass it by keyword",
    ]


@pytest.mark.parametrize(
    ("out_dims", "error", "text"),
    [
        (
            0,
            fh.ArgumentTypeError,
            [
                "vmap: an output is no tensor",
                "  where: out['n']",
                "  expected: a tensor",
                "  got: int 3",
                "  help: set out_dims to None for it",
            ],
        ),
        (
            None,
            fh.ArgumentValueError,
            [
                "vmap: an output with None in out_dims depends on the example",
                "  where: out['x']",
                "  expected: the same value for all examples",
                "  got: a tensor float32[3]@cpu",
                "  help: give it an integer in out_dims",
            ],
        ),
        (
            {"n": None, "x": 2},
            fh.ArgumentValueError,
            [
                "vmap: an output has no dimension 2",
                "  where: out['x']",
                "  expected: out_dims from -2 to 1",
                "  got: a tensor float32[3]@cpu",
                "  help: choose a dimension of the output, counting the mapped one",
            ],
        ),
        (
            (0, 1),
            fh.ArgumentValueError,
            [
                "vmap: out_dims does not match the tree",
                "  where: out_dims for out",
                "  expected: an int, None, or a tree that starts like {'n': *, 'x': *}",
                "  got: (*, *)",
                "  help: write one int or None for all of it, or one for each part",
            ],
        ),
    ],
)
def test_vmap_of_wrong_outputs(out_dims, error, text):
    with pytest.raises(error) as caught:
        vmap(lambda x: {"x": x, "n": 3}, out_dims=out_dims)(torch.zeros(2, 3))
    assert lines(caught) == text


def test_a_failed_vmap_leaves_no_level_behind():
    for _ in range(2):
        with pytest.raises(fh.ArgumentTypeError):
            vmap(lambda x: "text")(torch.zeros(2))
    assert_equal(vmap(torch.sin)(tensor(2)), tensor(2).sin())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_vectors_through_a_linear_layer(mode):
    """torch multiplies a vector by a matrix with `squeeze_`, which changes a shape in place and no value."""
    layer, xs = torch.nn.Linear(3, 2, dtype=D), tensor(4, 3)
    layers = {"layer": layer, "matrix": lambda x: x @ layer.weight.T, "squeeze_": lambda x: x.sin()[None].squeeze_(0)}
    for function in layers.values():
        with mode():
            expected = torch.stack([function(x) for x in xs])
            assert_equal(fh.jit(vmap(function), backend="eager")(xs), expected)
            assert_equal(vmap(fh.jit(function, backend="eager"))(xs), expected)
