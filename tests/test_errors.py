"""The exceptions and their messages."""

import functools
import inspect
import operator
import pathlib
import subprocess
import sys

import pytest
import torch

import functorch_hops as fh
from functorch_hops import errors
from functorch_hops.calls.validate import ORDERS

BASES = {
    "TreeMismatchError": (TypeError,),
    "MetadataMismatchError": (TypeError,),
    "ArgumentTypeError": (TypeError,),
    "ArgumentValueError": (ValueError,),
    "CaptureError": (RuntimeError,),
    "DataDependentError": (errors.CaptureError, RuntimeError, TypeError),
    "InputMutationError": (RuntimeError,),
    "LeakedTensorError": (RuntimeError,),
    "InfiniteLoopError": (RuntimeError,),
    "CheckError": (AssertionError,),
    "TooManyCapturesError": (AssertionError,),
    "MissingPackageError": (ImportError,),
    "AnomalyError": (RuntimeError,),
}


@pytest.mark.parametrize("name", BASES)
def test_bases(name):
    error = getattr(errors, name)
    assert issubclass(error, (errors.FunctorchHopsError))
    for base in BASES[name]:
        assert issubclass(error, base)


def test_every_error_is_in_the_table():
    found = {name for name in errors.__all__ if name.endswith("Error")}
    assert found == {*BASES, "FunctorchHopsError"}


def test_message_in_full():
    text = errors.message(
        "scan",
        "the carry changes its shape",
        parameter="f",
        path="carry['h'][1]",
        expected="float32[3]",
        got="float32[4]",
        remedy="return the carry as it came in",
    )
    lines = text.splitlines()
    assert lines[:-1] == [
        "scan: the carry changes its shape",
        "  where: f, carry['h'][1]",
        "  expected: float32[3]",
        "  got: float32[4]",
        "  help: return the carry as it came in",
    ]
    assert lines[-1].startswith(f"  at {__file__}:")
    assert lines[-1].endswith(": text = errors.message(")


def test_message_leaves_out_what_is_not_given():
    lines = errors.message("map", "nothing to map over", expected=0, remedy="pass a tensor").splitlines()
    assert lines[:-1] == ["map: nothing to map over", "  expected: 0", "  help: pass a tensor"]


def test_user_frame_skips_torch_and_the_standard_library():
    seen = []

    def body(x):
        seen.append(errors.user_frame())
        return x

    def from_outside(code, name):
        """A function that calls `f` from a file that belongs to `torch`."""
        namespace = {}
        exec(compile(code, str(pathlib.Path(torch.__file__).parent / name), "exec"), namespace)
        return namespace["call"]

    call = from_outside("def call(f):\n    return f()", "made_up.py")
    call(functools.partial(functools.lru_cache(errors.user_frame)))
    frame = call(errors.user_frame)
    assert frame.filename == __file__
    assert frame.line == "frame = call(errors.user_frame)"

    torch.func.vmap(body)(torch.zeros(2))
    assert seen[0].filename == __file__
    assert seen[0].line == "seen.append(errors.user_frame())"


def test_user_frame_without_a_source_file():
    code = "from functorch_hops import errors; print(errors.message('cond', 'no', remedy='yes'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cond: no\n  help: yes\n  at <string>:1\n"


DOUBLE = torch.ones(2, 2, dtype=torch.float64)
WRONG_DTYPES = {
    "product": lambda x: x @ DOUBLE,
    "product with a vector": lambda x: x @ DOUBLE[0],
    "integers": lambda x: x @ DOUBLE.long(),
    "linear": lambda x: torch.nn.functional.linear(x, DOUBLE, DOUBLE[0]),
    "convolution": lambda x: torch.conv1d(x[None], DOUBLE[..., None]),
    "write": lambda x: x.index_put((torch.tensor([0]),), DOUBLE[0]),
    "sum by index": lambda x: x.index_add(0, torch.tensor([0]), DOUBLE[:1]),
    "normalisation": lambda x: torch.nn.functional.batch_norm(x, DOUBLE[0], DOUBLE[1]),
    "parts": lambda x: torch.complex(x, DOUBLE),
    "loss": lambda x: torch.nn.functional.binary_cross_entropy(x, DOUBLE),
}


@pytest.mark.parametrize("f", WRONG_DTYPES.values(), ids=WRONG_DTYPES)
def test_wrong_dtypes_are_the_error_of_eager_when_a_body_is_captured(f):
    """At the user's line, and not when the graph runs."""
    x = torch.ones(2, 2)
    with pytest.raises(RuntimeError) as expected:
        f(x)
    ran = []
    with pytest.raises(RuntimeError) as caught:
        fh.make_graph(lambda x: fh.scan(lambda c, _: (c, (f(c), ran.append(c))[0]), x, length=2))(x)
    assert str(caught.value) == str(expected.value)
    assert not ran and any(entry.path == pathlib.Path(__file__) for entry in caught.traceback[1:])


def test_mixed_dtypes_that_are_right():
    x = torch.ones(2, 2)
    f = lambda x: (x + DOUBLE, x.gather(0, DOUBLE.long() * 0), torch.where(x > 0, x, DOUBLE), torch.cat([x, DOUBLE]))
    torch.testing.assert_close(fh.make_graph(f)(x)(x), f(x))


@pytest.mark.parametrize("operation", ORDERS)
def test_the_order_of_arguments_that_a_message_names(operation: str) -> None:
    parameters = inspect.signature(operator.attrgetter(operation)(fh)).parameters.values()
    names = [("*" if p.kind is p.VAR_POSITIONAL else "") + p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    order = ORDERS[operation].split(", ")
    assert names[: len(order)] == order
