"""The command `calibrate`: the rates of this machine, and what the cost model expects by them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import sympy
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flex_inductor.lowering import profit, rates
from flex_inductor.request import Instead, Request

UNITS = {"products": "GFLOP/s in matrix products", "exponentials": "thousand million exponentials a second",
         "memory": "GB/s into fresh memory"}  # fmt: skip
BATCH, HEADS, LENGTH, DIM = 1, 8, 2048, 64
SITES = {"no mask": (Instead.PLAIN, 1.0), "causal": (Instead.CAUSAL, 0.52), "window of 256": (Instead.DENSE, 0.15),
         "padding, 3/4 attended": (Instead.ROW, 0.75), "soft cap, causal": (None, 0.52)}  # fmt: skip


def shown(before: rates.Rates | None, now: rates.Rates | None) -> RenderableType:
    """The rates that were kept, and those that were just measured."""
    used = now or before or rates.USUAL
    about = rates.machine()
    where = f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}"
    kept = f"kept in {rates.place()}" if now or before else "nothing is kept: these are the usual rates of an EPYC"
    return Group(Text(where, style="bold"), Text(kept, overflow="fold"), numbers(before, now), expected(used))


def numbers(before: rates.Rates | None, now: rates.Rates | None) -> Table:
    columns = {"before": before, "now": now}
    columns = {name: x for name, x in columns.items() if x is not None} or {"usual": rates.USUAL}
    table = Table("of one thread", *columns, "", box=None)
    for name, unit in UNITS.items():
        table.add_row(name, *(f"{x.numbers[name] / 1e9:.2f}" for x in columns.values() if x is not None), unit)
    return table


def expected(by: rates.Rates) -> Table:
    """Milliseconds of some sites."""
    title = f"expected ms of {BATCH} x {HEADS} x {LENGTH} x {DIM}, forward"
    table = Table(title, "flex_attention", "SDPA", "Inductor", box=None)
    for name, site in sites():
        sdpa = f"{1e3 * profit.sdpa(site, by, site.instead):.1f}" if site.instead else "-"
        table.add_row(name, f"{1e3 * profit.flex(site, by):.1f}", sdpa, f"{1e3 * profit.left(site, by):.1f}")
    return table


def sites() -> Iterator[tuple[str, Request]]:
    dims, lengths = (sympy.Integer(DIM),) * 2, (sympy.Integer(LENGTH),) * 2
    scores = BATCH * HEADS * LENGTH**2
    for name, (instead, attended) in SITES.items():
        given = "cpu", torch.float32, False, dims, sympy.Integer(HEADS), lengths
        yield name, Request(*given, False, scores, attended, False, False, False, instead)


def to_json(kept: rates.Rates) -> str:
    return json.dumps({"machine": rates.machine(), "file": str(rates.place()), **kept.numbers}, indent=2)
