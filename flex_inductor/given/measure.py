"""Counts what masks let through, and reads off biases, for the inputs at hand.

Blocks that the lists of a block mask call partial are evaluated, so that the counts are exact. As in a block mask, a
block that the end cuts off is not full."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flex_inductor import devices, scalar
from flex_inductor.compat import dynamic
from flex_inductor.decisions import Given, Heat
from flex_inductor.given.plan import Call, Plan
from flex_inductor.passes.describe.terms import terms_of, visible
from flex_inductor.passes.emit.columns import mask_of
from flex_inductor.passes.site import Site
from flex_inductor.passes.sparsity.picture import CELLS, EMPTY, FULL, PARTIAL, pooled

MOST = 1 << 28
"""The most scores that are evaluated for one site. Beyond that, its lists of blocks are taken as they are."""
TILE = 1 << 22
MAPS, HEADS, NEAR, FAR = 4, 32, 24, 16
"""The most maps and heads that are shown; all offsets up to NEAR, and so many beyond on each side."""
HIDDEN = -1e8


def measured(plan: Plan, inputs: Sequence[Any]) -> dict[str, tuple[Given | None, Heat | None]]:
    """What was found of each site, by name."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        entries = plan.module(*inputs)
        return {call.name: (given(call, e), heat(call, e)) for call, e in zip(plan.calls, entries)}


def given(call: Call, entries: dict[str, Any]) -> Given | None:
    """The block map and the counts of one call; None for one without a mask."""
    site = call.site
    if site.mask is None:
        return None
    batch, heads, *lengths = sizes_of(site)
    used = scalar.positions(mask_of(site)) | (scalar.positions(site.keep) if site.keep is not None else set())
    shape = (batch if site.at.b in used else 1, heads if site.at.h in used else 1)
    width, codes = blocks(entries, shape, lengths, devices.of(entries_device(entries)).width(True))
    scores = counted(call, entries, codes, width, lengths)
    times = batch * heads // (codes.shape[0] * codes.shape[1])
    return Given(
        width=width,
        attended=float((codes != EMPTY).float().mean()),
        full=float((codes == FULL).float().mean()),
        scores=None if scores is None else scores * times,
        all_scores=batch * heads * math.prod(lengths),
        maps=tuple(maps(codes)),
    )


def entries_device(entries: dict[str, Any]) -> torch.device:
    return entries["kv_num_blocks"].device


def sizes_of(site: Site) -> list[int]:
    """The numbers of sequences, heads, queries and keys. A block mask of one block, which stands for none, tells no
    lengths."""
    now, at = functools.partial(dynamic.number_now, site.candidate.result.meta["val"]), site.at
    return [now(at.size(position)) for position in (at.b, at.h, at.q, at.k)]


