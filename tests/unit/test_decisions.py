"""Decisions, and who gets to hear of them."""

from __future__ import annotations

import dataclasses
import json
import logging
from unittest import TestCase

import pytest
import torch
from torch import fx

from flex_inductor.decisions import Decision, Fallback, GraphReport, describe, listen, percent, publish

REWRITTEN = Decision(
    "site0", "rewritten", "model.py:3, in forward: p = softmax(s)", "_softmax (2, 2) float32", score_mod="score"
)
DECLINED = Decision(
    "site1", "declined", "model.py:9", "_softmax", reason="dropout is active", node="rand = rand (2,) float32"
)


def report() -> GraphReport:
    gm = fx.GraphModule({}, fx.Graph())
    return GraphReport((REWRITTEN, DECLINED), gm, gm)


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.002, "<1%"), (0.53, "53%"), (0.996, ">99%"), (1, "100%"), (0.04, "4%")]
)
def test_a_share_that_is_some_is_not_called_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_text() -> None:
    assert str(REWRITTEN) == "site0 (model.py:3, in forward: p = softmax(s)): rewritten"
    assert str(DECLINED) == "site1 (model.py:9): declined because dropout is active, at rand = rand (2,) float32"
    assert str(Fallback("lift", "ValueError: x")) == "lift failed (ValueError: x); the graph was compiled untouched"


def test_records_are_frozen_and_plain_data() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        REWRITTEN.verdict = "declined"  # type: ignore[misc]
    assert json.loads(json.dumps(REWRITTEN.as_dict()))["score_mod"] == "score"


def test_counts_rewritten_sites() -> None:
    assert report().rewritten == 1


def test_listeners_nest_and_end() -> None:
    with listen() as outer:
        publish(report())
        with listen() as inner:
            publish(report())
    publish(report())
    assert len(outer) == 2 and len(inner) == 1


def test_an_exception_ends_listening() -> None:
    with pytest.raises(KeyError), listen() as reports:
        raise KeyError
    publish(report())
    assert not reports


def test_logger() -> None:
    with TestCase().assertLogs("flex_inductor.decisions", logging.INFO) as logs:
        publish(report())
    assert str(DECLINED) in [r.getMessage() for r in logs.records]


def test_describe() -> None:
    assert describe(torch.zeros(2, 3)) == "(2, 3) float32"
    assert describe(torch.zeros((), dtype=torch.bool)) == "() bool"
    assert describe(5) == "5"
