"""Wrong use of the tools."""

import torch

import functorch_hops as fh
from misuses.registry import X, misuse


@misuse(fh.ArgumentTypeError, "plain")
def assert_max_captures_of_a_plain_function():
    with fh.assert_max_captures(torch.sin, 1):
        pass


@misuse(fh.ArgumentValueError, "plain")
def assert_max_captures_below_zero():
    with fh.assert_max_captures(fh.jit(torch.sin, backend="eager"), -1):
        pass


@misuse(fh.TooManyCapturesError, "plain")
def captured_more_often_than_allowed():
    f = fh.jit(lambda x, n: x * n, backend="eager")
    with fh.assert_max_captures(f, 1):
        f(X, 1)
        f(X, 2)
