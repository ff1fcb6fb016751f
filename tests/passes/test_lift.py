"""lift: every operator of the rule tables, as the bias or the mask of an attention.

What each is lifted to is asserted as text: `lifted.txt`, written anew by EXPECTTEST_ACCEPT=1. Without its rule an
operator is computed and loaded, and the text says so."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from flex_inductor import listen
from flex_inductor.compat import flex_attention_hop
from flex_inductor.passes.lift import rules
from flex_inductor.passes.lift.rules import composed, pointwise, ties
from flex_inductor.scalar import OPERATORS, Operator
from tests.support import terms
from tests.support.exactness import compiled, decisions_of, reports_of
from tests.support.formulas import value_of
from tests.support.programs import B, H, S, attend, qkv

BIASES = {
    f"{kind}.{name}": make
    for kind in ("views", "pointwise", "creation", "gathers", "joins", "casts")
    for name, make in getattr(terms, kind.upper()).items()
}
TEXTS = Path(__file__).parent / "lifted.txt"
KEEPS_A_KEY = {
    "causal",
    "compare_le",
    "compare_all",
    "invert",
    "zero_one",
    "zero_one_int",
    "chunks",
    "dilated",
    "cat",
    "pad",
    "logical",
    "logical_and",
    "exclusive",
    "bool_arithmetic",
    "comparison_of_floats",
    "stack",
    "documents",
}
"""Masks that provably leave a key in every row."""


def captured(report: Any) -> list[torch.Tensor]:
    """The tensors that the flex_attention calls of a graph capture and the program did not give."""
    calls = [n for n in report.after.graph.nodes if n.target is flex_attention_hop]
    read = [x for call in calls for x in tree_leaves(call.args[-2:]) if isinstance(x, torch.fx.Node)]
    selected = (torch.ops.aten.detach.default, torch.ops.aten.select.int)
    return [x for x in read if x.op != "placeholder" and not (x.target in selected and x.args[0].op == "placeholder")]


def run(change: Any, train: bool) -> tuple[Any, bool]:
    """The decision, and whether the attention captures anything that the program had to compute."""
    x = terms.leaves()
    names, values = list(x), list(x.values())

    def program(q: Any, k: Any, v: Any, *values: Any) -> Any:
        return attend(q, k, v, lambda s: change(s, dict(zip(names, values))))

    reports = reports_of(program, (*qkv(), *values), train=train)
    (decision,) = decisions_of(reports)
    assert decision.rewritten, str(decision)
    return decision, bool(captured(reports[0]))


def texts() -> dict[str, str]:
    return dict(line.split(": ", 1) for line in TEXTS.read_text().splitlines())


def generic(text: str) -> str:
    """A text in which inputs have the names that they have in `terms.leaves`; what the program computes is
    `computed`."""
    for i, leaf in enumerate(terms.leaves()):
        text = text.replace(f"l_values_{i}_", f"x_{leaf}")
    return re.sub(r"\b(?!x_)[a-z_]\w*\[", "computed[", text.split("  #")[0])


def expect(name: str, text: str) -> None:
    """Asserts what something is lifted to."""
    text = generic(text)
    if os.environ.get("EXPECTTEST_ACCEPT"):
        TEXTS.write_text("".join(f"{k}: {v}\n" for k, v in sorted({**texts(), name: text}.items())))
    assert texts().get(name) == text


def expect_value(text: str, meant: torch.Tensor, rounding: float = 1e-5) -> None:
    """Asserts that a text has the value of what the program computes; one that reads what the program computes has no
    value here."""
    if "computed" in generic(text):
        return
    values = {f"x_{name}": value.numpy() for name, value in terms.leaves().items()}
    meant = meant.broadcast_to(B, H, S, S)
    for b, h, q, k in {(i % B, i % H, i * 5 % S, i * 7 % S // (i % 3 + 1)) for i in range(60)}:
        found = value_of(generic(text), b=b, h=h, q=q, k=k, score=0.0, **values)
        assert float(found) == pytest.approx(float(meant[b, h, q, k]), rel=rounding, abs=rounding), (b, h, q, k)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", BIASES)
def test_bias(name: str) -> None:
    decision, _ = run(lambda s, x: s + BIASES[name](x), train=True)
    expect(name, decision.score_mod)
    narrow = name == "pointwise.addcmul_of_dtypes"  # bfloat16, whose rounding the rewrite leaves out
    expect_value(decision.score_mod, BIASES[name](terms.leaves()), rounding=1e-2 if narrow else 1e-5)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", terms.MASKS)
def test_mask(name: str) -> None:
    decision, computed = run(
        lambda s, x: s.masked_fill(~terms.MASKS[name](x), float("-inf")), train=name in KEEPS_A_KEY
    )
    assert decision.mask_mod and not computed, decision.mask_mod
    expect(f"masks.{name}", decision.mask_mod)
    expect_value(decision.mask_mod, terms.MASKS[name](terms.leaves()))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", terms.MASKS)
def test_mask_with_a_finite_fill(name: str) -> None:
    decision, computed = run(lambda s, x: s.masked_fill(~terms.MASKS[name](x), -1e9), train=False)
    proven = not any("rows may lose all keys" in note for note in decision.notes)
    assert decision.mask_mod and proven == (name in KEEPS_A_KEY) and (not computed or not proven), str(decision.notes)


def test_arithmetic_on_one_side_only_is_computed_once() -> None:
    """exp of something that varies with the keys only is S numbers, not S * S."""
    decision, computed = run(lambda s, x: s + torch.exp(x["bk"])[:, None, None], train=True)
    assert computed and "exp_default[b, k]" in decision.score_mod


WRITES = {
    "fill_slice": lambda m: m[:, 2:].fill_(0.5),
    "assign_slice": lambda m: m.__setitem__((slice(None), slice(3, 7)), 0.25),
    "assign_tensor": lambda m: m.__setitem__((slice(2, 5), slice(1, 4)), torch.eye(3)),
    "assign_step": lambda m: m.__setitem__((slice(None), slice(None, None, 3)), 1.0),
    "assign_row": lambda m: m.__setitem__(4, torch.arange(S) * 0.1),
    "assign_column": lambda m: m.__setitem__((slice(None), -1), -0.5),
    "assign_mask": lambda m: m.__setitem__(torch.ones(S, S).tril() == 0, -2.0),
    "masked_fill_": lambda m: m.masked_fill_(torch.ones(S, S).tril() == 0, 0.7),
    "add_": lambda m: m.add_(torch.arange(S) * 0.1),
    "mul_": lambda m: m.mul_(0.5),
    "triu_": lambda m: m.triu_(1),
    "zero_row": lambda m: m[3].zero_(),
    "copy_": lambda m: m.copy_(torch.arange(S)),
    "clamp_": lambda m: m.clamp_(max=0.3),
    "through_transpose": lambda m: m.t()[2:4].fill_(0.9),
    "through_flat_view": lambda m: m.view(-1)[5:40].fill_(0.9),
    "through_diagonal": lambda m: m.diagonal().fill_(0.9),
    "index_fill_": lambda m: m.index_fill_(1, torch.tensor([1, 5]), 0.4),
    "overlapping": lambda m: (m[2:6].fill_(1.0), m[4:8].mul_(3.0), m[:, 5:].sub_(0.1)),
}


def changed(x: Any, base: str, name: str) -> Any:
    """A bias that was written to."""
    m = torch.ones(S, S) * 0.3 if base == "created" else x["qk"].clone()
    WRITES[name](m)
    return m


@pytest.mark.sweep(3)
@pytest.mark.parametrize("base", ["created", "given"])
@pytest.mark.parametrize("name", WRITES)
def test_write_into_the_bias(name: str, base: str) -> None:
    decision, _ = run(lambda s, x: s + changed(x, base, name), train=False)
    expect(f"writes.{base}.{name}", decision.score_mod)
    expect_value(decision.score_mod, changed(terms.leaves(), base, name))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", WRITES)
def test_write_after_the_bias_was_read(name: str) -> None:
    """The scores are made of what the bias was before: the numbers are eager's, however the site ends."""

    def program(q: Any, k: Any, v: Any, given: Any) -> Any:
        m = given.clone()
        s = q @ k.mT + m
        WRITES[name](m)
        return torch.softmax(s, -1) @ v, m

    reports_of(program, (*qkv(), terms.leaves()["qk"]))


