"""What our kernels cost, for every tile size in the tables: compiled to machine code, without a GPU.

    python -m tests.lowering.kernels [--stock] [--capability 80 90 100] [--defaults] [--write]

Prints a row for each: registers of a thread, bytes spilled, bytes of shared memory, columns of tensor memory, warnings
of ptxas that matrix products wait for each other (C75xx), tensor core instructions. `--stock`: torch's kernels of
forward and backward, in its own tile sizes, instead; its decoding does not compile with such a score_mod (2.13).
`--write`: into tests/lowering/kernels.csv, against which a test compares.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

from flex_inductor.lowering import configs, plan
from flex_inductor.lowering.configs import Config
from tests.lowering.cases import backward_in_one
from tests.support.gpuless import machine
from tests.support.gpuless.rendering import render

TABLE = Path(__file__).parent / "kernels.csv"
COLUMNS = ("kernel", "capability", "dtype", "dim", "block_m", "block_n", "warps", "stages", "default", "registers",
           "spills", "shared", "tensor_memory", "warnings", "tensor_core", "triton")  # fmt: skip
TABLES = {kind: table for kind, (table, _) in plan.KINDS.items()}
DROPOUT = 0.1
CAPABILITIES = (80, 90, 100)
SHAPES = [(torch.bfloat16, dim) for dim in (64, 128, 256)] + [(torch.float32, dim) for dim in (64, 128, 256)]
SHAPES += [(torch.bfloat16, dim) for dim in (80, 96, 192, 576)]  # in parts
WIDEST = 512
"""Of values: multi-head latent attention has queries of 576."""


def distance(q: Any, k: Any) -> Any:
    return torch.arange(k.shape[2]) - torch.arange(q.shape[2])[:, None]


def causal(q: Any, k: Any, v: Any, slopes: Any, p: float = 0.0) -> Any:
    """Causal attention with a score_mod that reads a tensor."""
    scores = q @ k.mT * q.shape[3] ** -0.5 + (slopes * distance(q, k)).to(q.dtype)
    weights = torch.softmax(torch.where(distance(q, k) <= 0, scores, float("-inf")).float(), -1)
    return torch.dropout(weights.to(v.dtype), p, True) @ v


def window(q: Any, k: Any, v: Any) -> Any:
    """Attention within a window, without a score_mod."""
    scores = q @ k.mT * q.shape[3] ** -0.5
    near = distance(q, k).abs() < 200
    return torch.softmax(torch.where(near, scores, float("-inf")).float(), -1).to(v.dtype) @ v


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """Attention with a number that is loaded, and learned, for every score."""
    return torch.softmax((q @ k.mT * q.shape[3] ** -0.5 + bias).float(), -1).to(v.dtype) @ v


def grouped(q: Any, k: Any, v: Any, slopes: Any) -> Any:
    """One query of eight heads that share two of keys and values."""
    k, v = (x.repeat_interleave(4, 1) for x in (k, v))
    scores = q @ k.mT * q.shape[3] ** -0.5 + (slopes * distance(q, k)).to(q.dtype)
    return torch.softmax(scores.float(), -1).to(v.dtype) @ v


def rows(
    capability: int, dtype: torch.dtype, dim: int, ours: bool = True, all_sizes: bool = True
) -> Iterator[dict[str, Any]]:
    """The kernels of forward, backward, and decoding for a device, a dtype and a head dimension; of ours, what is in
    VARIANTS besides, in the tile sizes that are taken without measuring."""
    found = {name: configs.configs(table, capability, dtype.itemsize, dim) for name, table in TABLES.items()}
    variants = {name: compiled for name, compiled in VARIANTS.items() if found["dq"] or name != "dropout"}
    for variant, compiled in variants.items() if ours else ():
        for name, kernel in compiled(capability, dtype, dim):
            options = configs.configs(TABLES[name], capability, dtype.itemsize, dim, dropout=variant == "dropout")
            about = described(kernel, taken(kernel, options), capability)
            yield {"kernel": f"{name}, {variant}", "capability": capability, "dtype": str(dtype)[6:], "dim": dim,
                   "default": True, **about}  # fmt: skip
    for number in range(max(map(len, found.values())) if ours and all_sizes else 1):
        chosen = {name: options[number] for name, options in found.items() if number < len(options)}
        with forced({**{name: options[0] for name, options in found.items() if options}, **chosen}):
            compiled = trained(capability, dtype, dim, ours) if chosen.keys() - {"fused", "decode"} else []
            compiled += fused(capability, dtype, dim) if ours and "fused" in chosen else []
            compiled += decoding(capability, dtype, dim) if ours and "decode" in chosen else []
        for name, kernel in compiled:
            if not ours or name in chosen:
                about = described(kernel, chosen.get(name) if ours else None, capability)
                given = {"kernel": name, "capability": capability, "dtype": str(dtype)[6:], "dim": dim}
                yield {**given, "default": number == 0, **about}


def forced(chosen: dict[str, Config]) -> Any:
    """Every kernel in one tile size."""

    def configs_of(table: Any, *given: Any) -> tuple[Config, ...]:
        name = next(name for name, known in TABLES.items() if known is table)
        return (chosen[name],) if name in chosen else ()

    return mock.patch.object(configs, "configs", configs_of)


def training(capability: int, dtype: torch.dtype, dim: int, ours: bool = True, p: float = 0.0) -> list[tuple[str, Any]]:
    """Compiled kernels by name, of forward and backward."""
    q, k, v = (torch.empty(2, 4, 2048, dim, dtype=dtype, requires_grad=True) for _ in range(3))
    rendered = render(causal, q, k, v, torch.empty(4, 1, 1), p, capability=capability, ours=ours)
    names = ("dq", "dkdv") if ours else ("backward",)
    return [*templates(rendered.forward, "prefill"), *templates(rendered.backward, *names)]


def trained(capability: int, dtype: torch.dtype, dim: int, ours: bool) -> list[tuple[str, Any]]:
    """The kernels of training; of inference, where there are none for gradients."""
    if configs.configs(configs.DQ, capability, dtype.itemsize, dim) or not ours:
        return training(capability, dtype, dim, ours)
    return inference(capability, dtype, dim, causal, (torch.empty(4, 1, 1),))


def fused(capability: int, dtype: torch.dtype, dim: int) -> list[tuple[str, Any]]:
    """The backward pass as one kernel."""
    q, k, v = (torch.empty(2, 4, 2048, dim, dtype=dtype, requires_grad=True) for _ in range(3))
    with backward_in_one():
        rendered = render(causal, q, k, v, torch.empty(4, 1, 1), capability=capability)
    return templates(rendered.backward, "fused")


def inference(
    capability: int, dtype: torch.dtype, dim: int, program: Any, more: tuple[torch.Tensor, ...] = ()
) -> list[tuple[str, Any]]:
    q, k, v = (torch.empty(2, 4, 2048, n, dtype=dtype) for n in (dim, dim, min(dim, WIDEST)))
    with torch.no_grad():
        rendered = render(program, q, k, v, *more, capability=capability)
    return templates(rendered.forward, "prefill")


def decoding(capability: int, dtype: torch.dtype, dim: int) -> list[tuple[str, Any]]:
    shapes = (8, 1, dim), (2, 2048, dim), (2, 2048, min(dim, WIDEST))
    q, k, v = (torch.empty(2, *shape, dtype=dtype) for shape in shapes)
    with torch.no_grad():
        rendered = render(grouped, q, k, v, torch.empty(8, 1, 1), capability=capability)
    return templates(rendered.forward, "decode")


VARIANTS: dict[str, Any] = {
    "dropout": functools.partial(training, p=DROPOUT),
    "inference": functools.partial(inference, program=causal, more=(torch.empty(4, 1, 1),)),
    "no score_mod": functools.partial(inference, program=window),
}
"""Other kernels than those of training with a score_mod, by what they differ in."""


def templates(compiled: Any, *names: str) -> list[tuple[str, Any]]:
    kernels = [k for k in compiled.kernels if k.inductor_meta["kernel_name"].startswith("triton_tem")]
    return [(name, k.compile_results[0].kernel) for name, k in zip(names, kernels, strict=True)]


def taken(kernel: Any, options: tuple[Config, ...]) -> Config:
    """The first of some tile sizes that a kernel can have been compiled with."""
    return next(c for c in options if (c.warps, c.stages) == (kernel.metadata.num_warps, kernel.metadata.num_stages))


def described(kernel: Any, config: Config | None, capability: int) -> dict[str, Any]:
    cost = machine.cost(kernel, capability)
    tiles = {"block_m": config.block_m, "block_n": config.block_n} if config else {"block_m": "", "block_n": ""}
    return {**tiles, "warps": kernel.metadata.num_warps, "stages": kernel.metadata.num_stages,
            "registers": cost.registers, "spills": cost.spills, "shared": cost.shared, "tensor_memory": cost.tensor,
            "warnings": " ".join(cost.warnings),
            "tensor_core": sum(cost.counts[name] for name in ("wgmma", "mma", "tcgen05")),
            "triton": triton.__version__}  # fmt: skip


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
    parser.add_argument("--defaults", action="store_true", help="only the tile sizes that are taken without measuring")
    parser.add_argument("--shape", type=int, help="only one of SHAPES")
    parser.add_argument("--capability", nargs="+", type=int, default=CAPABILITIES)
    args = parser.parse_args()
    found = []
    for capability in args.capability:
        for shape in SHAPES if args.shape is None else SHAPES[args.shape : args.shape + 1]:
            new = list(rows(capability, *shape, ours=not args.stock, all_sizes=not args.defaults))
            print(text(new) if not found else text(new).split("\n", 1)[1], end="", flush=True)
            found += new
    if args.write:
        TABLE.write_text(text(found))


if __name__ == "__main__":
    main()
