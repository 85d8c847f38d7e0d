"""Convolutions in the kernels of loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d, conv_transpose2d

import functorch_hops as fh
from loop_plans import Program, check, normal, taken


def repeat(step: Callable[[Any], Any], carry: Any) -> Any:
    return fh.fori_loop(0, 3, lambda _, c: step(c), carry)


def net(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return repeat(lambda x: torch.tanh(conv2d(x, w, b, padding=1)), x)


X, W, BIAS = normal(2, 4, 9, 8).double(), normal(4, 4, 3, 3, seed=1).double() / 6, normal(4).double()

PROGRAMS: dict[str, Program] = {
    "images": (net, (X, W, BIAS)),
    "one channel": (lambda x, w: repeat(lambda x: conv2d(x, w, padding=1), x), (X[:1, :1], W[:1, :1])),
    "dilation": (lambda x, w: repeat(lambda x: conv2d(x, w, padding="same", dilation=2), x), (X, W)),
    "groups": (lambda x, w: repeat(lambda x: conv2d(x, w, padding=1, groups=2), x), (X, W[:, :2])),
    "stride": (
        lambda x, w: fh.map(lambda x: conv2d(x[None], w, stride=(2, 3), padding=(1, 0)), x),
        (X, W),
    ),
    "sequences": (lambda x, w: repeat(lambda x: conv1d(x, w, padding=1), x), (X[:, :, 0], W[..., 0])),
    "volumes": (
        lambda x, w: repeat(lambda x: conv3d(x, w, padding=1), x),
        (normal(1, 4, 4, 5, 6).double(), normal(4, 4, 3, 3, 3).double() / 10),
    ),
    "vmap": (lambda x, w: fh.vmap(lambda x: repeat(lambda x: conv2d(x[None], w, padding=1)[0], x))(x), (X, W)),
    "gradient": (
        lambda *args: fh.grad(lambda *args: net(*args).square().sum(), argnums=(0, 1, 2))(*args),
        (X, W, BIAS),
    ),
    "gradient of groups": (
        lambda *args: fh.grad(
            lambda x, w: repeat(lambda x: conv2d(x, w, padding=2, dilation=2, groups=2), x).square().sum(),
            argnums=(0, 1),
        )(*args),
        (X, W[:, :2]),
    ),
    "gradient of a weight with stride": (
        lambda x, w: fh.grad(lambda w: fh.map(lambda x: conv2d(x[None], w, stride=2), x).square().sum())(w),
        (X, W),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_convolution_is_a_product(name: str) -> None:
    f, args = PROGRAMS[name]
    assert set(taken(check(f, *args))) == {"steps"}


@pytest.mark.slow
def test_a_transposed_convolution_is_a_product_too() -> None:
    (report,) = check(lambda x, w: repeat(lambda x: conv_transpose2d(x, w, padding=1), x), X, W)
    assert report.taken == "steps"
