"""The decision records of sites, in words that a reader of the model understands."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx

from flex_inductor.compat import dynamic
from flex_inductor.decisions import Decision, describe
from flex_inductor.passes.describe.code import code_of
from flex_inductor.passes.describe.heads import by_head
from flex_inductor.passes.describe.kinds import kind_of
from flex_inductor.passes.describe.source import frame_of, source_line, variable
from flex_inductor.passes.describe.terms import texts_of
from flex_inductor.passes.find import Found
from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.operators import called, rule_name
from flex_inductor.passes.site import Declined, Site
from flex_inductor.passes.sparsity.picture import picture
from flex_inductor.passes.stages import Emitted, Ended, Stage
from flex_inductor.passes.writers.text import TextWriter
from flex_inductor.scalar import walk

log = logging.getLogger(__name__)
T = TypeVar("T")

MEMBER = re.compile(r"\._(?:modules|parameters|buffers)\['([^']*)'\]")


def describe_anchor(found: Found) -> str:
    """The anchor's operator, shape and dtype."""
    anchor = found.anchor
    if anchor.target is opaque:
        return f"{called(anchor)} {describe(next(iter(anchor.meta['val']), ''))}"
    return f"{rule_name(anchor)} {describe(anchor.meta['val'])}"


def node_text(node: fx.Node | None) -> str:
    """A node as people look for it in a graph. An opaque node is shown as the node of the model that it stands for."""
    if node is None:
        return ""
    if node.target is opaque:
        origin = node.meta["origin"]
        return "the output of the graph" if origin.op == "output" else f"{origin.name} = {called(node)}"
    return f"{node.name} = {rule_name(node) or node.op} {describe(node.meta.get('val'))}"


def decision(name: str, stage: Stage) -> Decision:
    """The decision record of a site at the end of the pipeline."""
    anchor, frame = stage.found.anchor, frame_of(stage.found.anchor)
    site: Site | None = getattr(stage, "site", None)
    read = captured(site)
    more = _declined(stage) if isinstance(stage, Ended) else _rewritten(stage)
    found = Decision(
        site=name, source=source_line(anchor), matched=describe_anchor(stage.found), captured=tuple(read),
        file=frame["file"] if frame else "", line=int(frame["line"]) if frame else 0,
        kind=unless_it_fails(kind_of, site) or "", terms=unless_it_fails(texts_of, site) or (),
        lengths=unless_it_fails(lengths_of, site) or (), written=unless_it_fails(code_of, site),
        by_head=unless_it_fails(by_head, site) or (), **more,
    )  # fmt: skip
    return found.renamed(read)


def _declined(stage: Ended) -> dict[str, Any]:
    anchor = stage.found.anchor
    score_mod, mask_mod = mods(stage.site) if stage.site is not None else ("", "")
    return {
        "verdict": "declined", "reason": stage.why.reason, "node": node_text(stage.why.node), "score_mod": score_mod,
        "mask_mod": mask_mod, "before": (anchor.meta.get("origin") or anchor).name,
    }  # fmt: skip


def _rewritten(stage: Stage) -> dict[str, Any]:
    assert isinstance(stage, Emitted), f"a site ended as {stage}"
    score_mod, mask_mod = mods(stage.site)
    shown = stage.operator == "flex_attention"  # SDPA leaves no block out
    return {
        "verdict": "rewritten", "operator": stage.operator, "score_mod": score_mod, "mask_mod": mask_mod,
        "sparsity": stage.sparsity.describe() if shown else "", "block_map": picture(stage.sparsity) if shown else (),
        "notes": stage.notes, "kernel": kernel_of(stage), "before": stage.result.dynamo.name, "after": stage.value.name,
    }  # fmt: skip


def kernel_of(stage: Emitted) -> str:
    """Who computes a site that was rewritten."""
    if stage.operator != "flex_attention":
        return "the kernel that torch chooses for scaled_dot_product_attention"
    return stage.kernel.note or ("torch's flex_attention" if stage.kernel.mask is None else "own kernel")


def lengths_of(site: Site) -> tuple[int, ...]:
    """The numbers of queries and keys, as they are now."""
    value, at = site.candidate.result.meta["val"], site.at
    return tuple(dynamic.number_now(value, at.size(s)) for s in (at.q, at.k))


def unless_it_fails(describe_site: Callable[[Site], T], site: Site | None) -> T | None:
    """A description of a site, None if there is none. A description that fails must not cost the rewriting."""
    try:
        return describe_site(site) if site is not None else None
    except Declined:
        return None
    except Exception:
        log.debug("a site could not be described", exc_info=True)
        return None


def captured(site: Site | None) -> dict[str, str]:
    """The tensors that the two functions of a site read, in the order of their text: their names there, and those that
    the record gives them."""
    if site is None:
        return {}
    found = [x for e in (site.score, site.mask, *site.extra, *site.factors) if e for x in walk(e)]
    read = {x.args[0].name: x.args[0] for x in found if x.op == "load"}
    words = dict.fromkeys(re.findall(r"\w+", " ".join(mods(site))))
    names = {word: variable(read[word]) for word in words if word in read}
    several = {name for name, count in Counter(names.values()).items() if count > 1}
    taken = {"", "score", *"bhqk", *words, *several}
    return {word: word if name in taken else name for word, name in names.items()}


def paths(graph: fx.Graph) -> dict[str, str]:
    """The parameters and buffers of a Dynamo graph: the names of their nodes, and their paths in the model."""
    sources = {n.name: getattr(n, "_dynamo_source", None) for n in graph.nodes if n.op == "placeholder"}
    names = {name: str(s.name() if callable(s.name) else s.name) for name, s in sources.items() if s is not None}
    return {name: path for name, text in names.items() if (path := _path(text))}


def _path(source: str) -> str:
    """`blocks.0.bias` for Dynamo's `L['self']._modules['blocks']._modules['0']._parameters['bias']`; empty for what is
    no part of a module."""
    start, path = re.fullmatch(r"(?:[LG]\['(\w+)'\])?(.*)", source, re.DOTALL).groups()  # type: ignore[union-attr]
    if not MEMBER.search(path):
        return ""
    path = MEMBER.sub(r".\1", path)
    return path.removeprefix(".") if start in ("self", None) else f"{start}{path}"


def mods(site: Site) -> tuple[str, str]:
    """score_mod and mask_mod as Python. A comment says what the raw score is already scaled by, which scores there
    are beyond the keys, and what the probabilities are multiplied with."""
    writer = TextWriter(site.at)
    remarks = [f"score scaled by {site.scale:.6g}"] if site.scale != 1.0 else []
    remarks += [f"column {i} beyond the keys: {writer.text(extra)}" for i, extra in enumerate(site.extra)]
    remarks += [f"probabilities times {writer.text(factor)}" for factor in site.factors]
    score = writer.text(site.score) + ("  # " + "; ".join(remarks) if remarks else "")
    return score, writer.text(site.mask) if site.mask is not None else ""
