"""The state of torch's default generator (of the CPU) as a value of graphs.

``generator_state`` is a random operator, which keeps its place among those that draw; ``set_generator_state`` is one
with an effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .meta import TensorMeta

__all__ = ["STATE", "RandomState", "current_state", "generator_state", "set_current_state", "set_generator_state"]

STATE = TensorMeta(tuple(torch.default_generator.get_state().shape), torch.uint8, torch.device("cpu"))


def current_state() -> Tensor:
    return torch.default_generator.get_state()


def set_current_state(state: Tensor) -> None:
    torch.default_generator.set_state(state.clone())  # of a view torch (2.13) reads other memory, and crashes


_library = torch.library.Library("functorch_hops", "FRAGMENT")
_library.define("generator_state() -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.define("set_generator_state(Tensor state) -> ()")
_library.impl("generator_state", current_state, "CompositeExplicitAutograd")
_library.impl("set_generator_state", set_current_state, "CompositeExplicitAutograd")
torch.library.register_fake("functorch_hops::generator_state", STATE.empty, lib=_library)
torch.library.register_fake("functorch_hops::set_generator_state", lambda state: None, lib=_library)

generator_state = torch.ops.functorch_hops.generator_state.default
set_generator_state = torch.ops.functorch_hops.set_generator_state.default


class RandomState:
    """The random numbers that a run draws, on the devices of some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.devices = sorted({x.device.index for x in tensors if x.is_cuda})
        self.states = self.now()
        self.is_used = True

    def now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices)]

    def note_use(self) -> None:
        self.is_used = not all(map(torch.equal, self.states, self.now()))

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        if not self.is_used:
            yield
            return
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:]):
                torch.cuda.set_rng_state(state, device)
            yield
