"""What was measured is what README shows."""

from __future__ import annotations

from bench.attention_shown import chosen, table
from bench.record import ROOT

RESULTS = ROOT / "bench/results/attention_cpu.csv"


def test_readme_has_the_table_of_what_was_measured() -> None:
    lines = list(table(chosen(RESULTS, 2048)))
    assert len(lines) > 10 and "\n".join(lines) in (ROOT / "README.md").read_text()


def test_what_was_not_measured_is_a_dash() -> None:
    one = {"variant": "causal", "dtype": "float32", "how": "auto", "pass": "training", "ms": "51.6"}
    assert list(table([one]))[2] == "| causal | - / 52 | - | - | - | - | - |"
