"""The page of a look: one file that loads nothing and runs nothing, and says what the text says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import flex_inductor
from flex_inductor.look import Look
from flex_inductor.look.page import map_side, page
from tests.support.pages import CHROMIUM, EVIL, harmless, shown
from tests.support.programs import attend, causal

S = 40


class Layers(nn.Module):
    def __init__(self, count: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList([nn.Linear(32, 96) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            q, k, v = layer(x).view(1, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x + attend(q, k, v, causal).transpose(1, 2).reshape(1, S, 32)
        return x


def seen_of(count: int, heads: int, tokens: list[str] | None = None) -> Look:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return flex_inductor.look(Layers(count, heads), tokens)(torch.randn(1, S, 32))


@pytest.fixture(scope="module")
def seen() -> Look:
    return seen_of(2, 4, [EVIL, *(f"word{i}" for i in range(1, S))])


def test_the_page_says_what_the_text_says(seen: Look) -> None:
    text = " ".join(harmless(page(seen, "Two layers")).text.split())
    for needed in (
        "Two layers",
        "2 sites looked at",
        "8 heads",
        "site 1: ",
        "40 queries, 40 keys",
        "Across layers",
        EVIL,
    ):
        assert needed in text, needed
    assert str(seen[1].strongest(2, 1, seen.tokens)[0].token) in text
    for line in str(seen).splitlines():
        found = re.match(r"\s+\d+\s+([\d.]+)\s+([\d.]+)\s", line)
        assert found is None or all(number in text for number in found.groups())


def test_maps_say_where_attention_goes(seen: Look) -> None:
    """A causal head: nothing is looked at beyond the diagonal, and nothing that comes later."""
    picture = page(seen).split("head 0: which queries")[1].split("</svg>")[0]
    lines = re.findall(r'class="(h\d)" d="([^"]+)"', picture)
    runs = [(name, *map(int, run)) for name, path in lines for run in re.findall(r"M(\d+) (\d+)h(\d+)", path)]
    assert sum(count for *_, count in runs) == S * S
    assert all(x + count <= y + 1 for name, x, y, count in runs if name != "h0")
    assert {name for name, *_ in runs} > {"h0", "h7"}
    far = page(seen).split("head 0: probability by")[1].split("</svg>")[0]
    assert f">{1 - S}</text>" in far and ">0</text>" in far


@pytest.mark.nightly
def test_the_page_of_1536_heads_stays_small() -> None:
    assert map_side(48 * 32) == 10 and map_side(1) == 48
    many = Look(seen_of(1, 32).sites * 48, {})
    assert len(page(many)) < 2_500_000
    assert "Across layers" not in page(many)


def test_nothing_found_is_said(tmp_path: Path) -> None:
    torch._dynamo.reset()
    written = flex_inductor.look(nn.Linear(4, 4))(torch.randn(2, 4)).html(tmp_path / "look.html")
    assert "No attention found." in harmless(written.read_text()).text


def test_a_notebook_shows_it_in_a_frame(seen: Look) -> None:
    assert seen._repr_html_().startswith('<iframe sandbox=""') and "<script" not in seen._repr_html_()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_it_fits_the_window_in_light_and_dark(seen: Look, tmp_path: Path, width: int, dark: bool) -> None:
    inner, beyond, background, details, focusable = shown(page(seen), tmp_path, width, dark)
    assert (inner, beyond) == (width, 0) and details == 3 and focusable
    assert (background == "rgb(255, 255, 255)") != dark
