"""The command line: explain a model, dump its graphs, look at its heads, run the demo.

A TARGET is `MODULE:FACTORY`, where FACTORY() returns (model, args) or (model, args, kwargs), or `hf:MODEL_TYPE`, a tiny
random-weight transformers model. Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flex_inductor.version import __version__

Target = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class BadInput(click.ClickException):
    """One line, no usage text, exit code 2."""

    exit_code = 2


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that explain and dump share."""
    for decorator in (
        click.argument("target"),
        click.option("--rewrite", type=click.Choice(["auto", "always", "never"]), show_default="auto"),
        click.option("--backend", type=click.Choice(["flex", "flex_eager"]), default="flex", show_default=True),
        click.option("--train", is_flag=True, help="Training mode, with gradients."),
    ):
        command = decorator(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flex-inductor")
def main() -> None:
    """See what torch.compile(model, backend="flex") does with the attention of a model."""


@main.command()
@common
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def explain(target: str, rewrite: str | None, backend: str, train: bool, as_json: bool) -> None:
    """Say which attention sites of TARGET are rewritten, and why the others are not."""
    report = run(target, rewrite, backend, train)
    if as_json or not sys.stdout.isatty():
        click.echo(report.to_json() if as_json else str(report))
        return
    from rich.console import Console

    from flex_inductor.report.text import render

    Console().print(render(report))


@main.command()
@common
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("graphs"), show_default=True)
@click.option("--between", is_flag=True, help="Also what is known after every pass.")
def dump(target: str, rewrite: str | None, backend: str, train: bool, out: Path, between: bool) -> None:
    """Write the graphs of TARGET before and after, as text, DOT and SVG."""
    from flex_inductor.report.between import recorded

    with recorded() as recorder:
        report = run(target, rewrite, backend, train)
    try:
        written = [*report.graphs(out), *(recorder.write(out) if between else ())]
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error.strerror}") from error
    for path in written:
        click.echo(path)


@main.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def look(target: str, as_json: bool) -> None:
    """Say what the heads of TARGET attend to."""
    import torch
    from rich.console import Console

    from flex_inductor.look import look as look_at
    from flex_inductor.look.text import render

    model, args, kwargs = load(target)
    if isinstance(model, torch.nn.Module):
        model.eval()
    try:
        seen = look_at(model)(*args, **kwargs)
    except Exception as error:
        raise BadInput(f"{target} does not run: {_line(error)}") from error
    if as_json or not sys.stdout.isatty():
        click.echo(seen.to_json() if as_json else str(seen))
        return
    Console().print(render(seen))


@main.command()
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Runs behind each median.")
def demo(repeats: int) -> None:
    """A trained sentence encoder, a Gemma-2 and a T5 (random weights): eager, inductor and flex side by side."""
    from flex_inductor.cli.demo import run_demo

    run_demo(repeats)


def run(target: str, rewrite: Any, backend: Any, train: bool) -> Any:
    """The report of one run of the target; click has checked the choices."""
    import torch

    from flex_inductor.explain import explain as explain_model

    model, args, kwargs = load(target)
    if isinstance(model, torch.nn.Module):
        model.train(train)
    with contextlib.nullcontext() if train else torch.no_grad():
        try:
            return explain_model(model, rewrite=rewrite, backend=backend)(*args, **kwargs)
        except Exception as error:
            raise BadInput(f"{target} does not run: {_line(error)}") from error


def load(target: str) -> Target:
    """The model and its arguments, or BadInput."""
    place, _, name = target.partition(":")
    if not place or not name:
        raise BadInput(f"{target!r} is neither MODULE:FACTORY nor hf:MODEL_TYPE")
    return _from_hub(name) if place == "hf" else _from_factory(place, name)


def _from_hub(model_type: str) -> Target:
    from flex_inductor.cli.hub import HubError, tiny_model

    try:
        model, kwargs = tiny_model(model_type)
    except HubError as error:
        raise BadInput(str(error)) from error
    return model, (), kwargs


def _from_factory(module: str, name: str) -> Target:
    sys.path.insert(0, os.getcwd())  # a console script does not search the current folder
    try:
        factory = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise BadInput(f"no module named {error.name!r}") from error
    except Exception as error:
        raise BadInput(f"{module} cannot be imported: {_line(error)}") from error
    if not callable(factory):
        raise BadInput(f"{module} has no factory {name!r}")
    try:
        built = factory()
    except Exception as error:
        raise BadInput(f"{module}:{name}() failed: {_line(error)}") from error
    return _checked(built, f"{module}:{name}")


def _checked(built: Any, where: str) -> Target:
    right = isinstance(built, tuple) and len(built) in (2, 3) and callable(built[0]) and isinstance(built[1], tuple)
    kwargs = built[2] if right and len(built) == 3 else {}
    if not right or not isinstance(kwargs, dict):
        raise BadInput(f"{where}() must return (model, args) or (model, args, kwargs), args being a tuple")
    return built[0], built[1], kwargs


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


if __name__ == "__main__":
    main()
