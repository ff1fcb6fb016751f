"""The command line: explain a model, dump its graphs, look at its heads, run the demo, calibrate the cost model.

What a TARGET is, and what becomes of bad input, says `target`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flex_inductor.cli.outputs import NewFile, NewFolder
from flex_inductor.cli.target import Asked, BadInput, alone, load, useful_line
from flex_inductor.version import __version__

BUILD = ("length", "batch", "dtype", "device", "padding", "config", "layers")
"""The options that say what an hf: target is built like."""
DTYPES = ("float32", "bfloat16", "float16", "float64")


def built(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what an hf: target is built like, as one dictionary `build`."""

    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        build = {name: given.pop(name) for name in BUILD}
        return command(build=build, **given)

    for decorator in (
        click.option(
            "--length", type=click.IntRange(1), help="hf: tokens in a sequence, of types that have one.  [default: 64]"
        ),
        click.option("--batch", type=click.IntRange(1), help="hf: sequences.  [default: 2]"),
        click.option("--dtype", type=click.Choice(list(DTYPES)), help="hf: of weights and inputs.  [default: float32]"),
        click.option("--device", help="hf: where it runs, cpu or cuda.  [default: cpu]"),
        click.option(
            "--padding",
            type=click.Choice(["none", "left", "right"]),
            help="hf: on which side the last sequence is padded.  [default: right]",
        ),
        click.option("--config", type=click.Path(path_type=Path), help="hf: a configuration as it is, file or folder."),
        click.option("--layers", type=click.IntRange(1), help="hf: how many.  [default: 2, or as the file says]"),
    ):
        collected = decorator(collected)
    return collected


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that explain and dump share, as one `Asked`."""

    @functools.wraps(command)
    def collected(
        target: str, rewrite: Any, backend: Any, train: bool, fake: bool, build: dict[str, Any], **more: Any
    ) -> Any:
        return command(asked=Asked(target, rewrite, backend, train, fake, build), **more)

    decorated = built(collected)
    for decorator in (
        click.argument("target"),
        click.option(
            "--rewrite",
            type=click.Choice(["auto", "always", "never"]),
            show_default="auto",
            help="Where it is faster, wherever it is possible, or nowhere.",
        ),
        click.option(
            "--backend",
            type=click.Choice(["flex", "flex_eager"]),
            default="flex",
            show_default=True,
            help="With generated code, or without.",
        ),
        click.option("--train", is_flag=True, help="Training mode, with gradients."),
        click.option("--fake", is_flag=True, help="Look at shapes alone, run nothing: long inputs take seconds."),
    ):
        decorated = decorator(decorated)
    return decorated


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flex-inductor")
def main() -> None:
    """See what torch.compile(model, backend="flex") does with the attention of a model."""


@main.command()
@common
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
@click.option("--html", type=NewFile(), help="Also write a page, one file.")
def explain(asked: Asked, as_json: bool, html: Path | None) -> None:
    """Say which attention sites of TARGET are rewritten, and why the others are not."""
    report = run(asked)
    if html is not None:
        write_page(report, html, asked.target)
    if as_json or not sys.stdout.isatty():
        click.echo(report.to_json() if as_json else str(report))
        return
    from rich.console import Console

    from flex_inductor.report.text import render

    Console().print(render(report))


def write_page(report: Any, path: Path, title: str) -> None:
    """Writes the page, and says where on stderr, which leaves stdout to the report."""
    try:
        report.html(path, title)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"page written to {path}", err=True)


@main.command()
@common
@click.option("--out", type=NewFolder(), default=Path("graphs"), show_default=True, help="The folder for the files.")
@click.option("--between", is_flag=True, help="Also what is known after every pass.")
def dump(asked: Asked, out: Path, between: bool) -> None:
    """Write the graphs of TARGET before and after, as text, DOT and SVG, and a map of the blocks of each mask."""
    from flex_inductor.report.between import recorded

    with recorded() as recorder:
        report = run(asked)
    try:
        written = [*report.graphs(out), *(recorder.write(out) if between else ())]
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error.strerror}") from error
    for path in written:
        click.echo(path)


@main.command()
@built
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--html", type=NewFile(), help="Also write a page, one file.")
def look(target: str, as_json: bool, html: Path | None, build: dict[str, Any]) -> None:
    """Say what the heads of TARGET attend to."""
    import torch
    from rich.console import Console

    from flex_inductor.look import look as look_at
    from flex_inductor.look.text import render

    model, args, kwargs = load(Asked(target, None, "flex", train=False, fake=False, build=build))
    if isinstance(model, torch.nn.Module):
        model.eval()
    try:
        with alone():
            seen = look_at(model)(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{target} does not run: {useful_line(error)}") from error
    if html is not None:
        write_page(seen, html, f"What heads of {target} look at")
    if as_json or not sys.stdout.isatty():
        click.echo(seen.to_json() if as_json else str(seen))
        return
    Console().print(render(seen))


@main.command()
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Runs behind each median.")
@click.option("--html", type=NewFile(), default=Path("demo.html"), show_default=True, help="The page, one file.")
def demo(repeats: int, html: Path) -> None:
    """A trained sentence encoder and a Gemma-2 (random weights): eager, inductor and flex side by side."""
    from flex_inductor.cli.demo import run_demo

    run_demo(repeats, html)


@main.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What is measured: a GPU where there is one.")
@click.option("--show", is_flag=True, help="Measure nothing: show what is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print the rates as JSON.")
def calibrate(device: str | None, show: bool, as_json: bool) -> None:
    """Measure the rates by which "auto" decides on this machine, keep and show them."""
    from rich.console import Console

    from flex_inductor.cli.calibrate import shown, subject, to_json

    about = subject(device)
    before = about.rates.kept()
    try:
        now = None if show else about.rates.renew(about.rates.measure())
    except Exception as error:
        raise click.ClickException(f"nothing was kept, usual rates are taken: {useful_line(error)}") from error
    if as_json:
        click.echo(to_json(about, now or before or about.rates.usual()))
        return
    Console().print(shown(about, before, now))


def run(asked: Asked) -> Any:
    """The report of one run of the target; click has checked the choices."""
    import torch

    from flex_inductor.explain import explain as explain_model

    model, args, kwargs = load(asked)
    if isinstance(model, torch.nn.Module):
        model.train(asked.train)
    with contextlib.nullcontext() if asked.train else torch.no_grad():
        try:
            ask = explain_model(model, rewrite=asked.rewrite, backend=asked.backend, run=not asked.fake)
        except ValueError as error:
            raise BadInput(str(error)) from error
        try:
            with alone():
                return ask(*args, **kwargs)
        except (Exception, SystemExit) as error:
            raise BadInput(f"{asked.target} does not run: {useful_line(error)}") from error


if __name__ == "__main__":
    main()
