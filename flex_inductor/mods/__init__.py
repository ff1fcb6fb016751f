"""Ways to change attention, for `flex_inductor.vary`, and for torch's own `flex_attention`.

    local = mods.causal() & (mods.window(256) | mods.global_tokens(4))
    flex_attention(q, k, v, score_mod=mods.softcap(50.0).score_mod,
                   block_mask=create_block_mask(local.mask_mod, None, None, 4096, 4096))

A `Mod` has a mask_mod, a score_mod, or both, in the form that flex_attention takes: functions of integer tensors b, h,
q and k without dimensions (batch, head, query and key), and of the score. Masks are composed by `&`, `|` and `~`. `a +
b` applies the scores one after the other, and both masks. Lengths of prefixes, slopes, temperatures and sinks may be
tensors, one number for each head (of prefixes, each batch) where they have a dimension; `vary` trains those that
require gradients. Arguments that make no sense are a TypeError or a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flex_inductor.mods.compose import Function, Mod, a_mod, only_mask, together
from flex_inductor.mods.given import a_function, a_tensor, number, tensors_only, whole


def mask(function: Function, *tensors: Tensor) -> Mod:
    """A mask_mod of your own: function(b, h, q, k, *tensors) -> whether the key is visible."""
    a_function("mask", function)
    return Mod(_called("mask", _name(function), *tensors), mask=function, tensors=tensors_only("mask", tensors))


def score(function: Function, *tensors: Tensor) -> Mod:
    """A score_mod of your own: function(score, b, h, q, k, *tensors) -> score."""
    a_function("score", function)
    return Mod(_called("score", _name(function), *tensors), score=function, tensors=tensors_only("score", tensors))


def causal() -> Mod:
    """k <= q: no key behind the query. Source: Vaswani et al. 2017, "Attention is all you need"."""
    return Mod("causal()", mask=lambda b, h, q, k: k <= q)


def window(size: int) -> Mod:
    """|q - k| < size: keys nearer than `size`, on both sides; with `causal`, the window of Mistral.

    Source: Beltagy et al. 2020, "Longformer"; Jiang et al. 2023, "Mistral 7B"."""
    whole("window", "size", size)
    return Mod(f"window({size})", mask=lambda b, h, q, k: (q - k).abs() < size)


def prefix(length: int | Tensor) -> Mod:
    """k < length or k <= q: all see the prefix, and what follows it is causal. length: one number, or one for each
    batch. Source: Raffel et al. 2020, "T5" (prefix LM)."""
    if isinstance(length, Tensor):
        a_tensor("prefix", "length", length, 0, 1)
    else:
        whole("prefix", "length", length, least=0)
    return _with("prefix", length, lambda n: {"mask": lambda b, h, q, k, *t: (k < _entry(n, t, b)) | (k <= q)})


def documents(ids: Tensor) -> Mod:
    """ids[q] == ids[k]: keys of the query's own document. ids: (length,) or (batch, length).

    Source: Krell et al. 2021, "Efficient sequence packing without cross-contamination"."""
    a_tensor("documents", "ids", ids, 1, 2)
    place = (lambda b, x: (b, x)) if ids.dim() == 2 else (lambda b, x: (x,))
    return Mod(
        _called("documents", ids), mask=lambda b, h, q, k, ids: ids[place(b, q)] == ids[place(b, k)], tensors=(ids,)
    )


def dilated(step: int) -> Mod:
    """(q - k) % step == 0: every step-th key, counted from the query. Source: Child et al. 2019, "Generating long
    sequences with sparse transformers"."""
    whole("dilated", "step", step)
    return Mod(f"dilated({step})", mask=lambda b, h, q, k: (q - k) % step == 0)


def global_tokens(which: int | Tensor) -> Mod:
    """which[q] or which[k]: some tokens see all, and all see them. which: how many of the first ones, or Booleans
    (length,). Source: Beltagy et al. 2020, "Longformer"; Zaheer et al. 2020, "Big Bird"."""
    if not isinstance(which, Tensor):
        whole("global_tokens", "which", which, least=0)
        return Mod(f"global_tokens({which})", mask=lambda b, h, q, k: (q < which) | (k < which))
    a_tensor("global_tokens", "which", which, 1)
    return Mod(_called("global_tokens", which), mask=lambda b, h, q, k, which: which[q] | which[k], tensors=(which,))


def softcap(cap: float) -> Mod:
    """cap * tanh(score / cap): scores stay within the cap. Source: Gemma Team 2024, "Gemma 2"."""
    number("softcap", "cap", cap, above=0)
    return Mod(f"softcap({cap})", score=lambda score, b, h, q, k: cap * torch.tanh(score / cap))


def alibi(slope: float | Tensor) -> Mod:
    """score - slope * |q - k|. slope: one number, or one for each head (`alibi_slopes`).

    Source: Press et al. 2022, "Train short, test long"."""
    number("alibi", "slope", slope, dims=1)
    return _with(
        "alibi", slope, lambda n: {"score": lambda score, b, h, q, k, *t: score - _entry(n, t, h) * (q - k).abs()}
    )


