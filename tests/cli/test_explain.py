"""explain runs the model once in isolation: nothing compiled before or after notices."""

from __future__ import annotations

import functools
import inspect
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import flex_inductor
from flex_inductor.decisions import Decision, GraphReport
from flex_inductor.lowering import profit
from flex_inductor.passes import watch

explain = functools.partial(flex_inductor.explain, backend="flex_eager")

SCRIPT = """
import flex_inductor, zoo_for_cli
model, args = zoo_for_cli.probabilities_returned()
flex_inductor.explain(model, backend="flex_eager")(*args)
"""


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


def broken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    first = attend(q, k, v)
    torch._dynamo.graph_break()
    return attend(first, k, v)


@pytest.fixture
def qkv() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, 2, 16, 8) for _ in range(3))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def test_a_report_with_its_records(qkv) -> None:
    report = explain(attend)(*qkv)
    (site,) = report.sites
    assert isinstance(site, Decision) and site.rewritten
    assert isinstance(report.reports[0], GraphReport)
    assert "test_explain.py" in site.source
    assert report.seconds and all(t >= 0 for t in report.seconds.values())


@pytest.mark.compile
@pytest.mark.parametrize(
    ("rewrite", "operator"), [("auto", "scaled_dot_product_attention"), ("always", "flex_attention")]
)
def test_a_report_says_what_a_site_became(qkv, rewrite, operator, monkeypatch) -> None:
    monkeypatch.setattr(profit, "prefers_sdpa", lambda *given: True)  # as small as the site is
    with torch.no_grad():
        report = explain(attend, rewrite=rewrite, backend="flex")(*qkv)
    assert f"site0  rewritten into {operator}" in str(report)
    assert report.to_dict()["sites"][0]["operator"] == operator


apart = pytest.mark.skipif(
    "isolate_recompiles" not in inspect.signature(torch.compile).parameters,
    reason="torch shares the entries before 2.13",
)


@apart
def test_every_call_reports_anew(qkv) -> None:
    ask = explain(attend)
    assert [len(ask(*qkv).sites) for _ in range(12)] == [1] * 12


def test_code_compiled_elsewhere_is_not_compiled_again(qkv) -> None:
    counter = CompileCounter()
    mine = torch.compile(attend, backend=counter)
    mine(*qkv)
    for _ in range(12):
        explain(attend)(*qkv)
    mine(*qkv)
    assert counter.frame_count == 1


@apart
def test_explaining_does_not_use_up_the_recompile_limit(qkv) -> None:
    for _ in range(12):
        explain(attend)(*qkv)
    counter = CompileCounter()
    torch.compile(attend, backend=counter)(*qkv)
    assert counter.frame_count == 1


def test_explaining_leaves_no_shapes_behind(qkv) -> None:
    explain(attend)(*(x[:1] for x in qkv))
    counter = CompileCounterWithBackend("eager")
    torch.compile(attend, backend=counter)(*qkv)
    inputs = {n.name for n in counter.graphs[0].graph.nodes if n.op == "placeholder"}
    assert inputs == {"l_q_", "l_k_", "l_v_"}, "a size became an input of its own"


class Module(torch.nn.Module):
    def forward(self, *qkv: torch.Tensor) -> torch.Tensor:
        return attend(*qkv)


def compiled_in_place() -> torch.nn.Module:
    module = Module()
    module.compile(backend="eager")
    return module


@pytest.mark.parametrize(
    "model",
    [torch.compile(attend, backend="eager"), torch.compile(Module(), backend="eager"), compiled_in_place()],
    ids=["function", "module", "in place"],
)
def test_a_model_that_is_compiled_already_can_be_explained(model, qkv) -> None:
    assert explain(model)(*qkv).rewritten == 1


def test_graph_breaks_are_counted(qkv) -> None:
    report = explain(broken)(*qkv)
    assert len(report.reports) == 2
    assert sum(report.graph_breaks.values()) == 1
    assert [d.site for d in report.sites] == ["site0", "site0"]
    assert "2 attention sites in 2 graphs" in str(report)


