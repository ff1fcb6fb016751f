"""The variants of a kernel for a call, of which one is taken: the only one, or the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flex_inductor.compat import cuda
from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.call import Call
from flex_inductor.lowering.configs import float32_precision, power_of_two
from flex_inductor.lowering.plan import Variant


@dataclass(frozen=True)
class Candidates:
    """choices: Inductor's. inputs: tensors that they are given. reads, mods: what subgraphs capture, and they
    themselves. made: of inputs that cannot be any numbers, by their place, what makes them up to measure with."""

    name: str
    choices: Sequence[Any]
    inputs: Sequence[Any]
    layout: Any
    reads: Sequence[Any]
    mods: Sequence[Any]
    made: dict[int, Any]

    def take(self) -> Any:
        """The output of the fastest."""
        return inductor.choose(self.name, self.choices, self.inputs, self.layout, self.reads, self.mods, self.made)

    def milliseconds(self) -> float:
        """The time of the fastest, as Inductor measures it; infinite where it is not to measure."""
        return inductor.milliseconds(self.name, self.choices, self.inputs, self.layout, self.made)


def candidates(
    call: Call, text: Any, variants: list[Variant], inputs: list[Any], lists: list[Any], layout: Any, mods: list[Any],
    mutated: list[Any], size: list[Any], **constants: Any,
) -> Candidates:  # fmt: skip
    """A kernel in its variants. text: its template. inputs, lists: what it is given by name, in the order of the
    template. mutated: what it writes besides the output. size: what its grid is made of. constants: what only this
    template is told."""
    choices: list[Any] = []
    given = [*inputs, *call.random_rows, *lists]
    for variant in variants:
        known = {**of_call(call, *variant.dims), **of_variant(call, variant), **constants}
        error = text.maybe_append_choice(
            choices=choices, input_nodes=given, layout=layout, subgraphs=mods, mutated_inputs=mutated, call_sizes=size,
            **known,
        )  # fmt: skip
        if error is not None and not inductor.max_autotune():
            raise error
    tensors = [*given, *(x for x in (*call.captured, *mutated) if not any(x is y for y in given))]
    blocks = min(map(inductor.hint, call.lengths)) // int(call.listed["q_width"]) if lists else 0
    return Candidates(
        text.name, choices, tensors, layout, call.captured, mods, inductor.made_up(lists, tensors, blocks)
    )


def of_variant(call: Call, variant: Variant) -> dict[str, Any]:
    """What templates are told of a tile size and its loops."""
    config, loops = variant.config, variant.bounds
    queries, keys = call.lengths
    width = int(call.listed["q_width"]) if loops.lists else 0
    return {
        "BOUNDS": repr(loops.statements), "LOOPS": repr(loops.loops),
        "EVEN_M": divides(width or config.block_m, queries), "EVEN_N": divides(width or config.block_n, keys),
        "LISTS": loops.lists, "WIDTH": width, "RUNS": call.runs, "WIDE": loops.wide,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip


def of_call(call: Call, qk: int, v: int) -> dict[str, Any]:
    """What templates are told of a call. qk, v: the dimensions of a head that are computed, of queries and of
    values."""
    widest = power_of_two(max(qk, v))
    precision = float32_precision(cuda.float32_precision(), call.capability, widest)
    return {
        "PLAIN": call.plain, "DROPOUT": call.dropout, "DROPPED_BELOW": round(call.dropout * 2**32),
        "SM_SCALE": call.scale, "IN_BASE_2": call.in_base_2, "GROUP": call.group,
        "FLOAT32_PRECISION": repr(precision), "QK_DIM": call.qk_dim, "V_DIM": call.v_dim,
        "QK_DIM_ROUNDED": qk, "V_DIM_ROUNDED": v, "EVEN_QK": qk == call.qk_dim, "EVEN_V": v == call.v_dim,
    }  # fmt: skip


def divides(width: int, length: Any) -> bool:
    """Whether a length is known to be a number of whole tiles."""
    return bool(inductor.sizes().statically_known_multiple_of(length, width))
