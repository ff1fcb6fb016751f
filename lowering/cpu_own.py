"""Our own lowerings of flex_attention on the CPU, while our graphs compile.

Every call in them is lowered to our kernels where those can take it, the program's own calls too; every other as torch
does it, and a counter (`torch._dynamo.utils.counters["flex_inductor"]`) and the log say why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from flex_inductor import compat
from flex_inductor.lowering import cpu, cuda
from flex_inductor.lowering.unsupported import Unsupported, ours_or_theirs

Lowering = Callable[..., Any]


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Our lowerings instead of torch's, which is mended, for the time of a compilation."""
    from flex_inductor.compat import triton as inductor

    makers = {compat.flex_attention_hop: _forward, compat.flex_attention_backward_hop: _backward}
    lowerings = {hop: make(inductor.lowerings[hop]) for hop, make in makers.items()}
    with cuda.lock, cpu.mended(), inductor.lowered(lowerings):
        yield


def no_closed_form(lengths: tuple[Any, Any], mask: str) -> str | None:
    """Why our kernels cannot work out the blocks of a mask by themselves; None if they can. mask: its formula."""
    from flex_inductor.lowering import cpu_bounds, cpu_call

    try:
        cpu_bounds.loops(mask, lengths, (cpu_call.QUERIES, cpu_call.UNIT))
    except Unsupported as why:
        return str(why)
    return None


def _forward(stock: Lowering) -> Lowering:
    from flex_inductor.lowering import cpu_forward
    from flex_inductor.lowering.cpu_call import Call

    def flex_attention(
        query: Any, key: Any, value: Any, score_mod: Any, blocks: Any, scale: Any, options: Any, *reads: Any
    ) -> Any:
        chosen = compat.OWN_OPTION not in options or compat.MASK_OPTION in options
        options, mask, dropout = cuda.parted(options)

        def ours() -> Any:
            if not chosen:
                raise Unsupported("not asked for ours")
            call = Call(query, key, value, score_mod, blocks, mask, dropout, scale, options, *reads)
            return cpu_forward.lower(call)

        def theirs() -> Any:
            return stock(query, key, value, score_mod, blocks, scale, options, *reads)

        return ours_or_theirs(ours, theirs, cuda.only_ours(blocks, dropout))

    return flex_attention


def _backward(stock: Lowering) -> Lowering:
    from flex_inductor.lowering import cpu_backward
    from flex_inductor.lowering.cpu_call import Call

    def flex_attention_backward(
        query: Any, key: Any, value: Any, out: Any, logsumexp: Any, grad_out: Any, grad_logsumexp: Any, score_mod: Any,
        joint: Any, blocks: Any, scale: Any, options: Any, *reads: Any,
    ) -> Any:  # fmt: skip
        options, mask, dropout = cuda.parted(options)
        rows = out, logsumexp, grad_out, grad_logsumexp

        def ours() -> Any:
            call = Call(query, key, value, score_mod, blocks, mask, dropout, scale, options, *reads)
            return cpu_backward.lower(call, *rows, joint)

        def theirs() -> Any:
            return stock(query, key, value, *rows, score_mod, joint, blocks, scale, options, *reads)

        return ours_or_theirs(ours, theirs, cuda.only_ours(blocks, dropout))

    return flex_attention_backward