PRODUCTS = {
    "mm": lambda q, k, v: torch.softmax(q[0, 0] @ k[0, 0].t(), -1) @ v[0, 0],
    "addmm": lambda q, k, v: torch.softmax(torch.addmm(q[0, 1] @ k[0, 1].t(), q[0, 0], k[0, 0].t()), -1) @ v[0, 0],
    "baddbmm": lambda q, k, v: torch.softmax(torch.baddbmm(q[0, :, :, :1], q[0], k[0].mT, alpha=0.5), -1) @ v[0],
    "bmm": lambda q, k, v: torch.softmax(torch.bmm(q[0], k[0].mT), -1) @ v[0],
    "mv": lambda q, k, v: (torch.softmax(torch.mv(k[0, 0], q[0, 0, 0]), -1)[None] @ v[0, 0])[0],
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    (decision,) = decisions_of(reports_of(PRODUCTS[name], qkv(), train=True))
    expect(f"products.{name}", decision.score_mod or decision.reason)


RULED = {name: rule for table in (pointwise.RULES, composed.RULES, ties.RULES) for name, rule in table.items()}
USES = {
    **{name: f"pointwise.{name}" for name in RULED},
    "floor_divide": "pointwise.integers",
    "index_put": "writes.created.assign_mask",
    "bitwise_and": "masks.and_mixed",
    "bitwise_not": "masks.invert",
    "bitwise_or": "masks.compare_all",
    "bitwise_xor": "masks.exclusive",
    "logical_not": "masks.logical",
    "logical_or": "masks.logical",
    "logical_xor": "masks.logical",
    "logical_and": "masks.logical_and",
    "lt": "masks.compare_all",
    "le": "masks.compare_le",
    "gt": "masks.logical",
    "ge": "masks.compare_all",
    "eq": "masks.documents",
    "ne": "masks.compare_all",
    "copy": "writes.given.copy_",
    "fill": "writes.given.assign_slice",
    "zero": "writes.given.zero_row",
}
"""A text of `lifted.txt` in which an operator is, by the name of its rule."""


def text_of(name: str) -> str:
    """What is lifted, numbers unchecked; empty if the site is declined."""
    x, (kind, _, term) = terms.leaves(), name.partition(".")
    keys, values = list(x), list(x.values())

    def program(q: Any, k: Any, v: Any, *values: Any) -> Any:
        given = dict(zip(keys, values))
        if kind == "masks":
            return attend(q, k, v, lambda s: s.masked_fill(~terms.MASKS[term](given), float("-inf")))
        if kind == "writes":
            return attend(q, k, v, lambda s: s + changed(given, *term.split(".")))
        return attend(q, k, v, lambda s: s + BIASES[name](given))

    trained = [x.requires_grad_(kind not in ("masks", "writes") and x.is_floating_point()) for x in values]
    with listen() as reports:
        compiled(program, "flex_eager")(*qkv(), *trained)
    (decision,) = decisions_of(reports)
    text = decision.mask_mod if kind == "masks" else decision.score_mod
    return generic(text or "") if decision.rewritten else ""


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", sorted(RULED))
def test_each_rule_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rules.RULES, name)  # type: ignore[arg-type]
    assert text_of(USES[name]) != texts()[USES[name]]


