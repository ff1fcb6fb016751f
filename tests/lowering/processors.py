"""Runs our C++ kernels for the tests of other processors: `python -m tests.lowering.processors DTYPE [SIMDLEN]`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch._dynamo.utils import counters

from tests.support.exactness import compare_all, compiled, outcome, reference
from tests.support.programs import randn


def program(q: Any, k: Any, v: Any, cap: Any) -> Any:
    """A program with vectors in the score and in the mask, and a gradient of what the score reads."""
    i = torch.arange(q.shape[2])
    scores = torch.tanh(q @ k.mT * 0.2) * cap.to(q.dtype)
    return torch.softmax(scores.masked_fill((i > i[:, None]) | (i % 7 == 3), float("-inf")), -1) @ v


def main(dtype: str, simdlen: str = "") -> None:
    if simdlen:
        torch._inductor.config.cpp.simdlen = int(simdlen)
    coarse = torch.finfo(getattr(torch, dtype)).eps
    given = [*(randn(2, 4, 150, 40, seed=i).to(getattr(torch, dtype)) for i in range(3)), torch.rand(4, 1, 1) + 1]
    eager, exact = outcome(program, program, given, True), reference(program, given, True)
    run = compiled(program, "flex")
    compare_all(outcome(run, program, given, True), eager, exact, 16, coarse)
    with torch.backends.mkldnn.flags(enabled=False):  # the same kernels, which are not chosen anew
        compare_all(outcome(run, program, given, True), eager, exact, 16, coarse)
        compare_all(outcome(compiled(program, "flex"), program, given, True), eager, exact, 16, coarse)
    assert set(counters["flex_inductor"]) <= {"own kernel"}, counters["flex_inductor"]
    print(torch.backends.cpu.get_cpu_capability(), torch._inductor.cpu_vec_isa.pick_vec_isa().bit_width())


if __name__ == "__main__":
    main(*sys.argv[1:])
