"""Masks that are numbers in tensors: what is low enough hides its key, and everything else stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flex_inductor import explain, listen
from flex_inductor.backend import run
from flex_inductor.compat import eager
from flex_inductor.options import Options
from flex_inductor.request import Backend, torchs
from tests.support import exactness
from tests.support.exactness import check
from tests.support.programs import B, D, H, randn

S = 150
"""Three blocks of 64."""
LOWEST = torch.finfo(torch.float32).min


def qkv(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return tuple(randn(B, H, S, D, seed=i).to(dtype) for i in range(3))


def added(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return torch.softmax(q @ k.mT * 0.3 + mask, -1) @ v


def subtracted(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return torch.softmax(q @ k.mT * 0.3 - mask, -1) @ v


def sdpa(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def of_keys(*values: float) -> torch.Tensor:
    """(batch, 1, 1, key): zeros, with values in the place of the last keys of the first batch, and of all keys of the
    last."""
    mask = torch.zeros(B, 1, 1, S)
    mask[0, ..., 70:] = torch.tensor(values).repeat(S)[: S - 70]
    mask[-1] = torch.tensor(values).repeat(S)[:S]
    return mask


def of_queries(*values: float) -> torch.Tensor:
    """(1, 1, query, key): zeros, with values behind each query; the first query has nothing else."""
    mask = torch.zeros(1, 1, S, S)
    mask[..., torch.ones(S, S).triu(1).bool()] = torch.tensor(values).repeat(S * S)[: S * (S - 1) // 2]
    mask[:, :, 0] = torch.tensor(values).repeat(S)[:S]
    return mask


def of_heads(*values: float) -> torch.Tensor:
    """(1, head, query, key): values behind each query in the first head, and from the third block on in the others."""
    mask = of_queries(*values).repeat(1, H, 1, 1)
    mask[:, 1:] = 0
    mask[:, 1:, :, 128:] = torch.tensor(values).repeat(S)[: S - 128]
    return mask


VALUES = {
    "infinite": (float("-inf"),),
    "lowest": (LOWEST,),
    "1e9": (-1e9,),
    "infinite and lowest": (float("-inf"), LOWEST),
    "all sorts": (-1e9, -3e8, -2e8, LOWEST),
    "between": (-1e9, -1e8, -9e7, -2e7, -1e5),
    "near the others": (-1e9, -3.0, 0.5, -120.0),
    "not a number": (float("nan"), -1e9),
    "beyond": (float("inf"), -1e9),
}


@pytest.mark.sweep(5)
@pytest.mark.parametrize("shape", [of_keys, of_queries])
@pytest.mark.parametrize("program", [added, sdpa])
@pytest.mark.parametrize("values", VALUES)
def test_what_is_low_is_hidden(values: str, program: Any, shape: Any) -> None:
    (decision,) = check(program, (*qkv(), shape(*VALUES[values])))
    assert decision.mask_mod and "decided at run time by l_mask_" in decision.sparsity


@pytest.mark.sweep(3)
@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("values", VALUES)
def test_masks_of_heads_that_sdpa_is_given(values: str, batch: int) -> None:
    mask = of_heads(*VALUES[values]).repeat(batch, 1, 1, 1)
    (decision,) = check(sdpa, (*qkv(), mask))
    assert decision.mask_mod and "decided at run time by l_mask_" in decision.sparsity


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_masks_of_heads_that_a_low_constant_makes(dtype: torch.dtype) -> None:
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        return added(q, k, v, (1.0 - m.to(q.dtype)) * LOWEST)

    (decision,) = check(program, (*qkv(), (of_heads(1.0) == 0).to(dtype)))
    assert decision.mask_mod and "decided at run time by l_m_" in decision.sparsity


def test_blocks_of_heads_are_left_out() -> None:
    """The first query has no key in the first head, and attends to all."""
    with torch.no_grad():
        (site,) = explain(sdpa, rewrite="always", backend="flex_eager")(*qkv(), of_heads(LOWEST)).sites
    assert site.given is not None and [lines for _, lines in site.given.maps] == [
        ("///", "#/.", "///"),
        ("##.", "##.", "//."),
    ]


@pytest.mark.parametrize("program", [added, sdpa])
def test_a_bias_of_heads_beside_padding(program: Any) -> None:
    """Near miss: a mask of keys stays one of keys alone, at little cost."""

    def summed(q: Any, k: Any, v: Any, bias: Any, m: Any) -> Any:
        return program(q, k, v, bias + (1.0 - m[:, None, None].to(q.dtype)) * LOWEST)

    keep = torch.ones(B, S, dtype=torch.int64)
    keep[0, 70:] = 0
    (decision,) = check(summed, (*qkv(), randn(1, H, S, S), keep))
    assert "[b, 0, 0, k] <= -1e+30" in decision.mask_mod and "bias" not in decision.mask_mod


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [of_keys, of_queries])
def test_the_lowest_number_of_a_narrow_dtype(dtype: torch.dtype, shape: Any) -> None:
    mask = shape(torch.finfo(dtype).min, float("-inf")).to(dtype)
    (decision,) = check(added, (*qkv(dtype), mask))
    assert decision.mask_mod


@pytest.mark.parametrize("values", ["lowest", "1e9", "between", "near the others"])
def test_gradients(values: str) -> None:
    (decision,) = check(lambda q, k, v, m: added(q, k, v, m.detach()), (*qkv(), of_keys(*VALUES[values])), train=True)
    assert decision.mask_mod


def test_integers_as_the_model_makes_them_low() -> None:
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        return added(q, k, v, (1.0 - m[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min)

    keep = torch.ones(B, S, dtype=torch.int64)
    keep[0, 70:], keep[-1] = 0, 0
    (decision,) = check(program, (*qkv(), keep))
    assert decision.mask_mod and "at most 100% of the blocks" in decision.sparsity


def extended(m: torch.Tensor) -> torch.Tensor:
    return torch.ones(S, S, dtype=m.dtype).tril() * m[:, None]


def outer(m: torch.Tensor) -> torch.Tensor:
    return m[:, None] * m[:, :, None]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("made", [extended, outer])
def test_masks_of_queries_and_keys_are_formulas(made: Any, dtype: torch.dtype) -> None:
    """A decoder's mask is the causal one and padding; and that of both tokens, as for graphs and sets."""

    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        return added(q, k, v, (1.0 - made(m).to(q.dtype))[:, None] * -1e9)

    keep = torch.ones(B, S, dtype=dtype)
    keep[0, 70:], keep[-1, :66] = 0, 0
    (decision,) = check(program, (*qkv(), keep))
    assert decision.mask_mod and (dtype.is_floating_point or "1e" not in decision.mask_mod)
    if made is extended and dtype == torch.int64:  # 0 times a float may be NaN
        assert "67% of the blocks" in decision.sparsity


