"""find: what is an attention, and what only looks like one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flex_inductor.passes.find import Found, find
from flex_inductor.passes.program.normalize import normalize
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.site import Candidate, Declined
from tests.support.capture import captured
from tests.support.programs import attend, qkv


def found(program: Any, *inputs: Any) -> list[Found]:
    graph = normalize(captured(program, *(inputs or qkv())))
    assert graph is not None
    return find(graph)


SITES = {
    "softmax": (attend, "_softmax", 0),
    "values_first": (lambda q, k, v: v.mT @ torch.softmax(q @ k.mT, -1).mT, "_softmax", 1),
    "sdpa": (F.scaled_dot_product_attention, "scaled_dot_product_attention", 0),
    "div": (lambda q, k, v: (lambda e: e / e.sum(-1, keepdim=True))(torch.exp(q @ k.mT)) @ v, "div", 0),
    "exp": (lambda q, k, v: torch.log_softmax(q @ k.mT, -1).exp() @ v, "exp", 0),
    "einsum": (lambda q, k, v: torch.einsum("bhqk,bhkd->bqhd", torch.softmax(q @ k.mT, -1), v), "_softmax", None),
}


@pytest.mark.parametrize("name", SITES)
def test_anchor(name: str) -> None:
    program, anchor, operand = SITES[name]
    (site,) = found(program)
    assert rule_name(site.anchor) == anchor and isinstance(site.site, Candidate)
    assert operand is None or site.site.probabilities == operand


def test_sites_are_found_in_program_order() -> None:
    sites = found(lambda q, k, v: attend(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), v))
    assert [rule_name(s.anchor) for s in sites] == ["_softmax", "scaled_dot_product_attention", "_softmax"] or [
        rule_name(s.anchor) for s in sites
    ] == ["scaled_dot_product_attention", "_softmax", "_softmax"]
    assert [s.anchor.meta["position"] for s in sites] == sorted(s.anchor.meta["position"] for s in sites)


NO_SITES = {
    "classifier": lambda q, k, v: torch.softmax(q @ k.mT, -1),
    "no_scores": lambda q, k, v: torch.softmax(q, -1).mT @ v,
    "gate": lambda q, k, v: torch.softmax(q.sum(-1), -1)[..., None] * v,
    "exp_alone": lambda q, k, v: torch.exp(q @ k.mT) @ v,
    "argmax": lambda q, k, v: v[:, :, torch.softmax(q @ k.mT, -1).argmax(-1)[0, 0]],
}


@pytest.mark.parametrize("name", NO_SITES)
def test_no_site(name: str) -> None:
    assert not [s for s in found(NO_SITES[name]) if isinstance(s.site, Candidate)]


REFUSED = {
    "by_themselves": (
        lambda q, k, v: (lambda p: p @ p)(torch.softmax(q @ k.mT, -1)),
        "the probabilities are multiplied by themselves",
    ),
    "powers": (lambda q, k, v: torch.softmax(q @ k.mT, -1).pow(2) @ v, "reach no product with values directly"),
    "top_k": (lambda q, k, v: torch.softmax(q @ k.mT, -1).topk(8).values @ v[:, :, :8], None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    program, reason = REFUSED[name]
    (site,) = found(program)
    if reason is not None:
        assert isinstance(site.site, Declined) and reason in site.site.reason and site.site.node is not None


def test_native_layer_is_named() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    with torch.no_grad():
        sites = found(layer, torch.randn(2, 5, 16))
    assert all(isinstance(s.site, Candidate) or "native" in s.site.reason for s in sites) and len(sites) == 1
