"""The command line as a user runs it. A few runs go through a real process, the rest through click's runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flex_inductor.cli import main, useful_line

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EAGER = ("--rewrite", "always", "--backend", "flex_eager")


def process(*args: str) -> subprocess.CompletedProcess[str]:
    """`python -m flex_inductor` in the folder of the factories, which the command must find by itself."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "flex_inductor", *args]
    return subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, args)

    return invoke


def test_explain_in_a_process_of_its_own() -> None:
    done = process("explain", "zoo_for_cli:causal")
    assert done.returncode == 0, done.stderr
    assert "1 attention site in 1 graph: 1 rewritten, 0 declined." in done.stdout
    assert "mask_mod   k <= q" in done.stdout
    assert 'This is what torch.compile(model, backend="flex", options={"rewrite": "auto"}) does on cpu.' in done.stdout
    assert "zoo_for_cli.py:" in done.stdout


def test_look(cli, tmp_path) -> None:
    shown = cli("look", "zoo_for_cli:causal")
    assert shown.exit_code == 0, shown.output
    assert "site 0  32 queries, 32 keys, " in shown.output and "strongest keys" in shown.output
    data = json.loads(cli("look", "zoo_for_cli:causal", "--json").output)
    assert len(data["sites"][0]["rows"]) == 4
    written = tmp_path / "look.html"
    assert f"page written to {written}" in cli("look", "zoo_for_cli:causal", "--html", str(written)).stderr
    assert "What heads of zoo_for_cli:causal look at" in written.read_text()
    assert cli("look", "zoo_for_cli:nothing").exit_code == 2


def test_bad_input_is_one_line_and_exit_code_2() -> None:
    done = process("explain", "nosuchmodule:factory")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: no module named 'nosuchmodule'\n"


def test_json_is_json(cli) -> None:
    data = json.loads(cli("explain", "zoo_for_cli:by_name", "--json", *EAGER).stdout)
    assert data["rewritten"] == 1
    assert data["sites"][0]["verdict"] == "rewritten"


def test_a_declined_site_says_why_and_where(cli) -> None:
    site = json.loads(cli("explain", "zoo_for_cli:probabilities_returned", "--json", *EAGER).stdout)["sites"][0]
    assert site["verdict"] == "declined"
    assert site["reason"] and site["node"]


def test_rewrite_never_rewrites_nothing(cli) -> None:
    data = json.loads(cli("explain", "zoo_for_cli:causal", "--json", "--rewrite", "never").stdout)
    assert data["rewritten"] == 0
    assert (data["backend"], data["options"], data["devices"]) == ("flex", {"rewrite": "never"}, ["cpu"])


@pytest.mark.parametrize("train", [(), ("--train",)])
def test_a_hub_model_by_its_type(cli, train: tuple[str, ...]) -> None:
    pytest.importorskip("transformers")
    result = cli("explain", "hf:llama", "--json", *EAGER, *train)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rewritten"] == 2


def test_dump_writes_both_graphs(cli, tmp_path: Path) -> None:
    result = cli("dump", "zoo_for_cli:causal", *EAGER, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    listed = {Path(line).name for line in result.stdout.splitlines()}
    assert listed == {p.name for p in (tmp_path / "out").iterdir()}
    assert "graph0.site0.blocks.svg" in listed
    assert "flex_attention" in (tmp_path / "out" / "graph0.after.txt").read_text()
    assert "flex_attention" not in (tmp_path / "out" / "graph0.before.txt").read_text()


def test_dump_between_the_passes(cli, tmp_path: Path) -> None:
    result = cli("dump", "zoo_for_cli:causal", *EAGER, "--between", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    steps = {p.name.split(".")[2]: p.read_text() for p in tmp_path.glob("graph0.[0-9]*.*.txt")}
    assert len(steps) == 10
    assert "aten._softmax" in steps["normalize"] and steps["find"].startswith("Located")
    assert "-inf" in steps["lift"] and "mask          k <= q" in steps["split"]
    assert "flex_attention" in steps["emit"] and "_softmax" not in steps["clean"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "'nothing' is none of MODULE:FACTORY, FILE.py:FACTORY and hf:MODEL_TYPE"),
        ("zoo_for_cli:nosuch", "zoo_for_cli has no factory 'nosuch'"),
        ("zoo_for_cli:fails", "zoo_for_cli:fails() failed: RuntimeError: out of cheese"),
        ("zoo_for_cli:no_tuple", "zoo_for_cli:no_tuple() must return (model, args) or (model, args, kwargs)"),
        ("zoo_for_cli:leaves", "zoo_for_cli:leaves() failed: SystemExit: 3"),
        ("zoo_for_cli:wrong_inputs", "zoo_for_cli:wrong_inputs does not run: TypeError"),
        ("zoo_for_cli:wrong_shapes", "zoo_for_cli:wrong_shapes does not run: RuntimeError"),
        ("hf:bertt", "unknown model type 'bertt'; did you mean bert"),
    ],
)
def test_every_kind_of_bad_target(cli, target: str, message: str) -> None:
    result = cli("explain", target)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "zoo_for_cli:causal",
            ("--length", "8"),
            "--length is for hf: targets; zoo_for_cli:causal builds its",
        ),
        ("nosuch.py:make", (), "no file 'nosuch.py'"),
        ("hf:meta-llama/Llama-3-8B", (), "'meta-llama/Llama-3-8B' looks like the name of a checkpoint, and nothing is"),
        (
            "hf:bert-base-uncased",
            (),
            "'bert-base-uncased' looks like the name of a checkpoint",
        ),
        ("hf:bert", ("--device", "nosuch"), "no device 'nosuch' here: RuntimeError"),
        ("hf:bert", ("--config", "nosuch"), "no file or folder 'nosuch'"),
        ("hf:swin", ("--layers", "3"), "swin has no number of layers"),
    ],
)
def test_every_kind_of_bad_option(cli, target: str, options: tuple[str, ...], message: str) -> None:
    result = cli("explain", target, *options)
    assert result.exit_code == 2 and result.stderr.startswith(f"Error: {message}"), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("explain", "--html"), ("look", "--html"), ("dump", "--out"), ("demo", "--html")])
