"""A drawing as SVG. One box a node, one curve an edge, the rewritten region in gold."""

from __future__ import annotations

from html import escape

from flex_inductor.report.drawing import Box, Drawing

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 220, 40, 16, 34, 24
FILL = {"placeholder": "#e3ecf7", "get_attr": "#eef3f9", "output": "#e4f3e4"}
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
    'font-family="monospace" font-size="11"><rect width="100%" height="100%" fill="white"/>'
)


def svg(picture: Drawing) -> str:
    """The text of the SVG file."""
    boxes = list(picture.boxes.values())
    widest = max((b.place for b in boxes), default=0) + 1
    counts: dict[int, int] = {}
    for box in boxes:
        counts[box.row] = max(counts.get(box.row, 0), box.place + 1)
    at = {b.name: _corner(b, counts[b.row], widest) for b in boxes}
    lines = [_curve(at[a], at[b]) for a, b in picture.edges]
    shapes = [_shape(b, *at[b.name]) for b in boxes]
    size = HEAD.format(w=MARGIN * 2 + widest * (WIDTH + GAP_X), h=MARGIN * 2 + (max(counts, default=0) + 1) * _step())
    return "\n".join([size, *lines, *shapes, "</svg>", ""])


def _step() -> int:
    return HEIGHT + GAP_Y


def _corner(box: Box, in_row: int, widest: int) -> tuple[float, float]:
    """Rows are centred."""
    indent = (widest - in_row) / 2
    return MARGIN + (indent + box.place) * (WIDTH + GAP_X), MARGIN + box.row * _step()


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0, x1, y1 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    bend = max(GAP_Y, (y1 - y0) / 2)
    path = f"M{x0:.0f},{y0:.0f} C{x0:.0f},{y0 + bend:.0f} {x1:.0f},{y1 - bend:.0f} {x1:.0f},{y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="#7b8794"/>'


def _shape(box: Box, x: float, y: float) -> str:
    fill, stroke = ("#ffe08a", "#b8860b") if box.marked else (FILL.get(box.kind, "#f7f7f7"), "#8896a5")
    middle = x + WIDTH / 2
    return (
        f'<g><title>{escape(box.name)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
        f'fill="{fill}" stroke="{stroke}"/>'
        f'<text x="{middle:.0f}" y="{y + 17:.0f}" text-anchor="middle">{escape(box.label)}</text>'
        f'<text x="{middle:.0f}" y="{y + 32:.0f}" text-anchor="middle" fill="#667">{escape(box.detail)}</text></g>'
    )
