"""Bad input, and failures of ours: the model runs with eager's numbers, and the report says what happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor
from torch._inductor.kernel.flex import flex_attention

from flex_inductor import FallbackWarning, GraphReport, compat, listen
from flex_inductor.compat import eager
from flex_inductor.lowering import support
from flex_inductor.passes import steps
from tests.support.programs import attend, causal, qkv

NAMES = [name for name, _ in steps.PIPELINE]


def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attend(q, k, v, causal)


def run(
    fn: Callable[..., Any], *inputs: Any, backend: Any = "flex_eager", **settings: Any
) -> tuple[Any, list[GraphReport]]:
    torch._dynamo.reset()
    with listen() as reports:
        return torch.compile(fn, backend=backend, **settings)(*inputs), reports


# ---------------------------------------------------------------- options
@pytest.mark.parametrize("backend", ["flex", "flex_eager"])
def test_an_unknown_option_is_an_error_that_lists_the_known_ones(backend: str) -> None:
    with pytest.raises(Exception, match=r"unknown option .rewritte. .*mean rewrite.*rewrite, on_failure, kernels"):
        run(program, *qkv(), backend=backend, options={"rewritte": "always"})


@pytest.mark.parametrize(
    "options", [{"rewrite": "sometimes"}, {"on_failure": "shrug"}, {"kernels": "new"}, {"mode": "fast"}]
)
def test_an_unknown_value_is_an_error_that_lists_the_known_ones(options: dict[str, str]) -> None:
    with pytest.raises(Exception, match="must be one of"):
        run(program, *qkv(), options=options)


# ---------------------------------------------------------------- devices
@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "nonsense"])
def test_an_unknown_device_is_refused_by_name(device: str) -> None:
    reason = support.refusal(device, torch.float32, False, (64, 64), 4)
    assert reason == f"flex_attention has no kernel for device '{device}' (supported: cpu, cuda)"


def test_a_known_device_is_not_refused() -> None:
    assert support.refusal("cpu", torch.float32, False, (64, 64), 4) is None


def test_a_float64_model_is_left_alone() -> None:
    q, k, v = qkv(dtype=torch.float64)
    reason = support.refusal("cpu", torch.float64, False, (64, 64), 4)
    assert reason == "flex_attention has no kernel for float64"
    got, _ = run(program, q, k, v)
    torch.testing.assert_close(got, program(q, k, v))


# ---------------------------------------------------------------- graph breaks
def broken_before(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return program(q, k, v)


def broken_inside(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.mT
    torch._dynamo.graph_break()
    return torch.softmax(scores, -1) @ v


def broken_between(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    first = program(q, k, v)
    torch._dynamo.graph_break()
    return program(first, k, v)


@pytest.mark.parametrize(
    ("fn", "graphs", "rewritten"), [(broken_before, 1, 1), (broken_inside, 2, 0), (broken_between, 2, 2)]
)
def test_graph_breaks(fn: Callable[..., Any], graphs: int, rewritten: int) -> None:
    got, reports = run(fn, *qkv())
    torch.testing.assert_close(got, fn(*qkv()))
    assert (len(reports), sum(r.rewritten for r in reports)) == (graphs, rewritten)


def test_a_graph_without_tensors_or_attention_is_left_as_it_is() -> None:
    got, reports = run(lambda x: torch.relu(x) + 1, torch.ones(3))
    assert got.tolist() == [2, 2, 2]
    assert all(r.after is r.before and not r.decisions for r in reports)


# ---------------------------------------------------------------- failures of ours
@pytest.mark.parametrize("name", NAMES)
def test_an_exception_in_any_pass_leaves_the_graph_untouched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(state: Any) -> Any:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(steps, "PIPELINE", tuple((n, fail if n == name else f) for n, f in steps.PIPELINE))
    with pytest.warns(FallbackWarning, match=f"{name} failed .ZeroDivisionError: injected"):
        got, (report,) = run(program, *qkv())
    torch.testing.assert_close(got, program(*qkv()), rtol=0, atol=0)
    assert report.fallback is not None and report.fallback.pass_name == name
    assert report.after is report.before and not report.rewritten


@pytest.mark.parametrize("name", NAMES)
def test_on_failure_raise_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(state: Any) -> Any:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(steps, "PIPELINE", tuple((n, fail if n == name else f) for n, f in steps.PIPELINE))
    with pytest.raises(Exception, match=name):
        run(program, *qkv(), options={"on_failure": "raise"})


def test_failed_code_generation_compiles_the_untouched_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def picky(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(compat.uses_flex_attention(gm))
        if seen[-1]:
            gm.graph.erase_node(next(n for n in reversed(gm.graph.nodes)))  # compilers change what they are given
            raise NotImplementedError("no such kernel")
        return gm.forward

    monkeypatch.setattr(eager, "eager", picky)
    with pytest.warns(FallbackWarning, match="codegen failed .NotImplementedError: no such kernel"):
        got, (report,) = run(program, *qkv())
    assert seen == [True, False]
    torch.testing.assert_close(got, program(*qkv()), rtol=0, atol=0)
    assert report.fallback is not None and report.fallback.pass_name == "codegen"
    (decision,) = report.decisions
    assert decision.verdict == "declined" and decision.reason == "codegen failed on the rewritten graph"


@pytest.mark.compile
def test_a_backward_pass_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: it was compiled when it first ran, so that a gradient that has no lowering raised there."""

    def fail(*given: Any, **named: Any) -> Any:
        raise NotImplementedError("no such gradient")

    def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return torch.softmax(q @ k.mT + bias, -1) @ v

    monkeypatch.setattr(flex_attention, "validate_joint_graph", fail)
    torch._dynamo.reset()
    given = [x.requires_grad_() for x in (*qkv(), torch.randn(qkv()[0].shape[-2], qkv()[1].shape[-2]))]
    with inductor.patch(force_disable_caches=True), listen() as reports, pytest.warns(FallbackWarning, match="no such"):
        out = torch.compile(biased, backend="flex", options={"rewrite": "always"})(*given)
        ours, theirs = (torch.autograd.grad(x.sum(), given) for x in (out, biased(*given)))
    torch.testing.assert_close(ours, theirs)
    assert reports[0].decisions[0].reason == "codegen failed on the rewritten graph"


def test_an_error_of_the_untouched_graph_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        raise NotImplementedError("no compiler")

    monkeypatch.setattr(eager, "eager", refuse)
    with pytest.raises(Exception, match="no compiler"), pytest.warns(FallbackWarning):
        run(program, *qkv())


def test_rewrite_never_is_the_plain_compiler() -> None:
    got, (report,) = run(program, *qkv(), options={"rewrite": "never"})
    torch.testing.assert_close(got, program(*qkv()))
    assert report.after is report.before and report.decisions == ()
