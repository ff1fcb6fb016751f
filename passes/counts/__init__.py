"""counts: the numbers of attended scores, of which a program makes block masks, worked out from a formula.

    sums = mask.view(B, H, Q, 128, K, 128).permute(0, 1, 2, 4, 3, 5).sum((-2, -1))
    full = sums == 16384; some = (sums > 0) & (sums < 16384)

torch's `create_block_mask` evaluates its mask_mod at every score, by vmap, and counts the attended ones of each block.
The program asks of a count only whether it is none, some or all: so the analysis of the mask (`flex_inductor.mask`)
answers as well, in time and memory of the number of blocks. What it does not know counts as some. No result changes:
calls of flex_attention ask their mask_mod in such blocks, and it is seen to be the same mask.

find     looks for the counts, and for the calls that read what comes of them
inside   runs the program once more on fake tensors, under vmap too, and lifts masks
emit     replaces counts

Leaves alone: counts that are asked for anything else; lists that leave the program, where one could see that what
counts as some is none or all, or that are changed before a call reads them; calls with another mask_mod; masks that are
not known as a formula; programs with other transforms than vmap.
"""

from __future__ import annotations

import contextlib

from torch import fx

from flex_inductor.passes.counts.emit import Emitter
from flex_inductor.passes.counts.find import counts
from flex_inductor.passes.counts.inside import Inside, transforms
from flex_inductor.passes.program.normalize import fake_mode_of
from flex_inductor.passes.site import Declined
from flex_inductor.scalar.indices import numbered


def rewrite(gm: fx.GraphModule) -> list[str]:
    """Works out the counts of a graph, in place. Returns the formulas of their masks as text."""
    found, mode = list(counts(gm.graph)), fake_mode_of(gm)
    if not found or mode is None or transforms(gm.graph):
        return []
    inside = Inside(gm, mode)
    inside.run()
    emitter, formulas = Emitter(gm, inside), []
    for one in found:
        with contextlib.suppress(Declined), numbered():
            formulas.append(emitter.emit(one))
    return formulas