def test_a_place_that_cannot_be_written_is_noticed_first(cli, tmp_path: Path, command: tuple[str, str]) -> None:
    """Regression: it was noticed after the work was done."""
    (tmp_path / "file").touch()
    target = () if command[0] == "demo" else ("zoo_for_cli:fails",)
    result = cli(command[0], *target, command[1], str(tmp_path / "file" / "below"))
    assert result.exit_code == 2 and "that can be written to" in result.stderr, result.stderr


def test_an_environment_variable_is_named(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_KERNELS", "sometimes")
    result = cli("explain", "zoo_for_cli:causal")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: the environment variable FLEX_INDUCTOR_KERNELS is 'sometimes'; it must be")


def test_what_a_model_prints_is_not_in_the_report(cli) -> None:
    result = cli("explain", "zoo_for_cli:talks", "--json", *EAGER)
    assert json.loads(result.stdout)["rewritten"] == 1
    assert "made" in result.stderr and "running" in result.stderr


def test_the_checkpoint_hint_names_the_type(cli) -> None:
    assert "name its type (hf:llama)" in cli("explain", "hf:meta-llama/Llama-3-8B").stderr


def test_a_factory_by_its_file(cli, tmp_path: Path) -> None:
    (tmp_path / "fac.py").write_text("import beside\n\ndef make():\n    return beside.model, ()\n")
    (tmp_path / "beside.py").write_text("import torch\n\ndef model():\n    return torch.ones(3)\n")
    result = cli("explain", f"{tmp_path / 'fac.py'}:make", *EAGER)
    assert result.exit_code == 0 and "No attention found" in result.stdout, result.output


def test_a_hub_model_is_built_as_the_options_say(cli) -> None:
    options = ("--length", "96", "--batch", "3", "--dtype", "bfloat16", "--padding", "left", "--layers", "3")
    data = json.loads(cli("explain", "hf:gpt2", *options, "--json", *EAGER).stdout)
    assert data["rewritten"] == 3
    site = data["sites"][0]
    assert site["matched"] == "_softmax (3, 4, 96, 96) bfloat16" and site["kind"] == "causal, padding"
    labels = [label for label, _ in site["given"]["maps"]]
    assert labels == ["sequence 0 and 1 more", "sequence 2"]


def test_a_configuration_is_taken_as_it_is_and_fake_tensors_make_it_cheap(cli, tmp_path: Path) -> None:
    sizes = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 99}
    config = {"model_type": "mistral", "sliding_window": 4096, "intermediate_size": 8192, "vocab_size": 32000, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--config", str(tmp_path), "--layers", "2", "--length", "131072", "--batch", "1", "--fake", "--json")
    result = cli("explain", "hf:mistral", *options)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["rewritten"], data["ran"]) == (2, False)
    assert data["sites"][0]["matched"] == "_softmax (1, 16, 131072, 131072) float32"
    assert "window 4096" in data["sites"][0]["kind"]
    wrong = cli("explain", "hf:gpt2", "--config", str(tmp_path))
    assert wrong.stderr == f"Error: {tmp_path} is of type 'mistral', not 'gpt2'\n"


def test_a_factory_is_looked_at_by_shapes_alone(cli) -> None:
    result = cli("explain", "zoo_for_cli:long", "--fake")
    assert result.exit_code == 0, result.stderr
    assert "1 rewritten" in result.stdout and "nothing\nwas run" in result.stdout


def test_the_useful_line_of_an_error_is_kept() -> None:
    failed = "Dynamo failed to run FX node with fake tensors: call_function f(*(FakeTensor(...),), **{}): got "
    fake = RuntimeError(failed + "RuntimeError('a and b cannot be multiplied (2x3 and 4x5)')\n\nfrom user code:")
    assert useful_line(fake) == "RuntimeError: a and b cannot be multiplied (2x3 and 4x5)"
    assert useful_line(ValueError("backend='f' raised:\nKeyError: 'x'\nmore")) == "KeyError: 'x'"
    assert useful_line(ValueError("one\ntwo")) == "ValueError: one" and useful_line(KeyError()) == "KeyError"


def test_without_transformers_it_says_how_to_get_it(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = cli("explain", "hf:bert")
    assert result.exit_code == 2
    assert "pip install 'flex-inductor[hf]'" in result.stderr


def test_the_demo_without_its_packages_says_how_to_get_them(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'flex-inductor[demo]'" in cli("demo").stdout
