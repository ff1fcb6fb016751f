"""Our own lowerings of flex_attention on CUDA, while our graphs compile.

A call that the passes chose our kernels for is lowered to them; every other as torch does it, and a counter
(`torch._dynamo.utils.counters["flex_inductor"]`) and the log say why.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sympy
import torch

from flex_inductor import compat
from flex_inductor.lowering.unsupported import Unsupported, ours_or_theirs

lock = threading.RLock()
Lowering = Callable[..., Any]


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Our lowerings instead of torch's, for the time of a compilation."""
    from flex_inductor.compat import triton as inductor

    makers = {compat.flex_attention_hop: _forward, compat.flex_attention_backward_hop: _backward}
    with lock, inductor.lowered({hop: make(inductor.lowerings[hop]) for hop, make in makers.items()}):
        yield


def covers(
    dtype: torch.dtype, training: bool, head_dims: Sequence[sympy.Expr], lengths: Any, mask: str | int, capability: int
) -> str | None:
    """Why our kernels cannot take a call; None if they can. mask: the text of its formula, or the width of the blocks
    that are listed."""
    from flex_inductor.lowering.plan import Problem, plan

    problem = Problem(lengths, dtype, [int(n) for n in head_dims], capability, mask)
    try:
        for kind in ("prefill", "dq", "dkdv") if training else ("prefill",):
            plan(kind, problem)
    except Unsupported as why:
        return str(why)
    return None


def _forward(stock: Lowering) -> Lowering:
    from flex_inductor.lowering import decode, prefill
    from flex_inductor.lowering.call import Call

    def flex_attention(
        query: Any, key: Any, value: Any, score_mod: Any, blocks: Any, scale: Any, options: Any, *reads: Any
    ) -> Any:
        options, mask, dropout = parted(options)

        def ours() -> Any:
            if mask is None:
                raise Unsupported("not asked for ours")
            call = Call(query, key, value, score_mod, blocks, mask, dropout, scale, options, *reads)
            return (decode if decode.takes(call) else prefill).lower(call)

        def theirs() -> Any:
            return stock(query, key, value, score_mod, blocks, scale, options, *reads)

        return ours_or_theirs(ours, theirs, only_ours(blocks, dropout))

    return flex_attention


def _backward(stock: Lowering) -> Lowering:
    from flex_inductor.lowering import backward
    from flex_inductor.lowering.call import Call

    def flex_attention_backward(
        query: Any, key: Any, value: Any, out: Any, logsumexp: Any, grad_out: Any, grad_logsumexp: Any, score_mod: Any,
        joint: Any, blocks: Any, scale: Any, options: Any, *reads: Any,
    ) -> Any:  # fmt: skip
        options, mask, dropout = parted(options)
        rows = out, logsumexp, grad_out, grad_logsumexp

        def ours() -> Any:
            if mask is None:
                raise Unsupported("not asked for ours")
            call = Call(query, key, value, score_mod, blocks, mask, dropout, scale, options, *reads)
            return backward.lower(call, *rows, joint)

        def theirs() -> Any:
            return stock(query, key, value, *rows, score_mod, joint, blocks, scale, options, *reads)

        return ours_or_theirs(ours, theirs, only_ours(blocks, dropout))

    return flex_attention_backward


def parted(options: dict[str, Any]) -> tuple[dict[str, Any], Any, float]:
    """Kernel options, and what among them is ours: the formula of the mask, None in a call that is torch's to lower,
    and the share of probabilities that are dropped."""
    rest = {name: option for name, option in options.items() if name != compat.OWN_OPTION}
    return rest, rest.pop(compat.MASK_OPTION, None), rest.pop(compat.DROPOUT_OPTION, 0.0)


def only_ours(blocks: Any, dropout: float) -> str:
    """What torch's kernels do not know of a call; empty for nothing."""
    return "dropout" if dropout else "runs of blocks" if compat.has_runs(blocks) else ""
