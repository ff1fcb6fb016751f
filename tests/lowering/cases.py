"""Attention programs for the tests of our kernels, by what they vary, and what their errors may be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch.utils.checkpoint import checkpoint

from flex_inductor.lowering import backward
from flex_inductor.lowering.plan import Variant
from flex_inductor.passes.sparsity import block_masks

PARAMETER = 4
"""The place of the parameter's gradient among the results."""
SEED = 2
Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of positions of queries and keys, and of a table: the number of the document that a position belongs to."""
MASKS: dict[str, Mask] = {
    "causal": lambda q, k, t: k <= q,
    "window": lambda q, k, t: (k <= q) & (q - k < 100),
    "two-sided window": lambda q, k, t: (q - k).abs() <= 70,
    "prefix": lambda q, k, t: (k <= q) | (k < 77),
    "sinks and window": lambda q, k, t: (k <= q) & ((q - k < 90) | (k < 4)),
    "global and local": lambda q, k, t: ((q - k).abs() < 60) | (k < 33) | (q < 20),
    "chunks": lambda q, k, t: (q // 100 == k // 100) & (k <= q),
    "near the end": lambda q, k, t: k >= 170,
    "some rows empty": lambda q, k, t: k > q + 130,
    "documents": lambda q, k, t: (t[q] == t[k]) & (k <= q),
    "mixed documents": lambda q, k, t: t[q] % 3 == t[k] % 3,
    "padding": lambda q, k, t: (t[k] != 1) & (k <= q),
    "padding before": lambda q, k, t: t[k] >= 1,
    "length": lambda q, k, t: (k <= q) & (k < t[-1:] * 9 + 20),
    "large integers": lambda q, k, t: q * 100_000_001 >= k * 100_000_000,
    "rows without keys": lambda q, k, t: k > q + 130,
    "all rows empty": lambda q, k, t: k > q + 1000,
}
EMPTY = {"some rows empty", "all rows empty"}
"""Masks under which some rows attend nothing."""
LISTED = {"documents", "mixed documents", "padding", "padding before", "length"}
"""Masks that read a table."""


@dataclass(frozen=True)
class Case:
    """Sizes and spelling of one attention. score: score arithmetic, of the scores and of a parameter (heads, 1, 1).
    fill: the score of keys that are not attended. sink: whether the parameter is one more column of the scores.
    dropout: the share of the weights that are dropped; kept: which are not, None for a random choice. identity: whether
    the values are the identity, so that the result is the weights. recomputed: whether the backward pass computes the
    forward pass again. unsorted: whether documents come back after others. runs: whether blocks are
    given as runs. fused: whether one kernel computes all gradients."""

    mask: str | None = "causal"
    queries: int = 256
    batch: int = 1
    keys: int | None = None
    dtype: torch.dtype = torch.float16
    heads: int = 2
    kv_heads: int | None = None
    dim: int = 64
    v_dim: int | None = None
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    training: bool = False
    dynamic: bool = False
    fill: float = float("-inf")
    sink: bool = False
    dropout: float = 0.0
    kept: torch.Tensor | None = None
    identity: bool = False
    recomputed: bool = False
    unsorted: bool = False
    runs: bool = False
    fused: bool = False

    def inputs(self, device: str = "cpu") -> list[torch.Tensor]:
        """Query, key and value, with NaN around them in memory, and the parameter."""
        torch.manual_seed(0)
        keys, kv_heads = self.keys or self.queries, self.kv_heads or self.heads
        shapes = [(self.heads, self.queries, self.dim), (kv_heads, keys, self.dim),
                  (kv_heads, keys, self.v_dim or self.dim)]  # fmt: skip
        found = [guarded(torch.randn(self.batch, *shape).to(device, self.dtype)) for shape in shapes]
        torch.manual_seed(1)  # whatever the values are
        if self.identity:
            found[2] = torch.eye(keys, dtype=self.dtype, device=device).expand(self.batch, kv_heads, keys, keys)
        found.append(torch.rand(self.heads, 1, 1).to(device) + 0.5)
        documents = torch.rand(max(self.queries, keys)).mul(60).long().eq(0).cumsum(0).to(device)
        documents = documents % 2 if self.unsorted else documents
        return [*(x.requires_grad_(self.training) for x in found), documents]

    def program(self, *inputs: Any) -> Any:
        return checkpoint(self.attention, *inputs, use_reentrant=False) if self.recomputed else self.attention(*inputs)

    def attention(self, q: Any, k: Any, v: Any, parameter: Any, table: Any) -> Any:
        if self.kv_heads is not None:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        scores = q @ k.mT * self.dim**-0.5
        places = torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)
        if self.mask in EMPTY:  # rows that attend nothing are 0
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=MASKS[self.mask](*places, table))
        if self.score is not None:
            scores = self.score(scores, parameter)
        if self.mask is not None:
            scores = torch.where(MASKS[self.mask](*places, table), scores, self.fill)
        if self.sink:
            column = parameter[..., :1].to(scores.dtype).expand(len(q), self.heads, q.shape[2], 1)
            scores = torch.cat([scores, column], -1)
        weights = torch.softmax(scores.float() if self.dtype != torch.float64 else scores, -1)
        weights = weights[..., : k.shape[2]].to(v.dtype)
        if self.kept is not None:
            weights = weights * self.kept / (1 - self.dropout)
        elif self.dropout:
            weights = torch.nn.functional.dropout(weights, self.dropout)
        return weights @ v


def guarded(x: torch.Tensor, margin: int = 4096) -> torch.Tensor:
    """The same numbers with NaN before and behind them: a read beyond the end is seen."""
    memory = x.new_full((x.numel() + 2 * margin,), float("nan"))
    inner = memory[margin : margin + x.numel()].view(x.shape)
    inner.copy_(x.detach())
    return inner


def softcap(scores: torch.Tensor, cap: torch.Tensor) -> torch.Tensor:
    return torch.tanh(scores / 5.0) * 5.0


def alibi(scores: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    keys, queries = (torch.arange(n, device=scores.device) for n in (scores.shape[-1], scores.shape[-2]))
    distance = keys - queries[:, None]
    return scores + (slope * distance * 0.1).to(scores.dtype)


def between(scores: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Reads the parameter at two places for each score."""
    keys, queries = (torch.arange(n, device=scores.device) % len(slope) for n in (scores.shape[-1], scores.shape[-2]))
    number = slope.flatten()
    return scores + (number[queries][:, None] * number[keys]).to(scores.dtype)


