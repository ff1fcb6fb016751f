"""Runs our C++ kernels at odd sizes, for test_sanitizers: `python -m tests.lowering.sanitized DTYPE PART [FAULT]`.

A program of each kind of loop is compiled once for all lengths, some for lengths of one too. The numbers are held
against float64. Products are made by a plain loop, whose reads and writes the sanitizers see, in the place of torch's,
which they do not."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch._dynamo.utils import counters

from flex_inductor.lowering import cpu_backward, cpu_call, cpu_forward
from tests.lowering import cases
from tests.lowering.cases import Case, Mask, alibi, results, shares, softcap
from tests.lowering.test_cpu import compiled

PRODUCTS = """
namespace at::native::cpublas {
template <typename T>
inline void plain_product(
    int64_t rows, int64_t columns, int64_t inner, int64_t a_stride, int64_t b_stride, int64_t c_stride, bool add,
    const T* a, const T* b, float* c) {
  constexpr int64_t GROUP = sizeof(float) / sizeof(T);  // numbers of 16 bits have their rows in pairs
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double sum = add ? c[i * c_stride + j] : 0.f;
      for (int64_t n = 0; n < inner; ++n)
        sum += double(a[i * a_stride + n]) * double(b[n / GROUP * GROUP * b_stride + j * GROUP + n % GROUP]);
      c[i * c_stride + j] = sum;
    }
}
}
#define brgemm plain_product
"""
INCLUDED = "#include <ATen/native/CPUBlas.h>\n"
FAULTS = {
    "none": (INCLUDED, INCLUDED),
    "memory a line short": ("std::max<int64_t>(count, 1)", "std::max<int64_t>(count - 16, 1)"),
    "numbers too many": ("for (; i < count; ++i) found", "for (; i < count + 4096; ++i) found"),  # than a row has
}
"""What is replaced in the kernel's text, and by what."""

MASKS: dict[str, Mask] = {
    "causal": lambda q, k, t: k <= q,
    "window": lambda q, k, t: (k <= q) & (q - k < 40),
    "two-sided window": lambda q, k, t: (q - k).abs() <= 30,
    "prefix": lambda q, k, t: (k <= q) | (k < 37),
    "sinks and window": lambda q, k, t: (k <= q) & ((q - k < 20) | (k < 4)),
    "global and local": lambda q, k, t: ((q - k).abs() < 25) | (k < 33) | (q < 20),
    "chunks": lambda q, k, t: (q // 40 == k // 40) & (k <= q),
    "some rows empty": lambda q, k, t: k > q + 30,
    "documents": lambda q, k, t: (t[q] == t[k]) & (k <= q),
    "mixed documents": lambda q, k, t: (t[q] % 3 == t[k] % 3) | (k == q),
    "large integers": lambda q, k, t: q * 100_000_001 >= k * 100_000_000,
}
DIAGONAL = {"window", "two-sided window", "chunks", "documents", "mixed documents"}
"""Masks under which a query is sure of its own key alone: it needs one."""
LENGTHS = ((2, 17), (17, 2), (63, 65), (65, 63), (17, 129), (129, 17), (129, 129), (3, 600))
"""Of queries and keys. Up to 16 queries the kernels do without panels of keys."""
ONES = ((1, 129), (129, 1), (1, 1))
FLOOR = 16
"""In eps, that of tests/support/exactness.py: of a short sequence's few numbers eager may get nearly all right."""
DIMS = ((33, 3), (80, 33), (3, 80), (1, 1), (64, 64))
"""Of queries and keys, and of values."""


def programs(dtype: torch.dtype, training: bool) -> Iterator[Case]:
    """One of each kind of loop, and of each pair of head dimensions."""
    given: dict[str, Any] = {"dtype": dtype, "dynamic": True, "training": training, "batch": 2, "heads": 4}
    for number, mask in enumerate((None, *MASKS)):
        dim, v_dim = DIMS[number % len(DIMS)]
        score, kv_heads = (None, softcap, alibi)[number % 3], (None, 2)[number % 2]
        yield Case(mask, dim=dim, v_dim=v_dim, score=score, kv_heads=kv_heads, **given)
    yield Case("causal", dim=40, v_dim=24, sink=True, **given)


def source(name: str, fault: str) -> str:
    """The text of a kernel, with plain products and a fault."""
    text, (old, new) = cpu_call.source(name), FAULTS[fault]
    assert INCLUDED in text and old in text
    return text.replace(old, new, 1).replace(INCLUDED, INCLUDED + PRODUCTS)


def sees_one(case: Case) -> bool:
    """Whether no query sees a second key: then all gradients but the values' cancel, and are nothing but rounding."""
    documents = case.inputs()[-1]
    queries, keys = torch.arange(case.queries)[:, None], torch.arange(case.keys or case.queries)
    seen = cases.MASKS[case.mask](queries, keys, documents) if case.mask else torch.ones(case.queries, len(keys))
    return int(seen.sum(-1).max()) <= 1


def run(case: Case, lengths: Iterable[tuple[int, int]]) -> None:
    lengths = [(q, k) for q, k in lengths if case.mask not in DIAGONAL or q <= k]
    if not lengths:
        return
    program = compiled(case.program, case.dynamic)
    for queries, keys in lengths:
        this = replace(case, queries=queries, keys=keys)
        with torch.set_grad_enabled(case.training):
            found = results(this, program, None)
        share = 0.0 if case.training and sees_one(this) else max(shares(this, found, eps=FLOOR))
        print(this.mask, queries, keys, this.dim, this.v_dim, this.dtype, f"{share:.2f}", flush=True)
        assert share <= 1
    assert set(counters["flex_inductor"]) == {"own kernel"}, counters["flex_inductor"]


def main(dtype: str, part: str, fault: str = "none") -> None:
    """part: "forward", "gradients", or "one", for one program of each."""
    for module in (cpu_forward, cpu_backward):
        module.source = lambda name: source(name, fault)  # type: ignore[attr-defined]
    cases.MASKS.update(MASKS)
    cases.guarded = lambda x: x.clone()  # type: ignore[attr-defined]
    torch._inductor.config.force_disable_caches = True
    chosen = list(programs(getattr(torch, dtype), part != "forward"))
    for number, case in enumerate(chosen[1:2] if part == "one" else chosen):
        run(case, LENGTHS)
        if number < 3 and part != "one":
            for pair in ONES:
                run(case, [pair])


if __name__ == "__main__":
    main(*sys.argv[1:])
