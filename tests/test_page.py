"""The pages of `--html`: what they hold, that names can't get out of their place, and that nothing is loaded."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import MODEL, bnfold, files, ok, refused
from conftest import REPO
from probe_text import Probe

pytest.importorskip("plotly", reason="plotly and networkx draw the pages")
pytest.importorskip("networkx", reason="plotly and networkx draw the pages")

from bnfold.page import for_fold, page
from bnfold.page.document import Cell, embedded, table
from bnfold.page.network import lay_out, network_of

SAMPLES = REPO / "sample_models"
DIGITS = SAMPLES / "digits.npz"

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\" onclick='alert(1)'",
    "<!--<script>",
    "]]>--><b>%{x}</b> $x$",
    "<a href='javascript:alert(1)'>x</a>",
    "\x1b[31mred\n\u202e\u2028",
]


class Page(HTMLParser):
    """What a browser would find in a page, as far as it matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.shown: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.shown)

    @property
    def figures(self) -> dict[str, Any]:
        """What plotly is given, by the figure's name."""
        scripts = [attributes for tag, attributes in self.tags if tag == "script"]
        pairs = zip((attributes.get("data-figure") for attributes in scripts), self.scripts, strict=True)
        return {name: json.loads(script) for name, script in pairs if name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and what a fold makes of it."""
    place = tmp_path_factory.mktemp("pages")
    (place / "m.onnx").write_bytes((SAMPLES / "digits_preact.onnx").read_bytes())
    ok("fold", "m.onnx", "-o", "f.onnx", "-q", cwd=place)
    return place


DATA = f"{DIGITS}:calib_x"
# The command, the figures of its page, and what its tables say.
PAGES = {
    "inspect": (["inspect", "m.onnx"], {"network", "gain"}, ["13 → 0", "folded both ways", "min var"]),
    "fold": (["fold", "m.onnx", "-o", "g.onnx", "--force"], {"network"}, ["50 → 37", "22 new tensors", "SHA-256"]),
    "recalibrate": (["recalibrate", "m.onnx", "--data", DATA, "--dry-run"], {"network", "drift"}, ["256", "pooled"]),
    "insert": (["insert", "f.onnx", "--data", DATA, "--dry-run"], {"network"}, ["15", "/0/Conv.bn", "no-activation"]),
    "verify": (["verify", "m.onnx", "f.onnx"], {"network", "residuals"}, ["each of 15 segments agrees", '"verdict"']),
}


@pytest.mark.parametrize("verb", PAGES)
def test_page_of_each_verb(folder: Path, verb: str) -> None:
    command, figures, words = PAGES[verb]
    said = ok(*command, "--html", f"{verb}.html", cwd=folder)
    assert f"{verb}.html" in said
    content = (folder / f"{verb}.html").read_text("utf-8")
    found = Page(content)
    assert found.figures.keys() == figures
    assert [word for word in words if word not in found.text] == []
    assert len(content) < 5.5e6
    # Nothing is loaded from anywhere, and the page forbids it to itself.
    loaders = {"src", "href", "data", "srcset", "action", "poster"}
    assert [(tag, attributes) for tag, attributes in found.tags if loaders & attributes.keys()] == []
    policy = next(a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; ") and "http" not in policy


def test_page_beside_json(folder: Path) -> None:
    """JSON stays alone on stdout, and names the page."""
    found = json.loads(ok("fold", "m.onnx", "--dry-run", "--json", "--html", "j.html", cwd=folder))
    assert found["written"] == ["j.html"]


def test_page_of_a_model_replaced_in_place_shows_it_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    ok("fold", "m.onnx", "--in-place", "--html", "p.html", cwd=tmp_path)
    network = Page((tmp_path / "p.html").read_text("utf-8")).figures["network"]["data"]
    assert sum(len(trace["x"]) for trace in network if trace.get("customdata")) == 25
    assert [trace["name"] for trace in network if "folded" in trace.get("name", "")] == ["folded backward (7)"]


def test_page_of_a_difference(folder: Path) -> None:
    result = bnfold("verify", "m.onnx", SAMPLES / "digits_cnn.onnx", "--html", "d.html", cwd=folder)
    assert result.returncode == 1
    found = Page((folder / "d.html").read_text("utf-8"))
    assert "The first node that differs is /7/Conv (Conv)" in found.text
    assert any(trace["name"].startswith("different") for trace in found.figures["residuals"]["data"])


def test_page_of_a_certificate(folder: Path) -> None:
    ok("verify", "m.onnx", "f.onnx", "--certificate", "c.json", "-q", cwd=folder)
    ok("verify", "--check", "c.json", "--html", "c.html", cwd=folder)
    found = Page((folder / "c.html").read_text("utf-8"))
    assert json.loads((folder / "c.json").read_text())["a"]["m.onnx"] in found.text


# -- names are hostile --------------------------------------------------------------------------------


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    model = onnx.load(SAMPLES / "digits_preact.onnx")
    for k, node in enumerate(model.graph.node):
        node.name = f"{HOSTILE[k % len(HOSTILE)]} {k}"
    model.producer_name = HOSTILE[0]
    onnx.save(model, tmp_path / "m.onnx")
    plain = _tags(SAMPLES / "digits_preact.onnx", tmp_path / "plain.html")
    for verb in ("fold", "inspect"):
        dry = ["--dry-run"] if verb == "fold" else []
        ok(verb, "m.onnx", *dry, "--html", "h.html", cwd=tmp_path)
        content = (tmp_path / "h.html").read_text("utf-8")
        found = Page(content)
        if verb == "fold":
            assert sorted(tag for tag, _ in found.tags) == plain  # no tag more than with plain names
        assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
        assert "\u202e" not in content and "\x1b" not in content
        assert "<img src=x onerror=alert(1)> 1" in found.text  # literally, for people
        told = [text for trace in found.figures["network"]["data"] for text in trace.get("hovertext", ())]
        assert told
        # plotly's own tags, and nothing but text in between
        assert {tag for text in told for tag in re.findall(r"<[^>]*>", text)} <= {"<b>", "</b>", "<br>"}


def _tags(model: Path, out: Path) -> list[str]:
    ok("fold", model, "--dry-run", "--html", out)
    return sorted(tag for tag, _ in Page(out.read_text("utf-8")).tags)


@pytest.mark.parametrize("name", HOSTILE)
def test_pieces_escape(name: str) -> None:
    assert "<" not in embedded({name: [name]}) and json.loads(embedded({name: [name]})) == {name: [name]}
    made = Page(table([name], [(Cell(name, focus=1),), (name,)]))
    assert [tag for tag, _ in made.tags] == "div table thead tr th button tbody tr td button tr td".split()


def test_nodes_of_one_name_have_their_own_fate(tmp_path: Path) -> None:
    """Names of nodes need not be unique."""
    model = onnx.load(SAMPLES / "digits_cnn.onnx")
    for node in model.graph.node:
        node.name = "same"
    onnx.save(model, tmp_path / "m.onnx")
    ok("fold", "m.onnx", "--dry-run", "--html", "p.html", cwd=tmp_path)
    drawn = Page((tmp_path / "p.html").read_text("utf-8")).figures["network"]["data"]
    assert [len(trace["x"]) for trace in drawn if trace.get("name") == "folded backward (7)"] == [7]


# -- where nodes are drawn ----------------------------------------------------------------------------


def test_rounding_that_moved_is_on_the_page(tmp_path: Path) -> None:
    """Both tables: the outputs, and every pair with its old and new steps; one is gone."""
    make_rounded(tmp_path)
    told = ok("fold", "m.onnx", "--requantize", "d.npz", "--html", "p.html", "--json", cwd=tmp_path)
    found = json.loads(told)["requantization"]
    shown = Page((tmp_path / "p.html").read_text(encoding="utf-8")).text
    for text in ("Rounding that moved", "Steps measured on 128 samples.", *(pair["name"] for pair in found["pairs"])):
        assert text in shown
    assert [pair["after"] is None for pair in found["pairs"]] == [True, False]
    assert shown.count("gone: what follows rounds") == 1


def make_rounded(folder: Path) -> None:
    """Two Convs with BN behind rounded values; behind the first the next value is rounded, too."""
    pair = "{0}q = QuantizeLinear({0}, s[]={{0.1}}, z:uint8[]={{120}}); {0}d = DequantizeLinear({0}q, s, z); "
    text = (
        "x[N,3,5,5] -> y | c = Conv(x, w[4,3,3,3], b[4]); " + pair.format("c") + "n = BN4(cd); r = Relu(n); "
        + pair.format("r") + "e = Conv(rd, v[4,4,1,1]); " + pair.format("e") + "m = BN4(ed); y = Sigmoid(m)"
    )  # fmt: skip
    onnx.save(Probe("rounded", "", text, values={"v": 0.3}).model(), folder / "m.onnx")
    x = np.random.default_rng(0).standard_normal((128, 3, 5, 5)).astype(np.float32)
    np.savez(folder / "d.npz", x=x)


def test_every_node_is_drawn_behind_what_it_reads(folder: Path) -> None:
    network = network_of(folder / "m.onnx")
    assert len(network.places) == 50
    assert all(network.places[a].x < network.places[b].x for a, b in network.edges)
    assert len({(place.x, place.y) for place in network.places}) == 50
    first = network.places[0]
    assert (first.op, first.x) == ("Conv", 0.0)


def test_real_models_are_drawn(real_model: Path) -> None:
    network = network_of(real_model)
    assert all(network.places[a].x < network.places[b].x for a, b in network.edges)
    assert len({(place.x, place.y) for place in network.places}) == len(network.places)
    assert min(place.x for place in network.places) == 0


def test_bodies_are_drawn_below() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
          y = If (c) <then_branch = t () => (float[2] a) { a = Relu (x) },
                      else_branch = e () => (float[2] b) { n = Neg (x) b = Abs (n) }>
        }""")
    network = lay_out(model)
    assert [(place.op, place.x) for place in network.places if place.scope] == [("Neg", 0), ("Abs", 1), ("Relu", 0)]
    assert len(network.labels) == 3
    heights = {place.scope: place.y for place in network.places}
    assert len(set(heights.values())) == 3


