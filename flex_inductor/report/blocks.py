"""The block map of a site as a picture: SVG, and PNG by matplotlib."""

from __future__ import annotations

import textwrap
from html import escape
from pathlib import Path

from flex_inductor.decisions import Decision
from flex_inductor.report.text import readable

COLOURS = {"#": "#1f4e79", "/": "#8ab4d8", ".": "#f2f2f2", "?": "#f3c969"}
MEANING = {"#": "full", "/": "partly attended", ".": "empty, left out", "?": "known at run time"}
CELL, MARGIN, LINE = 10, 28, 18


def svg(decision: Decision) -> str:
    """One square a block, queries downwards, keys to the right."""
    lines = decision.block_map
    width, height = len(lines[0]) * CELL, len(lines) * CELL
    legend = [_entry(i, mark) for i, mark in enumerate(m for m in MEANING if any(m in line for line in lines))]
    size = f'width="{max(width, 160) + 2 * MARGIN}" height="{height + 3 * MARGIN + LINE * len(legend)}"'
    cells = [
        f'<rect x="{x * CELL}" y="{y * CELL}" width="{CELL}" height="{CELL}" fill="{COLOURS[mark]}" stroke="white"/>'
        for y, line in enumerate(lines)
        for x, mark in enumerate(line)
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f"<title>{escape(title(decision))}</title>",
        f'<text x="{MARGIN}" y="18">keys</text>',
        f'<text transform="translate(18,{MARGIN + 36}) rotate(-90)">queries</text>',
        f'<g transform="translate({MARGIN},{MARGIN})">',
        *cells,
        f'</g><g transform="translate({MARGIN},{height + 2 * MARGIN})">',
        *legend,
        "</g></svg>",
        "",
    ])  # fmt: skip


def _entry(row: int, mark: str) -> str:
    y = row * LINE
    return (
        f'<rect y="{y}" width="{CELL}" height="{CELL}" fill="{COLOURS[mark]}" stroke="#999"/>'
        f'<text x="{CELL + 8}" y="{y + CELL}">{MEANING[mark]}</text>'
    )


def title(decision: Decision) -> str:
    return f"{decision.site}: {readable(decision.mask_mod)}"


def png(decision: Decision, path: Path) -> None:
    """Raises ImportError without matplotlib, which the extra `plot` installs."""
    from matplotlib import colors, figure, patches, ticker

    marks = list(COLOURS)
    picture = figure.Figure(figsize=(5, 5), layout="constrained")
    axes = picture.subplots()
    cells = [[marks.index(mark) for mark in line] for line in decision.block_map]
    axes.imshow(cells, cmap=colors.ListedColormap(list(COLOURS.values())), vmin=0, vmax=len(marks) - 1)
    axes.set(xlabel="blocks of keys", ylabel="blocks of queries")
    axes.set_title("\n".join(textwrap.wrap(title(decision), 60, max_lines=3, placeholder=" …")), fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(integer=True))
    legend = [
        patches.Patch(color=COLOURS[m], label=MEANING[m]) for m in MEANING if any(m in x for x in decision.block_map)
    ]
    picture.legend(handles=legend, loc="outside lower center", ncols=2)
    picture.savefig(path, dpi=120)
