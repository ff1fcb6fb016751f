"""The records of what was decided about attention sites, and how to receive them.

A `Decision` is the one record of a site; explain, the command line, logs and tests are views of it. A `GraphReport`
holds the decisions of one compiled graph, together with the graph before and after. Reports are published to listeners
(`with listen() as reports:`) and to the logger `flex_inductor.decisions`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

log = logging.getLogger("flex_inductor.decisions")

Verdict = Literal["rewritten", "declined"]
Replacement = Literal["flex_attention", "scaled_dot_product_attention"]


@dataclass(frozen=True)
class Code:
    """The mods of a site as lines of Python, which call the tensors that they read `$name$`. `Decision.code` prints it.

    score_mod, mask_mod: the bodies of the two functions; none for no mask.
    keep: the body of a third, which holds for the keys that keep a row alive. The mask counts for rows that have such a
        key; others attend to all keys. None where it counts for all rows.
    rows: the body of a condition on rows, of which others give 0; none where there is none.
    tensors: the names of what is read, with shape and dtype. numbers: the names of floating-point numbers that are.
    sizes: of batch, heads, queries and keys; None for a batch or heads of which the mask knows nothing.
    scale, grouped, extra: the factor of the raw scores, whether heads share keys, and how many keys of zeros are added.
    dropout: the share of probabilities that is dropped.
    paths: the names of parameters and buffers, with their paths in the model.
    """

    score_mod: tuple[str, ...]
    mask_mod: tuple[str, ...]
    keep: tuple[str, ...]
    rows: tuple[str, ...]
    tensors: tuple[tuple[str, str], ...]
    numbers: tuple[str, ...]
    sizes: tuple[int | None, ...]
    scale: float
    grouped: bool
    extra: int
    dropout: float
    paths: tuple[tuple[str, str], ...] = ()

    def renamed(self, names: Mapping[str, str]) -> Code:
        """The code with other paths."""
        paths = {name: dict(self.paths).get(name, name) for name, _ in self.tensors}
        return dataclasses.replace(self, paths=tuple((name, names.get(path, path)) for name, path in paths.items()))


@dataclass(frozen=True)
class Given:
    """What a mask does with the inputs that were given, as it is computed: rows that may have lost all of their keys
    count as attending to all of them.

    width: the number of queries, and of keys, in a block. attended, full: the shares of blocks. scores: how many are
    attended, None if they are too many to be counted; all_scores: of how many. maps: block maps as in `Decision`, each
    with the sequences and heads that it holds for; empty for all."""

    width: int
    attended: float
    full: float
    scores: int | None
    all_scores: int
    maps: tuple[tuple[str, tuple[str, ...]], ...]

    def __str__(self) -> str:
        blocks = f"{percent(self.attended)} of the blocks of {self.width} attended, {percent(self.full)} full"
        if self.scores is None:
            return blocks
        return f"{blocks}; {self.scores:,} of {self.all_scores:,} scores, {self.scores / self.all_scores:.1%}"


def percent(share: float) -> str:
    """A share in whole percent. Neither 0% nor 100% is said of what is some and not all."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


