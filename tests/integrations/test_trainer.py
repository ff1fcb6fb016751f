"""transformers' Trainer and accelerate: backends by name, losses of a run, LoRA, generate."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from flex_inductor import integrations, listen
from tests.integrations.support import ALWAYS, BACKENDS, batch, close, llama, rewritten, sentences

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch._dynamo.reset()
    monkeypatch.setenv(ALWAYS, "always")


def losses(folder: Path, prepare: Any = None, **settings: Any) -> list[float]:
    """The losses of 20 steps of two batches each, and the last one of all."""
    arguments = {
        "bf16": True, "max_steps": 20, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
        "logging_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "learning_rate": 1e-3, "seed": 0, **settings,
    }  # fmt: skip
    model = llama()
    if prepare is not None:
        prepare(model)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=sentences(64),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---------------------------------------------------------------- accelerate's names
def test_the_names_are_known_after_one_call() -> None:
    from accelerate.utils import DynamoBackend, TorchDynamoPlugin

    integrations.accelerate()
    hook = DynamoBackend._missing_
    integrations.accelerate()
    assert DynamoBackend._missing_ is hook
    plugin = TorchDynamoPlugin(backend="flex", mode="max-autotune")
    assert plugin.to_kwargs() == {"backend": "flex", "mode": "max-autotune"}
    assert DynamoBackend("FLEX") is DynamoBackend("FLEX") and DynamoBackend("FLEX_EAGER") in DynamoBackend
    assert DynamoBackend("INDUCTOR") is DynamoBackend.INDUCTOR
    ours = DynamoBackend("FLEX")
    assert copy.deepcopy(ours) is pickle.loads(pickle.dumps(ours)) is ours  # regression: not with Python 3.11.2
    with pytest.raises(ValueError, match="FLEXX"):
        TorchDynamoPlugin(backend="flexx")


def test_an_accelerator_compiles_with_options() -> None:
    from accelerate.utils import TorchDynamoPlugin

    integrations.accelerate()
    plugin = TorchDynamoPlugin(backend="flex_eager", options={"rewrite": "always"})
    model = accelerate.Accelerator(cpu=True, dynamo_plugin=plugin).prepare(llama().eval())
    with listen() as reports, torch.no_grad():
        found = model(**batch()).logits
    assert rewritten(reports) == 2
    torch.testing.assert_close(found, llama().eval()(**batch()).logits, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- Trainer
@pytest.mark.parametrize(
    "backend", ["flex_eager", pytest.param("flex", marks=[pytest.mark.compile, pytest.mark.nightly])]
)
def test_a_run_with_a_backend_by_name(tmp_path: Path, backend: str) -> None:
    integrations.accelerate()
    exact, eager = losses(tmp_path, bf16=False), losses(tmp_path)
    with listen() as reports:
        found = losses(tmp_path, torch_compile_backend=backend)
    assert rewritten(reports) >= 2 and len(found) == 20 and found[-1] < found[0]
    close(found, eager, exact, floor=5e-3)


@pytest.mark.nightly
def test_a_run_of_a_model_that_was_compiled_before(tmp_path: Path) -> None:
    """No name is asked of accelerate, and checkpoints have the model's own names."""
    exact, eager = losses(tmp_path, bf16=False), losses(tmp_path)
    with listen() as reports:
        found = losses(tmp_path, lambda model: model.compile(backend="flex_eager"))
    assert rewritten(reports) >= 2
    close(found, eager, exact, floor=5e-3)


# ---------------------------------------------------------------- generate
@pytest.mark.parametrize("backend", BACKENDS)
def test_generate(backend: str) -> None:
    model = llama().eval()
    given = {name: value for name, value in batch().items() if name != "labels"}
    given = {name: value.flip(-1) for name, value in given.items()}  # padded on the left
    settings = {"max_new_tokens": 8, "do_sample": False}
    tokens = model.generate(**given, **settings)
    model.forward = torch.compile(model.forward, backend=backend)
    with listen() as reports:
        found = model.generate(**given, **settings)
    assert torch.equal(found, tokens) and rewritten(reports) >= 2
