"""LoRA by peft: the same gradients, in the adapters only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor import listen
from tests.integrations.support import BACKENDS, batch, llama, rewritten

peft = pytest.importorskip("peft")


def adapted() -> Any:
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights="gaussian")
    model = peft.get_peft_model(llama(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, so that gradients of the other factor would be
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: Any, call: Any) -> dict[str, torch.Tensor]:
    call(**batch()).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_lora_has_eagers_gradients(backend: str) -> None:
    torch._dynamo.reset()
    eager, model = adapted(), adapted()
    expected = gradients(eager, eager)
    with listen() as reports:
        found = gradients(model, torch.compile(model, backend=backend, options={"rewrite": "always"}))
    assert rewritten(reports) == 2
    assert found.keys() == expected.keys() and all("lora" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_adapters_may_be_switched_off() -> None:
    """Dynamo compiles anew, and the numbers are those of the model below."""
    torch._dynamo.reset()
    model = adapted().eval()
    compiled = torch.compile(model, backend="flex_eager", options={"rewrite": "always"})
    with torch.no_grad():
        adapted_logits = compiled(**batch()).logits
        with model.disable_adapter():
            plain = compiled(**batch()).logits
        below = llama().eval()(**batch()).logits
    torch.testing.assert_close(plain, below, atol=1e-5, rtol=1e-4)
    assert (adapted_logits - plain).abs().max() > 1e-3
