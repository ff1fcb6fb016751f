"""Pictures for pages, as SVG whose colours the page chooses: block maps in tokens, biases by head and offset, squares,
and bars.

Cells of one colour that lie side by side are one line, and all lines of one colour one path, so that a picture of
thousands of cells takes a few kilobytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from flex_inductor.decisions import Heat

CLASSES = {"#": "full", "/": "partial", ".": "empty", "?": "unknown"}
SIDE, LEFT, TOP = 256, 52, 22
"""The length of the longer side of a map, and the room for the axes."""
ROW, COLUMN = 14, 6
SQUARE, BARS = 176, 40
"""The side of a square without axes, and the height of bars."""
STEPS = 4
"""How many colours a bias has on each side of zero."""


def block_chart(lines: Sequence[str], lengths: tuple[int, ...], label: str) -> str:
    """A block map with axes in tokens. lengths: the numbers of queries and keys."""
    queries, keys = lengths or (len(lines), len(lines[0]))
    scale = SIDE / max(queries, keys)
    width, height = max(keys * scale, 24), max(queries * scale, 24)
    rows = [[CLASSES[mark] for mark in line] for line in lines]
    ticks = [
        *(text(LEFT + width * i / 4, TOP - 6, str(keys * i // 4), "middle") for i in range(0, 5, 2)),
        *(text(LEFT - 6, TOP + height * i / 4 + 4, str(queries * i // 4), "end") for i in range(0, 5, 2)),
        text(LEFT + width / 4, TOP - 6, "keys", "middle"),
        text(LEFT - 6, TOP + height / 4 + 4, "queries", "end"),
    ]
    body = cells(rows, width / len(rows[0]), height / len(rows))
    frame = f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{width:.1f}" height="{height:.1f}"/>'
    return picture(LEFT + width + 24, TOP + height + 10, label, [*body, frame, *ticks])


def heat_chart(heat: Heat) -> tuple[str, float]:
    """The picture of a bias, and the absolute value of its strongest colour."""
    values = [v for row in heat.rows for v in row if v is not None]
    most = max((abs(v) for v in values), default=0.0) or 1.0
    rows = [[colour(v, most) for v in row] for row in heat.rows]
    columns = len(heat.offsets)
    ticks = [text(LEFT - 6, TOP + ROW * (i + 0.5) + 4, str(i), "end") for i in range(0, len(rows), -(-len(rows) // 8))]
    ticks += [text(LEFT + COLUMN * (i + 0.5), TOP - 6, str(heat.offsets[i]), "middle") for i in marks(heat.offsets)]
    label = f"bias by head, 0 to {len(rows) - 1}, and offset, {heat.offsets[0]} to {heat.offsets[-1]}"
    return picture(
        LEFT + COLUMN * columns + 24, TOP + ROW * len(rows) + 8, label, [*cells(rows, COLUMN, ROW), *ticks]
    ), most


def square_chart(rows: Sequence[Sequence[str]], label: str) -> str:
    """A square of cells without axes. rows: the class of each cell."""
    frame = f'<rect class="frame" x="1" y="1" width="{SQUARE}" height="{SQUARE}"/>'
    body = cells(rows, SQUARE / len(rows[0]), SQUARE / len(rows), (1, 1))
    return picture(SQUARE + 2, SQUARE + 2, label, [*body, frame])


def bar_chart(bars: Sequence[float], label: str, ends: tuple[int, int]) -> str:
    """Bars side by side. ends: what the first and the last stand for."""
    most, width = max(bars, default=0.0) or 1.0, SQUARE / max(1, len(bars))
    paths = [f"M{1 + width * (i + 0.5):.1f} {BARS}v{-(BARS - 4) * x / most:.1f}" for i, x in enumerate(bars) if x > 0]
    drawn = f'<path class="bars" style="stroke-width:{max(0.5, width - 0.5):.1f}" d="{"".join(paths)}"/>'
    ticks = [text(1, BARS + 12, str(ends[0]), "start"), text(SQUARE, BARS + 12, str(ends[1]), "end")]
    return picture(SQUARE + 2, BARS + 16, label, [drawn, *ticks])


def colour(value: float | None, most: float) -> str:
    """The class of a value: c-4 ... c4, from the most negative to the most positive."""
    return "empty" if value is None else f"c{round(STEPS * value / most)}"


def marks(offsets: Sequence[int]) -> list[int]:
    """The columns that are labelled: both ends, zero, and what lies between, far enough apart."""
    wanted = [0, len(offsets) - 1, *(i for i, o in enumerate(offsets) if o == 0), *range(0, len(offsets), 12)]
    chosen: list[int] = []
    for i in wanted:
        if all(abs(i - j) >= 8 for j in chosen):
            chosen.append(i)
    return chosen


def cells(
    rows: Sequence[Sequence[str]], width: float, height: float, at: tuple[float, float] = (LEFT, TOP)
) -> Iterator[str]:
    """One path for each class: a thick line for each run of cells, in units of cells. at: the upper left corner."""
    paths: dict[str, list[str]] = {}
    for y, row in enumerate(rows):
        x = 0
        for name, run in groupby(row):
            count = len(list(run))
            paths.setdefault(name, []).append(f"M{x} {y}h{count}")
            x += count
    yield f'<g transform="translate({at[0]} {at[1] + height / 2:.2f}) scale({width:.4g} {height:.4g})">'
    yield from (f'<path class="{name}" d="{"".join(parts)}"/>' for name, parts in paths.items())
    yield "</g>"


def text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(content)}</text>'


def picture(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return "".join([f'<svg class="chart" role="img" {size}><title>{escape(label)}</title>', *parts, "</svg>"])
