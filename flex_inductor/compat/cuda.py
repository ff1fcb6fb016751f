"""What releases of torch say of a GPU, and of how it is to compute. Needs no Triton."""

from __future__ import annotations

import torch


def float32_precision() -> str:
    """The precision of float32 products that the program has set, in Triton's words."""
    wanted = torch.backends.cuda.matmul.fp32_precision
    if wanted == "none":  # not set in the newer of torch's two ways
        wanted = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if wanted == "tf32" else "ieee"


def capability() -> int:
    """The compute capability of the device in use: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def hertz() -> tuple[float, float]:
    """The clock of the device in use, and that of its memory."""
    about = torch.cuda.get_device_properties()
    return 1e3 * about.clock_rate, 1e3 * about.memory_clock_rate


def processors() -> int:
    """How many multiprocessors the device in use has."""
    return int(torch.cuda.get_device_properties().multi_processor_count)


def memory_bytes() -> float:
    """The bytes that the memory of the device in use delivers for each tick of its clock: two words."""
    return 2 * torch.cuda.get_device_properties().memory_bus_width / 8