def large(scores: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    keys, queries = (torch.arange(n, device=scores.device) for n in (scores.shape[-1], scores.shape[-2]))
    return scores + ((keys * 300_000_000 - queries[:, None] * 299_999_999) / 1e10).to(scores.dtype)


BRAIN, FULL = torch.bfloat16, torch.float32
LEAST = torch.finfo(FULL).min
GROUPS: dict[str, dict[str, Case]] = {
    "masks": {
        name: Case(mask)
        for name, mask in ((m or "none", m) for m in (None, *MASKS))
        if name not in ("all rows empty", "rows without keys", "near the end") and name not in LISTED
    },
    "lengths": {
        "uneven": Case(queries=200),
        "uneven, none": Case(None, queries=130, keys=77),
        "more keys": Case("window", queries=70, keys=300),
        "more queries": Case(queries=300, keys=70),
        "dynamic": Case("window", queries=200, dynamic=True),
        "dynamic, none": Case(None, queries=130, keys=77, dynamic=True),
        "dynamic, prefix": Case("prefix", queries=150, dynamic=True),
        "dynamic, batch": Case("prefix", queries=150, batch=3, heads=4, kv_heads=2, dynamic=True),
    },
    "kinds": {
        "float32": Case(dtype=FULL),
        "bfloat16": Case(dtype=BRAIN),
        "small heads": Case(dim=8),
        "odd heads": Case(dim=40, v_dim=24, dtype=FULL),
        "large heads": Case(dim=160, v_dim=256, queries=150, heads=1),
        "groups": Case(heads=4, kv_heads=2, queries=150),
        "softcap": Case("window", score=softcap, queries=200),
        "alibi": Case(score=alibi, queries=200),
        "alibi, bfloat16": Case(None, score=alibi, dtype=BRAIN),
        "rows of the least number": Case("rows without keys", queries=200, fill=LEAST, dtype=FULL),
        "large integers": Case(score=large, queries=200),
    },
    "lists": {
        "documents": Case("documents", queries=300),
        "mixed documents": Case("mixed documents", queries=270),
        "padding": Case("padding", queries=300, score=softcap, dtype=BRAIN),
        "dynamic": Case("documents", queries=270, dynamic=True),
        "dynamic, gradients": Case("documents", queries=200, batch=2, dynamic=True, training=True),
        "fewer queries": Case("documents", queries=130, keys=300, heads=4, kv_heads=2),
        "decoding": Case("mixed documents", queries=3, keys=500, heads=4, kv_heads=2),
        "decoding one": Case("mixed documents", queries=1, keys=300),
        "gradients": Case("documents", queries=270, training=True),
        "gradients, mixed": Case("mixed documents", queries=200, heads=4, kv_heads=2, training=True, dtype=BRAIN),
        "gradients, padding": Case("padding", queries=100, training=True, score=alibi, dtype=FULL),
    },
    "runs": {
        "documents": Case("documents", queries=300),
        "documents in no order": Case("documents", queries=400, unsorted=True),
        "padding": Case("padding", queries=300, score=softcap, dtype=BRAIN),
        "padding before": Case("padding before", queries=300, heads=4, kv_heads=2),
        "length": Case("length", queries=270, dynamic=True),
        "fewer queries": Case("documents", queries=130, keys=500),
        "decoding": Case("padding before", queries=3, keys=500, heads=4, kv_heads=2),
        "gradients": Case("documents", queries=270, training=True),
        "gradients, no order": Case("documents", queries=400, training=True, unsorted=True, dtype=FULL),
        "gradients, padding": Case("padding before", queries=200, heads=4, kv_heads=2, training=True, score=alibi),
        "gradients, dynamic": Case("documents", queries=200, batch=2, dynamic=True, training=True),
    },
    "decoding": {
        "one query": Case(None, queries=1, keys=300),
        "window": Case("near the end", queries=1, keys=1000, score=alibi),
        "five queries, groups": Case("near the end", queries=5, keys=300, heads=6, kv_heads=2),
        "bfloat16, large heads": Case(None, queries=2, keys=200, dim=128, dtype=BRAIN),
        "float32": Case("global and local", queries=3, keys=257, dtype=FULL, score=softcap),
        "dynamic": Case("near the end", queries=1, keys=300, dynamic=True),
        "dynamic, batch": Case("near the end", queries=1, keys=300, batch=3, heads=4, dynamic=True),
        "nothing attended": Case("all rows empty", queries=3, keys=120),
        "many heads": Case("near the end", queries=1, keys=300, heads=71, kv_heads=1, dim=16),
        "five queries, many heads": Case("near the end", 5, 2, 257, heads=36, kv_heads=2, dim=16, score=alibi),
    },
    "gradients": {
        "causal": Case(training=True),
        "window, bfloat16": Case("window", queries=200, dtype=BRAIN, training=True),
        "none, float32": Case(None, queries=130, keys=77, dtype=FULL, training=True),
        "groups": Case(heads=4, kv_heads=2, queries=150, training=True),
        "softcap": Case("prefix", queries=150, score=softcap, training=True),
        "alibi with a gradient": Case(queries=150, score=alibi, dtype=FULL, training=True),
        "two places with gradients": Case("window", 150, heads=3, score=between, dtype=FULL, training=True),
        "alibi with a gradient, dynamic": Case("window", 17, keys=19, score=alibi, training=True, dynamic=True),
        "global and local": Case("global and local", queries=200, training=True),
        "odd heads": Case(dim=40, v_dim=24, queries=100, training=True),
        "odd lengths, bfloat16": Case(None, 131, 1, 77, BRAIN, dim=40, v_dim=24, training=True),
        "some rows empty": Case("some rows empty", queries=200, training=True),
    },
    "parts of a head": {
        "80, gradients": Case(queries=130, dim=80, dtype=BRAIN, training=True),
        "96": Case(queries=150, dim=96, dtype=BRAIN),
        "96 and 80, groups": Case("prefix", 90, 1, 131, BRAIN, 2, 1, 96, 80, softcap, training=True),
        "192 and 128, gradients": Case("window", 77, 1, 131, heads=1, dim=192, v_dim=128, training=True),
        "72 and 96, none": Case(None, 77, 1, 130, dim=72, v_dim=96, score=softcap),
        "lists, gradients": Case("documents", 150, dim=80, v_dim=72, dtype=BRAIN, training=True),
        "192 and 128, one query": Case("near the end", 1, 1, 300, BRAIN, dim=192, v_dim=128),
        "192 and 128": Case(queries=100, dim=192, v_dim=128, dtype=BRAIN, heads=1),
        "80, five queries": Case("near the end", queries=5, keys=257, dim=80, heads=4, kv_heads=2),
        "float32, gradients": Case(None, 77, 1, 130, FULL, dim=96, v_dim=80, training=True),
        "dropout, dynamic": Case(queries=100, batch=2, dim=96, dropout=0.2, dynamic=True, training=True),
        "96, one query": Case(None, queries=1, keys=300, dim=96),
        "576 and 512": Case(None, 40, 1, 70, BRAIN, 2, 1, 576, 512, softcap),
        "576 and 512, one query": Case("near the end", 1, 1, 300, BRAIN, 4, 1, 576, 512),
    },
    "sinks": {
        "causal": Case(sink=True),
        "window, bfloat16": Case("window", queries=200, heads=4, kv_heads=2, dtype=BRAIN, sink=True),
        "lists": Case("documents", queries=300, sink=True),
        "dynamic": Case(queries=150, sink=True, dynamic=True),
        "decoding": Case("near the end", queries=1, keys=300, heads=4, kv_heads=2, sink=True),
        "gradients": Case(queries=150, dtype=FULL, sink=True, training=True),
        "gradients, lists": Case("padding", queries=200, heads=4, kv_heads=2, sink=True, training=True),
        "gradients, few queries": Case("near the end", queries=5, keys=300, sink=True, training=True),
        "gradients, empty rows": Case("rows without keys", queries=200, dtype=FULL, sink=True, training=True),
        "dropout": Case("window", queries=200, sink=True, dropout=0.2, training=True),
    },
    "dropout": {
        "causal": Case(dropout=0.1, training=True),
        "groups, float32": Case(None, 130, 2, 150, FULL, 4, 2, dropout=0.5, training=True),
        "softcap, bfloat16": Case("window", queries=200, dtype=BRAIN, dropout=0.2, score=softcap, training=True),
        "inference": Case("prefix", queries=100, dim=16, dropout=0.3),
        "lists": Case("documents", queries=250, heads=4, kv_heads=2, dropout=0.1, training=True),
        "dynamic": Case(queries=150, batch=3, dropout=0.1, dynamic=True, training=True),
        "one query": Case(None, queries=1, keys=200, dropout=0.4),
        "alibi with a gradient": Case(queries=150, score=alibi, dtype=FULL, dropout=0.2, training=True),
        "recomputed": Case(queries=100, dropout=0.3, recomputed=True, training=True),
    },
}


def in_runs(case: Case) -> contextlib.AbstractContextManager[Any]:
    """Runs of blocks instead of lists, however short the sequences are, for a case that wants them."""
    return mock.patch.object(block_masks, "MANY", 1) if case.runs else contextlib.nullcontext()


GROUPS["runs"] = {name: replace(case, runs=True) for name, case in GROUPS["runs"].items()}
GROUPS["fused"] = {
    name: replace(case, training=True, fused=True)
    for name, case in {
        "causal": Case(),
        "window, bfloat16": Case("window", queries=200, dtype=BRAIN),
        "groups, dropout": Case(queries=150, heads=4, kv_heads=2, dropout=0.2),
        "none, odd lengths": Case(None, queries=130, keys=77),
        "alibi with a gradient": Case(queries=150, score=alibi),
        "documents, dynamic": Case("documents", queries=200, batch=2, dynamic=True),
        "runs, parts of a head": Case("padding before", 150, dim=80, v_dim=72, dtype=BRAIN, runs=True),
        "prefix, softcap": Case("prefix", queries=150, score=softcap, dim=128),
        "some rows empty, odd heads": Case("some rows empty", queries=200, dim=40, v_dim=24),
    }.items()
}


def in_one(case: Case) -> contextlib.AbstractContextManager[Any]:
    """All gradients by one kernel, for a case that wants it."""
    return backward_in_one() if case.fused else contextlib.nullcontext()


@contextlib.contextmanager
def backward_in_one() -> Iterator[None]:
    """One kernel computes all gradients, which is otherwise for measurements to say."""

    def plan(call: Any) -> list[Variant]:
        return call.plan("fused")[:1]

    taken = mock.Mock(return_value=True)
    with mock.patch.multiple(backward, fused_plan=plan, faster=taken):
        yield
    assert taken.called


def results(
    case: Case, program: Callable[..., Any], dtype: torch.dtype | None, device: str = "cpu", seed: int = SEED
) -> list[torch.Tensor]:
    """The output, and in training the gradients of all inputs. dtype: of the inputs, if not the case's own. seed: of
    dropout."""
    inputs = case.inputs(device)
    if dtype is not None:
        inputs = [x.detach().to(dtype).requires_grad_(case.training) for x in inputs[:-1]] + inputs[-1:]
    torch.manual_seed(seed)
    out = program(*inputs)
    if not case.training:
        return [out]
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.device, case.dtype).to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def kept(
    case: Case, program: Callable[[Case], Callable[..., Any]], device: str = "cpu", seed: int = SEED
) -> torch.Tensor:
    """Which weights dropout leaves, as the same random numbers show it with the identity for values. What is recomputed
    may draw others than what is not (torch 2.15)."""
    plain = replace(case, identity=True, v_dim=case.keys or case.queries, training=case.recomputed)
    weights, *_ = results(plain, program(plain), None, device, seed)
    return weights != 0


