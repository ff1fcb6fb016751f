"""A site as Python that runs with torch's own flex_attention.

# slopes: blocks.0.attn.slopes, (8,) float32
def score_mod(score, b, h, q_idx, kv_idx):
    return score + slopes[h] * (kv_idx - q_idx).to(torch.float32)
"""

from __future__ import annotations

import builtins
import itertools
import keyword
import re
from collections.abc import Iterable, Iterator

from flex_inductor.decisions import Code, Decision

HEAD = """import torch
from torch.nn.attention.flex_attention import {imports}
"""
SCORE, MASK = "score_mod(score, b, h, q_idx, kv_idx)", "{}(b, h, q_idx, kv_idx)"
FUNCTIONS = ("score_mod", "mask_mod", "keep", "attention", "flex_attention", "create_block_mask", "create_mask")
VALUES = ("b", "h", "q_idx", "kv_idx", "score", "alive", "query", "key", "value", "visible", "block_mask", "torch")
TAKEN = frozenset((*FUNCTIONS, *VALUES))
REPEATED = re.compile(r"x\d+")
"""What the code calls its own values."""


def code(decision: Decision) -> str:
    """The two mods, and a function `attention(query, key, value)` of tensors (B, H, S, D) that uses them. A comment
    names the tensors that they read, which must be there before. Empty if no mods can be written."""
    found = decision.written
    if found is None:
        return ""
    names = identifiers([*(name for name, _ in found.tensors), *found.numbers], dict(found.paths))
    text = "\n".join([*_head(decision, found, names), "", *_mods(found), "", *_call(found), ""])
    return re.sub(r"\$(\w+)\$", lambda m: names[m[1]], text)


def identifiers(nodes: Iterable[str], paths: dict[str, str]) -> dict[str, str]:
    """A name of its own for each tensor: the last part of its path in the model, or of its name in the graph."""
    found: dict[str, str] = {}
    for node in nodes:
        parts = re.sub(r"[^\w.]", "_", _brief(paths.get(node, node))).split(".")
        choices = ["_".join(parts[start:]) for start in reversed(range(len(parts)))]
        numbered = (f"{parts[-1]}_{i}" if parts[-1].isidentifier() else f"tensor_{i}" for i in itertools.count())
        found[node] = next(name for name in itertools.chain(choices, numbered) if _free(name, found.values()))
    return found


def _brief(name: str) -> str:
    """`mask` for Dynamo's l_mask_."""
    return re.sub(r"^l_(?:kwargs_)?(\w+?)_$", r"\1", name)


def _free(name: str, taken: Iterable[str]) -> bool:
    reserved = name in TAKEN or name in taken or keyword.iskeyword(name) or hasattr(builtins, name)
    return name.isidentifier() and not reserved and not REPEATED.fullmatch(name)


def _head(decision: Decision, found: Code, names: dict[str, str]) -> Iterator[str]:
    used = ["create_block_mask"] * bool(found.mask_mod or found.keep) + ["create_mask"] * bool(found.keep)
    yield HEAD.format(imports=", ".join([*used, "flex_attention"]))
    yield f"# {one_line(decision.kind)}; {one_line(decision.source)}"
    paths = dict(found.paths)
    for node, what in found.tensors:
        yield f"# {names[node]}: {one_line(_brief(paths.get(node, node)))}, {what}"
    for node in found.numbers:
        yield f"# {names[node]}: a number that the model is given"
    if found.dropout:
        yield f"# the model drops probabilities at random ({found.dropout:.3g}), which flex_attention does not"


def one_line(text: str) -> str:
    """A text that ends no comment."""
    return " ".join(text.split())


def _mods(found: Code) -> Iterator[str]:
    yield from _function(SCORE, found.score_mod)
    if found.keep:
        yield from ("", *_function(MASK.format("keep"), found.keep), "")
        batch, heads, queries, keys = (n or 1 for n in found.sizes)
        yield "# Rows that keep no key attend to all of them, with the fill that their scores have."
        device = next((f", device=${name}$.device" for name, _ in found.tensors), ', device="cpu"')
        yield f"alive = create_mask(keep, {batch}, {heads}, {queries}, {keys}{device}).any(-1)"
    if found.keep or found.mask_mod:
        yield ""
        yield from _function(MASK.format("mask_mod"), _rows_too(found))


def _rows_too(found: Code) -> tuple[str, ...]:
    """The body of the mask_mod, with what is to be said of whole rows."""
    if not found.keep:
        return found.mask_mod
    *before, last = found.mask_mod or ("return True",)
    batch, heads = (name if n else "0" for name, n in zip("bh", found.sizes))
    visible = f"({last.removeprefix('return ')}) | ~alive[{batch}, {heads}, q_idx]"
    if not found.rows:
        return (*before, f"return {visible}")
    *inner, last = found.rows
    return (*before, f"visible = {visible}", *inner, f"return visible & ({last.removeprefix('return ')})")


def _function(signature: str, body: tuple[str, ...]) -> Iterator[str]:
    yield f"def {signature}:"
    yield from (f"    {line}" for line in body)


def _call(found: Code) -> Iterator[str]:
    yield ""
    yield "def attention(query, key, value):"
    if found.extra:
        yield f"    key, value = (torch.nn.functional.pad(x, (0, 0, 0, {found.extra})) for x in (key, value))"
    options = [f"scale={found.scale!r}"] + ["enable_gqa=True"] * found.grouped
    if found.mask_mod or found.keep:
        sizes = ", ".join(map(str, found.sizes))
        yield f"    block_mask = create_block_mask(mask_mod, {sizes}, device=query.device)"
        options.insert(0, "block_mask")
    yield f"    return flex_attention(query, key, value, score_mod, {', '.join(options)})"