def test_ten_thousand_is_a_bias() -> None:
    program = lambda q, k, v, m: added(q, k, v, (1.0 - m[:, None, None].to(q.dtype)) * -10000.0)  # noqa: E731
    (decision,) = check(program, (*qkv(), torch.ones(B, S, dtype=torch.int64)))
    assert decision.mask_mod == ""


def test_what_is_subtracted() -> None:
    (decision,) = check(subtracted, (*qkv(), -of_keys(-1e9, -5.0, LOWEST)))
    assert decision.mask_mod


def test_beside_a_mask_that_replaces_scores() -> None:
    """Keys that the first mask hides from all are set to zeros for SDPA; those of the second are not, because a row of
    nothing but -1e9 has the softmax of its scores."""

    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        scores = (q @ k.mT).masked_fill(torch.ones(S, S).triu(1).bool(), LOWEST)
        return torch.softmax(scores + m, -1) @ v

    (decision,) = check(program, (*qkv(), of_keys(-1e9)))
    assert decision.mask_mod == "k < q + 1 and not l_m_[b, 0, 0, k] <= -100000000"


def test_constants_that_a_tensor_might_raise_are_one_mask_with_it() -> None:
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        scores = (q @ k.mT).masked_fill(torch.ones(S, S).triu(1).bool(), -1e9)
        return torch.softmax(scores + m, -1) @ v

    mask = of_keys(-1e9, -5.0)
    mask[0, ..., 100:110] = 9.9e8
    (decision,) = check(program, (*qkv(), mask))
    assert "l_m_[b, 0, 0, k] <= -100000000" in decision.mask_mod and "l_m_[b, 0, 0, k] <= 89999" in decision.mask_mod


