"""A recipe as the source of a Python module that stands by itself (but for the judge, where it is run as a script)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from textwrap import indent

from tests.fuzz import masks, products, softmaxes
from tests.fuzz.inputs import INPUTS, drawn
from tests.fuzz.prepare import GROUPS, ORIGINS, TOUCHES
from tests.fuzz.recipe import Fill, Recipe
from tests.fuzz.scores import CHANGES
from tests.fuzz.spelling import names, stored
from tests.fuzz.surroundings import AROUND, REGIONS, WHOLE

LONGER = 3
HEADER = '''"""An attention program made by tests/fuzz{why}."""
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

inf = float("inf")
DTYPE = torch.{dtype}
D_, DV_ = {D}, {DV}


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPE)


def ints(seed, *shape, low=0, high):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)
'''
FOOTER = """
LENGTHS = {lengths}
TRAIN, DYNAMIC, BACKEND, OPTIONS = {train}, {dynamic}, "{backend}", {options}

if __name__ == "__main__":
    from tests.fuzz.judge import judge

    print(judge(open(__file__).read()))
"""
POSITIONS = {
    "i": "i = torch.arange(R)[:, None]",
    "j": "j = torch.arange(C)",
    "h": "h = torch.arange(H)[:, None, None]",
    "b": "b = torch.arange(B)[:, None, None, None]",
    "gap": "gap = torch.arange(R)[:, None] - torch.arange(C)",
}


def parts(r: Recipe) -> Iterator[tuple[str, str]]:
    """The parts of a program in their order, with the code of each."""
    yield "origin", ORIGINS[r.origin].code
    yield "touches", "\n".join(TOUCHES[x].code for x in r.touches)
    yield "sizes", "B, H, R, D = q.shape\nKV, C = k.shape[1:3]"
    yield "groups", GROUPS[r.groups].code
    steps = "\n".join(filled(x) if isinstance(x, Fill) else CHANGES[x].code for x in r.steps)
    if r.call == "written":
        yield "product", products.PRODUCTS[r.product].code
        yield "steps", steps
        yield "softmax", softmaxes.SOFTMAXES[r.softmax].code
        yield "behind", "\n".join(softmaxes.BEHIND[x].code for x in r.behind)
        yield "values", f"p = p.to(v.dtype)\n{products.VALUES[r.values].code}"
    else:
        yield "steps", f"{products.ZEROS[r.zeros].code}\n{steps}" if r.steps else ""
        yield "values", products.CALLS[r.call].code
    yield "after", "\n".join(softmaxes.AFTER[x].code for x in r.after)


def filled(step: Fill) -> str:
    """The code of masks that are joined and filled."""
    first, *others = (masks.MASKS[x].code for x in step.masks)
    joined = [f"t_m = m\n{x}\n{masks.JOINS[step.join].code}" for x in others]
    fill = masks.FILLS[step.fill].code.replace("VALUE", masks.VALUES[step.value])
    return "\n".join(x for x in (first, *joined, fill) if x)


def body(r: Recipe) -> str:
    """The statements of the function, without what returns; parts of the region stand in `with` blocks."""
    inside = REGIONS[r.region]
    lines = []
    for guarded, run in groupby(((name, code) for name, code in parts(r) if code), lambda part: part[0] in inside):
        block = "\n".join(code for _, code in run)
        lines.append(f"with {AROUND[r.around]}:\n{indent(block, '    ')}" if guarded else block)
    return "\n".join(lines)


def with_positions(code: str) -> str:
    """Positions are made once, where the sizes are known, if the code reads them."""
    used = [line for name, line in POSITIONS.items() if name in names(code)]
    more = ["more = ()"] if "more" in names(code) else []
    sizes = re.search(r"KV, C = .*\n?", code)
    assert sizes
    return "\n".join([code[: sizes.end()].rstrip("\n"), *used, *more, code[sizes.end() :]]).rstrip("\n")


def text(r: Recipe, why: str = "") -> str:
    """The module: inputs(R, C), program(...), and how it is to be judged."""
    x = r.sizes
    code = with_positions(body(r))
    made_first = stored(ORIGINS[r.origin].code)  # q, k or v, out of other inputs
    taken = [name for name in INPUTS if name in names(code) - made_first]
    lengths = [(x.R, x.C), (x.R + LONGER, x.C + LONGER)] if r.longer else [(x.R, x.C)]
    options = {"on_failure": "raise", **({"rewrite": "always"} if r.rewrite == "always" else {})}
    returned = "return (y, *more)" if "more" in names(code) else "return y"
    arguments = ", ".join(taken)
    made = "\n".join(f"        {drawn(name)}," for name in taken)
    sizes = f"B={x.B}, H={x.KV * x.G}, KV={x.KV}, D={x.D}, DV={x.DV}, E={x.E}"
    named = "inner" if WHOLE[r.whole] else "program"
    function = f"def {named}({arguments}):\n{indent(code, '    ')}\n    {returned}\n"
    if WHOLE[r.whole]:
        outer = indent(WHOLE[r.whole].replace("ARGUMENTS", arguments), "    ")
        function += f"\n\ndef program({arguments}):\n{outer}\n"
    return "\n\n".join(
        (
            HEADER.format(why=why, dtype=r.dtype, D=x.D, DV=x.DV),
            f"def inputs(R, C, {sizes}):\n    return (\n{made}\n    )\n",
            function.rstrip("\n") + "\n",
        )
    ) + FOOTER.format(lengths=lengths, train=r.train, dynamic=r.dynamic, backend=r.backend, options=options)
