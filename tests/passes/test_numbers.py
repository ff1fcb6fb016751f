"""What dtypes do to the numbers that conditions are made of: integers wrap, floating-point numbers round, bits are
read as others. The attention is eager's to the last key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flex_inductor import Decision, listen
from tests.support.exactness import compiled, decisions_of
from tests.support.programs import S, attend, qkv


def rows() -> torch.Tensor:
    return torch.arange(S)[:, None]


def cols() -> torch.Tensor:
    return torch.arange(S)


BYTES = ((torch.arange(S) * 37 + 250) % 256).to(torch.uint8)
FAR = (1 << 40) + torch.arange(S) // 2
ENDS = torch.where(cols() % 3 == 0, torch.iinfo(torch.int64).max - 2, cols())
TENTHS = torch.arange(S) * 0.1
Mask = Callable[..., torch.Tensor]


def attended(mask: Mask, *inputs: torch.Tensor, backend: str = "flex_eager") -> Decision:
    """Compiles an attention with a mask of its own, checks it against eager, and gives the decision."""

    def program(q: Any, k: Any, v: Any, *more: Any) -> Any:
        return attend(q, k, v, lambda s: s.masked_fill(mask(*more), -1e9))

    given = (*qkv(), *inputs)
    with listen() as reports:
        got = compiled(program, backend)(*given)
    torch.testing.assert_close(got, program(*given), atol=1e-5, rtol=1e-5)
    (decision,) = decisions_of(reports)
    return decision


def hashed(x: torch.Tensor) -> torch.Tensor:
    return x.int() * 1103515245 + 12345


INTEGERS: dict[str, tuple[Mask, tuple[torch.Tensor, ...], str]] = {
    "window in uint8": (lambda: (rows() - cols()).to(torch.uint8) >= 4, (), "(q - k) % 256"),
    "window in int8": (lambda: ((rows() - cols()) * 60).to(torch.int8) >= 4, (), "% 256 - 128"),
    "window that fits": (lambda: (rows() - cols()).to(torch.int8) >= 4, (), "q - k < 4"),
    "window in int16": (lambda: ((rows() - cols()) * 5000).to(torch.int16) >= 4, (), "% 65536 - 32768"),
    "hash in int32": (
        lambda: (cols().int() * 1103515245 + 12345)[:, None] < cols().int() * 1103515245 + 12345,
        (),
        "4294967296",
    ),
    "hash in int64": (lambda: (cols() * (1 << 61))[:, None] < cols() * (1 << 61) + 5, (), ""),
    "sum of int8": (lambda: cols().to(torch.int8)[:, None] * 9 + cols().to(torch.int8) * 9 > 100, (), "% 256 - 128"),
    "number in another dtype": (lambda x: x == -1, (BYTES,), "255"),
    "number beyond the dtype": (lambda x: x < 300, (BYTES,), "44"),
    "bytes": (lambda x: x[:, None] - x > 99, (BYTES,), "% 256"),
    "bytes widened": (lambda x: x.long() - 1 > 100, (BYTES,), "- 1"),
    "bytes negated": (lambda x: -x > 100, (BYTES,), "% 256"),
    "bytes by a negative": (lambda x: x // -2 > 0, (BYTES,), ""),
    "remainder by a negative": (lambda: (rows() - cols()) % -5 < -2, (), "% -5"),
    "quotient by a negative": (lambda: (rows() - cols()) // -3 > 1, (), "// -3"),
    "ends of int64": (lambda x: x[:, None] + 5 < x, (ENDS,), ""),
    "quotient of what wraps": (lambda x: (x * 4 + 3) // 4 != x, (ENDS,), ""),
    "abs of the least": (lambda: ((rows() - cols()) * 0 - 128).to(torch.int8).abs() > cols() - 9, (), ""),
    "sum of truth values": (lambda: (rows() > cols()).to(torch.uint8) + (rows() > 3).to(torch.uint8) - 1 > 4, (), ""),
    "huge numbers": (lambda: torch.where(cols() > 3, 1 << 40, rows()) > cols() + (1 << 39), (), ""),
    "number without dimension": (lambda x: cols().to(torch.uint8) + x > 9, (torch.tensor(300),), ""),
    "number cut off": (lambda x: x.to(torch.uint8) > 3, (torch.arange(S) * 1.5,), ""),
}


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_wrap(name: str) -> None:
    mask, inputs, text = INTEGERS[name]
    decision = attended(mask, *inputs)
    written = f"{decision.mask_mod} {decision.score_mod}"
    assert decision.rewritten and text in written, written


@pytest.mark.nightly
@pytest.mark.compile
def test_integers_wrap_in_generated_code() -> None:
    for name in ("window in uint8", "hash in int32", "hash in int64", "bytes", "huge numbers"):
        mask, inputs, _ = INTEGERS[name]
        assert attended(mask, *inputs, backend="flex").rewritten


BITS: dict[str, Mask] = {
    "of float32": lambda x: x.view(torch.int32) > 1065353216,
    "of float32, back and forth": lambda x: x.view(torch.int32).view(torch.float32) > 0.5,
    "of float64": lambda x: x.double().view(torch.int64)[:, None] > x.double().view(torch.int64),
    "of another size": lambda x: x.view(torch.int16)[::2] > x.view(torch.int16)[1::2],
    "in place": lambda x: x.clone().view(torch.int32).bitwise_and_(-65536).view(torch.float32) != x,
    "a change of shape": lambda x: x.view(S, 1).view(S) > 0.5,
}


@pytest.mark.parametrize("name", BITS)
def test_bit_casts(name: str) -> None:
    assert attended(BITS[name], TENTHS + 0.013).rewritten


HALF = torch.bfloat16
CONDITIONS: dict[str, tuple[Mask, torch.Tensor, str]] = {
    "ids in float64": (lambda x: x.double()[:, None] != x.double(), FAR, "float("),
    "ids in float32 are rounded": (lambda x: x.float()[:, None] != x.float(), FAR * 1000, "float("),
    "sums in float64": (lambda x: (x.double() * 0.1 + 0.2)[:, None] != x.double() * 0.1 + 0.2 + 1e-12, cols(), ""),
    "float64 rounded": (lambda x: (x.double() * 0.1).float()[:, None] < x * 0.1, cols(), ""),
    "bfloat16 rounded": (lambda x: (x.to(HALF) * 3 + 1)[:, None] < x.to(HALF) * 3 + 1.01, TENTHS, ""),
    "bfloat16 and back": (lambda x: x.to(HALF).float() < x, TENTHS, ""),
    "bfloat16 cut off": (lambda x: (x.to(HALF) * 7).int()[:, None] < (x * 7).int(), TENTHS, ""),
    "bfloat16 floor": (lambda x: torch.floor(x.to(HALF) * 7)[:, None] < x * 7, TENTHS, ""),
    "integers in bfloat16": (lambda x: x.to(HALF) == 300.0, cols() + 295, ""),
    "small integers in bfloat16": (lambda x: (1.0 - x.expand(S, S).to(HALF)).bool(), cols() % 2, "1 - float("),
    "integers in bfloat16, scaled": (lambda x: (1.0 - x.expand(S, S).to(HALF) * 0.3) > 0, cols() % 7, ""),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_is_compared_is_what_eager_compares(name: str) -> None:
    mask, x, text = CONDITIONS[name]
    decision = attended(mask, x)
    written = f"{decision.mask_mod} {decision.score_mod}"
    assert decision.rewritten and text in written, written


def test_a_float64_mask_of_sdpa_is_added_in_float64() -> None:
    def program(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    given = (*(x.double() for x in qkv()), torch.rand(S, S, dtype=torch.float64) + 1e9)
    with listen() as reports:
        got = compiled(program, "flex_eager")(*given)
    torch.testing.assert_close(got, program(*given))
    assert "float64" in decisions_of(reports)[0].reason


CHAINS: dict[str, Mask] = {
    "or": lambda x, n: x | (rows() - cols() == 3 * n + 1),
    "exclusive or": lambda x, n: x ^ (rows() - cols() == n),
    "where": lambda x, n: torch.where(rows() == n, ~x, x),
}
NUMBERS: dict[str, Mask] = {
    "sum": lambda x, n: x * 3 + cols(),
    "square": lambda x, n: x * x + cols(),
    "where": lambda x, n: torch.where(x > cols(), x - 1, x + rows()),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", CHAINS)
def test_hundreds_of_conditions(name: str) -> None:
    def mask() -> torch.Tensor:
        x = rows() < cols()
        for n in range(250):
            x = CHAINS[name](x, n)
        return x

    attended(mask)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", NUMBERS)
def test_hundreds_of_operators_on_integers(name: str) -> None:
    def mask() -> torch.Tensor:
        x = rows() + cols()
        for n in range(250):
            x = NUMBERS[name](x, n)
        return x > 1000

    attended(mask)


@pytest.mark.nightly
def test_hundreds_of_operators_on_the_score() -> None:
    """The site is left: nothing else is lost."""

    def program(q: Any, k: Any, v: Any) -> Any:
        def change(s: Any) -> Any:
            for n in range(250):
                s = torch.where(rows() - cols() > n, s, s + 0.01 * n)
            return s

        return attend(q, k, v, change)

    with listen() as reports:
        got = compiled(program, "flex_eager")(*qkv())
    torch.testing.assert_close(got, program(*qkv()), atol=1e-5, rtol=1e-5)
    assert not decisions_of(reports)[0].rewritten
