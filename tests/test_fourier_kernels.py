"""Fourier transforms in compiled loops: as products, they are those of the library, and the loop is a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fft

import functorch_hops as fh
from functorch_hops.lowering.real_parts import as_pairs, from_pairs, in_real_parts, over_pairs
from loop_plans import check, normal, taken
from modes import same

Transform = Callable[[Tensor], Tensor]

SIZES = [(1,), (7,), (48,), (100,), (67,), (3, 60), (2, 5, 6)]
OF_COMPLEX: dict[str, Transform] = {
    "fft": fft.fft,
    "ifft": fft.ifft,
    "fft by the root": lambda x: fft.fft(x, norm="ortho"),
    "fft of the first dimension": lambda x: fft.fft(x, dim=0),
    "fftn": fft.fftn,
    "ifftn": lambda x: fft.ifftn(x, norm="forward"),
    "irfft": lambda x: fft.irfft(x, 2 * x.shape[-1] - 1),
    "irfftn": lambda x: fft.irfftn(x, x.shape),
    "hfft": lambda x: fft.hfft(x, x.shape[-1]),
    "shorter and longer": lambda x: fft.fft(x, x.shape[-1] + 3)[..., 1:] + fft.fft(x[..., 1:], x.shape[-1] + 2),
}
OF_REAL: dict[str, Transform] = {
    "rfft": fft.rfft,
    "rfftn": lambda x: fft.rfftn(x, norm="ortho"),
    "fft of real": fft.fft,
    "ihfft": fft.ihfft,
}


def numbers(*shape: int) -> Tensor:
    return torch.complex(normal(*shape).double(), normal(*shape, seed=1).double())


def in_a_loop(f: Transform) -> Callable[[Tensor], Tensor]:
    return lambda x: fh.scan(lambda c, x: (c, f(x)), x.new_zeros(()), x[None])[1][0].clone()


def as_compiled(f: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """What compiled code computes, by torch's operators."""
    inner = in_real_parts(fh.jit(f, backend="eager").lower(x)._body)
    return from_pairs(over_pairs(inner)(*as_pairs([x])), inner)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_transforms_are_those_of_the_library(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    for transforms, operand in ((OF_COMPLEX, x), (OF_REAL, x.real.clone())):
        for name, f in transforms.items():
            try:
                expected = f(operand)
            except RuntimeError:  # one number is too few
                continue
            same(as_compiled(in_a_loop(f), operand), [expected], msg=lambda text, name=name: f"{name}: {text}")


def heat(u: Tensor, decay: Tensor) -> Any:
    step = lambda i, u: fft.irfft(fft.rfft(u) * decay, u.shape[-1]) + 0.01 * torch.sin(u)
    return fh.fori_loop(0, 5, step, u)


def test_a_loop_of_transforms_is_a_kernel() -> None:
    assert taken(check(heat, normal(24), normal(13, seed=1))) == ["steps"]


@pytest.mark.slow
def test_its_gradient_is_a_kernel() -> None:
    gradient = fh.grad(lambda *args: heat(*args).square().sum(), argnums=(0, 1))
    assert set(taken(check(gradient, normal(3, 24), normal(13, seed=1)))) == {"steps"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
def test_transforms_of_many_numbers_are_left_to_the_library() -> None:
    f = lambda x: fh.fori_loop(0, 2, lambda i, x: fft.ifft(fft.fft(x) * 2), x)
    x = numbers(257 * 2)
    assert taken(check(lambda x: f(x).real, x)) == ["native"]
