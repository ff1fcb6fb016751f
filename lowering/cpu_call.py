"""A call of flex_attention on the CPU as a lowering gets it, made ready for a C++ template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sympy
import torch

from flex_inductor import compat
from flex_inductor.compat import buffers
from flex_inductor.compat import cpp as inductor
from flex_inductor.compat import cpp_rows as rows
from flex_inductor.lowering import cpu_bounds
from flex_inductor.lowering.mods import is_identity
from flex_inductor.lowering.support import DTYPES
from flex_inductor.lowering.unsupported import Unsupported

TEMPLATES = Path(__file__).parent / "templates"
QUERIES, KEYS, UNIT = 64, 512, 64
"""Queries and keys of a tile, and the keys at whose multiples it begins. Measured by bench/attention_cpu.py."""
SMALLEST = 16
"""The least number of queries, and of keys, in a block of a list: of less, brgemm makes little."""


@dataclass
class Call:
    """What forward and backward have in common. As lowering.call.Call; mask is None in a call that is the program's
    own, whose lists of blocks are to be visited."""

    query: Any
    key: Any
    value: Any
    score_graph: Any
    blocks: Any
    mask: str | None
    dropout: float
    scale: float
    options: dict[str, Any]
    score_reads: Sequence[Any]
    mask_reads: Sequence[Any]

    def __post_init__(self) -> None:
        """Raises Unsupported for what no kernel of ours does."""
        if compat.cpu_kernels_lack():
            raise Unsupported(compat.cpu_kernels_lack())
        sizes = inductor.sizes()
        fixed = [self.query.get_size()[1], self.key.get_size()[1], self.query.get_size()[3], self.value.get_size()[3]]
        if not all(sympy.sympify(n).is_Integer for n in fixed):
            raise Unsupported("a dynamic number of heads or head dimension")
        if {self.query.get_dtype(), self.key.get_dtype(), self.value.get_dtype()} - {self.dtype}:
            raise Unsupported("queries, keys and values of different dtypes")
        if self.dtype not in DTYPES:
            raise Unsupported(f"no kernel for {self.dtype}")
        batch, kv_batch = self.query.get_size()[0], self.key.get_size()[0]
        if not (sizes.statically_known_equals(batch, kv_batch) or sizes.statically_known_equals(kv_batch, 1)):
            raise Unsupported("different batch sizes")
        if self.options.get("SKIP_MASK_SCORE"):
            raise Unsupported("kernel options are for torch's kernel")

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.query.get_dtype()
        return dtype

    @property
    def lengths(self) -> tuple[Any, Any]:
        return self.query.get_size()[2], self.key.get_size()[2]

    @cached_property
    def listed(self) -> dict[str, Any]:
        """The entries of the block mask by name."""
        return compat.block_mask_entries(self.blocks)

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Queries and keys in a block of the lists. Raises Unsupported for what tiles cannot be made of."""
        found = [inductor.number(self.listed[name]) for name in ("q_width", "k_width")]
        if min(math.gcd(found[0], QUERIES), math.gcd(found[1], UNIT)) < SMALLEST:
            raise Unsupported(f"blocks of {found[0]} x {found[1]}")
        return found[0], found[1]

    @cached_property
    def loops(self) -> cpu_bounds.Loops | None:
        """The loops of the mask's formula; None for the lists of blocks. Raises Unsupported."""
        if self.mask:
            return cpu_bounds.loops(self.mask, self.lengths, (QUERIES, UNIT))
        if inductor.number(self.listed["q_width"]) < compat.ONE_BLOCK:
            assert self.widths
            return None
        everything = cpu_bounds.Loop("0", f"(KV_LEN + {UNIT - 1}) / {UNIT}", True)
        return cpu_bounds.Loops((), (everything,))

    @property
    def tile(self) -> dict[str, Any]:
        """The sizes of tiles, as a template is told them."""
        if self.loops is not None:
            return {"BLOCK_M": QUERIES, "BLOCK_N": KEYS, "UNIT": UNIT}
        queries, keys = self.widths
        sizes = {"BLOCK_M": math.gcd(queries, QUERIES), "BLOCK_N": KEYS, "UNIT": math.gcd(keys, UNIT)}
        return {**sizes, "Q_WIDTH": queries, "K_WIDTH": keys}

    @property
    def plain(self) -> bool:
        """Whether the score_mod gives back the score, of which then the greatest may be taken before it is scaled."""
        return is_identity(self.score_graph) and self.scale > 0

    @property
    def native(self) -> bool:
        """Whether the machine multiplies numbers of the call's dtype, which takes them in pairs."""
        dims = self.query.get_size()[3], self.value.get_size()[3]
        return self.dtype == torch.bfloat16 and compat.cpu_multiplies_bfloat16() and not any(int(n) % 2 for n in dims)

    @cached_property
    def masked(self) -> bool:
        """Whether the mask hides anything."""
        nodes = self.blocks[-1].graph_module.graph.nodes
        made = [n for n in nodes if n.op == "call_function"]
        full = len(made) == 1 and made[0].target is torch.ops.aten.full.default and made[0].args[1] is True
        return not full

    @cached_property
    def reads(self) -> tuple[list[Any], list[Any]]:
        """What score_mod and mask_mod capture, in memory."""
        return [buffers.stored(x) for x in self.score_reads], [buffers.stored(x) for x in self.mask_reads]

    @property
    def captured(self) -> list[Any]:
        return [*self.reads[0], *self.reads[1]]

    def random_rows(self) -> dict[str, Any]:
        """The random bits of the queries, where there is dropout, by their name in the templates."""
        return {"RANDOM": inductor.in_memory(self.reads[1][0])} if self.dropout else {}

    def operands(self) -> tuple[Any, Any, Any]:
        """Query, key and value in memory, a row's numbers side by side."""
        self.query, self.key, self.value = map(inductor.in_rows, (self.query, self.key, self.value))
        return self.query, self.key, self.value

    def traced(self) -> Traced:
        """The mods as functions of a row."""
        row = rows.Row(self.query.get_size()[2])
        score = row.numbers(rows.ROW)
        scaled, positions = row.scaled(score, self.scale), row.positions()
        if not self.plain:
            score = rows.traced(self.score_graph, [scaled, *positions, *self.reads[0]])
        mask = rows.traced(self.blocks[-1], [*positions, *self.reads[1]]) if self.masked else None
        return Traced(row, scaled, positions, score, mask)

    def lists(self) -> dict[str, Any]:
        """The lists of blocks that are visited, by their names in the templates."""
        if self.loops is not None:
            return {}
        if compat.has_runs(self.blocks):
            return {"RUNS": inductor.in_memory(self.listed["kv_indices"])}
        names = {f"{full}{what}": f"{full.lower()}kv_{entry}" for full in ("", "FULL_")
                 for what, entry in (("COUNTS", "num_blocks"), ("PLACES", "indices"))}  # fmt: skip
        return {
            name: inductor.in_memory(self.listed[entry])
            for name, entry in names.items()
            if self.listed.get(entry) is not None
        }

    def constants(self) -> dict[str, Any]:
        """What all templates are told."""
        heads, kv_heads = self.query.get_size()[1], self.key.get_size()[1]
        return {
            **self.tile,
            "LOOPS": self.loops,
            "PLAIN": self.plain,
            "MASKED": self.masked,
            "SCALE": inductor.float_code(self.scale),
            "GROUP": int(heads) // int(kv_heads),
            "QK_DIM": int(self.query.get_size()[3]),
            "V_DIM": int(self.value.get_size()[3]),
            "NATIVE": self.native,
            "DROPOUT": bool(self.dropout),
            "DROPPED_BELOW": min(round(self.dropout * 2**32), 2**32 - 1),
            "KEPT_SCALE": inductor.float_code(1 / (1 - self.dropout)),
        }


@dataclass(frozen=True)
class Traced:
    """Mods as functions of a row. scaled: its scores, before the score_mod. positions: batch, head, query, keys. mask:
    None where it hides nothing."""

    row: Any
    scaled: Any
    positions: list[Any]
    score: Any
    mask: Any

    def scores(self, to: str) -> dict[str, tuple[Any, ...]]:
        """Code for rows of scores, by its name in the templates: the score_mod, with the mask applied, and the mask
        alone, 0 or -inf. to: the row that they are written to."""
        made = {"modified": (self.row, {to: lambda: rows.value_of(self.score)})}
        if self.mask is not None:
            made["attended"] = self.row, {to: lambda: rows.masked(self.mask, self.score, -math.inf)}
            zero = self.row.constant(0.0)
            made["hidden"] = self.row, {to: lambda: rows.masked(self.mask, zero, -math.inf)}
        return made


def source(name: str) -> str:
    """The text of a kernel."""
    return (TEMPLATES / "cpu_common.h.jinja").read_text() + (TEMPLATES / f"{name}.cpp.jinja").read_text()