BITS = (1 << 32) - 1


def choice(random: torch.Tensor, keys: int, p: float) -> torch.Tensor:
    """The same by the hash of our kernels. random: the random bits of the queries, (batch, head, query)."""
    mixed = (random[..., None] + torch.arange(keys) * 0x9E3779B9) & BITS
    mixed = (mixed ^ (mixed >> 16)) * 0x21F0AAAD & BITS
    mixed = ((mixed ^ (mixed >> 15)) + (random[..., None] >> 32)) * 0xD35A2D97 & BITS
    return (mixed ^ (mixed >> 15)) >= round(p * 2**32)


def shares(case: Case, ours: list[torch.Tensor], device: str = "cpu", eps: int = 4) -> list[float]:
    """The errors against float64, as shares of what is allowed: twice eager's own, and a floor of so many eps."""
    double = replace(case, dtype=torch.float64)
    eager = results(case, case.program, None, device)
    exact = results(double, case.program, torch.float64, device)
    found = []
    for number, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
        error, own = (float((x.double() - c).abs().max()) for x in (a, b))
        floor = eps * torch.finfo(case.dtype).eps * max(float(c.abs().max()), 1e-30)
        floor += 4 * torch.finfo(torch.float32).eps * sum_of_terms(double, device) if number == PARAMETER else 0
        found.append(error / (2 * own + floor) if a.isfinite().all() else float("inf"))
    return found


def sum_of_terms(case: Case, device: str) -> float:
    """The gradient of the parameter is a float32 sum over all scores, whose rounding is that of its terms: their
    absolute values summed up."""
    spread: list[torch.Tensor] = []

    def program(q: Any, k: Any, v: Any, parameter: Any, table: Any) -> Any:
        spread.append(parameter.expand(-1, q.shape[2], k.shape[2]).clone())
        spread[0].retain_grad()
        return case.program(q, k, v, spread[0], table)

    results(case, program, torch.float64, device)
    assert spread[0].grad is not None
    return float(spread[0].grad.abs().sum((1, 2)).max())


def case_of(path: str) -> Case:
    """path: GROUP/NAME."""
    group, _, name = path.partition("/")
    return GROUPS[group][name]