def test_the_models_own_error_comes_through(qkv) -> None:
    def fails(*args: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        explain(fails)(*qkv)


def test_an_unknown_backend_is_named(qkv) -> None:
    with pytest.raises(ValueError, match="unknown backend 'nosuch'; known: flex, flex_eager"):
        explain(attend, backend="nosuch")


def test_torch_logs_show_the_decisions(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TORCH_LOGS": "flex_inductor"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=True)
    assert "zoo_for_cli.py:" in done.stderr
    assert ": declined because the probabilities are returned" in done.stderr


def test_the_public_names() -> None:
    for name in ("explain", "Decision", "GraphReport", "FallbackWarning", "__version__"):
        assert hasattr(flex_inductor, name), name


def scores_before(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    s = q @ k.mT
    torch._dynamo.graph_break()
    return (s * 2).softmax(-1) @ v


def values_after(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    p = (q @ k.mT).softmax(-1)
    torch._dynamo.graph_break()
    return p @ v


def jumps(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    s = q @ k.mT
    if s.sum() > 1e9:
        s = s + 1
    return s.softmax(-1) @ v


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    s = q @ k.mT
    torch._dynamo.graph_break()
    p = s.softmax(-1)
    torch._dynamo.graph_break()
    return p @ v


SCORES = "its scores come from beyond a graph break (Call to `torch._dynamo.graph_break()`, at test_explain.py:"
VALUES = "its probabilities go on beyond a graph break (Call to `torch._dynamo.graph_break()`, at test_explain.py:"
JUMP = "its scores come from beyond a graph break (generic_jump TensorVariable(), at test_explain.py:"


@pytest.mark.parametrize(
    ("model", "reasons"),
    [(scores_before, [SCORES]), (values_after, [VALUES]), (jumps, [JUMP]), (alone, [SCORES, VALUES])],
)
def test_attention_with_a_graph_break_inside_is_named(qkv, model, reasons) -> None:
    report = explain(model)(*qkv)
    (site,) = report.sites
    assert not site.rewritten and all(reason in site.reason for reason in reasons), site.reason
    assert site.matched == "_softmax (2, 2, 16, 16) float32" and f"in {model.__name__}: " in site.source
    assert str(report).startswith("1 attention site in ") and ") at test_explain.py:" in str(report)


def classifier(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    p = (q @ k[0, 0, :8, :8]).softmax(-1)
    torch._dynamo.graph_break()
    return p.sum() + v


def weights_of_values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    s = q + 1
    torch._dynamo.graph_break()
    return s.softmax(-1) @ v.mT


@pytest.mark.parametrize("model", [classifier, weights_of_values])
def test_a_softmax_beside_a_graph_break_that_is_no_attention(qkv, model) -> None:
    report = explain(model)(*qkv)
    assert report.graph_breaks and str(report).startswith("No attention found: 0 attention sites in 2 graphs.")


def test_nothing_is_looked_for_if_nothing_may_be_rewritten(qkv) -> None:
    report = explain(attend, rewrite="never")(*qkv)
    assert str(report).startswith(
        'No attention was looked for, because rewrite is "never": 1 graph compiled as written.'
    )
    assert report.to_dict()["searched"] is False and explain(attend)(*qkv).to_dict()["searched"] is True


@pytest.mark.compile
def test_what_is_explained_by_default_is_what_torch_compile_does(qkv, monkeypatch) -> None:
    monkeypatch.setattr(profit, "prefers_sdpa", lambda *given: True)  # as small as the site is
    with torch.no_grad():
        report = flex_inductor.explain(attend)(*qkv)
        torch._dynamo.reset()
        with flex_inductor.listen() as reports:
            torch.compile(attend, backend="flex")(*qkv)
    assert tuple(report.sites) == reports[0].decisions
    assert 'torch.compile(model, backend="flex", options={"rewrite": "auto"}) does on cpu.' in str(report)


def sdpa_and_more(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    p = (q @ k.mT).softmax(-1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v), p, p @ v


def test_what_auto_leaves_says_what_always_would_do(qkv) -> None:
    returned, called = explain(sdpa_and_more)(*qkv).sites
    assert "best kernel already" in called.reason
    assert called.notes == ("with rewrite='always' it becomes flex_attention",)
    assert "the probabilities are returned" in returned.reason and not returned.notes
    _, called = explain(sdpa_and_more, rewrite="always")(*qkv).sites
    assert called.rewritten and not called.notes


def test_the_second_look_is_not_watched(qkv) -> None:
    seen: list[str] = []
    with watch(lambda name, state: seen.append(name)):
        explain(sdpa_and_more)(*qkv)
    assert seen.count("normalize") == 1


def test_the_environment_counts_as_in_torch_compile(qkv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "never")
    assert str(explain(attend)(*qkv)).startswith("No attention was looked for")
    report = explain(attend, options={"rewrite": "always", "max_autotune": True})(*qkv)
    assert report.rewritten == 1 and report.to_dict()["options"] == {"rewrite": "always", "max_autotune": True}
    assert 'backend="flex_eager", options={"rewrite": "always", "max_autotune": True}) does on cpu.' in " ".join(
        str(report).split()
    )


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(16, 16))
        self.register_buffer("keep", torch.ones(16, dtype=torch.bool))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        scores = (q @ k.mT + self.table).masked_fill(~(self.keep & pad), float("-inf"))
        return scores.softmax(-1) @ v


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer() for _ in range(3)])

    def forward(self, q: torch.Tensor, *kv: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            q = layer(q, *kv)
        return q


def test_tensors_of_the_model_have_their_paths(qkv) -> None:
    with torch.no_grad():
        report = explain(Stack(), rewrite="always")(*qkv, torch.ones(16, dtype=torch.bool))
    for i, site in enumerate(report.sites):
        assert site.score_mod == f"score + layers.{i}.table[q, k]"
        assert site.captured[:2] == (f"layers.{i}.table", f"layers.{i}.keep") and len(site.captured) == 3
        assert f"layers.{i}.keep" in site.sparsity
    text = str(report)
    assert "site0-site2, 3 layers alike" in text and "score + layers.*.table[q, k]" in text
    assert "layers.*.keep[k] and " in text


def test_tensors_have_the_names_of_variables(qkv) -> None:
    """But not one that the formula uses itself, or that is the name of an operator."""

    def documents(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        document = starts.cumsum(-1)
        b = starts.flip(-1).cumsum(-1)
        scores = (q @ k.mT).masked_fill(document[:, None] != document, float("-inf"))
        return (scores + b).softmax(-1) @ v

    (site,) = explain(documents, rewrite="always")(*qkv, torch.ones(16, dtype=torch.long)).sites
    assert site.mask_mod == "document[q] == document[k]" and "document" in site.sparsity
    assert site.score_mod == "score + float(cumsum_default_1[k])" and "document" in site.code()


def test_a_report_of_a_run_can_be_pickled(qkv, tmp_path) -> None:
    report = explain(broken, rewrite="always")(*qkv)
    loaded = pickle.loads(pickle.dumps(report))
    assert str(loaded) == str(report) and loaded.to_json() == report.to_json() and loaded.sites == report.sites
    assert [p.name for p in loaded.graphs(tmp_path) if "blocks" not in p.name] == []


def test_file_and_line_are_data(qkv) -> None:
    (site,) = explain(attend)(*qkv).to_dict()["sites"]
    assert site["file"] == __file__
    assert "scores.softmax(-1) @ v" in Path(__file__).read_text().splitlines()[site["line"] - 1]


def test_shapes_alone_are_enough_for_long_sequences() -> None:
    """Real numbers in, fake ones between the graphs, and out."""
    q = torch.randn(1, 2, 131072, 8)
    with torch.no_grad():
        report = flex_inductor.explain(broken, run=False, rewrite="always")(q, q, q)
    assert [s.rewritten for s in report.sites] == [True, True] and len(report.reports) == 2
    assert "would do on cpu, by shapes alone" in " ".join(str(report).split()) and report.to_dict()["ran"] is False
    assert all(s.given is None for s in report.sites)


def test_fake_tensors_are_taken_as_they_are() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = torch.nn.Linear(4096, 4096)

        def forward(self, x):
            return attend(*(self.q(x).unflatten(-1, (32, 128)).transpose(1, 2),) * 3)

    with FakeTensorMode():
        model, x = Layer(), torch.randn(1, 65536, 4096)
    with torch.no_grad():
        (site,) = flex_inductor.explain(model, run=False, rewrite="always")(x).sites
    assert site.rewritten and site.lengths == (65536, 65536)


def test_what_is_not_run_changes_nothing() -> None:
    def counting(q, k, v, seen):
        seen.add_(1)
        return attend(q, k, v)

    seen = torch.zeros(3)
    with torch.no_grad():
        flex_inductor.explain(counting, run=False)(*(torch.randn(1, 2, 16, 8) for _ in range(3)), seen)
    assert seen.eq(0).all()
