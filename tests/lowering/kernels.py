"""What our kernels cost, for every tile size in the tables: compiled to machine code, without a GPU.

    python -m tests.lowering.kernels [--stock] [--capability 80 90 100] [--write]

Prints a row for each: registers of a thread, bytes spilled, bytes of shared memory, warnings of ptxas that matrix
products wait for each other (C75xx), tensor core instructions. `--stock`: torch's kernels instead, with its own tile
sizes. `--write`: into tests/lowering/kernels.csv, against which a test compares.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from flex_inductor.lowering import configs
from flex_inductor.lowering.configs import Config
from tests.support.gpuless import machine
from tests.support.gpuless.rendering import render

TABLE = Path(__file__).parent / "kernels.csv"
COLUMNS = ("kernel", "capability", "dtype", "dim", "block_m", "block_n", "warps", "stages", "default", "registers",
           "spills", "shared", "warnings", "tensor_core")  # fmt: skip
TABLES = {"prefill": configs.PREFILL, "dq": configs.DQ, "dkdv": configs.DKDV}
CAPABILITIES = (80, 90, 100)
SHAPES = [(torch.bfloat16, dim) for dim in (64, 128, 256)] + [(torch.float32, dim) for dim in (64, 256)]


def alibi(q: Any, k: Any, v: Any, slopes: Any) -> Any:
    """Causal attention with a score_mod that reads a tensor."""
    places = torch.arange(q.shape[2])
    distance = places - places[:, None]
    scores = q @ k.mT * q.shape[3] ** -0.5 + (slopes * distance).to(q.dtype)
    return torch.softmax(torch.where(distance <= 0, scores, float("-inf")).float(), -1).to(v.dtype) @ v


def rows(capability: int, dtype: torch.dtype, dim: int, ours: bool = True) -> Iterator[dict[str, Any]]:
    """The kernels of forward and backward for a device, a dtype and a head dimension: all tile sizes."""
    given = capability, dtype.itemsize, dim
    found = {name: configs.configs(table, *given) for name, table in TABLES.items()}
    for number in range(max(map(len, found.values())) if ours else 1):
        chosen = {name: options[number] for name, options in found.items() if number < len(options)}
        with mock.patch.object(configs, "configs", lambda table, *_: (only(table, chosen, found),)):
            compiled = training(capability, dtype, dim, ours)
        for name, kernel in compiled:
            if ours and name not in chosen:
                continue
            yield {"kernel": name, "capability": capability, "dtype": str(dtype)[6:], "dim": dim,
                   "default": number == 0, **described(kernel, chosen.get(name), capability)}  # fmt: skip


def only(table: Any, chosen: dict[str, Config], found: dict[str, tuple[Config, ...]]) -> Config:
    name = next(name for name, known in TABLES.items() if known is table)
    return chosen.get(name, found[name][0])


def training(capability: int, dtype: torch.dtype, dim: int, ours: bool) -> list[tuple[str, Any]]:
    """Compiled kernels of attention by name."""
    q, k, v = (torch.empty(2, 4, 2048, dim, dtype=dtype, requires_grad=True) for _ in range(3))
    rendered = render(alibi, q, k, v, torch.empty(4, 1, 1), capability=capability, ours=ours)
    found = []
    for part, names in ((rendered.forward, ["prefill"]), (rendered.backward, ["dq", "dkdv"] if ours else ["backward"])):
        kernels = [k for k in part.kernels if k.inductor_meta["kernel_name"].startswith("triton_tem")]
        found += [(name, k.compile_results[0].kernel) for name, k in zip(names, kernels, strict=True)]
    return found


def described(kernel: Any, config: Config | None, capability: int) -> dict[str, Any]:
    cost = machine.cost(kernel, capability)
    tiles = {"block_m": config.block_m, "block_n": config.block_n} if config else {"block_m": "", "block_n": ""}
    return {**tiles, "warps": kernel.metadata.num_warps, "stages": kernel.metadata.num_stages,
            "registers": cost.registers, "spills": cost.spills, "shared": cost.shared,
            "warnings": " ".join(cost.warnings),
            "tensor_core": sum(cost.counts[name] for name in ("wgmma", "mma", "tcgen05"))}  # fmt: skip


def text(found: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--capability", nargs="+", type=int, default=CAPABILITIES)
    args = parser.parse_args()
    found = []
    for capability in args.capability:
        for shape in SHAPES:
            new = list(rows(capability, *shape, ours=not args.stock))
            print(text(new).split("\n", 1)[1], end="", flush=True)
            found += new
    if args.write:
        TABLE.write_text(text(found))


if __name__ == "__main__":
    main()
