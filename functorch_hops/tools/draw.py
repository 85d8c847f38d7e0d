"""``draw``: a captured graph as a picture."""

from __future__ import annotations

import html
import linecache
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ..calls.leaf import left_to_python
from ..errors import ArgumentTypeError, ArgumentValueError, message
from ..ir.meta import TensorMeta
from ..ir.subgraph import Params, Subgraph, params_of
from ..ops.cond.op import CondParams
from ..ops.effect.op import EffectParams
from ..passes.products import is_product
from ..transforms import CapturedGraph, Lowered
from .layout import Box, Point, place

__all__ = ["draw"]

_CHAR, _SMALL, _LINE, _PAD = 6.7, 5.6, 15.0, 8.0
"""Width of a character and of a small one, height of a line, space around text."""
_ROOM = 240.0
"""The most that is kept free for the shapes below a box."""
_SIDE_BY_SIDE = 4
"""Inputs of the same operators that have a box each; more of them are rows of one box."""


@left_to_python
def draw(graph: CapturedGraph | Lowered[..., Any], path: str | os.PathLike[str], /) -> Path:
    """Draw a captured graph.

    ``draw : (graph, path) -> path``. Equivalent to ``print(graph)``, as a picture: time goes down, each value has its
    shape where its edges begin, and hovering shows the arguments of an operator and, of a loop, a branch or an effect,
    the user's line.

    Arguments:
        graph: what :func:`make_graph` or ``jit(f).lower`` returned for some arguments.
        path: a file to write, by its ending one of two kinds: ``.svg`` is one picture, the bodies of loops and branches
            inside of their boxes; ``.html`` is a page without anything else that it needs, where each body is a part
            that opens and closes.

    Returns:
        The path.

    Raises:
        ArgumentTypeError: ``graph`` is no captured graph.
        ArgumentValueError: ``path`` has another ending.

    Cost: time of the order of the number of edges times the depth of the graph: about a second for 1,000 nodes.

    Source: Sugiyama, Tagawa and Toda 1981, for the layout.

    >>> import os, tempfile, torch, functorch_hops as fh
    >>> graph = fh.make_graph(lambda xs: fh.scan(lambda c, x: (c + x, c * x), 0.0, xs))(torch.ones(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = fh.draw(graph, os.path.join(folder, "scan.svg"))
    ...     path.name, path.read_text()[:4]
    ('scan.svg', '<svg')
    """
    if isinstance(graph, CapturedGraph):
        body, name = graph.call.body, graph.name
    elif isinstance(graph, Lowered):
        body, name = graph._body, getattr(graph._jitted, "__name__", "main")
    else:
        expected, got = "what fh.make_graph(f)(*args) or fh.jit(f).lower(*args) returned", type(graph).__name__
        remedy = "pass fh.make_graph(f)(*args), f being a function, a module or an exported program's .module()"
        text = message("draw", "not a graph", parameter="graph", expected=expected, got=got, remedy=remedy)
        raise ArgumentTypeError(text)
    target = Path(path)
    writers = {".svg": _as_svg, ".html": _as_page}
    if target.suffix.lower() not in writers:
        expected, got = "a path that ends with .svg or .html", str(target)
        remedy = f"write {str(target.with_suffix('.svg'))!r}, or .html for bodies that open and close"
        raise ArgumentValueError(
            message("draw", "unknown kind of picture", parameter="path", expected=expected, got=got, remedy=remedy)
        )
    target.write_text(writers[target.suffix.lower()](body, name), encoding="utf-8")
    return target


# -- a graph as boxes


