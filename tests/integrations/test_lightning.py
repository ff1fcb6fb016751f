"""A Lightning module, compiled before it is handed to the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from flex_inductor import listen
from tests.integrations.support import BACKENDS, llama, rewritten, sentences

lightning = pytest.importorskip("lightning")


def module() -> Any:
    class Language(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = llama()
            self.losses: list[float] = []

        def training_step(self, rows: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            return self.model(**rows).loss

        def on_train_batch_end(self, outputs: Any, rows: Any, index: int) -> None:
            self.losses.append(float(outputs["loss"]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Language()


def losses(folder: Path, prepare: Any = None) -> list[float]:
    inner = module()
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(inner if prepare is None else prepare(inner), DataLoader(sentences(24), batch_size=4))
    return inner.losses


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_trains_with_eagers_losses(tmp_path: Path, backend: str) -> None:
    torch._dynamo.reset()
    options = {"rewrite": "always"}
    with listen() as reports:
        found = losses(tmp_path, lambda inner: torch.compile(inner, backend=backend, options=options))
    assert rewritten(reports) >= 2 and len(found) == 6
    assert found == pytest.approx(losses(tmp_path), abs=1e-4)


def test_only_the_model_inside_may_be_compiled(tmp_path: Path) -> None:
    torch._dynamo.reset()

    def prepare(inner: Any) -> Any:
        inner.model.compile(backend="flex_eager", options={"rewrite": "always"})
        return inner

    with listen() as reports:
        found = losses(tmp_path, prepare)
    assert rewritten(reports) >= 2
    assert found == pytest.approx(losses(tmp_path), abs=1e-4)
