"""What may read the scores of an attention besides: statistics of their rows, and other attentions.

    s = q @ k.mT
    return softmax(s, -1) @ v, s.logsumexp(-1)                  a statistic, which flex_attention gives
    return softmax(s, -1) @ v, softmax(s.mT, -1) @ w            another attention, whose scores are computed anew
    return p @ v, p @ w                                         the same: another product with values

If all attentions that share scores are rewritten, nothing computes these as a tensor any more.

Any other reader, and any reader of the probabilities but products with values, needs what a rewrite does not compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from flex_inductor.passes.lift.layers import has_weights
from flex_inductor.passes.lift.other_readers import chain, is_dead, readers, use_of
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.lift.statistics import is_statistic
from flex_inductor.passes.program.operators import is_product, rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import scores_of
from flex_inductor.passes.site import Candidate, Declined


@dataclass(frozen=True)
class Beside:
    """What reads the scores of an attention besides. statistics: the values that are one. attentions: the anchors of
    attentions, of itself where several products read its probabilities. needed: why the program needs the scores
    themselves, or the probabilities; None if it does not."""

    statistics: tuple[fx.Node, ...] = ()
    attentions: tuple[fx.Node, ...] = ()
    needed: Declined | None = None


def beside(products: list[fx.Node], candidate: Candidate, others: Iterable[Candidate], storage: Storage) -> Beside:
    """What reads the scores of a candidate besides. others: all candidates of the graph."""
    statistics: dict[fx.Node, None] = {}
    attentions: dict[fx.Node, None] = {}
    inside: dict[fx.Node, set[fx.Node]] = {}
    twins = [c for c in others if c.anchor is candidate.anchor and c.result is not candidate.result]
    weighing = set().union(*({c.result, *chain(products, c, storage)} for c in twins))
    if twins:
        attentions[candidate.anchor] = None
    for value, reader in readers(products, candidate, storage):
        made = value.meta["position"] >= candidate.anchor.meta["position"]
        inside = inside or {
            c.anchor: scores_of(c.anchor) | {c.anchor} for c in others if c.anchor is not candidate.anchor
        }
        shared = [anchor for anchor, nodes in inside.items() if reader in nodes]
        ends = [value] if is_statistic(value) else list(_reductions(reader))
        if made and reader in weighing:
            continue
        if shared and not made:
            attentions.update(dict.fromkeys(shared))
        elif all(map(is_statistic, ends)) and not made:
            statistics.update(dict.fromkeys(ends))
        else:
            linear = "the scores, a layer's output as in linear attention,"
            scores = linear if products and all(map(has_weights, products)) else "the scores"
            what = "the probabilities" if made else scores
            return Beside(needed=Declined(f"{what} are {use_of(value, reader)}", reader))
    return Beside(tuple(statistics), tuple(attentions))


def _reductions(reader: fx.Node) -> Iterator[fx.Node]:
    """The statistics that a value goes into, and the first values on the way that go elsewhere."""
    todo, seen = [reader], {reader}
    while todo:
        node = todo.pop()
        users = [u for u in node.users if not is_dead(u)]
        if is_statistic(node) or not users or not (rule_name(node) == "max" or _lifts(node)):
            yield node
            continue
        todo += (u for u in users if u not in seen)
        seen.update(users)


def _lifts(node: fx.Node) -> bool:
    return node.op == "call_function" and rule_name(node) in RULES and not is_product(node)