def test_a_model_without_nodes_has_a_page() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] x) {}'
    network = lay_out(onnx.parser.parse_model(text))
    counts = {"before": 0, "after": 0}
    proof = {"static": {"tensors": 0, "worst_ulp": 0.0}, "relation": None, "skipped": "so"}
    report = {"input": "m", "output": "n", "written": [], "batch_norms": counts, "per_channel_ops": counts,
              "nodes": counts, "merges": [], "entries": [], "notices": ["<b>"], "verification": proof,
              "requantization": None}  # fmt: skip
    found = Page(page(*for_fold(report, network, {})))
    assert found.figures == {} and "<b>" in found.text


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "m.onnx", "--html", "p.txt"], "--html writes .html or .htm, by the end of the name"),
        (["inspect", "m.onnx", "--html", "none/p.html"], "none/p.html"),
        (["inspect", "m.onnx", "m.html", "--html", "p.html"], "several models and --html contradict each other"),
        (["fold", "m.onnx", "m.html", "--plot", "p.svg"], "several models and --plot contradict each other"),
        (["fold", "m.html", "--html", "m.html"], "is an input of this very command"),
        (["fold", "m.onnx", "-o", "o.html", "--html", "o.html"], "is to be written twice"),
        (["verify", "m.onnx", "m.html", "--html", "m.html"], "is an input of this very command"),
        (["verify", "m.onnx", "m.html", "--junit", "j.html", "--html", "j.html"], "is to be written twice"),
        (["recalibrate", "m.onnx", "--data", DATA, "--plot", "p.html", "--html", "p.html"], "--html is --plot"),
        (["insert", "m.onnx", "--data", DATA, "-o", "p.html", "--html", "p.html"], "is to be written twice"),
    ],
)
def test_refused_in_a_line_and_nothing_written(tmp_path: Path, arguments: list[str], words: str) -> None:
    for name in ("m.onnx", "m.html"):
        (tmp_path / name).write_bytes(MODEL.read_bytes())
    before = files(tmp_path)
    refused(bnfold(*arguments, cwd=tmp_path), words)
    assert files(tmp_path) == before


