"""The command line: explain a model, dump its graphs, look at its heads, run the demo, calibrate the cost model.

A TARGET is `MODULE:FACTORY` or `FILE.py:FACTORY`, where FACTORY() returns (model, args) or (model, args, kwargs), or
`hf:MODEL_TYPE`, a tiny random-weight transformers model. Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flex_inductor.version import __version__

Target = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


BUILD = ("length", "batch", "dtype", "device", "padding", "config", "layers")
"""The options that say what an hf: target is built like."""
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. build: the options of BUILD, None for those that were not given."""

    target: str
    rewrite: Any
    backend: Any
    train: bool
    fake: bool
    build: dict[str, Any]


class BadInput(click.ClickException):
    """One line, no usage text, exit code 2."""

    exit_code = 2


def built(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what an hf: target is built like, as one dictionary `build`."""

    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        build = {name: given.pop(name) for name in BUILD}
        return command(build=build, **given)

    for decorator in (
        click.option("--length", type=click.IntRange(1), help="hf: tokens in a sequence.  [default: 64]"),
        click.option("--batch", type=click.IntRange(1), help="hf: sequences.  [default: 2]"),
        click.option("--dtype", type=click.Choice(list(DTYPES)), help="hf: of weights and inputs."),
        click.option("--device", help="hf: where it runs, cpu or cuda."),
        click.option("--padding", type=click.Choice(["none", "left", "right"]), help="hf: of the last sequence."),
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
        click.option("--rewrite", type=click.Choice(["auto", "always", "never"]), show_default="auto"),
        click.option("--backend", type=click.Choice(["flex", "flex_eager"]), default="flex", show_default=True),
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
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write a page, one file.")
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
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("graphs"), show_default=True)
@click.option("--between", is_flag=True, help="Also what is known after every pass.")
def dump(asked: Asked, out: Path, between: bool) -> None:
    """Write the graphs of TARGET before and after, as text, DOT and SVG."""
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
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write a page, one file.")
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
        seen = look_at(model)(*args, **kwargs)
    except Exception as error:
        raise BadInput(f"{target} does not run: {useful_line(error)}") from error
    if html is not None:
        write_page(seen, html, f"What heads of {target} look at")
    if as_json or not sys.stdout.isatty():
        click.echo(seen.to_json() if as_json else str(seen))
        return
    Console().print(render(seen))


@main.command()
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Runs behind each median.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), default=Path("demo.html"), show_default=True)
def demo(repeats: int, html: Path) -> None:
    """A trained sentence encoder, a Gemma-2 and a T5 (random weights): eager, inductor and flex side by side."""
    from flex_inductor.cli.demo import run_demo

    run_demo(repeats, html)


@main.command()
@click.option("--show", is_flag=True, help="Measure nothing: show what is kept.")
@click.option("--json", "as_json", is_flag=True, help="Print the rates as JSON.")
def calibrate(show: bool, as_json: bool) -> None:
    """Measure the rates by which "auto" decides on this machine, keep and show them."""
    from rich.console import Console

    from flex_inductor.cli.calibrate import shown, to_json
    from flex_inductor.lowering import rates

    before = rates.kept()
    try:
        now = None if show else rates.keep(rates.measure(), renew=True)
    except Exception as error:
        raise click.ClickException(f"nothing was kept, usual rates are taken: {useful_line(error)}") from error
    if as_json:
        click.echo(to_json(now or before or rates.USUAL))
        return
    Console().print(shown(before, now))


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
            return ask(*args, **kwargs)
        except Exception as error:
            raise BadInput(f"{asked.target} does not run: {useful_line(error)}") from error


def load(asked: Asked) -> Target:
    """The model and its arguments, or BadInput. With --fake they are fake tensors; those of a factory that cannot make
    fake ones are real."""
    if not asked.fake:
        return _loaded(asked)
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _loaded(asked)
    except BadInput:
        if asked.target.startswith("hf:"):
            raise
    return _loaded(asked)


def _loaded(asked: Asked) -> Target:
    place, _, name = asked.target.rpartition(":")
    if not place or not name:
        raise BadInput(f"{asked.target!r} is none of MODULE:FACTORY, FILE.py:FACTORY and hf:MODEL_TYPE")
    given = {option: value for option, value in asked.build.items() if value is not None}
    if place == "hf":
        return _from_hub(name, given)
    if given:
        raise BadInput(f"--{next(iter(given))} is for hf: targets; {asked.target} builds its own model")
    return _from_factory(place, name)


def _from_hub(model_type: str, given: dict[str, Any]) -> Target:
    import torch

    from flex_inductor.cli.hub import Build, HubError, tiny_model

    if "dtype" in given:
        given = {**given, "dtype": getattr(torch, given["dtype"])}
    try:
        torch.empty(0, device=given.get("device", "cpu"))
    except Exception as error:
        raise BadInput(f"no device {given['device']!r} here: {useful_line(error)}") from error
    try:
        model, kwargs = tiny_model(model_type, build=Build(**given))
    except HubError as error:
        raise BadInput(str(error)) from error
    return model, (), kwargs


def _from_factory(module: str, name: str) -> Target:
    factory = getattr(_imported(module), name, None)
    if not callable(factory):
        raise BadInput(f"{module} has no factory {name!r}")
    try:
        built = factory()
    except Exception as error:
        raise BadInput(f"{module}:{name}() failed: {useful_line(error)}") from error
    return _checked(built, f"{module}:{name}")


def _imported(module: str) -> Any:
    """A module by its name or by its file."""
    sys.path.insert(0, os.getcwd())  # a console script does not search the current folder
    try:
        return _of_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except BadInput:
        raise
    except ModuleNotFoundError as error:
        raise BadInput(f"no module named {error.name!r}") from error
    except Exception as error:
        raise BadInput(f"{module} cannot be imported: {useful_line(error)}") from error


def _of_file(file: Path) -> Any:
    """The module in a file, which may import what lies beside it."""
    if not file.is_file():
        raise BadInput(f"no file {str(file)!r}")
    sys.path.insert(0, str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    return module


def _checked(built: Any, where: str) -> Target:
    right = isinstance(built, tuple) and len(built) in (2, 3) and callable(built[0]) and isinstance(built[1], tuple)
    kwargs = built[2] if right and len(built) == 3 else {}
    if not right or not isinstance(kwargs, dict):
        raise BadInput(f"{where}() must return (model, args) or (model, args, kwargs), args being a tuple")
    return built[0], built[1], kwargs


def useful_line(error: BaseException) -> str:
    """An error in one line. Dynamo and its backends put the error of an operator into a text of their own."""
    text = str(error).strip()
    inner = re.search(r"got (\w+)\((['\"])(.*?)\2\)", text, re.DOTALL)
    if inner is not None and "fake tensors" in text:
        return f"{inner[1]}: {inner[3].splitlines()[0]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith("backend=") and len(lines) > 1:
        return lines[1]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
