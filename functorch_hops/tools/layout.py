"""Boxes in layers: where the nodes of a graph go in a picture, and the ways of its edges.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures" (1981): layers by
the longest path; a long edge is a chain of points, one in each layer; the order in a layer by the mean of the
neighbours' places, swept down and up. The x coordinates are those nearest to the mean of the neighbours' (in the least
squares) that keep the order and the distances, which is an isotonic regression. The longest path goes straight: a box
looks at its neighbours on it only, and what hangs on less of the graph makes way. Else what comes from the side, a
weight or the edge around a block, would push each layer on a bit further, and a deep graph run across the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Box", "place"]

Point = tuple[float, float]

GAP_X, GAP_Y, WAY = 18.0, 34.0, 10.0
"""Between boxes, between layers; the width of an edge that passes."""
_SWEEPS = 8


@dataclass(eq=False)
class Box:
    """A node of ``width`` and ``height``; ``x``, ``y``: its left upper corner."""

    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    layer: int = 0
    order: int = 0
    """Its place in the layer."""
    end: float = 0.0
    """Where the layer ends, below it."""
    depth: int = 0
    rest: int = 0
    """Edges of the longest paths to it, and from it."""

    @property
    def centre(self) -> float:
        return self.x + self.width / 2


def place(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> tuple[float, float, list[list[Point]]]:
    """Place the boxes, which are in an order that the edges (from, to) agree with. Returns width, height and, for each
    edge, the points that it goes through.
    """
    _set_layers(boxes, edges)
    chains = _chains(boxes, edges)
    links = [link for chain in chains for link in chain.links(boxes)]
    layers = _layers([*boxes, *(point for chain in chains for point in chain.points)])
    above, below = _neighbours(links)
    longest = max((box.depth for box in boxes), default=0)
    held = {box: _largest(near, _depth) for box, near in above.items()}
    hung = {box: _largest(near, _rest) for box, near in below.items()}
    for _ in range(_SWEEPS):
        for layer in layers[1:]:
            _sort(layer, above)
        for layer in layers[-2::-1]:
            _sort(layer, below)
    for layer in layers:
        _spread(layer, {}, longest)
    for _ in range(_SWEEPS):
        for layer in layers[1:]:
            _spread(layer, held, longest)
        for layer in layers[-2::-1]:
            _spread(layer, hung, longest)
    left = min((box.x for layer in layers for box in layer), default=0.0)
    y = 0.0
    for layer in layers:
        height = max(box.height for box in layer)
        for box in layer:
            box.x -= left
            box.y, box.end = y, y + height
            box.height = box.height or height  # an edge goes straight past the boxes of a layer
        y += height + GAP_Y
    width = max((box.x + box.width for layer in layers for box in layer), default=0.0)
    by_source = {chain.source: chain for chain in chains}
    ways = [_way(boxes[a], by_source[a].before(boxes[b]), boxes[b]) for a, b in edges]
    return width, max(y - GAP_Y, 0.0), ways


def _set_layers(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> None:
    readers: dict[int, list[int]] = {}
    sources: dict[int, list[int]] = {}
    for a, b in edges:
        readers.setdefault(a, []).append(b)
        sources.setdefault(b, []).append(a)
    for i, box in enumerate(boxes):
        box.layer = box.depth = max((boxes[a].layer + 1 for a in sources.get(i, ())), default=0)
    # What reads one box at most makes no edge longer where it is near to whom reads it.
    for i in reversed(range(len(boxes))):
        boxes[i].rest = max((boxes[b].rest + 1 for b in readers.get(i, ())), default=0)
        if i in readers and len(sources.get(i, ())) < 2:
            boxes[i].layer = min(boxes[b].layer for b in readers[i]) - 1


@dataclass(eq=False)
class _Chain:
    """The points of the edges from one box, in the layers between it and those that read it."""

    source: int
    targets: list[int]
    points: list[Box]

    def before(self, target: Box) -> list[Box]:
        return self.points[: len(self.points) - max(0, self._end - target.layer)]

    @property
    def _end(self) -> int:
        """The layer after the last point."""
        return self.points[-1].layer + 1 if self.points else 0

    def links(self, boxes: Sequence[Box]) -> Iterator[tuple[Box, Box]]:
        line = [boxes[self.source], *self.points]
        yield from itertools.pairwise(line)
        for i in self.targets:
            yield [line[0], *self.before(boxes[i])][-1], boxes[i]


def _chains(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> list[_Chain]:
    targets: dict[int, list[int]] = {}
    for a, b in edges:
        targets.setdefault(a, []).append(b)
    chains = []
    for source, readers in targets.items():
        end = max(boxes[b].layer for b in readers)
        first, points = boxes[source], list[Box]()
        for layer in range(first.layer + 1, end):
            rest = max(boxes[b].rest for b in readers if boxes[b].layer > layer)
            points.append(Box(WAY, 0.0, layer=layer, depth=first.depth, rest=rest))
        chains.append(_Chain(source, readers, points))
    return chains


def _layers(boxes: Sequence[Box]) -> list[list[Box]]:
    layers: list[list[Box]] = [[] for _ in range(1 + max((box.layer for box in boxes), default=-1))]
    for box in boxes:
        box.order = len(layers[box.layer])
        layers[box.layer].append(box)
    return [layer for layer in layers if layer]


def _neighbours(links: Sequence[tuple[Box, Box]]) -> tuple[dict[Box, list[Box]], dict[Box, list[Box]]]:
    above: dict[Box, list[Box]] = {}
    below: dict[Box, list[Box]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    return above, below


def _depth(box: Box) -> int:
    return box.depth


def _rest(box: Box) -> int:
    return box.rest


def _largest(boxes: Sequence[Box], key: Callable[[Box], int]) -> list[Box]:
    most = max(map(key, boxes))
    return [box for box in boxes if key(box) == most]


def _sort(layer: list[Box], neighbours: dict[Box, list[Box]]) -> None:
    def mean(box: Box) -> float:
        near = neighbours.get(box)
        return sum(n.order for n in near) / len(near) if near else box.order

    layer.sort(key=mean)
    for i, box in enumerate(layer):
        box.order = i


def _spread(layer: Sequence[Box], neighbours: dict[Box, list[Box]], longest: int) -> None:
    """Put the boxes of a layer where they want to be, as far as their order and distances allow: those most of all that
    are on a path of nearly the ``longest`` length.
    """
    offsets, wanted, offset = [], [], 0.0
    for box in layer:
        near = neighbours.get(box)
        centre = sum(n.centre for n in near) / len(near) if near else box.centre
        offsets.append(offset)
        wanted.append(centre - box.width / 2 - offset)
        offset += box.width + GAP_X
    weights = [(1 + longest - box.depth - box.rest) ** -2 for box in layer]
    for box, start, level in zip(layer, offsets, _isotonic(wanted, weights)):
        box.x = level + start


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The numbers that do not fall and are nearest to ``values`` in the least squares: pool adjacent violators."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights):
        mean, total, count = value, weight, 1
        while pools and pools[-1][0] > mean:
            other, more, n = pools.pop()
            mean = (mean * total + other * more) / (total + more)
            total, count = total + more, count + n
        pools.append((mean, total, count))
    return [mean for mean, _, count in pools for _ in range(count)]


def _way(source: Box, points: Sequence[Box], target: Box) -> list[Point]:
    start = [(source.centre, source.y + source.height), (source.centre, source.end)]
    past = [(point.centre, y) for point in points for y in (point.y, point.end)]
    return [*start, *past, (target.centre, target.y)]
