"""The page of `bench.coverage`: its rows as Markdown."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

Row = dict[str, str]
HEAD = """\
# Coverage

What `torch.compile(model, backend="flex")` makes of other people's models. This page is made by one command,

    python -m bench.coverage

from the libraries that are installed ({place}). bench/results/coverage.csv has
the rows.

Each architecture is small, has random weights and attention that is computed step by step
(`attn_implementation="eager"`), and runs once, in inference, on two sequences of 256 tokens of which the second is
padded, or on images. Of transformers it is one model type for each module, of timm one model; where `--minutes` bounds
the time, a random sample. A site is an attention. Rewritten: into a call, with `rewrite="always"`. Inductor: how often
an attention pattern of `backend="inductor"` matches. Hidden and left out: the mean share of scores that a mask hides,
and of blocks of 64 that are therefore never computed, over rewritten sites with a mask whose blocks are known. Not all
attention of an architecture runs with the inputs that could be made up for it.
"""


def page(rows: Sequence[Row]) -> str:
    """The page. rows: of the file that `bench.coverage` writes."""
    machines = ", ".join(dict.fromkeys(f"torch {r['torch']}, {r['device']}" for r in rows))
    place = f"{machines}, {' and '.join(sorted({r['date'] for r in rows}))}"
    parts = [HEAD.format(place=place), *summary(rows), "", *refusals(rows), *failures(rows), *each(rows), ""]
    return "\n".join(parts)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each library."""
    yield "| library | architectures | ran | with attention | sites | rewritten | Inductor | hidden | left out |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for library in dict.fromkeys(r["library"] for r in rows):
        its = [r for r in rows if r["library"] == library]
        ran = [r for r in its if r["sites"]]
        sites, done, inductor = (sum(int(r[x]) for r in ran) for x in ("sites", "rewritten", "inductor"))
        counts = f"{len(its)} | {len(ran)} | {sum(r['sites'] != '0' for r in ran)} | {sites} | {share(done, sites)}"
        yield f"| {library} | {counts} | {share(inductor, sites)} | {mean(ran, 'hidden')} | {mean(ran, 'left_out')} |"


def share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else str(part)


def mean(rows: Sequence[Row], column: str) -> str:
    """The mean over sites of a share, in percent."""
    known = [(float(r[column]), int(r["masked"])) for r in rows if r[column]]
    total = sum(n for _, n in known)
    return f"{sum(x * n for x, n in known) / total:.0%}" if total else ""


def refusals(rows: Sequence[Row]) -> Iterator[str]:
    """Why sites are declined, the most frequent reasons first."""
    counts: dict[str, int] = defaultdict(int)
    models: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for n, reason in reasons(row):
            counts[reason] += n
            models[reason].append(row["model"])
    yield from ("## Declined", "", "| because | sites | in |", "|---|---|---|")
    for reason in sorted(counts, key=lambda r: -counts[r]):
        yield f"| {plain(reason)} | {counts[reason]} | {', '.join(models[reason])} |"
    yield ""


def reasons(row: Row) -> Iterator[tuple[int, str]]:
    """'2 x REASON | 1 x REASON' as numbers and texts."""
    for part in filter(None, row["declined"].split(" | ")):
        n, _, reason = part.partition(" x ")
        yield int(n), reason


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """What could not be built or run, and why."""
    failed = [r for r in rows if r["failed"]]
    yield from (
        "## Not built, or not run",
        "",
        "Mostly because the sizes of a shrunk configuration do not fit each other.",
        "",
    )
    yield from ("| architecture | why |", "|---|---|")
    yield from (f"| {r['model']} ({r['library']}) | {plain(brief(r['failed'], r['model']))} |" for r in by_name(failed))
    yield ""


def brief(why: str, model: str) -> str:
    """An error without what the table says already."""
    return re.sub(rf"^HubError: ({re.escape(model)} )?| for {re.escape(model)}(?=:)|:$", "", why)


def each(rows: Sequence[Row]) -> Iterator[str]:
    """Every architecture with attention; the others in one sentence."""
    yield from ("## Every architecture", "")
    for library in dict.fromkeys(r["library"] for r in rows):
        its = by_name([r for r in rows if r["library"] == library and r["sites"]])
        without = [r["model"] for r in its if r["sites"] == "0"]
        yield from (
            f"### {library}",
            "",
            "| | sites | rewritten | Inductor | hidden | left out |",
            "|---|---|---|---|---|---|",
        )
        for r in its:
            if r["sites"] != "0":
                shares = " | ".join(f"{float(r[x]):.0%}" if r[x] else "" for x in ("hidden", "left_out"))
                yield f"| {r['model']} | {r['sites']} | {r['rewritten']} | {r['inductor']} | {shares} |"
        yield from ("", f"Without any attention that a graph shows: {', '.join(without)}.", "") if without else ("",)


def by_name(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: (r["library"], r["model"]))


def plain(text: str) -> str:
    """A text that a cell of a table can hold."""
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", " ".join(text.split()))
