"""Starts processes that are one torch.distributed group over gloo, and brings back what each of them returns.

    first, second = together(function, 2, tmp_path, *arguments)      each runs function(rank, world, *arguments)

They find each other by a file, so no port is taken.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others: they share the machine, and one may compile while another does not."""


def together(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What a function of a module gives in each process, by rank. Raises AssertionError with the traceback of the
    first that fails."""
    method = multiprocessing.get_context("spawn")
    alone = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    before = {name: os.environ.get(name) for name in alone}
    os.environ.update(alone)
    try:
        started = [
            method.Process(target=member, args=(function, rank, world, folder, arguments), daemon=True)
            for rank in range(world)
        ]
        for process in started:
            process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    wait_for(started)
    failures = sorted(folder.glob("failure.*"), key=lambda file: file.stat().st_mtime)
    assert not failures, f"{failures[0].name}: " + failures[0].read_text()[-4000:]
    assert not any(process.exitcode for process in started), [process.exitcode for process in started]
    return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in range(world)]


def wait_for(started: list[Any]) -> None:
    """Until all have ended. When one fails the others, which may wait for it, are killed."""
    end = time.monotonic() + PATIENCE.total_seconds()
    while any(process.exitcode is None for process in started):
        if any(process.exitcode for process in started) or time.monotonic() > end:
            for process in started:
                process.kill()
                process.join()
        time.sleep(0.05)


def member(function: Callable[..., Any], rank: int, world: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        torch.save(function(rank, world, *arguments), folder / f"result.{rank}")
        distributed.barrier()
    except BaseException:
        (folder / f"failure.{rank}").write_text(traceback.format_exc())
        os._exit(1)  # the end of a group waits for its members
    distributed.destroy_process_group()
