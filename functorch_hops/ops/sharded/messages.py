"""What ranks send one another, as operators of torch's own: graphs hold them, and compilers leave them where they are.

NOTE [The same graph on all ranks] A graph never says on which rank it is: its operators ask when they run. So each rank
captures, differentiates and compiles the same graph, and communicates in the same order: the operators count as
effects, which stay in a graph and in their order, read or not, in every pass and rule and in compiled code.

NOTE [A message is sent where it belongs] An operator also takes what is ``tied`` to its values, and does nothing with
it. A cotangent that is known to be zero depends on nothing: a compiler would send it in the forward pass, or in both,
and a rank that waits there for what another one sends in its backward pass waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.fx.node import has_side_effect

from ... import _torch

__all__ = ["Route", "collect", "position", "receive", "send", "share", "shift"]


class Route(NamedTuple):
    """The way from the first part of a sequence to its last: the ranks of a group in order, or ``backwards``."""

    group: str
    size: int
    backwards: bool = False

    def reversed(self) -> Route:
        return self._replace(backwards=not self.backwards)


class _Here:
    """A route as this process sees it, which is at ``place`` of it."""

    def __init__(self, group: str, size: int, backwards: bool) -> None:
        self.group = _torch.process_group_named(group)
        now = self.group.size()
        if now != size:
            raise RuntimeError(f"the process group {group} had {size} ranks at the capture, and has {now}")
        self.last, self.backwards = size - 1, backwards
        self.place = self.rank_at(self.group.rank())

    def rank_at(self, place: int) -> int:
        """The rank at a place, and the place of a rank."""
        return self.last - place if self.backwards else place

    def sending(self, values: Sequence[Tensor], place: int) -> list[Any]:
        if not 0 <= place <= self.last:
            return []
        return [dist.isend(_bytes(values), group=self.group, group_dst=self.rank_at(place))]

    def receiving(self, buffer: Tensor, place: int) -> list[Any]:
        if not 0 <= place <= self.last:
            return []
        return [dist.irecv(buffer, group=self.group, group_src=self.rank_at(place))]


def _bytes(values: Sequence[Tensor]) -> Tensor:
    """The values as one message."""
    return torch.cat([x.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8) for x in values])


def _values(message: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = message.split([x.numel() * x.element_size() for x in like])
    return [part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, like)]


def _send(values: Sequence[Tensor], tied: Sequence[Tensor], group: str, size: int, backwards: bool) -> list[Tensor]:
    here = _Here(group, size, backwards)
    for work in here.sending(values, here.place + 1):
        work.wait()
    return [x.clone() if here.place == here.last else torch.zeros_like(x) for x in values]


def _receive(values: Sequence[Tensor], tied: Sequence[Tensor], group: str, size: int, backwards: bool) -> list[Tensor]:
    here = _Here(group, size, backwards)
    buffer = _bytes(values)
    for work in here.receiving(buffer, here.place - 1):
        work.wait()
    return _values(buffer, values)


def _share(values: Sequence[Tensor], tied: Sequence[Tensor], group: str, size: int, backwards: bool) -> list[Tensor]:
    here = _Here(group, size, backwards)
    buffer = _bytes(values)
    dist.broadcast(buffer, group=here.group, group_src=here.rank_at(here.last))
    return _values(buffer, values)


def _collect(values: Sequence[Tensor], tied: Sequence[Tensor], group: str, size: int, backwards: bool) -> list[Tensor]:
    here = _Here(group, size, backwards)
    sums = [x.clone(memory_format=torch.contiguous_format) for x in values]
    for x in sums:
        dist.all_reduce(torch.view_as_real(x) if x.is_complex() else x, group=here.group)
    return sums if here.place == here.last else list(map(torch.zeros_like, sums))


def _shift(
    values: Sequence[Tensor], tied: Sequence[Tensor], offset: int, group: str, size: int, backwards: bool
) -> list[Tensor]:
    here = _Here(group, size, backwards)
    buffer = torch.zeros_like(_bytes(values))
    works = [*here.receiving(buffer, here.place - offset), *here.sending(values, here.place + offset)]
    for work in works:
        work.wait()
    return _values(buffer, values)


def _position(group: str, size: int, backwards: bool, device: torch.device) -> Tensor:
    return torch.tensor(_Here(group, size, backwards).place, device=device)


_library = torch.library.Library("functorch_hops", "FRAGMENT")
_TENSORS = "Tensor[] values, Tensor[] tied"
_ROUTE = "str group, int size, bool backwards"


def _like(values: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in values]


def _operator(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    _library.define(f"{name}{signature}")
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"functorch_hops::{name}", fake, lib=_library)
    return getattr(torch.ops.functorch_hops, name).default


send = _operator("send", f"({_TENSORS}, {_ROUTE}) -> Tensor[]", _send, _like)
"""To the next place. What comes out is zero, and at the last place the values."""
receive = _operator("receive", f"({_TENSORS}, {_ROUTE}) -> Tensor[]", _receive, _like)
"""What comes from the place before; at the first one the values."""
share = _operator("share", f"({_TENSORS}, {_ROUTE}) -> Tensor[]", _share, _like)
"""The values of the last place, everywhere."""
collect = _operator("collect", f"({_TENSORS}, {_ROUTE}) -> Tensor[]", _collect, _like)
"""At the last place the sums of the values of all, elsewhere zero."""
shift = _operator("shift", f"({_TENSORS}, int offset, {_ROUTE}) -> Tensor[]", _shift, _like)
"""The values from ``offset`` places before, zero if there is no such place."""
position = _operator(
    "position",
    f"({_ROUTE}, Device device) -> Tensor",
    _position,
    lambda *args: torch.empty((), dtype=torch.int64, device=args[-1]),
)
"""The place of this process."""

for _message in (send, receive, share, collect, shift):
    has_side_effect(_message)