@dataclass(eq=False)
class _Node:
    """A box with its text; ``values``: the shapes of its results, written below it; ``inside``: pictures of bodies in
    it, each with its name.
    """

    lines: list[str]
    kind: str
    values: str
    hint: str = ""
    link: str = ""
    inside: list[tuple[str, _Picture]] = field(default_factory=list)
    box: Box = field(init=False)

    def __post_init__(self) -> None:
        self.head = len(self.lines) * _LINE + _PAD
        self.width = max((len(line) for line in self.lines), default=0) * _CHAR + 2 * _PAD
        height = self.head
        if self.inside:
            self.width = max(self.width, sum(picture.width + 3 * _PAD for _, picture in self.inside) + _PAD)
            height += max(picture.height for _, picture in self.inside) + _LINE + 3 * _PAD
        # What is written to the right of its edges needs room too.
        fitting = int((max(self.width, _ROOM) - _PAD) / (2 * _SMALL))
        if len(self.values) > fitting:
            self.hint = f"{self.hint or self.lines[0]}\n{self.values}"
            self.values = f"{self.values[: fitting - 1].rstrip()}…"
        self.box = Box(max(self.width, 2 * len(self.values) * _SMALL + _PAD), height)


@dataclass(eq=False)
class _Picture:
    nodes: list[_Node]
    ways: list[list[Point]]
    width: float
    height: float


def _picture(body: Subgraph, is_nested: bool, prefix: str = "") -> _Picture:
    """``is_nested``: with the bodies in the boxes of their operators; else these are links to ``prefix`` and a name."""
    graph = body.module.graph
    nodes: list[_Node] = []
    number: dict[fx.Node, int] = {}
    lists = _lists(graph)
    for node in graph.nodes:
        if not _is_drawn(node, body.module):
            continue
        listed = lists.get(node)
        if listed is not None and listed[0] is not node:
            number[node] = number[listed[0]]
            continue
        number[node] = len(nodes)
        nodes.append(_list(listed) if listed is not None else _node(node, body, is_nested, f"{prefix}{node.name}"))
    sources = ((_source(value), node) for node in number for value in node.all_input_nodes)
    edges = dict.fromkeys((number[a], number[b]) for a, b in sources if a in number)
    width, height, ways = place([node.box for node in nodes], list(edges))
    return _Picture(nodes, ways, width, height)


