"""What is built, and how small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

WIDTH, HEADS, LENGTH, VOCAB = 64, 4, 64, 160

SIZES = (
    (WIDTH, "hidden_size d_model n_embd embed_dim hidden_dim dim embedding_size projection_dim word_embed_proj_dim"),
    (96, "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim moe_intermediate_size"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (HEADS, "num_local_experts num_experts n_routed_experts"),
    (2, "num_experts_per_tok num_key_value_heads num_kv_heads"),
    (WIDTH // HEADS, "head_dim d_kv query_pre_attn_scalar qk_nope_head_dim v_head_dim kv_lora_rank sliding_window"),
    (8, "patch_size qk_rope_head_dim num_mel_bins"),
    (32, "image_size q_lora_rank"),
    (VOCAB, "vocab_size"),
)
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length")
SMALL = {**{name: size for size, names in SIZES for name in names.split()}, **dict.fromkeys(LAYERS, 2)}


@dataclass(frozen=True)
class Build:
    """What is built. length, batch: of the inputs. dtype, device: of model and inputs. padding: the side on which the
    last sequence is padded, "none" for no padding. config: a file or folder whose configuration is taken as it is, None
    for the type's own, shrunk. layers: how many; None for two, or as many as the file says."""

    length: int = LENGTH
    batch: int = 2
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    padding: Literal["none", "left", "right"] = "right"
    config: Path | None = None
    layers: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that fields shrink to, by their names."""
        positions = max(2 * self.length, 2 * LENGTH)
        own = dict.fromkeys(POSITIONS, positions) | {"max_source_positions": self.length}
        return {**SMALL, **own, **(dict.fromkeys(LAYERS, self.layers) if self.layers else {})}


TINY = Build()


class HubError(Exception):
    """The model cannot be built; the text is one line for the user."""
