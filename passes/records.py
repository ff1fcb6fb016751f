"""What the passes found, as decisions for people to read."""

from __future__ import annotations

import re

from torch import fx

from flex_inductor.decisions import Decision, Operator, describe
from flex_inductor.passes.find import Found
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.site import Declined, Site
from flex_inductor.passes.writers.text import Writer

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>[^\n]*)')
TORCH = re.compile(r"[/\\]torch[/\\](nn|_|functional)")


def source_of(node: fx.Node) -> str:
    """Where the user's model computes a node: the innermost frame outside torch."""
    origin = node.meta.get("origin") or node
    frames = list(FRAME.finditer(origin.meta.get("stack_trace") or node.meta.get("stack_trace") or ""))
    own = [f for f in frames if not TORCH.search(f["file"])] or frames
    if not own:
        return f"node {origin.name}"
    frame = own[-1]
    short = "/".join(re.split(r"[/\\]", frame["file"])[-2:])
    return f"{short}:{frame['line']}, in {frame['function']}: {frame['code'].strip()}"


def matched(found: Found) -> str:
    """What was found, in one line."""
    return f"{rule_name(found.anchor)} {describe(found.anchor.meta['val'])}"


def node_text(node: fx.Node | None) -> str:
    if node is None:
        return ""
    return f"{node.name} = {rule_name(node) or node.op} {describe(node.meta.get('val'))}"


def declined(name: str, found: Found, why: Declined, site: Site | None) -> Decision:
    score_mod, mask_mod = mods(site) if site is not None else ("", "")
    return Decision(
        site=name, verdict="declined", source=source_of(found.anchor), matched=matched(found), reason=why.reason,
        node=node_text(why.node), score_mod=score_mod, mask_mod=mask_mod,
    )  # fmt: skip


def rewritten(
    name: str, found: Found, site: Site, operator: Operator, sparsity: str = "", block_map: tuple[str, ...] = ()
) -> Decision:
    score_mod, mask_mod = mods(site)
    return Decision(
        site=name, verdict="rewritten", operator=operator, source=source_of(found.anchor), matched=matched(found),
        score_mod=score_mod, mask_mod=mask_mod, sparsity=sparsity, block_map=block_map, notes=site.notes,
    )  # fmt: skip


def mods(site: Site) -> tuple[str, str]:
    """score_mod and mask_mod as text. The raw score already has the scale applied."""
    writer = Writer(site.at)
    score = writer.text(site.score)
    if site.scale != 1.0:
        score = f"{score}  # score scaled by {site.scale:.6g}"
    for i, extra in enumerate(site.extra):
        score += f"; column {i} beyond the keys: {writer.text(extra)}"
    return score, writer.text(site.mask) if site.mask is not None else ""