@pytest.mark.parametrize("name", ["tan", "fmod", "lt", "remainder"])
def test_an_operator_without_code_is_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "computed" not in text_of(USES[name])
    monkeypatch.setitem(OPERATORS, name, replace(OPERATORS[name], code=None))  # type: ignore[arg-type]
    assert "computed[" in text_of(USES[name])


def test_a_new_operator_with_nothing_but_a_fold_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Operator("sinh", lifts="unary", fold=math.sinh)
    monkeypatch.setitem(OPERATORS, "sinh", row)  # type: ignore[arg-type]
    monkeypatch.setitem(rules.RULES, "sinh", pointwise.rule_of(row))  # type: ignore[arg-type]
    decision, computed = run(lambda s, x: s + torch.sinh(x["qk"]), train=True)
    assert computed and "sinh_default[q, k]" in decision.score_mod


SIZED = {
    "square": (lambda s, n: s + torch.arange(n) * n**2 * 0.01, "n ** 2"),
    "square_as_limit": (lambda s, n: s + (torch.arange(n) ** 2 > n**2 // 2) * 0.5, "k ** 2 > n ** 2 // 2"),
    "root": (lambda s, n: s * n**-0.5, "score * float(n) ** -0.5"),
    "power_of_two": (lambda s, n: s + torch.arange(n) * 2 ** (n // 4) * 0.01, "computed[k]"),
    "greatest": (lambda s, n: s + torch.arange(n) * torch.sym_max(n, 7) * 0.01, "computed[k]"),
}
"""Numbers made of a size n, and what the score says of them; what has no code is computed by the program."""


@pytest.mark.parametrize("name", SIZED)
def test_numbers_made_of_sizes(name: str) -> None:
    change, text = SIZED[name]
    program = lambda q, k, v: attend(q, k, v, lambda s: change(s, s.shape[-1]))  # noqa: E731
    (decision,) = decisions_of(reports_of(program, qkv(), dynamic=True))
    assert decision.rewritten and text in re.sub(r"\bs\d+\b", "n", generic(decision.score_mod)), str(decision)
