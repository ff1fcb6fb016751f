"""Files and folders that commands write. Whether they can be written is asked before the work is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class NewFile(click.Path):
    """A file to be written, in a folder that exists."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            self.fail(f"no folder {str(path.absolute().parent)!r} that can be written to", param, ctx)
        return path


class NewFolder(click.Path):
    """A folder to be written to, which is made where it is missing."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            self.fail(f"{str(there)!r} is no folder that can be written to", param, ctx)
        return path