def _lists(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Of each input that the same operators read as many others, all these: parameters that are handed on to a loop.
    Side by side they would be the widest layer of most pictures.
    """
    alike: dict[tuple[fx.Node, ...], list[fx.Node]] = {}
    for node in graph.find_nodes(op="placeholder"):
        alike.setdefault(tuple(node.users), []).append(node)
    return {node: nodes for nodes in alike.values() if len(nodes) > _SIDE_BY_SIDE for node in nodes}


def _list(inputs: Sequence[fx.Node]) -> _Node:
    """One box for several inputs."""
    entries = [f"{node.name} {_shapes(node)}" for node in inputs]
    width = max(map(len, entries))
    entries += [""] * (-len(entries) % _SIDE_BY_SIDE)
    rows = (entries[i : i + _SIDE_BY_SIDE] for i in range(0, len(entries), _SIDE_BY_SIDE))
    return _Node(["  ".join(entry.ljust(width) for entry in row) for row in rows], "input", "")


def _is_drawn(node: fx.Node, module: torch.nn.Module) -> bool:
    if node.op not in ("placeholder", "call_function", "output") or node.target is operator.getitem:
        return False
    params = params_of(node, module)
    return not isinstance(params, EffectParams) or params.action.happens_in_each_lane


def _source(value: fx.Node) -> fx.Node:
    """The node that makes a value: of an element of a tuple, the one that makes the tuple."""
    while value.target is operator.getitem:
        value = value.args[0]  # type: ignore[assignment]
    return value


def _shapes(node: fx.Node) -> str:
    """Those of the results that somebody reads, by number where there are several."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return _kind(TensorMeta.of(value))
    read = {int(user.args[1]) for user in node.users if user.target is operator.getitem}  # type: ignore[arg-type]
    several = value if isinstance(value, (tuple, list)) else ()
    kinds = ((i, _kind(TensorMeta.of(several[i]))) for i in sorted(read) if i < len(several))
    runs: list[tuple[int, int, str]] = []  # of results of one kind: the first, the last, the kind
    for i, kind in kinds:
        if runs and runs[-1][1:] == (i - 1, kind):
            runs[-1] = (runs[-1][0], i, kind)
        else:
            runs.append((i, i, kind))
    return "  ".join(f"{first}: {kind}" if first == last else f"{first}-{last}: {kind}" for first, last, kind in runs)


_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c", "bool": "bool"}


def _kind(meta: TensorMeta) -> str:
    name = str(meta.dtype).removeprefix("torch.")
    letters = name.rstrip("0123456789")
    name = _SHORT.get(letters, letters) + name[len(letters) :]
    return f"{name}[{','.join(map(str, meta.shape))}]"


def _node(node: fx.Node, body: Subgraph, is_nested: bool, link: str) -> _Node:
    if node.op == "placeholder":
        return _Node([node.name], "input", _shapes(node))
    if node.op == "output":
        return _Node(["return"], "output", "")
    params = params_of(node, body.module)
    if params is None:
        name = str(node.target).removeprefix("aten.").removesuffix(".default").removesuffix(".Tensor")
        name = getattr(node.target, "__name__", name) if "<" in name else name
        kind = "product" if is_product(node) else "operator"
        return _Node([name], kind, _shapes(node), node.format_node() or name)
    lines = [_title(params, node)]
    origin = params.origin
    hint = str(lines[0])
    if origin is not None:
        source = linecache.getline(origin.file, origin.line).strip()
        lines.append(f"{os.path.basename(origin.file)}:{origin.line}")
        hint += f"\n{origin}\n{source}"
    hint += "".join(f"\n{key} = {value}" for key, value in params.attributes.items())
    bodies = list(_bodies(node, params))
    if not bodies:
        return _Node(lines, "effect" if params.is_effect else "operator", _shapes(node), hint)
    inside = [(name, _picture(inner, True)) for name, inner in bodies] if is_nested else []
    return _Node(lines, "loop", _shapes(node), hint, "" if is_nested else link, inside)


def _title(params: Params, node: fx.Node) -> str:
    trips = params.trip_count(node.args[1:])
    part = params.origin.part if params.origin is not None else None
    title = str(params.attributes["action"]) if params.is_effect else params.scope.named(params.public_name)
    return title + (f", {trips} steps" if trips is not None else "") + (f", {part}" if part else "")


def _bodies(node: fx.Node, params: Params) -> Iterator[tuple[str, Subgraph]]:
    selector = node.args[1].meta["val"] if isinstance(params, CondParams) else None  # type: ignore[union-attr]
    is_choice = isinstance(selector, torch.Tensor) and selector.dtype == torch.bool
    for i, inner in enumerate(params.run_bodies):
        yield ("if false", "if true")[i] if is_choice else node.target.body_name(i), inner  # type: ignore[union-attr]


# -- boxes as SVG and HTML

_STYLE = """
text { white-space: pre; font: 11px ui-monospace, Menlo, Consolas, monospace; fill: #1f2933; }
rect { fill: #ffffff; stroke: #7b8794; }
.input rect { fill: #e6f0fa; stroke: #5b8db8; } .output rect { fill: #e6f0fa; stroke: #5b8db8; }
.product rect { fill: #fdf0d5; stroke: #c08a2d; } .effect rect { fill: #fbe4e4; stroke: #b85b5b; }
.loop > rect { fill: #f4f7f4; stroke: #3f7d58; stroke-width: 1.5; }
.loop > text:first-of-type { font-weight: bold; } a { cursor: pointer; }
rect.body { fill: #ffffff; stroke: #c3d4c9; stroke-width: 1; }
path { fill: none; stroke: #9aa5b1; stroke-width: 1.2; } .shape { fill: #616e7c; font-size: 9px; }
g.node:hover > rect { stroke-width: 2.5; }
"""
_MARGIN = 12.0


def _as_svg(body: Subgraph, name: str) -> str:
    return _svg(_picture(body, is_nested=True), name)


def _svg(picture: _Picture, name: str) -> str:
    width, height = picture.width + 2 * _MARGIN, picture.height + 2 * _MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<title>{html.escape(name)}</title>"]
    parts += [f"<style>{_STYLE}</style>", *_drawn(picture, _MARGIN, _MARGIN), "</svg>"]
    return "\n".join(parts)


def _drawn(picture: _Picture, x: float, y: float) -> Iterator[str]:
    yield f'<g transform="translate({x:.1f} {y:.1f})">'
    for points in picture.ways:
        yield f'<path d="{_curve(points)}"/>'
    for node in picture.nodes:
        yield from _drawn_node(node)
        if node.values:
            x, y = node.box.centre + 4, node.box.y + node.box.height + 10
            yield f'<text class="shape" x="{x:.1f}" y="{y:.1f}">{html.escape(node.values)}</text>'
    yield "</g>"


def _curve(points: Sequence[Point]) -> str:
    (x, y), *rest = points
    parts = [f"M{x:.1f} {y:.1f}"]
    for px, py in rest:
        middle = (y + py) / 2
        parts.append(f"C{x:.1f} {middle:.1f} {px:.1f} {middle:.1f} {px:.1f} {py:.1f}")
        x, y = px, py
    return " ".join(parts)


def _drawn_node(node: _Node) -> Iterator[str]:
    box = node.box
    if node.link:
        yield f'<a href="#{html.escape(node.link)}">'
    yield f'<g class="node {node.kind}"><title>{html.escape(node.hint or node.lines[0])}</title>'
    left = box.centre - node.width / 2
    yield f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{node.width:.1f}" height="{box.height:.1f}" rx="4"/>'
    for i, line in enumerate(node.lines):
        y = box.y + _PAD / 2 + (i + 0.75) * _LINE
        yield f'<text x="{box.centre:.1f}" y="{y:.1f}" text-anchor="middle">{html.escape(line)}</text>'
    x, y = left + _PAD, box.y + node.head
    for name, picture in node.inside:
        width, height = picture.width + 2 * _PAD, picture.height + _LINE + 2 * _PAD
        yield f'<rect class="body" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3"/>'
        yield f'<text class="shape" x="{x + 4:.1f}" y="{y + 11:.1f}">{html.escape(name)}</text>'
        yield from _drawn(picture, x + _PAD, y + _LINE + _PAD)
        x += width + _PAD
    yield "</g>"
    if node.link:
        yield "</a>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{name}</title>
<style>
body {{ font: 14px system-ui, sans-serif; color: #1f2933; background: #ffffff; margin: 1.5em; }}
h1 {{ font-size: 1.2em; }}
details {{ border-left: 3px solid #3f7d58; margin: .6em 0 .6em .3em; padding: .2em .8em; }}
summary {{ cursor: pointer; font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }}
figure {{ margin: .5em 0; overflow-x: auto; }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>Time goes down. A green box has a body, which opens below the picture; hover over a box for more.</p>
{content}
<script>
function show() {{
  for (let part = document.getElementById(decodeURIComponent(location.hash.slice(1))); part; part = part.parentElement)
    if (part.tagName === "DETAILS") part.open = true;
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}}
addEventListener("hashchange", show);
// The address stays the same where a link is followed again.
addEventListener("click", event => {{ if (event.target.closest("a")) setTimeout(show); }});
show();
</script>
</body>
</html>
"""


def _as_page(body: Subgraph, name: str) -> str:
    return _PAGE.format(name=html.escape(name), content="\n".join(_parts(body, name, "")))


def _parts(body: Subgraph, name: str, prefix: str) -> Iterator[str]:
    """The picture of a graph, and a part for each operator with bodies, with theirs."""
    yield f"<figure>{_svg(_picture(body, is_nested=False, prefix=prefix), name)}</figure>"
    for node in body.module.graph.nodes:
        params = params_of(node, body.module)
        if params is None or not params.run_bodies:
            continue
        link = f"{prefix}{node.name}"
        origin = params.origin
        at = "" if origin is None else f"   {origin}: {linecache.getline(origin.file, origin.line).strip()}"
        yield f'<details id="{html.escape(link)}"><summary>{html.escape(_title(params, node) + at)}</summary>'
        for inner_name, inner in _bodies(node, params):
            yield f"<p>{html.escape(inner_name)}</p>"
            yield from _parts(inner, inner_name, f"{link}.{inner_name}.")
        yield "</details>"