def alibi_slopes(heads: int) -> Tensor:
    """The slopes of the paper: 2 ** (-8 / heads), and its powers; for numbers of heads that are no power of two, those
    of the next lower one, and every second one of the next higher."""
    whole("alibi_slopes", "heads", heads)
    lower = 1 << (heads.bit_length() - 1)
    first = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    more = [2 ** (-4 * (2 * i + 1) / lower) for i in range(heads - lower)]
    return torch.tensor(first + more)


def temperature(value: float | Tensor) -> Mod:
    """score / value. value: one number, or one for each head.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network"; Peng et al. 2023, "YaRN"."""
    number("temperature", "value", value, above=0, dims=1)
    return _with("temperature", value, lambda n: {"score": lambda score, b, h, q, k, *t: score / _entry(n, t, h)})


def relative_table(table: Tensor) -> Mod:
    """score + table[h, clamp(q - k, -n, n) + n]: a bias for each distance. table: (2 n + 1,), or (heads, 2 n + 1).

    Source: Shaw et al. 2018, "Self-attention with relative position representations"; Raffel et al. 2020, "T5"."""
    a_tensor("relative_table", "table", table, 1, 2)
    n, rest = divmod(table.shape[-1], 2)
    if not rest:
        raise ValueError(f"relative_table: table has {2 * n} columns; they must be 2 n + 1, for distances of -n to n")
    place = (lambda h, x: (h, x)) if table.dim() == 2 else (lambda h, x: (x,))
    return Mod(
        _called("relative_table", table),
        score=lambda score, b, h, q, k, table: score + table[place(h, (q - k).clamp(-n, n) + n)],
        tensors=(table,),
    )


def prior(log_prior: Function, *parameters: Tensor) -> Mod:
    """score + log_prior(b, h, q, k, *parameters): attention as the posterior of where to look, p(k) ~ prior(k) *
    exp(score). The prior need not add up to one. `heads` gives it to one head.

        width = nn.Parameter(torch.tensor(8.0))
        near = prior(lambda b, h, q, k, width: -0.5 * ((q - k) / width) ** 2, width)              # a Gaussian
        counts = nn.Parameter(torch.ones(64))
        often = prior(lambda b, h, q, k, c: c[(q - k).abs().clamp(max=63)].log(), counts)         # Dirichlet counts

    Source: Yang et al. 2018, "Modeling localness for self-attention networks" (a Gaussian)."""
    a_function("prior", log_prior)
    tensors_only("prior", parameters)
    text = _called("prior", _name(log_prior), *parameters)
    return Mod(text, score=lambda score, b, h, q, k, *t: score + log_prior(b, h, q, k, *t), tensors=parameters)


def sink(value: float | Tensor = 0.0) -> Mod:
    """A column beside the keys with this score and no value: what a head gives to it goes nowhere. value: one number,
    or one for each head; 0 is softmax with one more in the denominator.

    flex_attention has no such column: its output is multiplied by sigmoid(logsumexp - value) instead, which `vary`
    does, and `without_sink` for calls of your own. Source: Xiao et al. 2023, "Efficient streaming language models with
    attention sinks"; Miller 2023, "Attention is off by one"."""
    number("sink", "value", value, dims=1)
    return _with("sink", value, lambda n: {"sink": lambda b, h, q, k, *t: _as_tensor(_entry(n, t, h), q)})


def without_sink(out: Tensor, logsumexp: Tensor, value: float | Tensor) -> Tensor:
    """The output (batch, heads, queries, channels) of flex_attention with a sink, made from that without it, and from
    the log-sum-exp (batch, heads, queries)."""
    score = value[:, None] if isinstance(value, Tensor) and value.dim() else value
    return out * torch.sigmoid(logsumexp - score).unsqueeze(-1).to(out.dtype)


def heads(chosen: Mapping[int | Iterable[int], Mod]) -> Mod:
    """Mods for some heads; the others stay as they are. chosen: the number of a head, from 0, or of several, and its
    mod."""
    if not isinstance(chosen, Mapping):
        raise TypeError(f"heads: {chosen!r} is no mapping from numbers of heads to mods, like {{0: causal()}}")
    pairs = [(i, m) for which, m in chosen.items() for i in (which if isinstance(which, Iterable) else [which])]
    for i, _ in pairs:
        whole("heads", "the number of a head", i, least=0)
    return together(f"heads({dict(chosen)})", pairs)


def instead(mod: Mod) -> Mod:
    """For `vary`: a mask in place of the model's own, and not beside it. Conditions of the model that read tensors,
    such as padding, stay, because what they mean is not known."""
    only_mask(a_mod("instead", mod), "instead")
    return replace(mod, text=f"instead({mod.text})", replaces=True)


def _with(name: str, value: Any, functions: Callable[[Any], dict[str, Any]]) -> Mod:
    """A mod of a number, which is a tensor of its own if it is given as one."""
    tensors = (value,) if isinstance(value, Tensor) else ()
    return Mod(_called(name, value), tensors=tensors, **functions(value))


def _entry(value: Any, tensors: tuple[Tensor, ...], place: Tensor) -> Any:
    """A number, or that of a head or a batch."""
    if not tensors:
        return value
    return tensors[0][place] if tensors[0].dim() else tensors[0]


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, value, dtype=torch.float32)


def _name(function: Function) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _called(name: str, *given: Any) -> str:
    texts = (f"tensor{tuple(x.shape)}" if isinstance(x, Tensor) else str(x) for x in given)
    return f"{name}({', '.join(texts)})"
