"""Measuring: times and memory of calls, on a GPU while other processes compile for it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

alone: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
"""Held by the process that measures."""
CALLS = 5
"""Calls of which the kernels are timed."""
SHARE = 0.02
"""The share of a call's time from which on a kernel is named."""


def results(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], jobs: int, end: float) -> Iterator[Any]:
    """What a function gives for each task, in the order in which they end, computed by so many processes at a time,
    until the time is up. end: when, by time.monotonic()."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, share, (spawn.Lock(),)) as pool:
        found = [pool.submit(function, *task) for task in tasks]
        try:
            for one in as_completed(found, timeout=max(0.0, end - time.monotonic())):
                yield one.result()
        except TimeoutError:
            print("the time is up")
            pool.shutdown(wait=False, cancel_futures=True)


def share(lock: contextlib.AbstractContextManager[Any]) -> None:
    global alone
    alone = lock


def wait() -> None:
    """Until the GPU has done all it was given."""
    torch.cuda.synchronize()


def memory(call: Callable[[], Any]) -> int:
    """Bytes of the device's memory that a call takes at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def process_memory(call: Callable[[], Any]) -> float:
    """MB that a call adds to the memory of the process at its peak (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def interleaved(calls: dict[str, Callable[[], Any]], seconds: float, least: int = 5, most: int = 41) -> dict[str, Any]:
    """The seconds of each call in rounds, as many as fit into some seconds, in another order each time: what the call
    before it has left in the cache is not always the same."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, chance = list(calls), random.Random(0)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or (time.perf_counter() < end and rounds < most):
        rounds += 1
        chance.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def durations(call: Callable[[], Any], device: str) -> tuple[float, float, float]:
    """Milliseconds: the median, and the quantiles 0.2 and 0.8; on a GPU the better of two runs, because the other
    processes now and then start a kernel."""
    if device == "cuda":
        from triton.testing import do_bench

        return min(tuple(do_bench(call, warmup=25, rep=150, quantiles=[0.5, 0.2, 0.8])) for _ in range(2))
    found = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found), min(found), max(found)


def kernels(call: Callable[[], Any]) -> dict[str, float]:
    """The milliseconds of each kernel of a call on a GPU that takes a share worth to be named, longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    found: Counter[str] = Counter()
    for event in profile.key_averages():
        found[event.key] += event.self_device_time_total / 1e3 / CALLS
    least = SHARE * sum(found.values())
    return {name: ms for name, ms in found.most_common() if ms > least}
