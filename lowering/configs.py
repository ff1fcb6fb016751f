"""Tile sizes of our Triton kernels, by kind of kernel and generation of the device. All are listed, so that each can be
rendered and compiled without a GPU: tests/lowering/kernels.csv has what every one of them costs.

Those of devices of 9.0 were measured on an H100 (bench/results/tiles.csv). The first that fits is taken; with
max_autotune all that fit are measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """block_m, block_n: queries and keys in a tile. warps: of a program. stages: tiles that are loaded ahead."""

    block_m: int
    block_n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Row:
    """Configs for devices from a compute capability on, for numbers of at most some bytes and heads of at most some
    dimensions. dropout: those of calls with dropout, where they are others."""

    capability: int
    bytes: int
    dims: int
    configs: tuple[Config, ...]
    dropout: tuple[Config, ...] = ()


PREFILL = (
    Row(100, 2, 64, (Config(128, 64, 4, 3), Config(128, 128, 8, 3))),
    Row(100, 2, 128, (Config(128, 64, 8, 3), Config(128, 128, 8, 2))),
    Row(100, 2, 256, (Config(128, 32, 8, 2), Config(128, 64, 8, 2))),
    Row(100, 4, 64, (Config(32, 64, 8, 2),)),
    Row(100, 4, 128, (Config(16, 64, 8, 2), Config(32, 64, 8, 2))),
    Row(90, 2, 64, (Config(64, 128, 4, 2), Config(128, 64, 4, 3), Config(128, 64, 8, 3))),
    Row(90, 2, 128, (Config(128, 64, 8, 3), Config(128, 128, 8, 3), Config(64, 64, 4, 3))),
    Row(90, 2, 256, (Config(128, 64, 8, 2), Config(128, 32, 8, 3))),
    Row(90, 2, 576, (Config(32, 32, 8, 1), Config(64, 32, 8, 2))),
    Row(90, 4, 64, (Config(32, 64, 4, 3), Config(64, 32, 4, 2))),
    Row(90, 4, 128, (Config(32, 32, 4, 2), Config(128, 64, 8, 1))),
    Row(90, 4, 256, (Config(32, 32, 8, 1), Config(16, 32, 8, 1))),
    Row(80, 2, 64, (Config(128, 64, 8, 3), Config(128, 64, 4, 3), Config(64, 64, 4, 3))),
    Row(80, 2, 128, (Config(128, 64, 8, 2), Config(64, 64, 4, 2))),
    Row(80, 2, 256, (Config(64, 32, 8, 2),)),
    Row(80, 2, 576, (Config(32, 32, 8, 1),)),
    Row(80, 4, 128, (Config(32, 64, 8, 2),)),
    Row(80, 4, 256, (Config(16, 32, 8, 1), Config(32, 32, 8, 1))),
)
DQ = (
    Row(100, 2, 128, (Config(128, 64, 8, 2), Config(64, 64, 4, 2))),
    Row(100, 2, 256, (Config(64, 32, 8, 2), Config(128, 32, 8, 2))),
    Row(100, 4, 128, (Config(16, 16, 4, 2),)),
    Row(90, 2, 64, (Config(128, 64, 8, 3), Config(64, 128, 4, 3), Config(64, 64, 4, 2))),
    Row(90, 2, 128, (Config(128, 64, 8, 3), Config(64, 64, 4, 2), Config(128, 64, 8, 2))),
    Row(90, 2, 256, (Config(128, 32, 8, 2), Config(128, 32, 8, 3))),
    Row(90, 4, 64, (Config(64, 32, 4, 2), Config(32, 64, 4, 2))),
    Row(90, 4, 128, (Config(32, 32, 4, 2), Config(16, 32, 4, 2)), (Config(16, 32, 4, 2),)),
    Row(90, 4, 256, (Config(16, 16, 4, 2),)),
    Row(80, 2, 64, (Config(64, 32, 4, 2), Config(128, 64, 8, 2), Config(64, 64, 4, 2))),
    Row(80, 2, 128, (Config(64, 64, 8, 2), Config(64, 32, 4, 2))),
    Row(80, 2, 256, (Config(32, 32, 8, 1),)),
    Row(80, 4, 128, (Config(32, 32, 8, 2),)),
    Row(80, 4, 256, (Config(16, 16, 4, 2),)),
)
DKDV = (
    Row(100, 2, 64, (Config(64, 128, 8, 2),)),
    Row(100, 2, 128, (Config(64, 64, 8, 2),)),
    Row(100, 2, 256, (Config(32, 32, 8, 2),)),
    Row(100, 4, 128, (Config(32, 32, 8, 1),)),
    Row(90, 2, 64, (Config(64, 64, 4, 3), Config(32, 64, 4, 3), Config(64, 128, 8, 2))),
    Row(90, 2, 128, (Config(64, 64, 4, 2), Config(64, 128, 8, 3), Config(64, 128, 8, 2)), (Config(64, 128, 8, 2),)),
    Row(90, 2, 256, (Config(64, 64, 8, 2), Config(32, 64, 8, 3))),
    Row(90, 4, 64, (Config(32, 64, 4, 2), Config(64, 32, 4, 2))),
    Row(90, 4, 128, (Config(32, 16, 4, 1), Config(32, 32, 4, 2))),
    Row(90, 4, 256, (Config(16, 32, 8, 1),)),
    Row(80, 2, 64, (Config(64, 128, 8, 2), Config(32, 64, 4, 2))),
    Row(80, 2, 128, (Config(64, 64, 8, 2),)),
    Row(80, 2, 256, (Config(32, 32, 8, 1),)),
    Row(80, 4, 128, (Config(32, 32, 8, 1),)),
    Row(80, 4, 256, (Config(16, 32, 8, 1),)),
)
FUSED = (
    Row(100, 2, 64, (Config(64, 128, 8, 2), Config(64, 64, 4, 2))),
    Row(100, 2, 128, (Config(64, 64, 8, 2), Config(64, 64, 4, 2))),
    Row(90, 2, 64, (Config(64, 128, 8, 2), Config(64, 64, 4, 2), Config(64, 128, 8, 3))),
    Row(90, 2, 128, (Config(64, 64, 8, 2), Config(64, 128, 8, 2), Config(64, 64, 4, 2))),
    Row(80, 2, 64, (Config(32, 128, 8, 2), Config(64, 64, 4, 2), Config(32, 64, 4, 2))),
    Row(80, 2, 128, (Config(64, 64, 8, 2), Config(32, 64, 8, 2))),
)
"""Of dkdv that computes the gradients of queries as well. By registers and shared memory alone: no GPU has measured
them."""
DECODE = (
    Row(90, 2, 128, (Config(16, 64, 4, 3), Config(16, 128, 4, 2))),
    Row(90, 2, 256, (Config(16, 64, 4, 2),)),
    Row(90, 2, 576, (Config(16, 32, 8, 2),)),
    Row(80, 2, 64, (Config(16, 64, 4, 3), Config(16, 32, 4, 3))),
    Row(80, 2, 128, (Config(16, 64, 4, 2),)),
    Row(80, 2, 256, (Config(16, 32, 4, 2),)),
    Row(80, 2, 576, (Config(16, 32, 8, 1),)),
    Row(80, 4, 128, (Config(16, 32, 8, 2),)),
    Row(80, 4, 256, (Config(16, 16, 8, 2),)),
)
"""Of decoding, the number of rows follows from the call."""


WARP_GROUP = 64
"""Rows of the tiles that several warps multiply together, from devices of 9.0 on."""
LEAST_PARTS = {"prefill": 16, "dq": 64, "dkdv": 64, "fused": 64, "decode": 32}
"""Of heads of so many dimensions more than a power of two, the least that are a part of their own where each warp
multiplies by itself: in parts of few columns several warps compute the same. Elsewhere 16."""


def computed(dim: int, kind: str, capability: int, bytes: int, config: Config) -> int:
    """The dimensions that a kernel computes for a head of so many: a power of two, or the sum of two, the greater one
    at least 64. Numbers of more than 16 bits have no parts: with them kernels spill."""
    whole = max(16, power_of_two(dim))
    half = whole // 2
    if bytes > 2 or half < 64:
        return whole
    rows = config.block_n if kind in ("dkdv", "fused") else config.block_m
    together = generation(capability) >= 90 and rows >= WARP_GROUP
    return min(whole, half + max(16 if together else LEAST_PARTS[kind], power_of_two(dim - half)))


def power_of_two(n: int) -> int:
    """The least that is no less than n."""
    return 1 << (n - 1).bit_length()


def float32_precision(wanted: str, capability: int, dims: int) -> str:
    """The precision of float32 products in Triton's words, for what the program wants: with tensor cores in three
    parts, which keep 22 bits, where the tile sizes are made for that: on an H100 the faster way, and exact by the rule
    of the tests."""
    return "tf32x3" if wanted == "ieee" and 90 <= capability < 100 and dims <= 128 else wanted


def configs(table: Iterable[Row], capability: int, bytes: int, dims: int, dropout: bool = False) -> tuple[Config, ...]:
    """The configs for a device and a head; none where the table has none."""
    capability = generation(capability)
    rows = (r for r in table if capability >= r.capability and bytes <= r.bytes and dims <= r.dims)
    row = next(rows, Row(0, 0, 0, ()))
    return (row.dropout if dropout else ()) or row.configs


def generation(capability: int) -> int:
    """Devices of 12.0 are smaller chips again, with the tensor cores and the shared memory of those of 8.x."""
    return 80 if capability >= 120 else capability
