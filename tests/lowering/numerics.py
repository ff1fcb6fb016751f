"""Programs whose rendered kernels are run by Triton's interpreter, and compared with float64.

    TRITON_INTERPRET=1 python -m tests.lowering.numerics GROUP [--broken WHAT]

Prints a line of JSON for each program of a group: its name, the kernels that ran, and for the output and each gradient
the error as a share of what is allowed: twice eager's own error, and a floor of rounding. `--broken` seeds a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch

from flex_inductor.lowering import bounds
from tests.support.gpuless.interpreter import guarded
from tests.support.gpuless.rendering import render

Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MASKS: dict[str, Mask] = {
    "causal": lambda q, k: k <= q,
    "window": lambda q, k: (k <= q) & (q - k < 100),
    "two-sided window": lambda q, k: (q - k).abs() <= 70,
    "prefix": lambda q, k: (k <= q) | (k < 77),
    "sinks and window": lambda q, k: (k <= q) & ((q - k < 90) | (k < 4)),
    "global and local": lambda q, k: ((q - k).abs() < 60) | (k < 33) | (q < 20),
    "chunks": lambda q, k: (q // 100 == k // 100) & (k <= q),
    "some rows empty": lambda q, k: k > q + 130,
}


@dataclass(frozen=True)
class Case:
    """Sizes and spelling of one attention. score: score arithmetic, of the scores and of a parameter (heads, 1, 1)."""

    mask: str | None = "causal"
    queries: int = 256
    keys: int | None = None
    dtype: torch.dtype = torch.float16
    heads: int = 2
    kv_heads: int | None = None
    dim: int = 64
    v_dim: int | None = None
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    training: bool = False
    dynamic: bool = False

    def inputs(self) -> list[torch.Tensor]:
        torch.manual_seed(0)
        keys, kv_heads = self.keys or self.queries, self.kv_heads or self.heads
        shapes = [(self.heads, self.queries, self.dim), (kv_heads, keys, self.dim),
                  (kv_heads, keys, self.v_dim or self.dim)]  # fmt: skip
        found = [guarded(torch.randn(1, *shape).to(self.dtype)) for shape in shapes]
        found.append(torch.rand(self.heads, 1, 1) + 0.5)
        return [x.requires_grad_(self.training) for x in found]

    def program(self, q: Any, k: Any, v: Any, parameter: Any) -> Any:
        k, v = (x.repeat_interleave(self.heads // x.shape[1], 1) for x in (k, v))
        scores = q @ k.mT * self.dim**-0.5
        if self.score is not None:
            scores = self.score(scores, parameter)
        if self.mask is not None:
            places = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
            scores = torch.where(MASKS[self.mask](*places), scores, float("-inf"))
        weights = torch.softmax(scores.float() if self.dtype != torch.float64 else scores, -1)
        return weights.nan_to_num(0.0).to(v.dtype) @ v if self.mask == "some rows empty" else weights.to(v.dtype) @ v


def softcap(scores: torch.Tensor, cap: torch.Tensor) -> torch.Tensor:
    return torch.tanh(scores / 5.0) * 5.0


def alibi(scores: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    distance = torch.arange(scores.shape[-1]) - torch.arange(scores.shape[-2])[:, None]
    return scores + (slope * distance * 0.1).to(scores.dtype)


HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
GROUPS: dict[str, dict[str, Case]] = {
    "masks": {name: Case(mask) for name, mask in ((m or "none", m) for m in (None, *MASKS)) if name != "some rows empty"},
    "lengths": {
        "uneven": Case(queries=200),
        "uneven, none": Case(None, queries=130, keys=77),
        "more keys": Case("window", queries=70, keys=300),
        "more queries": Case(queries=300, keys=70),
        "dynamic": Case("window", queries=200, dynamic=True),
        "dynamic, none": Case(None, queries=130, keys=77, dynamic=True),
        "dynamic, prefix": Case("prefix", queries=150, dynamic=True),
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
    },
    "gradients": {
        "causal": Case(training=True),
        "window, bfloat16": Case("window", queries=200, dtype=BRAIN, training=True),
        "none, float32": Case(None, queries=130, keys=77, dtype=FULL, training=True),
        "groups": Case(heads=4, kv_heads=2, queries=150, training=True),
        "softcap": Case("prefix", queries=150, score=softcap, training=True),
        "alibi with a gradient": Case(queries=150, score=alibi, dtype=FULL, training=True),
        "global and local": Case("global and local", queries=200, training=True),
        "odd heads": Case(dim=40, v_dim=24, queries=100, training=True),
    },
}
FAULTS: dict[str, Callable[[str], str]] = {
    "a block short": lambda loops: loops.replace(" : masked", " - 1 : masked"),
    "the diagonal called full": lambda loops: loops.replace("masked", "full"),
    "a block late": lambda loops: loops.replace("0 : ", "1 : ", 1),
}


def broken(fault: str | None) -> Any:
    """Our bounds with a fault in the loops."""
    if fault is None:
        return contextlib.nullcontext()
    right = bounds.bounds

    def wrong(*args: Any, **kwargs: Any) -> bounds.Bounds:
        found = right(*args, **kwargs)
        return bounds.Bounds(found.statements, FAULTS[fault](found.loops))

    patches = contextlib.ExitStack()
    for name in ("prefill", "backward"):
        patches.enter_context(mock.patch(f"flex_inductor.lowering.{name}.bounds", wrong))
    return patches


def results(case: Case, program: Callable[..., Any], dtype: torch.dtype | None) -> list[torch.Tensor]:
    """The output, and in training the gradients of all inputs."""
    inputs = [x if dtype is None else x.detach().to(dtype).requires_grad_(case.training) for x in case.inputs()]
    out = program(*inputs)
    if not case.training:
        return [out]
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(case.dtype).to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def shares(case: Case, fault: str | None) -> list[float]:
    """The errors, as shares of what is allowed."""
    with broken(fault):
        ours = results(case, lambda *x: render(case.program, *x, run=True, dynamic=case.dynamic).result, None)
    eager = results(case, case.program, None)
    exact = results(Case(**{**case.__dict__, "dtype": torch.float64}), case.program, torch.float64)
    found = []
    for a, b, c in zip(ours, eager, exact, strict=True):
        error, own = (float((x.double() - c).abs().max()) for x in (a, b))
        floor = 4 * torch.finfo(case.dtype).eps * float(c.abs().max())
        found.append(error / (2 * own + floor) if a.isfinite().all() else float("inf"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--broken", choices=FAULTS)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    for name, case in GROUPS[args.group].items():
        if args.only and name not in args.only:
            continue
        torch._dynamo.utils.counters.clear()
        with torch.set_grad_enabled(case.training):
            found = shares(case, args.broken)
        print(json.dumps({"case": name, "shares": found, "kernels": dict(torch._dynamo.utils.counters["flex_inductor"])}), flush=True)


if __name__ == "__main__":
    main()
