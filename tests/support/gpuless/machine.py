"""What a compiled kernel costs: registers, spills, shared memory, instructions, and what ptxas warns of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.nvidia.compiler import get_ptxas

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INSTRUCTIONS = {"wgmma": r"\bHGMMA", "mma": r"\bHMMA", "tcgen05": r"\bUTC\w*MMA", "tma": r"\bUTMALDG",
                "async_copies": r"\bLDGSTS"}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """spills: bytes stored and loaded. shared: bytes of shared memory. tensor: columns of tensor memory. warnings:
    C75xx of ptxas, which say that matrix products wait for each other. counts: INSTRUCTIONS by name."""

    registers: int
    spills: int
    shared: int
    tensor: int
    warnings: tuple[str, ...]
    counts: dict[str, int]


def cost(kernel: Any, capability: int) -> Cost:
    """Of a compiled kernel. Raises RuntimeError if ptxas does not take its code."""
    said = assembled(kernel.asm["ptx"], capability)
    registers, stored, loaded = (
        number(pattern, said)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    )
    code = disassembled(kernel.asm["cubin"])
    return Cost(
        registers, stored + loaded, kernel.metadata.shared, getattr(kernel.metadata, "tmem_size", 0) or 0,
        tuple(sorted(set(re.findall(r"\b(C75\d\d)\b", said)))),
        {name: len(re.findall(pattern, code)) for name, pattern in INSTRUCTIONS.items()},
    )  # fmt: skip


def number(pattern: str, text: str) -> int:
    """The greatest that is said of a function: there may be others beside the kernel."""
    found = re.findall(pattern, text)
    assert found, f"{pattern!r} not in {text!r}"
    return max(map(int, found))


def assembled(ptx: str, capability: int) -> str:
    """What ptxas says."""
    name = f"sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool = get_ptxas(capability).path
        done = subprocess.run(
            [tool, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"], capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr[-500:]}")
    return done.stderr + done.stdout


def disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
