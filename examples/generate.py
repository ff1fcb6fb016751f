"""A Llama of transformers, random weights, greedy: eager's tokens. The cache grows, and code is generated for lengths
in general after the first step."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, attn_implementation="eager", pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
model = LlamaForCausalLM(config).eval()
prompt = torch.randint(3, 128, (2, 20))
settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
expected = model.generate(prompt, **settings)

model.forward = torch.compile(model.forward, backend=BACKEND, options={"rewrite": "always"})
with flex_inductor.listen() as reports:
    found = model.generate(prompt, **settings)
sites = sum(report.rewritten for report in reports)
print(f"{len(reports)} graphs were compiled, in which {sites} attention sites were rewritten")
print(f"{int((found == expected).sum())} of {expected.numel()} tokens are eager's")
assert sites and torch.equal(found, expected)
