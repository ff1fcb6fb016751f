"""transformers' Trainer with the backend by its name. accelerate must be told the name first."""

import os
import sys
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"
os.environ["FLEX_INDUCTOR_REWRITE"] = "always"  # so small a model is left alone otherwise, and Trainer takes no options
flex_inductor.integrations.accelerate()


def train(**settings: object) -> list[float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    rows = torch.randint(3, 64, (32, 24), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=6, per_device_train_batch_size=4, logging_steps=1, report_to=[], seed=0,
            save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=1e-3, **settings,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=data)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


eager = train()
with flex_inductor.listen() as reports:
    found = train(torch_compile_backend=BACKEND)
print("eager", *eager)
print(f"{BACKEND:5}", *found)
print(f"largest difference of a loss: {max(abs(a - b) for a, b in zip(found, eager, strict=True)):.1e}")
assert sum(report.rewritten for report in reports) >= 2
