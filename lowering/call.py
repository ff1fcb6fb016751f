"""A call of flex_attention as a lowering gets it, made ready for a template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch

from flex_inductor import compat
from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.mods import bytes_per_score, is_identity
from flex_inductor.lowering.plan import Problem, Variant, plan
from flex_inductor.lowering.unsupported import Unsupported

INDICES = ("b", "h", "m", "n")


@dataclass
class Call:
    """What forward and backward have in common. query, key, value: Inductor tensors (batch, heads, length, dimension).
    score_graph: a subgraph. blocks: the block-mask argument. mask: the mask's formula as text; empty where the blocks
    of lists are to be visited. dropout: the share of the probabilities that are dropped. reads: what the mods
    capture."""

    query: Any
    key: Any
    value: Any
    score_graph: Any
    blocks: Any
    mask: str
    dropout: float
    scale: float
    options: dict[str, Any]
    score_reads: Sequence[Any]
    mask_reads: Sequence[Any]

    def __post_init__(self) -> None:
        """Raises Unsupported for what no kernel of ours does."""
        sizes = inductor.sizes()
        dims = [self.query.get_size()[-1], self.value.get_size()[-1]]
        heads = [self.query.get_size()[1], self.key.get_size()[1]]
        if not all(sympy.sympify(n).is_Integer for n in (*dims, *heads)):
            raise Unsupported("a dynamic number of heads or head dimension")
        if {self.key.get_dtype(), self.value.get_dtype()} != {self.dtype}:
            raise Unsupported("queries, keys and values of different dtypes")
        batches = [self.query.get_size()[0], self.key.get_size()[0]]
        if not (sizes.statically_known_equals(*batches) or sizes.statically_known_equals(batches[1], 1)):
            raise Unsupported("different batch sizes")
        chosen = [name for name in self.options if name.startswith(("fwd_", "bwd_", "BLOCK_", "num_"))]
        if chosen or self.options.get("BACKEND", "AUTO") not in ("AUTO", "TRITON") or self.options.get("PRESCALE_QK"):
            raise Unsupported("kernel options are for torch's kernel")

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.query.get_dtype()
        return dtype

    @property
    def qk_dim(self) -> int:
        return int(self.query.get_size()[-1])

    @property
    def v_dim(self) -> int:
        return int(self.value.get_size()[-1])

    @property
    def kv_heads(self) -> int:
        return int(self.key.get_size()[1])

    @property
    def group(self) -> int:
        """The number of heads that share keys and values."""
        return int(self.query.get_size()[1]) // self.kv_heads

    @property
    def lengths(self) -> tuple[Any, Any]:
        return self.query.get_size()[2], self.key.get_size()[2]

    @cached_property
    def capability(self) -> int:
        """The device's compute capability: 90 for 9.0."""
        major, minor = torch.cuda.get_device_capability(self.query.get_device())
        return 10 * major + minor

    @cached_property
    def score_mod(self) -> Any:
        """The score_mod as code for a template."""
        return self.mod(self.score_graph, self.score_reads, score=self.dtype)

    @cached_property
    def mask_mod(self) -> Any:
        return self.mod(self.blocks[-1], self.mask_reads)

    def mod(self, graph: Any, reads: Sequence[Any], **first: torch.dtype) -> Any:
        dtypes = {**first, **dict.fromkeys(INDICES, torch.int32)}
        return inductor.mod(graph, dtypes, self.query.get_device(), reads)

    @property
    def plain(self) -> bool:
        """Whether the score_mod gives back the score, of which then the greatest may be taken before it is scaled."""
        return is_identity(self.score_graph) and self.scale > 0

    @property
    def in_base_2(self) -> float:
        """The factor that makes scores exponents of 2. Without a score_mod the scale is in it."""
        return math.log2(math.e) * (self.scale if self.plain else 1.0)

    @property
    def random_rows(self) -> list[Any]:
        """The random bits of the queries, where there is dropout."""
        return [self.captured[len(self.score_reads)]] if self.dropout else []

    @cached_property
    def captured(self) -> list[Any]:
        """What the mods capture, in memory."""
        found: list[Any] = inductor.in_memory([*self.score_reads, *self.mask_reads])
        inductor.freeze_irnodes(found)
        return found

    def operands(self) -> tuple[Any, Any, Any]:
        """Query, key and value in memory. What the mods capture is stored as well, before they are made into code: what
        is not, they would compute anew for every score."""
        assert self.captured is not None
        self.query, self.key, self.value = inductor.in_memory([self.query, self.key, self.value])
        return self.query, self.key, self.value

    def layout(self, like: Any, size: Sequence[Any]) -> Any:
        """The layout of a result: dense, its dimensions in the order of another tensor's."""
        return inductor.dense_layout(like, like.get_dtype(), size)

    @cached_property
    def listed(self) -> dict[str, Any]:
        """The entries of the block mask by name."""
        return compat.block_mask_entries(self.blocks)

    @property
    def one_block(self) -> bool:
        """Whether the block mask is a single block that covers everything."""
        return int(self.listed["q_width"]) >= compat.ONE_BLOCK

    @property
    def runs(self) -> bool:
        """Whether the block mask has runs of blocks in place of lists."""
        return compat.has_runs(self.blocks)

    def plan(self, kind: str, rows: int | None = None) -> list[Variant]:
        """The variants of a kernel that are to be compared: one, unless max_autotune is on."""
        mask = self.mask or (None if self.one_block else int(self.listed["q_width"]))
        dims = self.qk_dim, self.v_dim
        loaded = bytes_per_score(self.score_graph, (3, 4)) + bytes_per_score(self.blocks[-1], (2, 3))
        memory = torch.cuda.get_device_properties(self.query.get_device()).shared_memory_per_block_optin
        problem = Problem(
            self.lengths, self.dtype, dims, self.capability, mask, bool(self.dropout), loaded, memory, self.runs
        )
        variants = plan(kind, problem, rows)
        return variants if inductor.max_autotune() else variants[:1]

    def lists(self, variants: list[Variant], by_key: bool = False) -> list[Any]:
        """The lists that the variants visit, in the order of the templates."""
        if not variants[0].bounds.lists:
            return []
        axis = "q" if by_key else "kv"
        if self.runs:
            return list(inductor.in_memory([self.listed[f"{axis}_indices"]]))
        names = (f"{prefix}{axis}_{what}" for prefix in ("", "full_") for what in ("num_blocks", "indices"))
        found: list[Any] = inductor.in_memory([self.listed[name] for name in names])
        return found
