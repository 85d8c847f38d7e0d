"""``checkpoint``: trade time for memory in reverse mode."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch.utils.checkpoint
from torch import Tensor

from ... import _torch, pytree
from ...calls.arguments import P, R, distinct_operands
from ...calls.leaf import one_node, traced_through
from ...calls.output import OutputSpec
from ...calls.own_memory import with_own_memory
from ...calls.recording import recorded_as_bodies_say
from ...calls.spelling import spelled
from ...calls.trace_cache import as_graph
from ...calls.validate import check_callable
from ...ir.meta import TensorMeta
from ...trace.history import Itself
from ...trace.hooks import handlers, is_symbolic
from ...trace.speculate import speculate_subgraph
from ..effect.running import effects_off
from ..mode import is_capturing, is_stepwise
from .op import CheckpointParams, checkpoint_op
from .policies import CheckpointPolicy, check_policy, nothing

__all__ = ["checkpoint", "checkpointed_plainly"]


@overload
def checkpoint(
    func: Callable[P, R], /, *, policy: CheckpointPolicy | None = None, preserve_rng_state: bool = True
) -> Callable[P, R]: ...
@overload
def checkpoint(
    func: None = None, /, *, policy: CheckpointPolicy | None = None, preserve_rng_state: bool = True
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@spelled(
    prevent_cse="leave it out: no compiler merges the recomputation with the forward pass",
    static_argnums="leave it out: what is neither a tensor nor a float is static",
    concrete="leave it out: Python may look at what is neither a tensor nor a float",
    use_reentrant="leave it out: there is one way, which works under every transform",
)
@traced_through
def checkpoint(func: Any = None, /, *, policy: CheckpointPolicy | None = None, preserve_rng_state: bool = True) -> Any:
    """The same function, which stores its inputs for reverse mode and computes everything else again.

    ``checkpoint : (a -> b) -> (a -> b)``. Equivalent to ``func``.

    Arguments:
        func: a function of trees; it may close over anything.
        policy: what is stored besides the inputs, one of ``fh.checkpoint_policies``; None stores nothing else.
        preserve_rng_state: random numbers are the same in the recomputation. A captured function stores them, so they
            are the same even without it.

    Without ``func`` it is a decorator: ``@fh.checkpoint(policy=...)``.

    Works under every transform, for ``loss.backward()`` and compiled: a barrier keeps compilers from merging the
    recomputation with the forward pass.

    Returns:
        A function of the same arguments and results as ``func``.

    Raises:
        ArgumentTypeError: ``func`` is not callable, ``policy`` is no policy.
        ArgumentValueError: ``policy`` is a string.

    Cost: one more forward pass of ``func`` when gradients are taken; memory of its inputs instead of its residuals.
    A loop inside stores its residuals while its own part of the backward pass runs, and from the forward pass on if it
    is captured and draws random numbers.

    Source: ``jax.checkpoint``; Griewank and Walther 2000; asked for under functorch in pytorch/pytorch 122729.

    >>> import torch, functorch_hops as fh
    >>> fh.grad(fh.checkpoint(lambda x: x.sin().sin()))(torch.tensor(0.0))
    tensor(1.)
    """
    saved = nothing if policy is None else check_policy("checkpoint", policy)
    if func is None:
        return functools.partial(checkpoint, policy=policy, preserve_rng_state=preserve_rng_state)
    check_callable("checkpoint", "func", func)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling() and is_symbolic():
            options = {"policy": policy, "preserve_rng_state": preserve_rng_state}
            return handlers.symbolic.transformed(checkpoint, func, options, args, kwargs)
        return _checkpointed_call("checkpoint", func, saved, policy is None, preserve_rng_state, args, kwargs)

    # Dynamo finds no attributes of a partial function.
    return checkpointed if torch.compiler.is_dynamo_compiling() else functools.wraps(func)(checkpointed)


@one_node
def _checkpointed_call(
    operation: str,
    func: Callable[..., Any],
    saved: CheckpointPolicy,
    is_default: bool,
    preserve_rng_state: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if is_stepwise():
        made = [func(*args, **kwargs)]
    elif is_default and not is_capturing() and _torch.top_interpreter() is None:
        made = [checkpointed_plainly(func, args, kwargs, preserve_rng_state)]
    else:
        return as_graph(operation, _captured_checkpoint, (func,), (args, kwargs), saved)
    return with_own_memory(made)


def checkpointed_plainly(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], preserve_rng_state: bool = True
) -> Any:
    """A call in plain eager, where no transform is active: torch's own, which needs no graph."""

    is_first = True

    def call(*values: Any) -> Any:
        nonlocal is_first
        repeats, is_first = not is_first, False
        with _torch.in_checkpoint(), effects_off() if repeats else contextlib.nullcontext():
            return func(*values, **kwargs)

    run = _Replayed(call) if preserve_rng_state else call
    return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


class _Replayed:
    """A function that draws the same random numbers whenever it is called.

    torch's own ``preserve_rng_state`` keeps the state of the generators, 5 KiB and more, for each call: for the steps
    of a loop that may be more than what checkpoints save. Here it is kept where random numbers were drawn.
    """

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        self.is_first = True
        self.states: tuple[Tensor, Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.is_first:
            return self._draw(args)
        if self.states is None:
            return self.func(*args)
        cpu, (devices, others) = self.states
        with torch.random.fork_rng(devices):
            torch.set_rng_state(cpu)
            torch.utils.checkpoint.set_device_states(devices, others)
            return self.func(*args)

    def _draw(self, args: tuple[Any, ...]) -> Any:
        self.is_first = False
        before = torch.get_rng_state(), torch.utils.checkpoint.get_device_states(*args)
        result = self.func(*args)
        now = torch.get_rng_state(), torch.utils.checkpoint.get_device_states(*args)
        if not all(map(torch.equal, [before[0], *before[1][1]], [now[0], *now[1][1]])):
            self.states = before
        return result


def _captured_checkpoint(
    functions: Sequence[Callable[..., Any]],
    operands: tuple[tuple[Any, ...], dict[str, Any]],
    policy: CheckpointPolicy,
) -> Any:
    (func,) = functions
    leaves, spec = pytree.flatten(operands)
    tensors, filled = distinct_operands(leaves)
    outputs: list[OutputSpec] = []

    def run(*flat: Tensor) -> list[Tensor]:
        call_args, call_kwargs = pytree.unflatten(spec, filled(flat))
        results, output = OutputSpec.flatten(func(*call_args, **call_kwargs))
        outputs.append(output)
        return results

    inputs = [TensorMeta.of(x) for x in tensors]
    sources = [Itself(x) for x in tensors]
    body, lifted = speculate_subgraph(run, inputs, operation="checkpoint", parameter="func", sources=sources)
    with recorded_as_bodies_say(body):
        outs = checkpoint_op(CheckpointParams(body, policy), *tensors, *lifted)
    return outputs[-1].unflatten(outs)
