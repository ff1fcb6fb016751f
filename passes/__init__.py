"""The passes: from a Dynamo graph to one whose attention is torch's flex_attention operator.

    counts -> normalize -> distribute -> find -> lift -> split -> sparsity -> decide -> emit -> clean

`steps` holds the pipeline, one function for each step; `run` the engine that takes a graph through it; `stages` the
types of what is known about a site after each step. Every stage of the pipeline is a file or a folder here.
"""

from __future__ import annotations

from torch import fx

from flex_inductor.decisions import GraphReport
from flex_inductor.passes import steps
from flex_inductor.passes.lift.lifter import deep
from flex_inductor.passes.run import PassFailed, Pipeline, Run, State, copy_of, unwatched, watch
from flex_inductor.request import Backend, Choice, Preference, Refusal, never, torchs

__all__ = ["PassFailed", "State", "copy_of", "rewrite", "unwatched", "watch"]


def rewrite(
    gm: fx.GraphModule,
    refuse: Refusal,
    choose: Choice = torchs,
    prefer: Preference = never,
    pipeline: Pipeline | None = None,
) -> GraphReport:
    """Rewrites the attention of a Dynamo graph wherever the backend allows it. pipeline: None for the whole one. Raises
    PassFailed.

    The report's `after` is the new graph, or gm itself if nothing was rewritten."""
    run = Run(pipeline or steps.PIPELINE, Backend(refuse, choose, prefer))
    with deep():
        after = run.rewrite(gm)
    masks = tuple(run.block_masks)
    return GraphReport(tuple(run.decisions), gm, after if run.changed else gm, run.seconds, block_masks=masks)
