"""The pipeline: whatever fails in it, the model runs with eager's numbers, one warning says so, the report names the
pass."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from flex_inductor import FallbackWarning, compat, listen
from flex_inductor.compat import eager
from flex_inductor.passes import steps
from flex_inductor.passes.site import Declined
from flex_inductor.passes.stages import Lifted
from tests.support.ensures import ENSURES
from tests.support.exactness import reference
from tests.support.programs import attend, causal, qkv

NAMES = [name for name, _ in steps.PIPELINE]


def program(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v, causal)


def run(backend: str = "flex_eager", **options: str) -> tuple[Any, list[str]]:
    """The report and the warnings of one compilation; checks the numbers."""
    torch._dynamo.reset()
    with listen() as reports, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = torch.compile(program, backend=backend, options={"rewrite": "always", **options})(*qkv())
    exact = reference(program, qkv(), False).outputs[0]
    assert (got - exact).abs().max() < 1e-6
    (report,) = reports
    return report, [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]


def failing(name: str) -> tuple[Any, ...]:
    def fail(state: Any) -> Any:
        raise ZeroDivisionError("injected")

    return tuple((n, fail if n == name else f) for n, f in steps.PIPELINE)


@pytest.mark.parametrize("name", NAMES)
def test_exception_in_a_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PIPELINE", failing(name))
    report, caught = run()
    assert report.fallback.pass_name == name and "ZeroDivisionError: injected" in report.fallback.error
    assert len(caught) == 1 and name in caught[0]
    assert report.rewritten == 0 and report.after is report.before


@pytest.mark.parametrize("name", NAMES)
def test_exception_is_raised_when_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PIPELINE", failing(name))
    with pytest.raises(Exception, match=name):
        run(on_failure="raise")


@pytest.mark.parametrize(
    ("backend", "module", "compiler"),
    [("flex_eager", eager, "eager"), ("flex", compat, "inductor")],
    ids=["flex_eager", "flex"],
)
def test_exception_in_code_generation(
    backend: str, module: Any, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(module, compiler), []

    def first_fails(gm: Any, *args: Any, **settings: Any) -> Any:
        calls.append(compat.uses_flex_attention(gm))
        if len(calls) == 1:
            gm.graph.erase_node(list(gm.graph.nodes)[-1])  # a compiler owns its argument, and may leave it in pieces
            raise RuntimeError("no code for this")
        return real(gm, *args, **settings)

    monkeypatch.setattr(module, compiler, first_fails)
    report, caught = run(backend)
    assert calls == [True, False]
    assert report.fallback.pass_name == "codegen" and len(caught) == 1
    (decision,) = report.decisions
    assert not decision.rewritten and decision.reason == "codegen failed on the rewritten graph"


def test_declined_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline(state: Any) -> Any:
        def step(stage: Lifted, program: Any) -> Any:
            raise Declined("for a test", stage.found.anchor)

        return state.each(Lifted, step)

    monkeypatch.setattr(steps, "PIPELINE", tuple((n, decline if n == "split" else f) for n, f in steps.PIPELINE))
    report, caught = run(on_failure="raise")
    assert [d.reason for d in report.decisions] == ["for a test"] and not caught and report.fallback is None
    assert report.decisions[0].node.endswith("(2, 4, 12, 12) float32")


def test_a_healthy_run_reports_every_pass() -> None:
    report, caught = run(on_failure="raise")
    assert list(report.seconds) == NAMES and not caught and report.fallback is None and report.rewritten == 1


def test_the_given_graph_is_not_changed() -> None:
    report, _ = run(on_failure="raise")
    assert not compat.uses_flex_attention(report.before) and compat.uses_flex_attention(report.after)
    assert any("softmax" in str(n.target) for n in report.before.graph.nodes)


def test_never() -> None:
    torch._dynamo.reset()
    with listen() as reports:
        torch.compile(program, backend="flex_eager", options={"rewrite": "never"})(*qkv())
    assert not reports[0].decisions


def test_two_sites_of_which_one_declines() -> None:
    def two(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v) + torch.softmax(q @ k.mT, 1) @ v

    torch._dynamo.reset()
    with listen() as reports:
        torch.compile(two, backend="flex_eager")(*qkv())
    assert [(d.site, d.verdict) for d in reports[0].decisions] == [("site0", "rewritten"), ("site1", "declined")]


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_promise_names_its_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: Any) -> None:
        raise AssertionError("promised otherwise")

    monkeypatch.setitem(ENSURES, name, broken)
    report, caught = run()
    assert report.fallback.pass_name == name and "promised otherwise" in report.fallback.error and len(caught) == 1
