"""The block map of a mask as lines of text, one character for each block. Of `k <= q`:

    /...
    #/..
    ##/.
    ###/

Full #, partly attended /, empty ., known at run time ?.
"""

from __future__ import annotations

import torch

from flex_inductor.passes.sparsity.share import Sparsity, Tables

CELLS = "./#?"
EMPTY, PARTIAL, FULL, UNKNOWN = range(len(CELLS))
SHOWN = 64
"""The most characters in a line. For longer sequences a character stands for several blocks."""


def picture(sparsity: Sparsity) -> tuple[str, ...]:
    """The lines of a picture; none for a site without a mask."""
    if not sparsity.is_masked:
        return ()
    most, least = (pooled(coded(tables)) for tables in sparsity.ends)
    cells = torch.where(most == least, most, UNKNOWN)
    return tuple("".join(CELLS[cell] for cell in line) for line in cells.tolist())


def coded(tables: Tables) -> torch.Tensor:
    some, full = tables
    return torch.where(full, FULL, torch.where(some, PARTIAL, EMPTY))


def pooled(codes: torch.Tensor) -> torch.Tensor:
    """The codes with neighbouring blocks joined until SHOWN are left. A joined block is PARTIAL if they differ."""
    for dim in (0, 1):
        parts = codes.split(-(-codes.shape[dim] // SHOWN), dim)
        low, high = (torch.stack([end(x, dim) for x in parts], dim) for end in (torch.amin, torch.amax))
        codes = torch.where(low == high, low, PARTIAL)
    return codes
