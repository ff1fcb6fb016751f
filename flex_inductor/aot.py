"""Exported programs, compiled ahead of time: a package that runs without this project.

    rewrite -> AOTInductor, with our lowerings in place -> model.pt2

Where our kernels cannot be packaged the program is rewritten again for torch's, and where those cannot be either it is
packaged as it was given; the records say so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from flex_inductor import passes
from flex_inductor.backend import fallen_back, lowered, publish
from flex_inductor.decisions import GraphReport
from flex_inductor.export import again, rewritten, unlifted
from flex_inductor.lowering import choose
from flex_inductor.options import Options, read


def aot_compile(
    exported_program: ExportedProgram, path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None
) -> str:
    """Rewrites the attention of an exported program and compiles it, with our own kernels, into a package for
    inference. Returns its path.

        path = flex_inductor.aot_compile(torch.export.export(model, args, dynamic_shapes=...), "model.pt2")
        model = torch._inductor.aoti_load_package(path)     # in any process: nothing of this project is needed there

    path: a file that ends in .pt2, in a folder that exists; one that is there is overwritten. options: those of the
    backend "flex". What was decided goes to `flex_inductor.listen` and to the log. As every package of AOTInductor it
    is for processors like this one and for this release of torch. Tried on CPU only.
    Raises TypeError for what is no exported program, ValueError for unknown options, for another kind of path and for
    a program without example inputs, FileNotFoundError for a folder that does not exist.
    """
    ours, settings = read(None, options)
    place = checked(exported_program, path)
    failure = None
    for kernels in dict.fromkeys((ours.kernels, "torch")) if ours.rewrite != "never" else ():
        failure = attempt(exported_program, place, replace(ours, kernels=kernels), settings, failure)
        if failure is None:
            return place
        if ours.on_failure == "raise":
            raise failure.cause
    module = unlifted(exported_program)
    package(module, exported_program, place, settings)
    publish(failure.report() if failure is not None else GraphReport((), module, module))
    return place


@dataclass(frozen=True)
class Failure:
    """Why a rewritten program could not be packaged. before: its report. stage: what failed."""

    before: GraphReport
    stage: str
    cause: Exception

    def report(self) -> GraphReport:
        """The report of the program, packaged as it was given; says so in a warning."""
        return fallen_back(self.before, self.stage, self.cause)


def attempt(
    program: ExportedProgram, place: str, ours: Options, settings: dict[str, Any], earlier: Failure | None
) -> Failure | None:
    """Packages a program, rewritten. earlier: why that failed with our own kernels."""
    module = unlifted(program)
    report, stage = GraphReport((), module, module), "export"
    try:
        report, stage = rewritten(module, choose.answers(ours, settings)), "codegen"
        report = report if earlier is None else noted(report, earlier)
        if report.after is not module:  # AOTInductor asks nobody whether sizes are as it assumes: torch.export does
            again(passes.copy_of(report.after), program)
        package(passes.copy_of(report.after), program, place, settings)
    except passes.PassFailed as failed:
        assert isinstance(failed.__cause__, Exception)
        return Failure(report, failed.name, failed.__cause__)
    except Exception as error:
        return Failure(report, stage, error)
    publish(report)
    return None


def noted(report: GraphReport, earlier: Failure) -> GraphReport:
    """The report of a program with torch's kernels, each of which says why it is not ours."""
    note = f"ours could not be packaged: {type(earlier.cause).__name__}: {earlier.cause}".splitlines()[0][:500]
    said = (replace(d, notes=(*d.notes, note)) if d.rewritten else d for d in report.decisions)
    return replace(report, decisions=tuple(said))


def package(gm: fx.GraphModule, program: ExportedProgram, place: str, settings: dict[str, Any]) -> None:
    """Compiles a module that was made of a program."""
    from flex_inductor.compat import aot

    settings, around = lowered(gm, settings)
    gm.graph.set_codegen(unlifted(program).graph._codegen)  # which knows the structure of arguments and results
    args, kwargs = program.example_inputs
    aot.package(gm, args, kwargs, place, settings, around)


def checked(program: Any, path: Any) -> str:
    """The path as text, where a program can be packaged to it. Raises what aot_compile does."""
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"aot_compile takes an ExportedProgram, which torch.export.export(model, args) makes, not {type(program)}"
        )
    place = os.fspath(path)
    if not (isinstance(place, str) and place.endswith(".pt2")):
        raise ValueError(f"a package is a file that ends in .pt2, not {place!r}")
    if not Path(place).absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(Path(place).absolute().parent)!r} for the package")
    if program.example_inputs is None:
        raise ValueError("the program has no example inputs, so it cannot be traced again")
    return place
