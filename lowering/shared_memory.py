"""How much shared memory a Triton kernel takes, by its tile size: what its loops load ahead, and what stays.

Measured by compiling (tests/lowering/kernels.csv): for numbers of 16 bits on devices of 9.0 no kernel takes more. A
kernel that takes more than the device has does not compile.
"""

from __future__ import annotations

from flex_inductor.lowering.configs import WARP_GROUP, Config

SLACK = 2048
"""Numbers of a row, and exchanges between warps."""
TURNED = 3
"""Copies of a tile of scores that is turned, where its rows are fewer than warps multiply together."""
FEW_LOOPS = 2
"""Beyond so many loops, what they all read is kept a second time."""


def expected(kind: str, config: Config, dims: tuple[int, int], bytes: int, loaded: int, loops: int) -> int:
    """Bytes of shared memory. dims: of heads, of queries and of values. bytes: of a number. loaded: of what mods load
    for every score. loops: their number."""
    wide, queries = sum(dims) * bytes, dims[0] * bytes
    ahead, stays, again = config.block_n * wide, config.block_m * queries, config.block_m * queries
    if kind == "dq":
        stays, again = config.block_m * wide, config.block_m * config.block_n * bytes
    elif kind in ("dkdv", "fused"):
        ahead, stays, again = config.block_m * wide, config.block_n * wide, 0
    stages = config.stages
    if kind == "fused":  # which still reads a tile of queries while the next are loaded, and turns a tile of scores
        stages += 1
        stays += (1 if config.block_m >= WARP_GROUP else TURNED) * config.block_m * config.block_n * bytes
    ahead += config.block_m * config.block_n * loaded
    return stages * ahead + stays + (again if loops > FEW_LOOPS else 0) + SLACK
