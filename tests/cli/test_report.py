"""The views, on records made by hand: what is said, and that nothing is said twice."""

from __future__ import annotations

import json
import pickle
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import fx

from flex_inductor.decisions import Decision, Fallback, GraphReport
from flex_inductor.explain import Report
from flex_inductor.report.blocks import COLOURS
from flex_inductor.report.drawing import drawing
from flex_inductor.report.graphs import changed_nodes, write_graphs
from flex_inductor.report.text import readable

MOD = "def score_mod(score, b, h, q, k):\n    return score * 0.125 + bias[b, 0, q, k]"


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v


def rewritten(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def site(i: int, **fields: object) -> Decision:
    return Decision(**{"site": f"site{i}", "verdict": "rewritten", "source": "m.py:3", "matched": "softmax", **fields})


@pytest.fixture
def report() -> Report:
    before, after = fx.symbolic_trace(plain), fx.symbolic_trace(rewritten)
    alike = [site(i, score_mod=MOD) for i in range(3)]
    odd = site(3, verdict="declined", reason="dropout is active", node="softmax_3 (2, 4, 8, 8) float32")
    first = GraphReport((*alike, odd), before, after, {"find": 0.001, "lift": 0.002})
    second = GraphReport((), before, before, {"find": 0.004}, Fallback("lift", "ValueError: boom\nand so on"))
    return Report((first, second), {"call to print\nmore": 2})


def test_the_text_says_what_why_and_where(report: Report) -> None:
    text = str(report)
    assert text.startswith("4 attention sites in 2 graphs: 3 rewritten, 1 declined.")
    for needed in ("dropout is active", "softmax_3 (2, 4, 8, 8) float32", "m.py:3", "passes in ms: find 5.0, lift 2.0"):
        assert needed in text
    assert "fallback: lift failed (ValueError: boom)" in text
    assert "graph break (2x): call to print" in text


def test_brackets_are_not_taken_for_markup(report: Report) -> None:
    assert "bias[b, 0, q, k]" in str(report)


def test_sites_alike_are_shown_once(report: Report) -> None:
    text = str(report)
    assert "site0-site2, 3 layers alike  rewritten" in text
    assert text.count("def score_mod") == 1


def test_many_sites_alike_are_counted() -> None:
    module = fx.symbolic_trace(plain)
    report = Report((GraphReport(tuple(map(site, range(12))), module, module),))
    assert "site0-site11, 12 layers alike" in str(report)


def text_of_layers(*names: str, **fields: object) -> str:
    module = fx.symbolic_trace(plain)
    sites = (site(i, score_mod=f"score + {n}[h]", captured=(n,), **fields) for i, n in enumerate(names))
    return str(Report((GraphReport(tuple(sites), module, module),)))


def test_sites_that_differ_in_the_name_of_a_parameter_only_are_shown_once() -> None:
    text = text_of_layers(*(f"blocks.{i}.attn.slopes" for i in range(12)), sparsity="half")
    assert "site0-site11, 12 layers alike  rewritten" in text
    assert "score + blocks.*.attn.slopes[h]" in text and text.count("score_mod") == 1
    assert "score + mul[h]" in text_of_layers("mul", "mul_1") and "site0, site1  rew" in text_of_layers("mul", "mul_1")


def test_every_other_site_is_named_by_itself() -> None:
    module = fx.symbolic_trace(plain)
    sites = tuple(site(i, sparsity="one" if i % 2 else "two") for i in range(12))
    text = str(Report((GraphReport(sites, module, module),)))
    assert "site0, site2, site4, ..., site10, 6 layers alike" in text


def test_sites_that_read_one_parameter_where_others_read_two_are_shown_apart() -> None:
    module = fx.symbolic_trace(plain)
    one = site(0, score_mod="score + a.x[h] + a.x[q]", captured=("a.x",))
    two = site(1, score_mod="score + b.x[h] + b.y[q]", captured=("b.x", "b.y"))
    assert "site0, site1" not in str(Report((GraphReport((one, two), module, module),)))


def test_a_report_can_be_pickled(report: Report) -> None:
    loaded = pickle.loads(pickle.dumps(report))
    assert str(loaded) == str(report) and loaded.to_json() == report.to_json() and loaded.sites == report.sites


def test_sites_that_differ_in_anything_are_shown_apart() -> None:
    module = fx.symbolic_trace(plain)
    both = Report((GraphReport((site(0), site(1, notes=("an empty row gives 0",))), module, module),))
    assert "site0, site1" not in str(both)
    assert "an empty row gives 0" in str(both)


@pytest.mark.parametrize(
    ("dynamo", "shown"),
    [
        ("l_self_modules_layer_modules_0_parameters_bias_[h, k - q]", "self.layer.0.bias[h, k - q]"),
        ("where(l_kwargs_attention_mask_[b, k] != 0", "where(attention_mask[b, k] != 0"),
        ("l_mask_", "mask"),
        ("all_ones_[q]", "all_ones_[q]"),
    ],
)
def test_names_of_dynamo_are_shown_as_the_user_wrote_them(dynamo: str, shown: str) -> None:
    assert readable(dynamo) == shown


def test_no_attention_is_said_plainly() -> None:
    assert str(Report(())).startswith("No attention found: 0 attention sites in 0 graphs.")


def test_json_holds_every_record(report: Report) -> None:
    data = json.loads(report.to_json())
    assert (data["rewritten"], data["declined"], data["graphs"]) == (3, 1, 2)
    assert data["sites"][3]["reason"] == "dropout is active"
    assert data["sites"][0]["graph"] == 0
    assert data["seconds"] == {"find": 0.005, "lift": 0.002}


def test_graphs_are_written_as_text_dot_and_svg(report: Report, tmp_path: Path) -> None:
    names = [p.name for p in report.graphs(tmp_path / "new" / "folder")]
    first = [f"graph0.{side}.{kind}" for side in ("before", "after") for kind in ("txt", "dot", "svg")]
    assert names == [*first, "graph1.before.txt", "graph1.before.dot", "graph1.before.svg"]
    for path in (tmp_path / "new" / "folder").glob("*.svg"):
        ET.parse(path)


def test_block_maps_are_written_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fx.symbolic_trace(plain)
    maps = (("/.", "#/"), ("/.", "#/"), (), ("?.", "??"))
    sites = tuple(site(i, mask_mod="k <= q", block_map=lines) for i, lines in enumerate(maps))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = Report((GraphReport(sites, module, module),))
    names = [p.name for p in report.graphs(tmp_path) if "blocks" in p.name]
    assert names == ["graph0.site0.blocks.svg", "graph0.site3.blocks.svg"]
    text = (tmp_path / names[1]).read_text()
    ET.fromstring(text)
    assert text.count(COLOURS["?"]) == 3 + 1 and "known at run time" in text and "partly" not in text


def test_block_maps_as_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    module = fx.symbolic_trace(plain)
    report = Report((GraphReport((site(0, block_map=("/.", "#/")),), module, module),))
    (path,) = [p for p in report.graphs(tmp_path) if p.suffix == ".png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_small_block_maps_are_part_of_the_text() -> None:
    module = fx.symbolic_trace(plain)
    report = Report(
        (GraphReport((site(0, block_map=("/.", "#/")), site(1, block_map=("/" * 40,) * 40)), module, module),)
    )
    assert "block map  /.\n             #/\n" in str(report) and "////" not in str(report)


def test_the_rewritten_region_is_marked_in_both_graphs(report: Report, tmp_path: Path) -> None:
    gone, new = changed_nodes(report.reports[0])
    assert gone == {"transpose", "matmul", "softmax", "matmul_1"}
    assert new == {"scaled_dot_product_attention"}
    write_graphs(report.reports, tmp_path)
    assert (tmp_path / "graph0.before.dot").read_text().count("gold") == 4
    assert (tmp_path / "graph0.after.svg").read_text().count("#ffe08a") == 1
    assert "gold" not in (tmp_path / "graph1.before.dot").read_text()


def test_the_layout_puts_inputs_above_and_nothing_on_top_of_anything() -> None:
    picture = drawing(fx.symbolic_trace(plain).graph, set())
    for above, below in picture.edges:
        assert picture.boxes[above].row < picture.boxes[below].row
    places = [(b.row, b.place) for b in picture.boxes.values()]
    assert len(set(places)) == len(places)
