"""Statements without control flow: operators that read memory in many ways, views of it, and writes to it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .scope import NoOperandError, Scope

__all__ = ["EXPRESSIONS", "WRITES", "width_of"]

Expression = Callable[[Scope], str]
_matrix = lambda x: x.ndim == 2
_has_dims = lambda x: x.ndim >= 1
_not_empty = lambda x: x.numel() > 0


def _dim(s: Scope, name: str) -> int:
    return s.draw.randrange(-s.env[name].ndim, s.env[name].ndim)


def _ramp(name: str, dim: str = "-1") -> str:
    """Added before a choice of the largest, which must not depend on rounding."""
    return f"torch.arange({name}.shape[{dim}]) * 0.618"


# ---------------------------------------------------------------------------------------------------------------------
# floats


def _pointwise(s: Scope) -> str:
    a = s.pick()
    form = s.one_of(
        "torch.tanh({a} * {k} + {b})",
        "torch.sin({a}) * {b}",
        "{a}.cos() + {k}",
        "torch.sigmoid({a}) * {b} + {a}",
        "{b} - {a} * {k}",
        "torch.exp(-{a} * {a}) * {b}",
        "{a} * {a} + {b}",
        "{k} - {a}",
        "2.0 ** torch.tanh({a})",
        "1.0 / (2.0 + {a} * {a})",
        "torch.sqrt({a} * {a} + 0.3) * {b}",
        "F.softplus({a}) * {k}",
        "F.gelu({a})",
        "torch.atan2({a}, 2.0 + {b} * {b})",
        "torch.erf({a} + {b})",
        "torch.where({a} > 0.137, {a} * {k}, {b})",
        "{a}.clamp(-0.613, 0.731) + {b}",
        "torch.lerp({a}, {a}.cos(), {k})",
        "{a}.detach() * {b}",
        "{a} * {k}",
        "torch.addcmul({a}, {a}, {a}.sin(), value={k})",
        "torch.maximum({a}, {a}.sin() - 0.137)",
        "torch.zeros_like({a}) + {b}",
        "torch.ones_like({a}) * {b}",
    )
    return form.format(a=a, b=s.like(a), k=s.number)


def _along(s: Scope) -> str:
    """Operators along one dimension."""
    a = s.pick(where=_has_dims)
    d = _dim(s, a)
    form = s.one_of(
        "torch.cumsum({a}, {d}) * 0.5",
        "{a}.softmax({d})",
        "{a}.log_softmax({d}) * 0.3",
        "torch.sort({r}, -1).values",
        "torch.sort({r}, -1, descending=True).values * {k}",
        "{a}.flip({d})",
        "{a}.roll(1, {d})",
        "{a} - {a}.mean({d}, keepdim=True)",
        "torch.cumprod(1.0 + 0.1 * torch.tanh({a}), {d})",
        "torch.logcumsumexp({a}, {d}) * 0.5",
        "F.layer_norm({a}, {a}.shape[-1:])",
        "torch.diff({a}, dim={d})",
        "torch.take_along_dim({a}, ({r}).argsort(-1), -1)",
        "torch.topk({r}, 1, -1).values",
        "({r}).cummax(-1).values",
    )
    return form.format(a=a, d=d, k=s.number, r=f"{a} + {_ramp(a)}")


def _reduced(s: Scope) -> str:
    a = s.pick(where=_has_dims)
    d = _dim(s, a)
    form = s.one_of(
        "{a}.sum() * 0.3",
        "{a}.sum({d}) * 0.5",
        "{a}.sum({d}, keepdim=True) * 0.5",
        "{a}.mean({d})",
        "({a} * {b}).sum()",
        "({r}).amax(-1)",
        "({r}).max(-1).values",
        "torch.logsumexp({a}, {d})",
        "(1.0 + 0.1 * torch.tanh({a})).prod({d})",
        "({a} * {a} + 0.1).sum({d}).sqrt()",
        "{a}.var({d}, correction=0)",
        "({a} * {a}).mean() + {b}",
    )
    return form.format(a=a, b=s.like(a), d=d, r=f"{a} + {_ramp(a)}")


def _product(s: Scope) -> str:
    a = s.pick(where=lambda x: 1 <= x.ndim <= 3)
    n, ndim = s.env[a].shape[-1], s.env[a].ndim
    same = s.pick(where=lambda x: x.ndim in (1, 2) and x.shape[-1] == n)
    form = s.one_of("{a} @ {b}.mT", "torch.einsum('...i,...i->...', {a}, {a}.sin())", "F.linear({a}, {b})")
    if s.env[same].ndim == 1:
        form = s.one_of("{a} @ {b}", "{a} * {b}", "torch.outer({b}, {b})", "{b}[:, None] * {b}", "{b}[:, None] + {b}")
    if ndim == 2 and s.chance(0.3):
        form = s.one_of("{a} @ {a}.T", "{a}.T @ {a}", "torch.addmm({a} @ {a}.T, {a}, {a}.T)")
    return f"({form.format(a=a, b=same)}) * {s.one_of('0.3', '0.5')}"


def _joined(s: Scope) -> str:
    a = s.pick(where=_has_dims)
    shape = s.env[a].shape
    b = s.pick(where=lambda x: x.shape == shape)
    form = s.one_of(
        "torch.cat([{a}, {b}], {d})",
        "torch.stack([{a}, {b}, {a} * {k}], {d})",
        "torch.stack([{a}, {b}])",
        "torch.cat([{a}, {b}[:1], {b}[:0]], 0)",
        "F.pad({a}, (1, 1), value={k})",
        "{a}.repeat_interleave(2, {d})",
        "torch.cat([{b}, {a}, {b}], {d})",
    )
    return form.format(a=a, b=b, d=_dim(s, a), k=s.number)


def _view(s: Scope) -> str:
    a = s.pick(s.one_of("float", "float", "float", "any"), where=_has_dims)
    d = _dim(s, a)
    form = s.one_of(
        "{a}.mT",
        "{a}.transpose(0, -1)",
        "{a}.reshape(-1)",
        "{a}.unsqueeze({d})",
        "{a}.squeeze()",
        "{a}[1:]",
        "{a}[::2]",
        "{a}[..., :1]",
        "{a}[..., ::2]",
        "{a}[..., None]",
        "{a}[1:1]",
        "{a}[..., :0]",
        "{a}[-1]",
        "{a}[0]",
        "{a}[..., -1]",
        "{a}.expand(2, *{a}.shape)",
        "{a}.mT.contiguous()",
        "{a}.clone()",
        "{a}.mT.reshape(-1)",
        "{a}.unbind({d})[0]",
        "{a}.chunk(2, {d})[-1]",
        "{a}.tile(2)",
        "{a}.flatten()[:4]",
        "{a}.narrow({d}, 0, 1)",
        "{a}.diagonal()",
        "{a}.unfold(0, 2, 1)",
        "{a}.movedim(0, -1)",
        "{a}[None].expand(3, *{a}.shape)",
        "{a}",
    )
    if "mT" in form and s.env[a].ndim < 2:
        raise NoOperandError
    return form.format(a=a, d=d)


def _indexed(s: Scope) -> str:
    a = s.pick(where=lambda x: x.ndim >= 1 and x.shape[0] > 0)
    size = s.env[a].shape[0]
    form = s.one_of(
        "{a}[{i} % {n}]",
        "{a}[({r}).argmax()]",
        "{a}.index_select(0, {v} % {n})",
        "{a}[{v} % {n}]",
        "F.embedding({v} % {n}, {a})",
        "{a}.gather(0, {a}.long().abs() % {n})",
        "{a}.scatter_add(0, {a}.long().abs() % {n}, {a})",
        "{a}.index_add(0, torch.zeros({n}, dtype=torch.int64), {a})",
        "{a}.index_add(0, torch.arange({n}) // 2, {a}.cos())",
        "torch.zeros_like({a}).index_add(0, {v} % {n}, {a}[{v} % {n}])",
        "{a}.index_copy(0, ({i} % {n}).reshape(1), {a}[-1:] * 0.5)",
        "torch.where({a} > 0.137, {a}, {a}.flip(0))",
        "{a}.masked_fill({a} > 0.137, {k})",
        "torch.searchsorted(torch.sort({a}.detach().reshape(-1)).values, {k}) * {a}",
        "F.one_hot({v} % {n}, {n}) * {k}",
    )
    if "{r}" in form and s.env[a].ndim != 1:
        raise NoOperandError
    i = s.pick("int", where=lambda x: x.ndim == 0) if "{i}" in form else ""
    v = s.pick("int", where=lambda x: x.ndim == 1) if "{v}" in form else ""
    return form.format(a=a, n=size, i=i, v=v, k=s.number, r=f"{a} + {_ramp(a)}")


# ---------------------------------------------------------------------------------------------------------------------
# other dtypes


def _integer(s: Scope) -> str:
    if s.chance(0.4):
        a = s.pick(where=lambda x: x.ndim == 1 and x.numel() > 0)
        form = s.one_of(
            "({r}).argmax()",
            "({r}).argsort()",
            "({a} * 3).floor().long() % 4",
            "({a} > 0.137).sum()",
            "torch.arange({a}.shape[0])",
            "({a} > 0.137).cumsum(0)",
            "torch.sort({r}).indices",
        )
        return form.format(a=a, r=f"{a} + {_ramp(a)}")
    a = s.pick("int")
    form = s.one_of(
        "({a} * 3 + 1) % 5",
        "2 ** ({a} % 4)",
        "7 - {a}",
        "{a} // 2",
        "5 // (1 + {a} * {a})",
        "7 % (1 + {a} * {a})",
        "{a}.sum() % 4",
        "{a} & 3",
        "6 ^ {a}",
        "1 << ({a} % 4)",
        "{a}.clamp(0, 3)",
        "torch.where({a} > 1, {a} - 1, {a} + 2)",
        "-{a}",
        "{a}.cumsum(-1) % 7",
        "{a}.flip(-1)",
        "{a}.sort(-1, stable=True).values",
    )
    return form.format(a=a)


def _mask(s: Scope) -> str:
    if s.chance(0.6):
        a = s.pick()
        return s.one_of("{a} > 0.137", "{a}.abs() < 0.731", "0.137 > {a}", "{a} * 0.5 <= 0.219").format(a=a)
    a = s.pick("bool")
    return s.one_of("~{a}", "{a} & ~{a}.flip(-1)", "{a}.any()", "{a}.all()", "{a} | {a}.roll(1)").format(a=a)


def _from_others(s: Scope) -> str:
    kind = s.one_of("int", "bool")
    a = s.pick(kind)
    b = s.pick()
    return s.one_of("{a}.to({b}.dtype) * 0.2", "{a} * {b}.sum() * 0.1", "torch.where({a} > 0, {b}.sum(), 0.25)").format(
        a=a, b=b
    )


def _complex(s: Scope) -> str:
    if s.chance(0.4):
        a = s.pick()
        turned = "mT" if s.env[a].ndim > 1 else "flip(0)"
        return s.one_of(
            "torch.complex({a}, {b} + torch.zeros_like({a}))",
            "torch.exp(1j * {a})",
            "{a} * (0.5 + 0.5j)",
            "torch.view_as_complex(torch.stack([{a}, {a}.cos()], -1))",
            "torch.view_as_complex({a}.unflatten(-1, (-1, 2)).contiguous())",
            "torch.view_as_complex({a}[..., :2].contiguous())",
            "torch.view_as_complex({a}.{t}.contiguous()[..., :2].contiguous())",
            "torch.polar(1.0 + {a} * {a}, {a})",
        ).format(a=a, b=s.like(a), t=turned)
    a = s.pick("complex")
    form = s.one_of(
        "{a}.conj()",
        "{a} * (0.3 - 0.6j)",
        "{a}.real",
        "{a}.imag",
        "{a}.conj().imag * 0.5",
        "{a}.mT.real",
        "({a} + 4.0).abs()",
        "torch.view_as_real({a})",
        "torch.view_as_real({a}.mT.contiguous())",
        "torch.view_as_real({a}.conj().resolve_conj())",
        "{a} * {a}.conj()",
        "{a}.sum()",
        "{a}.resolve_conj().reshape(-1)",
        "{a}.mT",
        "{a}[..., :1]",
        "({a} * {a}.conj()).real",
        "{a}.flip(-1)",
        "({a} + 4.0).angle()",
        "{a}.reshape(-1)[1:]",
    )
    if "mT" in form and s.env[a].ndim < 2:
        raise NoOperandError
    return form.format(a=a)


def _module(s: Scope) -> str:
    """A module of the program, closed over, on a float vector or matrix of its width."""
    found = [name for name, value in s.env.items() if name.startswith("net") and isinstance(value, torch.nn.Module)]
    if not found:
        raise NoOperandError
    net = s.draw.choice(found)
    width = width_of(s.env[net])
    a = s.pick(where=lambda x: 1 <= x.ndim <= 2 and x.shape[-1] == width)
    if isinstance(s.env[net], torch.nn.GRUCell | torch.nn.RNNCell):
        return f"{net}({a}, {s.pick(where=lambda x: x.shape == s.env[a].shape)})"
    if isinstance(s.env[net], torch.nn.LSTMCell):
        raise NoOperandError
    if s.chance(0.2):
        loss = f"torch.func.functional_call({net}, p, ({a},)).sin().sum()"
        parameter = s.draw.choice([name for name, _ in s.env[net].named_parameters()])
        return f"ns.grad(lambda p: {loss})(dict({net}.named_parameters()))[{parameter!r}]"
    return f"{net}({a})"


def width_of(net: torch.nn.Module) -> int:
    """The last dimension of what a module takes."""
    if isinstance(net, torch.nn.Sequential):
        net = net[0]
    size = getattr(net, "in_features", None) or getattr(net, "input_size", None) or getattr(net, "num_features", None)
    return int(size or net.normalized_shape[0])


EXPRESSIONS: list[tuple[int, Expression]] = [
    (8, _pointwise),
    (6, _along),
    (3, _reduced),
    (3, _product),
    (3, _joined),
    (6, _view),
    (4, _indexed),
    (3, _integer),
    (2, _mask),
    (2, _from_others),
    (2, _complex),
    (3, _module),
]


# ---------------------------------------------------------------------------------------------------------------------
# writes


def WRITES(s: Scope) -> None:
    """A copy that is written to, and maybe views of it from before the write."""
    a = s.pick(where=_not_empty)
    shape = s.env[a].shape
    b = s.pick(where=_not_empty)
    base = s.one_of("{a} * 1.0", "{a} + 0 * {b}.sum()", "{a}.clone()", "{a}.expand(2, *{a}.shape) + 0 * {b}.sum()")
    name, lines = s.new("v"), []
    lines.append(f"{name} = {base.format(a=a, b=b)}")
    if ".expand" in base:
        shape = torch.Size((2, *shape))
    names = [name]
    if len(shape) and s.chance(0.4):
        view = s.new("v")
        turned = ".mT" if len(shape) > 1 else ".flatten()"
        lines.append(f"{view} = {name}{s.one_of('[0]', '[-1:]', '.view(-1)', turned, '[..., 0]')}")
        names.append(view)
    forms = ["{v}.mul_({k})", "{v}.add_({b}.sum())", "{v}.copy_({a}.sin())", "{v} += {b}.sum()", "{v}.tanh_()"]
    forms += ["{v}[{v} > 0.137] = {k}", "{v}.masked_fill_({v} > 0.137, {k})", "{v}.zero_()", "{v}[...] = {b}.sum()"]
    forms += ["{v}[{v} > 0.137] = {b}.sum()", "{v}.clamp_(-0.613, 0.731)"]
    if len(shape):
        n = shape[0]
        forms += ["{v}[0] = {b}.sum()", "{v}[-1].mul_({k})", "{v}[1:] += {b}.sum()", "{v}[:, None][0].add_({k})"]
        forms += ["{v}[{v}.detach().reshape(-1)[0].long() % {n}] = {b}.sum()", "{v}.view(-1)[1:].tanh_()"]
        forms += ["{v}.index_add_(0, torch.arange({n}) // 2, {v}.sin())", "{v}[{v}[0] * 0 == 0] = {k}"]
        forms += [
            "{v}.transpose(0, -1).add_({b}.sum())",
            "{v}.copy_({v}.flip(0))",
            "{v}[:1].copy_({v}[-1:])",
            "{v}[::2] *= {k}",
        ]
        forms += ["{v}.index_copy_(0, torch.tensor([0]), {v}[-1:].cos())", "{v}.fill_({k})", "{v}[0].copy_({v}[-1])"]
        forms += ["{v}.scatter_add_(0, {v}.long().abs() % {n}, {v}.cos())", "{v}[torch.arange({n}) // 2] = {b}.sum()"]
        forms += ["{v}.index_put_((torch.arange({n}) // 2,), {v}.cos(), accumulate=True)"]
        try:
            i = s.pick("int", where=lambda x: x.ndim == 0)
            forms += [f"{{v}}[{i} % {{n}}] = {{b}}.sum()", f"{{v}}[{i} % {{n}}] = {{v}}[-1].cos()"] * 2
        except NoOperandError:
            pass
    else:
        n = 1
    for _ in range(s.one_of(1, 1, 2)):
        lines.append(s.draw.choice(forms).format(v=s.draw.choice(names), a=a, b=b, k=s.number, n=n))
    s.say(lines, names)
