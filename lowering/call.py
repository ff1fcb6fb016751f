"""A call of flex_attention as a lowering gets it, made ready for a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch

from flex_inductor import compat_triton as inductor
from flex_inductor.lowering.stock import Stock

INDICES = ("b", "h", "m", "n")


@dataclass
class Call:
    """What forward and backward have in common. query, key, value: Inductor tensors (batch, heads, length, dimension).
    score_graph, mask_graph: subgraphs. mask: the mask's formula as text. reads: what the mods capture."""

    query: Any
    key: Any
    value: Any
    score_graph: Any
    mask_graph: Any
    mask: str
    scale: float
    options: dict[str, Any]
    score_reads: Sequence[Any]
    mask_reads: Sequence[Any]

    def __post_init__(self) -> None:
        """Raises Stock for what no kernel of ours does."""
        sizes = inductor.sizes()
        dims = [self.query.get_size()[-1], self.value.get_size()[-1]]
        heads = [self.query.get_size()[1], self.key.get_size()[1]]
        if not all(sympy.sympify(n).is_Integer for n in (*dims, *heads)):
            raise Stock("a dynamic number of heads or head dimension")
        if {self.key.get_dtype(), self.value.get_dtype()} != {self.dtype}:
            raise Stock("queries, keys and values of different dtypes")
        batches = [self.query.get_size()[0], self.key.get_size()[0]]
        if not (sizes.statically_known_equals(*batches) or sizes.statically_known_equals(batches[1], 1)):
            raise Stock("different batch sizes")
        chosen = [name for name in self.options if name.startswith(("fwd_", "bwd_", "BLOCK_", "num_"))]
        if chosen or self.options.get("BACKEND", "AUTO") not in ("AUTO", "TRITON") or self.options.get("PRESCALE_QK"):
            raise Stock("kernel options are for torch's kernel")

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
        return self.mod(self.mask_graph, self.mask_reads)

    def mod(self, graph: Any, reads: Sequence[Any], **first: torch.dtype) -> Any:
        dtypes = {**first, **dict.fromkeys(INDICES, torch.int32)}
        return inductor.mod(graph, dtypes, self.query.get_device(), reads)

    @property
    def plain(self) -> bool:
        """Whether the score_mod gives back the score."""
        nodes = self.score_graph.graph_module.graph.nodes
        first, output = next(iter(nodes)), next(n for n in nodes if n.op == "output")
        return bool(output.args[0] is first or output.args[0] == (first,) or output.args[0] == [first])

    @property
    def captured(self) -> list[Any]:
        return [*self.score_reads, *self.mask_reads]

    def operands(self) -> tuple[Any, Any, Any]:
        """Query, key and value, and what the mods capture, in memory."""
        self.score_reads, self.mask_reads = (inductor.in_memory(x) for x in (self.score_reads, self.mask_reads))
        inductor.freeze_irnodes([self.score_reads, self.mask_reads])
        self.query, self.key, self.value = inductor.in_memory([self.query, self.key, self.value])
        return self.query, self.key, self.value

    def layout(self, like: Any, size: Sequence[Any]) -> Any:
        """The layout of a result: dense, its dimensions in the order of another tensor's."""
        return inductor.dense_layout(like, like.get_dtype(), size)

    def divides(self, width: int, length: Any) -> bool:
        """Whether a length is known to be a number of whole tiles."""
        return bool(inductor.sizes().statically_known_multiple_of(length, width))

    def constants(self) -> dict[str, Any]:
        """What all templates are told."""
        return {
            "PLAIN": self.plain,
            "SM_SCALE": self.scale,
            "GROUP": int(self.query.get_size()[1]) // int(self.key.get_size()[1]),
            "FLOAT32_PRECISION": inductor.float32_precision(),
        }

    def chosen(self, name: str, choices: list[Any], inputs: list[Any], layout: Any, mods: list[Any]) -> Any:
        """The output of the one kernel, or of the fastest. inputs: all tensors that it reads or writes."""
        return inductor.choose(name, choices, inputs, layout, self.captured, mods)


def padded(call: Call) -> dict[str, Any]:
    """The head dimensions, and the powers of two that the kernel works on: tensor cores want at least 16."""
    rounded = [max(16, 1 << (n - 1).bit_length()) for n in (call.qk_dim, call.v_dim)]
    return {
        "QK_DIM": call.qk_dim,
        "V_DIM": call.v_dim,
        "QK_DIM_ROUNDED": rounded[0],
        "V_DIM_ROUNDED": rounded[1],
        "EVEN_QK": rounded[0] == call.qk_dim,
        "EVEN_V": rounded[1] == call.v_dim,
    }