@dataclass(frozen=True)
class Heat:
    """What is added to a score by head (rows) and by the place of its key counted from its query (offsets). None where
    the mask hides it."""

    offsets: tuple[int, ...]
    rows: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Decision:
    """What became of one attention site, and why.

    site: its name in the graph, counted in program order ("site0", ...).
    verdict: "rewritten" or "declined".
    operator: what it was rewritten into, "flex_attention" or "scaled_dot_product_attention"; empty for a declined site.
    reason: why it was declined; empty for a rewritten site.
    node: the graph node at which it was declined, with shape and dtype; empty for a rewritten site.
    source: where the user's model computes it, as 'file.py:12, in forward: p = softmax(s, -1)'.
    file, line: the same as data, the path in full; empty and 0 if that is not known.
    terms: the summands of the score, each with what it varies with ("content", "offset", "query", "key", "head",
        "batch"), and "learned" where parameters are part of it.
    lengths: the numbers of queries and keys, as they are now.
    kernel: who computes it.
    before, after: the names of the nodes that had, and have, its result.
    given: what the mask does with the inputs that `explain` was given; None where that is not known.
    heat: the bias by head and offset, where it depends on nothing else.
    kind: what is recognised in it, as "soft cap 50, ALiBi, causal, documents"; empty if nothing is known of it.
    matched: what was found there, in one line.
    score_mod, mask_mod: the two functions as Python, as far as they could be worked out.
    by_head: the same by head, where they distinguish heads by number: heads ("0, 2-5"), score, mask (empty for none).
    captured: the names of the tensors that they read, in order: the path of a parameter or buffer in the model
        ('blocks.0.attn.slopes') where it is one, else the name of the graph's node.
    sparsity: what is known of the mask's block sparsity, in one line.
    block_map: a picture of it, a line a row of blocks: full `#`, partly attended `/`, empty `.`, known at run time `?`.
    notes: anything a careful user wants to know, e.g. that an empty row gives 0 where eager gives NaN.
    """

    site: str
    verdict: Verdict
    source: str
    matched: str
    operator: Replacement | Literal[""] = ""
    reason: str = ""
    node: str = ""
    score_mod: str = ""
    mask_mod: str = ""
    by_head: tuple[tuple[str, str, str], ...] = ()
    sparsity: str = ""
    block_map: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    captured: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    kind: str = ""
    terms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    lengths: tuple[int, ...] = ()
    kernel: str = ""
    before: str = field(default="", compare=False)
    after: str = field(default="", compare=False)
    given: Given | None = None
    heat: Heat | None = field(default=None, compare=False, repr=False)
    written: Code | None = field(default=None, compare=False, repr=False)

    @property
    def rewritten(self) -> bool:
        """Whether the site is rewritten."""
        return self.verdict == "rewritten"

    @property
    def ending(self) -> str:
        """The verdict, and the operator if there is one."""
        return f"{self.verdict} into {self.operator}" if self.operator else self.verdict

    def __str__(self) -> str:
        why = "" if self.rewritten else f" because {self.reason}" + (f", at {self.node}" if self.node else "")
        return f"{self.site} ({self.source}): {self.ending}{why}"

    def code(self) -> str:
        """The score_mod and the mask_mod as Python that runs with torch's own flex_attention, and a function
        `attention(query, key, value)` that uses them on tensors (B, H, S, D). Comments name the tensors that they read.
        Empty where no mods can be written."""
        from flex_inductor.report.code import code

        return code(self)

    def renamed(self, names: Mapping[str, str]) -> Decision:
        """The record with other names for tensors."""
        if not names:
            return self
        longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        rename = functools.partial(re.compile(rf"(?<![\w.])(?:{longest_first})(?!\w)").sub, lambda m: names[m[0]])
        return dataclasses.replace(
            self, reason=rename(self.reason), node=rename(self.node), score_mod=rename(self.score_mod),
            mask_mod=rename(self.mask_mod), sparsity=rename(self.sparsity), notes=tuple(map(rename, self.notes)),
            captured=tuple(map(rename, self.captured)),
            terms=tuple((rename(text), depends) for text, depends in self.terms),
            by_head=tuple((heads, rename(score), rename(mask)) for heads, score, mask in self.by_head),
            written=self.written and self.written.renamed(names),
        )  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """The record as plain data."""
        plain = dataclasses.asdict(dataclasses.replace(self, written=None, heat=None))
        del plain["written"], plain["heat"]
        return {**plain, "code": self.code()}


@dataclass(frozen=True)
class Fallback:
    """A failure of this backend, after which the graph was compiled untouched.

    pass_name: the pass that failed, or "codegen" when the compiler refused the rewritten graph.
    error: type and text of the exception.
    """

    pass_name: str
    error: str

    def __str__(self) -> str:
        return f"{self.pass_name} failed ({self.error}); the graph was compiled untouched"


@dataclass(frozen=True)
class GraphReport:
    """Everything about one compiled graph.

    before, after: the graph as Dynamo gave it and as it went on to the compiler; the same object if nothing was
    rewritten.
    seconds: the time each pass took.
    block_masks: the formulas of those that the program makes itself, and that were worked out for it.
    """

    decisions: tuple[Decision, ...]
    before: fx.GraphModule
    after: fx.GraphModule
    seconds: dict[str, float] = field(default_factory=dict)
    fallback: Fallback | None = None
    block_masks: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: all but the graphs, which hold what cannot be. They are empty in what is loaded."""
        before, after = _empty(), _empty()
        return {**self.__dict__, "before": before, "after": before if self.after is self.before else after}

    @property
    def rewritten(self) -> int:
        """How many sites are rewritten."""
        return sum(d.rewritten for d in self.decisions)


def _empty() -> fx.GraphModule:
    return fx.GraphModule({}, fx.Graph())


_listeners: contextvars.ContextVar[tuple[list[GraphReport], ...]] = contextvars.ContextVar("listeners", default=())


@contextlib.contextmanager
def listen() -> Iterator[list[GraphReport]]:
    """Collects the report of every graph compiled inside the block, in order."""
    reports: list[GraphReport] = []
    token = _listeners.set((*_listeners.get(), reports))
    try:
        yield reports
    finally:
        _listeners.reset(token)


def publish(report: GraphReport) -> None:
    """Hands a report to the listeners and to the log."""
    for reports in _listeners.get():
        reports.append(report)
    for decision in report.decisions:
        log.info("%s", decision)


def describe(value: object) -> str:
    """Shape and dtype of a (fake) tensor as '(2, 4, 64, 64) float32'; the text of anything else."""
    if isinstance(value, torch.Tensor):
        return f"({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')}"
    return str(value)
