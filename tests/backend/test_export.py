"""Exported programs: rewritten ahead of time, with the same inputs, parameters, dynamic dimensions and numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

import flex_inductor
from flex_inductor import compat, listen
from tests.support.exactness import compare_all, outcome, reference
from tests.support.programs import attend, randn

ALWAYS = {"rewrite": "always"}


class Block(nn.Module):
    """Causal attention with padding and ALiBi; arguments by position and by name, some inside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, 5))

    def forward(self, x: torch.Tensor, given: dict[str, torch.Tensor], scale: float = 1.0) -> dict[str, torch.Tensor]:
        q, k, v = self.project(x).view(x.shape[0], -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        at = torch.arange(x.shape[1])
        bias = self.slopes[:, None, None] * (at - at[:, None])
        visible = given["keep"][:, None, None, :] & (at <= at[:, None])
        out = attend(q, k, v, lambda s: (s + bias).masked_fill(~visible, torch.finfo(s.dtype).min))
        return {"out": out * scale, "first": out[:, 0]}


class Called(nn.Module):
    """A model, or the module of a program, called as it was exported."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.inner(x, given, scale=2.0)


def batch(count: int, length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    keep = torch.ones(count, length, dtype=torch.bool)
    keep[0, : length // 3] = False
    return randn(count, length, 32), {"keep": keep}


def exported(dynamic: bool) -> ExportedProgram:
    size, length = Dim("batch", min=1, max=64), Dim("length", min=2)
    shapes = {"x": {0: size, 1: length}, "given": {"keep": {0: size, 1: length}}, "scale": None} if dynamic else None
    return export(Block().eval(), batch(2, 24), {"scale": 2.0}, dynamic_shapes=shapes)


def calls(program: ExportedProgram) -> int:
    return sum(n.target is compat.flex_attention_hop for n in program.graph.nodes)


def ranges(program: ExportedProgram) -> list[tuple[str, str]]:
    """The least and the greatest of every dynamic size."""
    return sorted((str(r.lower), str(r.upper)) for r in program.range_constraints.values())


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program_is_rewritten(dynamic: bool) -> None:
    program = exported(dynamic)
    with listen() as reports:
        rewritten = flex_inductor.rewrite(program, options=ALWAYS)
    assert [r.rewritten for r in reports] == [1] and calls(rewritten) == 1 and calls(program) == 0
    assert rewritten.state_dict.keys() == program.state_dict.keys()
    assert ranges(rewritten) == ([("2", "64"), ("2", "int_oo")] if dynamic else [])
    model, found = Called(Block().eval()), Called(rewritten.module())
    for count, length in ((2, 24), (3, 40), (2, 7)) if dynamic else ((2, 24),):
        with torch.no_grad():
            got, expected = found(*batch(count, length)), model(*batch(count, length))
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_numbers_obey_the_rule() -> None:
    found = Called(flex_inductor.rewrite(exported(True), options=ALWAYS).module())
    model, given = Called(Block().eval()), batch(2, 40)
    expected = outcome(model, model, given, False), reference(model, given, False)
    compare_all(outcome(found, None, given, False), *expected, 16)


def test_a_padding_mask_of_integers_in_a_program_with_both_sizes_dynamic() -> None:
    """Its mod reads a tensor whose extent is a product of three (torch before 2.15 could not trace that)."""

    class Padded(nn.Module):
        def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            low = (1.0 - (keep[:, None, None, :] != 0).float()) * torch.finfo(x.dtype).min
            return attend(x[:, None], x[:, None], x[:, None], lambda s: s + low)

    given = randn(2, 12, 8), (torch.arange(12) < torch.tensor([[12], [7]])).long()
    shapes = {"x": {0: Dim("batch"), 1: Dim("length")}, "keep": {0: Dim("batch"), 1: Dim("length")}}
    with listen() as reports:
        rewritten = flex_inductor.rewrite(export(Padded(), given, dynamic_shapes=shapes), options=ALWAYS)
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]
    more = randn(3, 20, 8), (torch.arange(20) < torch.tensor([[20], [7], [11]])).long()
    for inputs in (given, more):
        torch.testing.assert_close(rewritten.module()(*inputs), Padded()(*inputs), atol=1e-5, rtol=1e-5)


def test_what_has_no_attention_is_returned_as_it_is() -> None:
    program = export(nn.Linear(4, 4), (torch.randn(2, 4),))
    assert flex_inductor.rewrite(program) is program


def test_a_rewrite_that_needs_equal_sizes_is_not_made() -> None:
    """The lengths of keys and values are two symbols where nothing equates them."""

    class Calls(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    given = tuple(randn(1, 2, 12, 8, seed=i) for i in range(3))
    program = export(Calls(), given, dynamic_shapes=[{2: Dim.AUTO}] * 3)
    with listen() as reports:
        rewritten = flex_inductor.rewrite(program, options=ALWAYS)
    with torch.no_grad():
        torch.testing.assert_close(rewritten.module()(*given), Calls()(*given), atol=1e-5, rtol=1e-5)
    for report in reports:
        assert report.rewritten or "sizes" in report.decisions[0].reason


def test_explain_takes_a_program() -> None:
    with torch.no_grad():
        report = flex_inductor.explain(exported(False), rewrite="always", backend="flex_eager")(
            *batch(2, 24), scale=2.0
        )
    assert report.rewritten == 1 and "slopes" in str(report)
