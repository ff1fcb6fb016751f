"""What is left of each graph for torch's own tools: the report in structured traces, where tlparse links it, and the
report with the graphs before and after in the folders of TORCH_COMPILE_DEBUG=1."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flex_inductor.compat import trace
from flex_inductor.decisions import GraphReport

if TYPE_CHECKING:
    from flex_inductor.explain import Report

log = logging.getLogger(__name__)


def leave(report: GraphReport) -> None:
    """Leaves the report of the graph that is being compiled, wherever torch was told to keep such things."""
    from flex_inductor.explain import Report  # which imports the backends, and these this file

    whole = Report((report,))
    trace.artifact("flex_inductor_report", "string", lambda: str(whole))
    trace.artifact("flex_inductor_records", "json", whole.to_json)
    folder = trace.debug_folder()
    if folder is None:
        return
    try:
        write(whole, folder)
    except OSError as error:  # no reason to fail a compilation
        log.warning("the report of a graph was not written: %s", error)


def write(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    (folder / "records.json").write_text(report.to_json(), encoding="utf-8")
    report.graphs(folder)
