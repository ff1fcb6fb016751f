"""clean: what only the replaced attention needed goes, everything else stays."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.exactness import check, reports_of
from tests.support.programs import B, D, H, S, attend, causal, qkv, randn


def names(program: Any, inputs: Any) -> list[str]:
    (report,) = reports_of(program, inputs)
    assert report.rewritten == 1
    return [
        n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
        for n in report.after.graph.nodes
    ]


def test_scores_and_masks_are_gone() -> None:
    left = names(lambda q, k, v: attend(q, k, v, causal), qkv())
    assert not set(left) & {"softmax", "masked_fill", "tril", "ones", "matmul", "eq", "transpose"}


def test_writes_that_built_the_mask_are_gone() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        m = torch.zeros(S, S)
        m[:, 3:5] = -2.0
        m.add_(1)
        return torch.softmax(q @ k.mT + m, -1) @ v

    assert not set(names(program, qkv())) & {"zeros", "setitem", "add_", "softmax"}


def test_a_mask_that_something_else_reads_stays() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        m = torch.zeros(S, S)
        m[:, 3:5] = -2.0
        return torch.softmax(q @ k.mT + m, -1) @ v, m.sum()

    left = names(program, qkv())
    assert {"zeros", "setitem"} <= set(left) and "softmax" not in left


def test_a_write_to_an_input_stays() -> None:
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        m.mul_(2)
        return torch.softmax(q @ k.mT + m, -1) @ v

    mask, want = randn(S, S), randn(S, S) * 2
    assert "mul_" in names(program, (*qkv(), randn(S, S)))
    torch._dynamo.reset()
    torch.compile(program, backend="flex_eager")(*qkv(), mask)
    assert torch.equal(mask, want)


def test_random_numbers_are_drawn_as_often_as_before() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        noise = torch.rand(S, S)
        return torch.softmax(q @ k.mT + noise * 0, -1) @ v, torch.rand(3)

    torch._dynamo.reset()
    torch.manual_seed(0)
    _, got = torch.compile(program, backend="flex_eager")(*qkv())
    torch.manual_seed(0)
    _, want = program(*qkv())
    assert torch.equal(got, want)


def test_operands_and_what_reads_the_result_stay() -> None:
    def program(x: Any, w: Any) -> Any:
        q, k, v = (x @ w).view(B, S, 3, H, D).permute(2, 0, 3, 1, 4)
        return attend(q, k, v).transpose(1, 2).reshape(B, S, H * D) @ w[:, : H * D].T

    check(program, (randn(B, S, H * D), randn(H * D, 3 * H * D) * 0.1), train=True)


def test_assertions_stay() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        torch._assert_async((q > -100).all())
        return attend(q, k, v)

    assert any("assert" in n for n in names(program, qkv()))


def test_a_declined_site_is_left_whole() -> None:
    (report,) = reports_of(
        lambda q, k, v: attend(q, k, v) + (lambda p: p @ v + p.sum())(torch.softmax(q @ k.mT * 2, -1)), qkv()
    )
    left = [getattr(n.target, "__name__", n.target) for n in report.after.graph.nodes]
    assert report.rewritten == 1 and "softmax" in left
