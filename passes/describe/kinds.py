"""What is recognised in a site, in the field's words: "soft cap 50, ALiBi, causal, documents".

The words say what the formulas are made of. They never decide anything, and a part that no row of the tables here knows
is called by what it depends on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from flex_inductor import mask
from flex_inductor.mask import B, H, K, Q
from flex_inductor.passes.describe.heads import about_heads
from flex_inductor.passes.describe.terms import Term, terms_of, visible
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import Expr

ORDER = ("causal", "window", "keys", "chunks", "dilated", "documents", "padding")
"""The order in which conditions are named; others come last."""
SOME = " in some heads"


def kind_of(site: Site) -> str:
    """The words for a site."""
    words = [*score_words(site), *mask_words(site)]
    if site.extra:
        words.append("attention sink" if len(site.extra) == 1 else f"{len(site.extra)} attention sinks")
    if site.dropout is not None:
        words.append(f"dropout {site.dropout.p:.3g}")
    if site.group != 1:
        words.append(f"{site.group} query heads to a key head")
    return ", ".join(dict.fromkeys(words)) or "plain"


def score_words(site: Site) -> Iterator[str]:
    """The words for the arithmetic."""
    if len(site.products) > 1:
        yield f"sum of {len(site.products)} products"
    yield from words_of(visible(site.score), site.at)


def words_of(score: Expr, at: Coordinates) -> Iterator[str]:
    """The words for the summands of a score; for those that only some heads have, with these."""
    for term in terms_of(score, at):
        if term.expr.op == "where" and about_heads(term.expr.args[0], at.h):
            cases = [list(words_of(x, at)) for x in term.expr.args[1:]]
            yield from (w if all(w in words for words in cases) else f"{w}{SOME}" for words in cases for w in words)
        elif word := next((word for test in SCORES if (word := test(term)) is not None), ""):
            yield word


def cap(term: Term) -> str | None:
    """tanh(score / 50) * 50"""
    x = term.expr
    if x.op == "mul" and x.args[1].is_const:
        x = x.args[0]
        return f"soft cap {float(term.expr.args[1].value):.4g}" if x.op == "tanh" and term.on("content") else None
    return "tanh of the scores" if x.op == "tanh" and term.on("content") else None


def bare(term: Term) -> str | None:
    """The raw score, which needs no word."""
    return "" if term.expr.op == "dot" else None


def alibi(term: Term) -> str | None:
    """A slope of a head times the distance."""
    if not term.on("offset") or not set(term.depends) <= {"offset", "head"} or term.loads_by_offset:
        return None
    return "ALiBi" if term.linear else "distance bias"


def by_what(term: Term) -> str | None:
    """Other terms, by what they depend on."""
    learned = "learned " if term.learned else ""
    if term.on("content") and term.is_score:
        return "learned scale" if term.learned else "scores changed by a function" if term.curved else "scaled"
    if term.on("content"):
        return "relative position scores" if term.on("offset") else "content bias"
    if term.on("offset"):
        return f"{learned}relative bias"
    if {"query", "key"} <= set(term.depends):
        return f"{learned}bias for every query and key"
    named = [d for d in ("query", "key") if term.on(d)]
    return f"{learned}{named[0]} bias" if named else f"{learned}head bias" if term.on("head") else None


SCORES: tuple[Callable[[Term], str | None], ...] = (bare, cap, alibi, by_what)


def mask_words(site: Site) -> tuple[str, ...]:
    """The words for the mask."""
    if site.mask is None:
        return ()
    return formula_words(Former(site.at).formula(site.mask), (site.at.size(site.at.q), site.at.size(site.at.k)))


@functools.lru_cache(maxsize=256)
def formula_words(formula: sympy.Basic, lengths: tuple[sympy.Expr, sympy.Expr]) -> tuple[str, ...]:
    """The words for a formula, in order."""
    if mask.formula.size(formula, mask.LIMIT) == mask.LIMIT:
        return ("a long mask",)
    normal = mask.normal(formula)
    words = list(dict.fromkeys(part_word(condition, lengths) for condition in sympy.And.make_args(normal)))
    ahead, behind = (next((w for w in words if w.startswith(f"{side} ")), None) for side in ("ahead", "behind"))
    if ahead and behind:
        words = [w for w in words if w not in (ahead, behind)]
        words.append(f"window {behind.removeprefix('behind ')} back and {ahead.removeprefix('ahead ')} ahead")
    named = [re.sub(r"^behind ", "window ", re.sub(r"^ahead (.*)", r"keys up to \1 ahead", word)) for word in words]
    by_head = ["mask by head"] if normal.has(H) and not any(word.endswith(SOME) for word in words) else []
    return (*sorted(named, key=rank_of), *by_head)


def rank_of(word: str) -> int:
    return next((i for i, start in enumerate(ORDER) if word.startswith(start)), len(ORDER))


def part_word(condition: sympy.Basic, lengths: tuple[sympy.Expr, sympy.Expr]) -> str:
    """The word for one condition of a mask, in normal form."""
    return next(word for test in MASKS if (word := test(condition, lengths)))


def causal(condition: sympy.Basic, lengths: tuple[sympy.Expr, sympy.Expr]) -> str | None:
    """q - k + c >= 0: up to c keys ahead. k - q + c >= 0: up to c keys back."""
    if not isinstance(condition, sympy.Ge):
        return None
    for distance, side in ((Q - K, "ahead"), (K - Q, "behind")):
        rest = sympy.expand(condition.lhs - distance)
        if rest.has(H) and not rest.free_symbols & {B, Q, K} and side == "behind":
            return "window"
        if not rest.free_symbols & mask.POSITIONS and not rest.has(AppliedUndef):
            if side == "behind":
                return f"behind {rest + 1}"
            if rest == 0:
                return "causal"
            return (
                "causal, aligned at the end" if sympy.expand(rest - lengths[1] + lengths[0]) == 0 else f"ahead {rest}"
            )
    width = sympy.expand(condition.lhs + sympy.Abs(Q - K))
    if width == condition.lhs or width.free_symbols & {B, Q, K}:
        return None
    return "window on both sides" if width.has(H) else f"window {width} on both sides"


def same(condition: sympy.Basic, lengths: tuple[sympy.Expr, sympy.Expr]) -> str | None:
    """f(q) == f(k): documents if f is read from a tensor, chunks if it is a quotient, dilation if it is a remainder."""
    if not isinstance(condition, sympy.Eq) or not {Q, K} <= condition.free_symbols:
        return None
    if condition.has(AppliedUndef):
        return None if any({Q, K} <= load.free_symbols for load in condition.atoms(AppliedUndef)) else "documents"
    quotient = next(iter(condition.atoms(FloorDiv)), None)
    if quotient is not None:
        return f"chunks of {quotient.args[1]}"
    rest = next(iter(condition.atoms(Mod, PythonMod)), None)
    return f"dilated {rest.args[1]}" if rest is not None else None


def union(condition: sympy.Basic, lengths: tuple[sympy.Expr, sympy.Expr]) -> str | None:
    """A prefix beside the rest, or global tokens."""
    if not isinstance(condition, sympy.Or):
        return None
    others = [p for p in condition.args if p.free_symbols & mask.POSITIONS == {H} and not p.has(AppliedUndef)]
    if 0 < len(others) < len(condition.args):  # heads that attend everything
        rest = sympy.Or(*(p for p in condition.args if p not in others))
        return part_word(rest, lengths) + SOME
    words = [part_word(p, lengths) for p in condition.args]
    prefix = any(p.free_symbols & {Q, K} == {K} for p in condition.args)
    words = ["prefix" if p.free_symbols & {Q, K} == {K} else w for p, w in zip(condition.args, words)]
    if prefix and any(p.free_symbols & {Q, K} == {Q} for p in condition.args):
        words = ["global tokens" if len(p.free_symbols & {Q, K}) == 1 else w for p, w in zip(condition.args, words)]
    return " or ".join(sorted(dict.fromkeys(words))) if all(len(w) < 30 for w in words) and len(words) < 5 else None


def by_position(condition: sympy.Basic, lengths: tuple[sympy.Expr, sympy.Expr]) -> str:
    """What is left, by what it depends on."""
    varies = condition.free_symbols & {Q, K}
    loads = condition.atoms(AppliedUndef)
    if any({Q, K} <= load.free_symbols for load in loads):
        return "mask tensor"
    if varies == {K}:
        return "padding" if loads else "some keys"
    if varies == {Q}:
        return "padded queries" if loads else "some queries"
    if not varies:
        return "whole batches or heads" if condition.free_symbols & {B, H} else "a condition"
    return "relative mask" if isinstance(condition, Relational) and not loads else "another mask"


MASKS: tuple[Callable[[sympy.Basic, tuple[sympy.Expr, sympy.Expr]], str | None], ...] = (
    causal, same, union, by_position,
)  # fmt: skip
