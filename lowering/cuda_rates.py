"""What a GPU does in a second: products of large matrices, exponentials, and bytes of memory.

By default as its properties say: multiprocessors, clocks and the width of its memory, times what a multiprocessor of
its generation does in a tick. `flex-inductor calibrate` measures instead, and keeps what it finds (lowering/kept.py).
lowering/cuda_profit.py turns rates into times.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flex_inductor.compat import cuda
from flex_inductor.lowering import kept as files
from flex_inductor.lowering.rates import steady

log = logging.getLogger(__name__)
_lock = threading.Lock()


@dataclass(frozen=True)
class Rates:
    """Of a device, in a second. half, single: floating-point operations of products of large matrices of 16 bits, and
    of float32 without tensor cores. exponentials: so many, in registers. memory: bytes that are read or written.
    capability: 90 for 9.0. measured: whether on this device."""

    half: float
    single: float
    exponentials: float
    memory: float
    capability: int
    measured: bool = False

    def __post_init__(self) -> None:
        files.check(self.numbers)

    @property
    def numbers(self) -> dict[str, float]:
        return {"half": self.half, "single": self.single, "exponentials": self.exponentials, "memory": self.memory}

    @property
    def whose(self) -> str:
        return "this device's rates" if self.measured else "the rates of such a device"

    def products(self, dtype: torch.dtype, precision: str) -> float:
        """Operations of products. precision: of float32, in Triton's words; three products of TensorFloat-32 are one of
        float32."""
        if dtype.itemsize <= 2:
            return self.half
        return {"tf32": self.half / 2, "tf32x3": self.half / 6}.get(precision, self.single)


H100 = Rates(694e12, 50e12, 3.7e12, 3e12, 90)
"""As measured (bench/results/attention_cuda.csv), for a device of which nothing is known."""
IN_A_TICK = ((120, 1024, 256), (100, 8192, 256), (90, 4096, 256), (86, 1024, 256), (80, 2048, 128), (0, 1024, 128))
"""Operations that a multiprocessor does in a tick with 16 bits and with float32, from a compute capability on."""
EXPONENTIALS = 16
"""In a tick."""
ATTAINED = {"half": 0.7, "single": 0.75, "memory": 0.9}
"""The share of the peak rates that large products and copies reach."""
SIZE, COPIED = 4096, 1 << 28
"""Rows and columns of the matrices that are multiplied, and bytes that are copied, to measure."""


def here() -> Rates:
    """The rates of the device in use that were measured, or else the usual ones: always the same. Never raises."""
    with _lock:
        return found()


@functools.cache
def found() -> Rates:
    """The rates that were measured and kept, or else the usual ones."""
    try:
        return kept() or usual()
    except Exception as error:
        log.info("no measured rates of this device are known: %s", error)
        return usual()


def usual() -> Rates:
    """The rates that properties tell of, or else an H100's. Never raises."""
    try:
        return of_properties()
    except Exception as error:
        log.info("the rates of an H100 are taken, because those of this device are not known: %s", error)
        return H100


def of_properties() -> Rates:
    """The rates that such a device has."""
    capability, (clock, memory_clock) = cuda.capability(), cuda.hertz()
    half, single = next(row[1:] for row in IN_A_TICK if capability >= row[0])
    ticks = clock * cuda.processors()
    return Rates(
        half=ATTAINED["half"] * ticks * half,
        single=ATTAINED["single"] * ticks * single,
        exponentials=ticks * EXPONENTIALS,
        memory=ATTAINED["memory"] * memory_clock * cuda.memory_bytes(),
        capability=capability,
    )


def machine() -> dict[str, Any]:
    """What the rates belong to."""
    return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}


def place() -> Path:
    """The file of this device's rates."""
    return files.place(machine())


def kept() -> Rates | None:
    """The rates that were kept of the device in use; None where there are none that can be read."""
    numbers = files.read(machine(), H100.numbers)
    try:
        return None if numbers is None else Rates(**numbers, capability=cuda.capability(), measured=True)
    except (TypeError, ValueError):
        return None


def renew(rates: Rates) -> Rates:
    """Writes the rates, whatever was kept. Raises OSError."""
    files.write(machine(), rates.numbers)
    return rates


def measure(on: str = "cuda") -> Rates:
    """Measures the rates, but exponentials, which no operator of torch's does without memory. on: the device. Raises
    Unsteady."""
    such = of_properties()
    a, b = (torch.full((SIZE, SIZE), 0.5, device=on) for _ in range(2))
    narrow = torch.bfloat16 if such.capability >= 80 else torch.float16
    x, y = a.to(narrow), b.to(narrow)
    source, target = (torch.full((COPIED,), 1, dtype=torch.uint8, device=on) for _ in range(2))
    operations = 2.0 * SIZE**3
    return Rates(
        half=steady(lambda: torch.mm(x, y), operations, fastest),
        single=steady(lambda: torch.mm(a, b), operations, fastest),
        exponentials=such.exponentials,
        memory=steady(lambda: target.copy_(source), 2.0 * COPIED, fastest),
        capability=such.capability,
        measured=True,
    )


def fastest(call: Callable[[], Any], runs: int = 5) -> float:
    """The seconds of the fastest of some calls, each until the device is done."""
    times = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
