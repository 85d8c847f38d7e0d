"""``draw``: the picture holds the whole graph, well formed, and its boxes and edges are where one can read them."""

from __future__ import annotations

import itertools
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import functorch_hops as fh
from functorch_hops.tools.layout import Box, place

SVG = "{http://www.w3.org/2000/svg}"


def loss(decay, xs):
    def step(c, x):
        c = fh.cond(c.sum() > 0, torch.sin, lambda c: fh.fori_loop(0, 3, lambda i, v: v * 2 + i, c), decay * c)
        fh.debug.print("<{}> & so on", c.sum())
        return c, (c @ x).square()

    _, errors = fh.scan(step, torch.zeros(4), xs)
    return errors.mean()


ARGUMENTS = torch.tensor(0.9), torch.ones(7, 4)


def drawn(path: Path, f=loss) -> str:
    assert fh.draw(fh.make_graph(f)(*ARGUMENTS), path) == path
    return path.read_text()


def test_a_picture_has_all_bodies_with_shapes_and_lines(tmp_path: Path) -> None:
    root = ElementTree.fromstring(drawn(tmp_path / "loss.svg"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    titles = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert {"scan, 7 steps", "cond", "scan, 3 steps", "if false", "if true", "sin", "f32[7,4]", "return"} <= set(texts)
    assert "print '<{}> & so on'" in texts
    assert any(__file__ in title and "_, errors = fh.scan(step" in title for title in titles)
    assert not any("begin loop" in str(text) for text in texts)


def test_a_gradient_names_its_parts(tmp_path: Path) -> None:
    text = drawn(tmp_path / "loss.svg", fh.grad(loss))
    assert "scan, 7 steps, forward" in text and "scan, 7 steps, backward" in text


def test_a_lowered_function_is_drawn(tmp_path: Path) -> None:
    fh.draw(fh.jit(loss, backend="eager").lower(*ARGUMENTS), tmp_path / "loss.SVG")
    assert "scan, 7 steps" in (tmp_path / "loss.SVG").read_text()


def test_several_results_are_written_in_the_room_of_their_box(tmp_path: Path) -> None:
    sizes = 1, 2, 3, 4, 5, 6, 11
    parts = lambda x: [part.sum() for part in x.split(sizes)] + [part.sum() for part in x.chunk(4)]
    root = ElementTree.fromstring(
        drawn(tmp_path / "split.svg", lambda _, xs: fh.map(lambda x: parts(x), xs.new_ones(2, 32)))
    )
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "0-3: f32[8]" in texts
    (cut,) = (text for text in texts if text.endswith("…"))
    assert cut.startswith("0: f32[1]  1: f32[2") and len(cut) < 25
    whole = "  ".join(f"{i}: f32[{size}]" for i, size in enumerate(sizes))
    assert any((element.text or "").endswith(f"\n{whole}") for element in root.iter(f"{SVG}title"))


@pytest.mark.parametrize("size", [0, 3, 10, 1000])
def test_a_shape_below_a_narrow_box_is_whole(tmp_path: Path, size: int) -> None:
    text = drawn(tmp_path / "sine.svg", lambda *_: torch.ones(size).sin())
    assert text.count(f">f32[{size}]<") == 2 and "…" not in text


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids, self.links, self.outside, self.open, self.deepest = [], [], [], [], 0

    def handle_starttag(self, tag, attrs) -> None:
        found = dict(attrs)
        if tag == "details":
            self.ids.append(found["id"])
            self.open.append(tag)
            self.deepest = max(self.deepest, len(self.open))
        self.links += [found["href"]] if tag == "a" else []
        self.outside += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    def handle_endtag(self, tag) -> None:
        if tag == "details":
            self.open.pop()


def test_a_page_nests_what_opens_and_needs_nothing_else(tmp_path: Path) -> None:
    page = Page()
    page.feed(drawn(tmp_path / "loss.html"))
    assert page.open == [] and page.deepest == 3
    assert len(page.ids) == len(set(page.ids)) == 3
    assert sorted(page.links) == sorted(f"#{name}" for name in page.ids)
    assert page.outside == []


def edges_of(n: int, seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return sorted({(max(0, i - draw.choice([1, 1, 2, 5, 40])), i) for i in range(1, n) for _ in range(2)})


@pytest.mark.parametrize("n", [1, 2, 30, 300])
def test_boxes_do_not_overlap_and_edges_go_down(n: int) -> None:
    boxes = [Box(40 + 7 * (i % 5), 20 + 150 * (i % 17 == 0)) for i in range(n)]
    edges = edges_of(n, n)
    width, height, ways = place(boxes, edges)
    for a, b in itertools.combinations(boxes, 2):
        apart_x = a.x + a.width <= b.x + 1e-6 or b.x + b.width <= a.x + 1e-6
        assert apart_x or a.y + a.height <= b.y or b.y + b.height <= a.y
    assert all(b.x >= 0 and b.x + b.width <= width + 1e-6 and b.y + b.height <= height + 1e-6 for b in boxes)
    for (a, b), way in zip(edges, ways, strict=True):
        assert way[0] == (boxes[a].centre, boxes[a].y + boxes[a].height) and way[-1] == (boxes[b].centre, boxes[b].y)
        assert all(p[1] <= q[1] for p, q in itertools.pairwise(way))
        for x, y in way[1:-1]:
            assert not any(c.x < x < c.x + c.width and c.y < y < c.y + c.height for c in boxes)


def test_a_chain_is_straight() -> None:
    boxes = [Box(30 + 10 * (i % 3), 20) for i in range(6)]
    place(boxes, [(i, i + 1) for i in range(5)])
    assert max(b.centre for b in boxes) - min(b.centre for b in boxes) < 1e-6


def residual(n: int) -> tuple[list[Box], list[tuple[int, int]]]:
    """Blocks in a row: each joins a weight, splits, merges, and is added to what it began with."""
    edges, start = [], 0
    for _ in range(n):
        weight, joined, left, right, merged, end = range(start + 1, start + 7)
        edges += [(start, joined), (weight, joined), (joined, left), (joined, right), (left, merged), (right, merged)]
        edges += [(merged, end), (start, end)]
        start = end
    return [Box(60.0, 20.0) for _ in range(start + 1)], edges


def test_a_deep_graph_does_not_run_across_the_picture() -> None:
    width, longer = (place(*residual(n))[0] for n in (5, 60))
    assert longer < 2 * width


def test_many_inputs_of_one_loop_are_one_box(tmp_path: Path) -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(20)))
    text = drawn(tmp_path / "layers.svg", lambda decay, xs: fh.scan(lambda c, x: (layers(c + x), decay), xs[0], xs))
    root = ElementTree.fromstring(text)
    assert sum(node.get("class") == "node input" for node in root) < 3
    assert float(root.attrib["width"]) < 1000
    (row,) = {element.text for element in root.iter(f"{SVG}text") if "arg7 f32[4" in (element.text or "")}
    assert row is not None and row.count("f32[") == 4


def test_a_graph_of_some_hundred_nodes(tmp_path: Path) -> None:
    layers = [torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True) for _ in range(2)]
    model = torch.nn.Sequential(*layers)
    graph = fh.make_graph(fh.grad(lambda x: model(x).square().mean()))(torch.ones(2, 3, 8))
    text = fh.draw(graph, tmp_path / "model.svg").read_text()
    nodes = [n for n in graph.graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
    assert len(re.findall(r'<g class="node (?:operator|product)">', text)) == len(nodes) > 150
