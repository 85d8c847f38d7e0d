"""Settings that a captured function changes: see NOTE [Settings are outside of graphs]."""

import contextlib

import pytest
import torch
from torch import nn

import functorch_hops as fh
from modes import captured, jitted, same

MATMUL = torch.backends.mkldnn.matmul
X = torch.tensor([0.5, -1.5])


def f64(x):
    torch.set_default_dtype(torch.float64)
    return x + torch.zeros(2)


def f64_for_a_while(x):
    torch.set_default_dtype(torch.float64)
    y = x + torch.zeros(2)
    torch.set_default_dtype(torch.float32)
    return y


def deterministic(x):
    torch.use_deterministic_algorithms(True)
    return x * 2


def deterministic_afterwards(x):
    y = x * 2
    torch.use_deterministic_algorithms(True)
    return y


def precise(x):
    before, MATMUL.fp32_precision = MATMUL.fp32_precision, "bf16"
    try:
        return x * 2
    finally:
        MATMUL.fp32_precision = before


def threads(x):
    torch.set_num_threads(3)
    return x * 2


def device(x):
    torch.set_default_device("meta")
    return x * 2


def gradients_off(x):
    torch.set_grad_enabled(False)
    return x * 2


def autocast_dtype(x):
    torch.set_autocast_dtype("cpu", torch.float16)
    return x * 2


REFUSED = {
    f64: "set_default_dtype",
    f64_for_a_while: "set_default_dtype",
    deterministic: "use_deterministic_algorithms",
    deterministic_afterwards: "use_deterministic_algorithms",
    precise: "fp32_precision",
    threads: "set_num_threads",
    device: "set_default_device",
    gradients_off: "set_grad_enabled",
    autocast_dtype: "set_autocast_dtype",
}


@contextlib.contextmanager
def settings_restored():
    threads, half = torch.get_num_threads(), torch.get_autocast_dtype("cpu")
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
        torch.set_autocast_dtype("cpu", half)
        torch.set_grad_enabled(True)


def in_a_loop(f):
    return lambda x: fh.scan(lambda c, _: (f(c), None), x, length=2)[0]


def on_lanes(f):
    return lambda x: fh.vmap(lambda v: fh.cond(v > 0, f, f, x))(x)


@pytest.mark.parametrize("f", REFUSED)
def test_a_setting_that_is_changed_is_named(f):
    for run, function in ((jitted, f), (jitted, in_a_loop(f)), (captured, in_a_loop(f)), (captured, on_lanes(f))):
        with settings_restored(), pytest.raises(fh.CaptureError, match=REFUSED[f]):
            run(function, X)
        assert torch.zeros(1).device.type == "cpu"


def gradients_off_for_a_while(x):
    torch.set_grad_enabled(False)
    y = x.exp()
    torch.set_grad_enabled(True)
    return y * x


def attention(x):
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return nn.functional.scaled_dot_product_attention(*[x.reshape(1, 1, 2, 1)] * 3)


@torch.no_grad()
def decorated(x):
    return x * 2


def on_a_device(x):
    with torch.device("cpu"):
        return x + torch.ones(2)


def half(x):
    with torch.autocast("cpu", torch.bfloat16):
        return x[None] @ x[:, None]


@pytest.mark.parametrize("f", [gradients_off_for_a_while, attention, decorated, on_a_device, half])
def test_what_a_graph_holds_may_change_for_a_while(f):
    x = X.clone().requires_grad_()
    got, expected = jitted(f, x), f(x)
    same(got, expected)
    assert got.requires_grad == expected.requires_grad
    if got.requires_grad:
        same(*(torch.autograd.grad(y.float().sum(), x) for y in (got, expected)))
