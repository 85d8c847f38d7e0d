"""``checkpoint_policies``: what a checkpointed function saves for reverse mode besides its inputs.

A policy is asked about each value that reverse mode reads. What an operator inside the function returns (a scan, a
cond, a call of another checkpoint) is saved, its residuals included, if the policy saves anything in the operator's
body: a matrix product inside a scan is as little computed again under ``save_matmuls`` as one outside. Inputs are there
anyway, and random numbers are saved by all policies.

=================================  ===========================================================================
``nothing``                        the default: everything is computed again
``everything``                     nothing is: reverse mode as without a checkpoint
``save_matmuls``                   matrix products and convolutions
``save_names("a", ...)``           values that went through ``checkpoint_name``
``union(policy, ...)``             what at least one of them saves
``intersection(policy, ...)``      what all of them save
``complement(policy)``             what it does not save
=================================  ===========================================================================

Source: ``jax.checkpoint_policies``.

>>> import torch, functorch_hops as fh
>>> policies = fh.checkpoint_policies
>>> layer = lambda w, x: (w @ x).tanh().sum()
>>> few = fh.checkpoint(layer, policy=policies.union(policies.save_matmuls, policies.save_names("state")))
>>> fh.grad(few)(torch.ones(1, 2), torch.zeros(2))
tensor([[0., 0.]])
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ... import _torch
from ...calls.leaf import left_to_python
from ...calls.spelling import named
from ...derive.saving import Value
from ...errors import ArgumentTypeError, ArgumentValueError, message

__all__ = [
    "CheckpointPolicy",
    "complement",
    "everything",
    "intersection",
    "nothing",
    "save_matmuls",
    "save_names",
    "union",
]


class CheckpointPolicy:
    """Which values a checkpointed function saves. Policies are immutable, and equal if they save the same."""

    __fh_own__ = True

    def __call__(self, value: Value) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class _Always(CheckpointPolicy):
    answer: bool

    def __call__(self, value: Value) -> bool:
        return self.answer

    def __repr__(self) -> str:
        return "everything" if self.answer else "nothing"


@dataclass(frozen=True)
class _Matmuls(CheckpointPolicy):
    def __call__(self, value: Value) -> bool:
        return value.operator in _PRODUCTS

    def __repr__(self) -> str:
        return "save_matmuls"


@dataclass(frozen=True)
class _Names(CheckpointPolicy):
    names: frozenset[str]

    def __call__(self, value: Value) -> bool:
        return not self.names.isdisjoint(value.names)

    def __repr__(self) -> str:
        return f"save_names({', '.join(map(repr, sorted(self.names)))})"


@dataclass(frozen=True)
class _Combined(CheckpointPolicy):
    policies: frozenset[CheckpointPolicy]
    is_union: bool

    def __call__(self, value: Value) -> bool:
        return (any if self.is_union else all)(policy(value) for policy in self.policies)

    def __repr__(self) -> str:
        name = "union" if self.is_union else "intersection"
        return f"{name}({', '.join(sorted(map(repr, self.policies)))})"


@dataclass(frozen=True)
class _Complement(CheckpointPolicy):
    policy: CheckpointPolicy

    def __call__(self, value: Value) -> bool:
        return not self.policy(value)

    def __repr__(self) -> str:
        return f"complement({self.policy!r})"


_aten = torch.ops.aten
_PRODUCTS = frozenset(
    getattr(packet, overload)
    for packet in (
        *(_aten.mm, _aten.bmm, _aten.mv, _aten.dot, _aten.vdot, _aten.linear),
        *(_aten.addmm, _aten.baddbmm, _aten.addbmm, _aten.addmv, _aten.addr),
        *(_aten.convolution, _aten.convolution_backward),
        *(_aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_flash_attention),
        *(_aten._scaled_dot_product_efficient_attention, _aten._scaled_dot_product_cudnn_attention),
    )
    for overload in packet.overloads()
)

everything: CheckpointPolicy = _Always(True)
nothing: CheckpointPolicy = _Always(False)
save_matmuls: CheckpointPolicy = _Matmuls()


@_torch.assume_constant_result
def save_names(*names: str) -> CheckpointPolicy:
    """Save the values that :func:`checkpoint_name` gave one of these names.

    ``save_names : (str, ...) -> policy``. Equivalent to ``lambda value: value has one of the names``.

    Arguments:
        names: what :func:`checkpoint_name` calls the values. A name that no value has saves nothing.

    Returns:
        A policy, for ``checkpoint(policy=)`` and for the functions that combine policies.

    Raises:
        ArgumentTypeError: a name is no string.

    Cost: reverse mode stores the named values. The policy is asked when the backward pass is derived, not in each call.

    Source: ``jax.checkpoint_policies.save_only_these_names``.

    >>> import torch, functorch_hops as fh
    >>> f = lambda x: fh.checkpoint_name(x.exp(), "exp").sin()
    >>> fh.grad(fh.checkpoint(f, policy=fh.checkpoint_policies.save_names("exp", "log")))(torch.tensor(0.0))
    tensor(0.5403)
    """
    for name in names:
        check_name("save_names", "names", name)
    return _Names(frozenset(names))


@left_to_python
def union(*policies: CheckpointPolicy) -> CheckpointPolicy:
    """Save what at least one of the policies saves.

    ``union : (policy, ...) -> policy``. Equivalent to ``lambda value: any(policy(value) for policy in policies)``.

    Arguments:
        policies: of ``fh.checkpoint_policies``. The union of none is ``nothing``.

    Returns:
        A policy.

    Raises:
        ArgumentTypeError: something is no policy.
        ArgumentValueError: something is a string, the name of a policy.

    Cost: reverse mode stores what all of them together do.

    Source: ``jax.checkpoint_policies.save_from_both_policies``.

    >>> import functorch_hops as fh
    >>> policies = fh.checkpoint_policies
    >>> policies.union(policies.save_matmuls, policies.save_names("state"))
    union(save_matmuls, save_names('state'))
    """
    return _Combined(_checked("union", policies), is_union=True)


@left_to_python
def intersection(*policies: CheckpointPolicy) -> CheckpointPolicy:
    """Save what all of the policies save.

    ``intersection : (policy, ...) -> policy``. Equivalent to
    ``lambda value: all(policy(value) for policy in policies)``.

    Arguments:
        policies: of ``fh.checkpoint_policies``. The intersection of none is ``everything``.

    Returns:
        A policy.

    Raises:
        ArgumentTypeError: something is no policy.
        ArgumentValueError: something is a string, the name of a policy.

    Cost: reverse mode stores at most what each of them does.

    >>> import functorch_hops as fh
    >>> policies = fh.checkpoint_policies
    >>> policies.intersection(policies.save_matmuls, policies.save_names("state"))
    intersection(save_matmuls, save_names('state'))
    """
    return _Combined(_checked("intersection", policies), is_union=False)


@left_to_python
def complement(policy: CheckpointPolicy, /) -> CheckpointPolicy:
    """Save what the policy does not save.

    ``complement : policy -> policy``. Equivalent to ``lambda value: not policy(value)``.

    Arguments:
        policy: one of ``fh.checkpoint_policies``.

    Returns:
        A policy.

    Raises:
        ArgumentTypeError: it is no policy.
        ArgumentValueError: it is a string, the name of a policy.

    Cost: reverse mode stores everything but what the policy does; ``complement(save_names("big"))`` computes only the
    values of that name again.

    Source: ``jax.checkpoint_policies.save_anything_except_these_names``.

    >>> import functorch_hops as fh
    >>> fh.checkpoint_policies.complement(fh.checkpoint_policies.save_names("big"))
    complement(save_names('big'))
    """
    return _Complement(check_policy("complement", policy))


def _checked(operation: str, policies: tuple[Any, ...]) -> frozenset[CheckpointPolicy]:
    return frozenset(check_policy(operation, policy) for policy in policies)


def check_policy(operation: str, policy: Any) -> CheckpointPolicy:
    if isinstance(policy, CheckpointPolicy):
        return policy
    is_name = isinstance(policy, str)
    names = ", ".join(name for name in __all__ if name != "CheckpointPolicy")
    text = message(
        operation,
        "no such policy",
        parameter="policy",
        expected=f"one of fh.checkpoint_policies ({names})",
        got=repr(policy) if is_name else f"{type(policy).__name__} {policy!r}",
        remedy="pass the object, not its name: policy=fh.checkpoint_policies.save_matmuls, for example",
    )
    raise ArgumentValueError(text) if is_name else ArgumentTypeError(text)


def check_name(operation: str, parameter: str, name: Any) -> None:
    if not isinstance(name, str):
        got = f"{type(name).__name__} {name!r}"
        remedy = "write a string, as in fh.checkpoint_name(x, 'h')"
        text = message(operation, "not a name", parameter=parameter, expected="a str", got=got, remedy=remedy)
        raise ArgumentTypeError(text)


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> NoReturn:
        raise named(name, sys.modules[__name__])
