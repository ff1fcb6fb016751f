"""What one thread of this machine does in a second: three rates, measured once and kept (lowering/kept.py).

lowering/profit.py turns them into times. They are measured when a site on CPU is first decided about, in about a
tenth of a second, and hold for the life of the process, so that a site that is compiled twice ends twice alike. Time
is that of the processor, so that other work on the machine does not count. Where the rates cannot be kept, or
measurements differ, the usual ones are taken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flex_inductor import compat
from flex_inductor.lowering import kept as files

log = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True)
class Rates:
    """Of one thread, in a second. products: floating-point operations of matrix products. exponentials: so many, of
    numbers in the cache. memory: bytes that are written into memory just allocated, as are intermediate tensors that
    fit into no cache. threads: how many share the work. measured: whether on this machine."""

    products: float
    exponentials: float
    memory: float
    threads: int = 1
    measured: bool = True

    def __post_init__(self) -> None:
        files.check(self.numbers)

    @property
    def numbers(self) -> dict[str, float]:
        return {"products": self.products, "exponentials": self.exponentials, "memory": self.memory}

    @property
    def whose(self) -> str:
        return "this machine's rates" if self.measured else "usual rates"


USUAL = Rates(9e10, 1.2e9, 2e9, measured=False)
"""Of an EPYC with AVX-512."""
STEADY = 1.5
"""The ratio up to which the best two of three measurements agree."""
SECONDS = 0.01
"""What a measurement takes, unless one call takes longer."""
FRESH = 33 << 20
"""Bytes that the allocator of C takes from the system anew each time, and gives back."""


class Unsteady(RuntimeError):
    """Measurements differ."""


def here() -> Rates:
    """The rates of this machine, the same whenever a process asks. Never raises."""
    with _lock:
        return found()


@functools.cache
def found() -> Rates:
    """The rates that are kept, or else measured, or else the usual ones."""
    try:
        return kept() or keep(measure())
    except Exception as error:
        log.info("usual rates are taken, because those of this machine are not known: %s", error)
        return USUAL


def usual() -> Rates:
    """The rates of a usual machine."""
    return USUAL


def machine() -> dict[str, Any]:
    """What the rates belong to."""
    cpu = f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def place() -> Path:
    """The file of this machine's rates."""
    return files.place(machine())


def kept() -> Rates | None:
    """The rates that were kept of this machine; None where there are none that can be read."""
    numbers = files.read(machine(), USUAL.numbers)
    try:
        return None if numbers is None else Rates(**numbers, threads=torch.get_num_threads())
    except (TypeError, ValueError):
        return None


def keep(rates: Rates) -> Rates:
    """Writes the rates, unless another process was first, and returns those that are kept. Raises OSError."""
    return kept() or renew(rates)


def renew(rates: Rates) -> Rates:
    """Writes the rates, whatever was kept. Raises OSError."""
    files.write(machine(), rates.numbers)
    return rates


def measure() -> Rates:
    """Measures the rates, in a thread of its own, which has no mode of the program's and computes alone. Raises
    Unsteady."""
    with ThreadPoolExecutor(1) as one:
        return Rates(*one.submit(_measured).result(), threads=torch.get_num_threads())


def _measured() -> tuple[float, float, float]:
    compat.compute_alone()
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    a, b, c = torch.full((256, 64), 0.5, **kind), torch.full((64, 256), 0.5, **kind), torch.zeros(256, 256, **kind)
    x = torch.linspace(-10, 0, 1 << 14, **kind)
    y = torch.zeros_like(x)
    return (
        steady(lambda: torch.mm(a, b, out=c), 2.0 * 256 * 64 * 256),
        steady(lambda: torch.exp(x, out=y), float(x.numel())),
        steady(lambda: torch.full((FRESH // 4,), 1.0, **kind), float(FRESH)),
    )


def steady(call: Callable[[], Any], amount: float, timed: Callable[[Callable[[], Any]], float] | None = None) -> float:
    """How much of something is done in a second, if a call does so much of it. timed: what says how long a call takes,
    if not `fastest`. Raises Unsteady."""
    first, second, _ = sorted((timed or fastest)(call) for _ in range(3))
    if second > STEADY * first:
        raise Unsteady("measurements differ")
    return amount / first


def fastest(call: Callable[[], Any]) -> float:
    """The seconds of the fastest of some calls."""
    times: list[float] = []
    while sum(times) < SECONDS:
        start = time.thread_time()
        call()
        times.append(max(time.thread_time() - start, 1e-9))
    return min(times)
