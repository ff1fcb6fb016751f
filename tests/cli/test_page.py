"""The page: one file that loads nothing and runs nothing, whatever names a model has, in a browser too."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import fx

import flex_inductor
from flex_inductor.cli import main
from flex_inductor.decisions import Decision, Given, GraphReport, Heat
from flex_inductor.explain import Report
from flex_inductor.report.charts import block_chart, heat_chart
from flex_inductor.report.page import page
from tests.support.pages import CHROMIUM, EVIL, Reader, harmless, shown

HERE = Path(__file__).parent
S, H = 128, 4
explain = functools.partial(flex_inductor.explain, backend="flex_eager", rewrite="always")


class Layers(torch.nn.Module):
    """Layers of different windows and slopes, so that each is shown by itself."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.slopes = torch.nn.ParameterList([torch.rand(H) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distance = torch.arange(S) - torch.arange(S)[:, None]
        for i, slopes in enumerate(self.slopes):
            scores = x @ x.mT / 4 + slopes[:, None, None] * distance
            keep = (distance <= 0) & (distance > -8 - i)
            x = x + scores.masked_fill(~keep, float("-inf")).softmax(-1) @ x
        return x


@pytest.fixture(scope="module")
def report() -> Report:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        return explain(Layers(2))(torch.randn(2, H, S, 16))


def test_the_page_says_what_the_text_says_and_more(report) -> None:
    text = harmless(page(report, "Two layers")).text
    for needed in (
        "Two layers", "2 of 2 sites rewritten", "rewritten into flex_attention", "ALiBi, causal, window 8",
        "scores.masked_fill(~keep", "slopes.0[h]", "offset, head", "learned", "these inputs", "of the blocks left out",
        "def score_mod(score, b, h, q_idx, kv_idx):", "torch's flex_attention",
    ):  # fmt: skip
        assert needed in " ".join(text.split()), needed
    assert page(report).count('class="chart"') == 4 and page(report).count("graph before") == 2


def test_a_declined_site_has_its_reason_and_its_nearest_miss() -> None:
    def returned(q, k, v):
        p = (q @ k.mT).softmax(-1)
        return p @ v, p

    torch._dynamo.reset()
    with torch.no_grad():
        found = explain(returned)(*(torch.randn(1, H, S, 16) for _ in range(3)))
    text = harmless(page(found)).text
    assert found.sites[0].reason in text and found.sites[0].node in text and "around the site" in text


def test_hostile_names_are_shown_and_not_run(report, tmp_path: Path) -> None:
    source = tmp_path / "evil.py"
    source.write_text(f"# {EVIL}\n" * 9)
    texts = ("source", "matched", "reason", "node", "score_mod", "mask_mod", "sparsity", "kind", "kernel")
    evil = Decision(
        **dict.fromkeys(texts, EVIL), site="site0", verdict="declined", notes=(EVIL,), file=str(source), line=4,
        terms=((EVIL, (EVIL,)),), lengths=(8, 8), block_map=("/.", "#/"),
        given=Given(4, 0.5, 0.25, 10, 64, ((EVIL, ("/.", "./")),)),
        written=dataclasses.replace(report.sites[0].written, tensors=((EVIL, EVIL),), score_mod=(EVIL,)),
    )  # fmt: skip
    module = fx.symbolic_trace(lambda x: x + 1)
    asked = dataclasses.replace(report.asked, options={EVIL: EVIL, "rewrite": "auto"})
    whole = Report((GraphReport((evil,), module, module),), {EVIL: 2}, asked, {EVIL: (EVIL,)})
    found = harmless(page(whole, EVIL))
    assert found.text.count("alert(1)") >= 15 and "{{ 7 * 7 }}" in found.text and "49" not in found.text


def test_in_a_notebook_the_page_has_a_frame_in_which_nothing_runs(report) -> None:
    frame = report._repr_html_()
    assert frame.startswith('<iframe sandbox=""') and frame.count("<") == 2
    (inner,) = [value for name, value in Reader(frame).attributes if name == "srcdoc"]
    assert inner == page(report) and html.escape(inner) in frame


def test_48_layers_take_less_than_two_megabytes_and_a_second(report) -> None:
    one = report.sites[0]
    noise = torch.randn(32, 81).mul(4).tolist()
    heat = Heat(tuple(range(-40, 41)), tuple(tuple(row) for row in noise))
    lines = tuple("".join("#/.?"[min(3, abs(i - j) // 5)] for j in range(64)) for i in range(64))
    many = tuple(
        dataclasses.replace(one, site=f"site{i}", line=one.line + i, heat=heat, block_map=lines) for i in range(48)
    )
    first = report.reports[0]
    whole = Report((dataclasses.replace(first, decisions=many),))
    page(report)
    start = time.process_time()
    text = page(whole)
    assert time.process_time() - start < 1 and len(text.encode()) < 2_000_000
    assert text.count('<details class="site"') == 48


def test_a_report_that_was_pickled_has_a_page_without_graphs(report) -> None:
    import pickle

    assert "graph before" not in page(pickle.loads(pickle.dumps(report)))


def test_pages_of_nothing() -> None:
    assert "No attention found" in harmless(page(Report(()))).text


def test_a_block_map_has_axes_in_tokens_and_one_path_a_colour() -> None:
    picture = block_chart(("/..", "#/."), (128, 192), "map")
    assert picture.count("<path") == 3 and ">128<" in picture and ">192<" in picture and "queries" in picture


def test_a_heat_map_is_strongest_where_the_bias_is() -> None:
    picture, most = heat_chart(Heat((-2, -1, 0), ((-8.0, -1.9, 0.0), (None, 4.0, 8.0))))
    assert most == 8 and all(f'class="{c}"' in picture for c in ("c-4", "c-1", "c0", "empty", "c2", "c4"))


def test_the_command_line_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    path = tmp_path / "page.html"
    options = ("--rewrite", "always", "--backend", "flex_eager", "--json", "--html", str(path))
    result = CliRunner().invoke(main, ["explain", "zoo_for_cli:causal", *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rewritten"] == 1 and result.stderr == f"page written to {path}\n"
    assert "zoo_for_cli:causal" in harmless(path.read_text()).text
    bad = CliRunner().invoke(main, ["explain", "zoo_for_cli:causal", *options[:-1], str(tmp_path / "no" / "p.html")])
    assert bad.exit_code == 2 and "that can be written to" in bad.stderr


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_it_fits_the_window_in_light_and_dark(report, tmp_path: Path, width: int, dark: bool) -> None:
    inner, beyond, background, details, focusable = shown(page(report), tmp_path, width, dark)
    assert (inner, beyond) == (width, 0) and details >= 6 and focusable
    assert (background == "rgb(255, 255, 255)") != dark
