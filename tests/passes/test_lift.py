"""lift: every operator of the rule tables, as the bias or the mask of an attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from flex_inductor.compat import flex_attention_hop
from tests.support import terms
from tests.support.exactness import decisions_of, reports_of
from tests.support.programs import S, attend, qkv

BIASES = {
    f"{kind}.{name}": make
    for kind in ("views", "pointwise", "creation", "gathers", "joins", "casts")
    for name, make in getattr(terms, kind.upper()).items()
}
LEAVES = {
    "fmod",
    "gelu",
    "leaky_relu",
    "lerp",
    "linspace",
    "arange_float",
    "take_along_dim",
    "addcmul",
    "meshgrid",
    "double",
}
"""Operators that have no rule, or whose rule does not cover the case: they are computed, and loaded."""
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


@pytest.mark.parametrize("name", BIASES)
def test_bias(name: str) -> None:
    decision, computed = run(lambda s, x: s + BIASES[name](x), train=True)
    if name.split(".")[1] not in LEAVES and not name.startswith("pointwise"):
        assert not computed, decision.score_mod


@pytest.mark.parametrize("name", terms.MASKS)
def test_mask(name: str) -> None:
    decision, computed = run(
        lambda s, x: s.masked_fill(~terms.MASKS[name](x), float("-inf")), train=name in KEEPS_A_KEY
    )
    assert decision.mask_mod and not computed, decision.mask_mod


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


@pytest.mark.parametrize("base", ["created", "given"])
@pytest.mark.parametrize("name", WRITES)
def test_write_into_the_bias(name: str, base: str) -> None:
    def change(s: Any, x: Any) -> Any:
        m = torch.ones(S, S) * 0.3 if base == "created" else x["qk"].clone()
        WRITES[name](m)
        return s + m

    run(change, train=False)


@pytest.mark.parametrize("name", WRITES)
def test_write_after_the_bias_was_read(name: str) -> None:
    """The scores are made of what the bias was before: the numbers are eager's, however the site ends."""

    def program(q: Any, k: Any, v: Any, given: Any) -> Any:
        m = given.clone()
        s = q @ k.mT + m
        WRITES[name](m)
        return torch.softmax(s, -1) @ v, m

    reports_of(program, (*qkv(), terms.leaves()["qk"]))
