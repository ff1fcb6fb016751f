"""The command `calibrate`: the rates of this machine, and what the cost model expects by them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
import sympy
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flex_inductor.compat import cuda
from flex_inductor.lowering import cuda_profit, cuda_rates, profit, rates
from flex_inductor.request import Instead, Request

UNITS = {"products": "GFLOP/s in matrix products", "half": "GFLOP/s in matrix products of 16 bits",
         "single": "GFLOP/s in matrix products of float32", "exponentials": "thousand million exponentials a second",
         "memory": "GB/s of memory"}  # fmt: skip
SITES = {"no mask": (Instead.PLAIN, 1.0), "causal": (Instead.CAUSAL, 0.52), "window of 256": (Instead.DENSE, 0.15),
         "padding, 3/4 attended": (Instead.ROW, 0.75), "soft cap, causal": (None, 0.52)}  # fmt: skip
Seconds = Callable[[Request, Any], float | None]
"""What is expected of a site by some rates; None where nobody computes it so."""


@dataclass(frozen=True)
class Subject:
    """A type of device. rates: the module that has its rates. of: whose they are. usual: what the usual ones are.
    dtype, sizes: of the sites that are shown: batch, heads, length and head dimension. expected: seconds, by who
    computes a site."""

    device: str
    rates: Any
    of: str
    usual: str
    dtype: torch.dtype
    sizes: tuple[int, int, int, int]
    expected: dict[str, Seconds]


def on_cpu_by_sdpa(site: Request, by: rates.Rates) -> float | None:
    return profit.sdpa(site, by, site.instead) if site.instead else None


def on_cuda_by_sdpa(site: Request, by: cuda_rates.Rates) -> float | None:
    """With a mask. A plain or causal site is given to SDPA, whatever the rates."""
    if site.instead not in (Instead.ROW, Instead.DENSE):
        return None
    return cuda_profit.left(replace(site, called=True), by, cuda.float32_precision())


CPU = Subject("cpu", rates, "of one thread", "these are the usual rates of an EPYC", torch.float32, (1, 8, 2048, 64),
              {"flex_attention": profit.flex, "SDPA": on_cpu_by_sdpa, "Inductor": profit.left})  # fmt: skip
CUDA = Subject(
    "cuda", cuda_rates, "of the device", "these follow from its properties", torch.bfloat16, (8, 16, 4096, 64),
    {"flex_attention": lambda site, by: cuda_profit.flex(site, by, cuda.float32_precision()), "SDPA": on_cuda_by_sdpa,
     "Inductor": lambda site, by: cuda_profit.left(site, by, cuda.float32_precision())},
)  # fmt: skip


def subject(device: str | None) -> Subject:
    """What is measured: by default the GPU, where there is one. Raises ClickException."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise click.ClickException("there is no CUDA device that torch can use (without --device the CPU is measured)")
    return CUDA if there and device != "cpu" else CPU


def shown(about: Subject, before: Any, now: Any) -> RenderableType:
    """The rates that were kept, and those that were just measured."""
    used = now or before or about.rates.usual()
    kept = f"kept in {about.rates.place()}" if now or before else f"nothing is kept: {about.usual}"
    title = Text(name(about.rates.machine()), style="bold")
    return Group(title, Text(kept, overflow="fold"), numbers(about, before, now), expected(about, used))


def name(machine: dict[str, Any]) -> str:
    """A machine, in a line."""
    threads = f"{machine['threads']} threads, " if "threads" in machine else ""
    return f"{machine.get('cpu') or machine['gpu']}, {threads}torch {machine['torch']}"


def numbers(about: Subject, before: Any, now: Any) -> Table:
    columns = {"before" if now is not None else "kept": before, "now": now}
    columns = {name: x for name, x in columns.items() if x is not None} or {"usual": about.rates.usual()}
    table = Table(about.of, *columns, "", box=None)
    for rate in next(iter(columns.values())).numbers:
        table.add_row(rate, *(f"{x.numbers[rate] / 1e9:.2f}" for x in columns.values()), UNITS[rate])
    return table


def expected(about: Subject, by: Any) -> Table:
    """Milliseconds of some sites."""
    title = f"expected ms of {' x '.join(map(str, about.sizes))}, {str(about.dtype)[6:]}, forward"
    table = Table(title, *about.expected, box=None)
    for kind, site in sites(about):
        times = (seconds(site, by) for seconds in about.expected.values())
        table.add_row(kind, *("-" if t is None else f"{1e3 * t:.2f}" for t in times))
    return table


def sites(about: Subject) -> Iterator[tuple[str, Request]]:
    batch, heads, length, dim = about.sizes
    dims, lengths = (sympy.Integer(dim),) * 2, (sympy.Integer(length),) * 2
    scores = batch * heads * length**2
    for kind, (instead, attended) in SITES.items():
        given = about.device, about.dtype, False, dims, sympy.Integer(heads), lengths
        yield kind, Request(*given, False, scores, attended, False, False, False, instead)


def to_json(about: Subject, kept: Any) -> str:
    data = {"machine": about.rates.machine(), "file": str(about.rates.place()), **kept.numbers}
    return json.dumps(data, indent=2)