def test_beside_a_bias_only_what_absorbs_it_is_hidden() -> None:
    def program(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> Any:
        return added(q, k, v, bias + mask)

    bias = randn(H, S, S, seed=7)
    for low, limit in ((-1e9, "-1e+30"), (LOWEST, "-1e+30")):
        (decision,) = check(program, (*qkv(), bias * 1e7, of_keys(low)))
        assert limit in decision.mask_mod


def test_beside_high_numbers() -> None:
    """Two tensors of which one undoes the other: their sum counts."""
    first, second = of_keys(-1e9), of_keys(1e9)
    second[:, ..., 100:] = 0
    (decision,) = check(lambda q, k, v, m, n: added(q, k, v, m + n), (*qkv(), first, second))
    assert decision.mask_mod


def sdpa_backend(gm: Any, inputs: Any) -> Any:
    """Rewrites into SDPA whatever that can express, and runs the graph without code generation."""
    answers = Backend(lambda request: None, torchs, lambda request: request.instead is not None)
    return run(gm, inputs, Options(on_failure="raise"), answers, eager.eager)


def behind_a_replaced_future(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = (q @ k.mT * 0.3).masked_fill(torch.ones(S, S).triu(1).bool(), LOWEST)
    return torch.softmax(scores + mask, -1) @ v


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("values", ["lowest", "1e9", "between", "near the others"])
@pytest.mark.parametrize("program", [added, behind_a_replaced_future])
def test_as_sdpa(program: Any, values: str, train: bool) -> None:
    """SDPA is given the numbers themselves. Keys that a fill hides from all queries are set to zeros; those of a tensor
    are not, because a row of nothing but -1e9 has the softmax of its scores."""
    whole = lambda q, k, v, m: program(q, k, v, m.detach())  # noqa: E731
    given = (*qkv(), of_keys(*VALUES[values]))
    expected, exact = exactness.outcome(whole, whole, given, train), exactness.reference(whole, given, train)
    torch._dynamo.reset()
    with listen() as reports:
        got = exactness.outcome(torch.compile(whole, backend=sdpa_backend), whole, given, train)
    exactness.compare_all(got, expected, exact, 16)
    (decision,) = exactness.decisions_of(reports)
    assert decision.mask_mod
    assert train or decision.operator == "scaled_dot_product_attention"


NEARLY = {
    "a bias of heads": randn(H, S, S),
    "a bias of heads by key": randn(H, 1, S),
    "of queries alone": randn(B, 1, S, 1),
    "one block": None,
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_no_mask(name: str) -> None:
    mask, given = NEARLY[name], qkv()
    if mask is None:
        given, mask = tuple(x[:, :, :60].clone() for x in given), of_keys(-1e9)[..., :60].clone()
    (decision,) = check(added, (*given, mask))
    assert not decision.mask_mod and decision.sparsity == "no mask: every block is full"


def test_a_parameter_is_no_mask() -> None:
    (decision,) = check(added, (*qkv(), randn(S, S)), train=True)
    assert not decision.mask_mod


def test_a_product_is_no_mask() -> None:
    (decision,) = check(
        lambda q, k, v, x, y: added(q, k, v, (x @ y)[:, None]), (*qkv(), randn(B, S, 4), randn(B, 4, S))
    )
    assert not decision.mask_mod


def test_a_scaled_limit_that_is_not_low() -> None:
    program = lambda q, k, v, m: torch.softmax((q @ k.mT + m) * 1e-9, -1) @ v  # noqa: E731
    (decision,) = check(program, (*qkv(), of_keys(-1e9)))
    assert "-1e+08" not in decision.mask_mod


@pytest.mark.sweep(2)
@pytest.mark.compile
@pytest.mark.parametrize("shape", [of_keys, of_queries])
def test_compiled(shape: Any) -> None:
    check(added, (*qkv(), shape(*VALUES["between"])), backend="flex")
