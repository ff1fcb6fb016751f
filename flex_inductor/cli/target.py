"""What the command line asks for, as a model and its arguments.

A TARGET is `MODULE:FACTORY` or `FILE.py:FACTORY`, where FACTORY() returns (model, args) or (model, args, kwargs), or
`hf:MODEL_TYPE`, a tiny random-weight transformers model. Bad input is one line on stderr and exit code 2. What the
model prints goes to stderr as well: stdout is for what was asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

Target = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """A target, and how to look at it. build: what an hf: target is built like, None for what is not said."""

    target: str
    rewrite: Any
    backend: Any
    train: bool
    fake: bool
    build: dict[str, Any]


class BadInput(click.ClickException):
    """One line, no usage text, exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The user's code runs inside the block: what it prints goes to stderr, and torch says nothing of an operator that
    fails on fake tensors, because the error is shown."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.disabled = before


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
        with alone():
            built = factory()
    except (Exception, SystemExit) as error:
        raise BadInput(f"{module}:{name}() failed: {useful_line(error)}") from error
    return _checked(built, f"{module}:{name}")


def _imported(module: str) -> Any:
    """A module by its name or by its file."""
    sys.path.insert(0, os.getcwd())  # a console script does not search the current folder
    try:
        with alone():
            return _of_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except BadInput:
        raise
    except ModuleNotFoundError as error:
        raise BadInput(f"no module named {error.name!r}") from error
    except (Exception, SystemExit) as error:
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