@pytest.mark.parametrize("verb", PAGES)
def test_without_the_extra(folder: Path, tmp_path: Path, verb: str) -> None:
    """A finder that knows neither library stands for an environment without them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u, sys\n"
        "known = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name in ('plotly', 'networkx') else known(name, *rest)\n"
    )
    before = files(folder)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*PAGES[verb][0], "--html", "x.html"]
    refused(bnfold(*command, cwd=folder, env=environment), "pip install 'bnfold[html]'")
    assert files(folder) == before


# -- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "suffix"), [("fold", ".svg"), ("inspect", ".png")])
def test_picture_of_the_network(folder: Path, verb: str, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    name = f"p{suffix}"
    dry = ["--dry-run"] if verb == "fold" else []
    found = json.loads(ok(verb, "m.onnx", *dry, "--json", "--plot", name, cwd=folder))
    assert verb == "inspect" or found["written"] == [name]
    content = (folder / name).read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]) and len(content) > 5000


def test_picture_of_hostile_names_and_bodies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    from bnfold.page.drawings import SHAPES
    from bnfold.page.plot import MARKERS, plot
    from bnfold.page.sections import ARITHMETIC, REDUCED, ROUTES

    model = onnx.load(SAMPLES / "digits_preact.onnx")
    plot(lay_out(model), {}, tmp_path / "p.svg", "costs $2 </text><script>alert(1)</script> $3")
    text = (tmp_path / "p.svg").read_text("utf-8")
    assert "<svg" in text and "<script" not in text
    groups = [*ROUTES.values(), ARITHMETIC, REDUCED]
    assert set(MARKERS) >= {group.shape for group in groups} | set(SHAPES)