def blocks(
    entries: dict[str, Any], shape: tuple[int, int], lengths: Sequence[int], width: int
) -> tuple[int, torch.Tensor]:
    """The width of blocks, and the code of each (b, h, rows, columns), as lists of blocks have it. A mask without lists
    has partial blocks only. width: that of blocks then."""
    widths = int(entries["q_width"]), int(entries["k_width"])
    if widths[0] != widths[1] or widths[0] > max(lengths):
        counts = [-(-n // width) for n in lengths]
        return width, torch.full((*shape, *counts), PARTIAL, dtype=torch.uint8)
    counts = [-(-n // w) for n, w in zip(lengths, widths)]
    codes = torch.full((*entries["kv_num_blocks"].shape[:2], *counts), EMPTY, dtype=torch.uint8)
    for prefix, code in (("", PARTIAL), ("full_", FULL)):
        numbers, places = entries[f"{prefix}kv_num_blocks"], entries[f"{prefix}kv_indices"]
        if numbers is not None:
            listed = torch.arange(places.shape[-1], device=places.device) < numbers.unsqueeze(-1)
            b, h, row, place = listed.nonzero().unbind(1)
            codes[b.cpu(), h.cpu(), row.cpu(), places[b, h, row, place].long().cpu()] = code
    return widths[0], codes


def counted(call: Call, entries: dict[str, Any], codes: torch.Tensor, width: int, lengths: Sequence[int]) -> int | None:
    """The number of attended scores, after which `codes` are exact; None where that would take too long."""
    unsure = (codes == PARTIAL).nonzero()
    if len(unsure) * width**2 > MOST:
        return None
    device = entries_device(entries)
    inner = torch.arange(width, device=device)
    step = max(1, TILE // width**2)
    total = int((codes == FULL).sum()) * width**2
    for start in range(0, len(unsure), step):
        some = unsure[start : start + step]
        b, h, row, col = (x.view(-1, 1, 1) for x in some.to(device).unbind(1))
        q, k = row * width + inner.view(1, -1, 1), col * width + inner.view(1, 1, -1)
        inside = (q < lengths[0]) & (k < lengths[1])
        value = call.mask_mod(b, h, q.clamp(max=lengths[0] - 1), k.clamp(max=lengths[1] - 1), *entries["mask"])
        found = (value & inside).sum((1, 2)).cpu()
        total += int(found.sum())
        exact = torch.where(found == 0, EMPTY, torch.where(found == width**2, FULL, PARTIAL))
        codes[tuple(some.unbind(1))] = exact.to(torch.uint8)
    return total


def maps(codes: torch.Tensor) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The first of the different maps, with the sequences and heads that they hold for."""
    for dim in (0, 1):  # sequences, or heads, that are all alike
        first = codes.narrow(dim, 0, 1)
        codes = first if bool((codes == first).all()) else codes
    batch, heads = codes.shape[:2]
    found: dict[tuple[str, ...], list[str]] = {}
    for b in range(batch):
        for h in range(heads):
            lines = tuple("".join(CELLS[c] for c in line) for line in pooled(codes[b, h].long()).tolist())
            if lines in found or len(found) < MAPS:
                which = [f"sequence {b}"] * (batch > 1) + [f"head {h}"] * (heads > 1)
                found.setdefault(lines, []).append(", ".join(which))
    for lines, labels in found.items():
        yield labels[0] + (f" and {len(labels) - 1} more" if len(labels) > 1 else ""), lines


def heat(call: Call, entries: dict[str, Any]) -> Heat | None:
    """The bias by head and offset; None for scores that vary with anything else but the raw score."""
    site = call.site
    biases = [t for t in terms_of(visible(site.score), site.at) if not t.is_score]
    known = {"offset", "head"}
    if not any(t.on("offset") for t in biases) or not all(set(t.depends) <= known for t in biases) or site.extra:
        return None
    (_, heads, queries, keys), device = sizes_of(site), entries_device(entries)
    offsets = torch.tensor(list(spread(1 - queries, keys - 1)), device=device)
    k = offsets.clamp(min=0)
    h = torch.arange(min(HEADS, heads), device=device).view(-1, 1)
    at = (torch.zeros_like(h), h, k - offsets, k)
    value = call.score_mod(torch.zeros(1, device=device), *at, *entries["score"])
    value = value.expand(len(h), len(offsets)).double()
    shown = call.mask_mod(*at, *entries["mask"]).expand_as(value) & value.isfinite() & (value > HIDDEN)
    columns = shown.any(0).nonzero().flatten().tolist()
    if not columns:
        return None
    rows = [[float(f"{value[i, j]:.4g}") if shown[i, j] else None for j in columns] for i in range(len(h))]
    return Heat(tuple(offsets[columns].tolist()), tuple(map(tuple, rows)))


def spread(low: int, high: int) -> Iterator[int]:
    """Offsets between two ends: all near zero, fewer and fewer further away."""
    far = sorted({round(NEAR * (max(-low, high, NEAR) / NEAR) ** (i / FAR)) for i in range(1, FAR + 1)})
    yield from (-o for o in reversed(far) if -o >= low)
    yield from range(max(low, -NEAR), min(high, NEAR) + 1)
    yield from (o for o in far if o <= high)
