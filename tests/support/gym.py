"""Every mask of attn_gym.masks, at a given number of queries and keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from attn_gym import masks
from attn_gym.masks.document_mask import length_to_offsets
from attn_gym.masks.vsa import generate_vsa_padding_mask_mod


def offsets(length: int, documents: int) -> torch.Tensor:
    random.seed(0)
    cuts = sorted(random.sample(range(1, length), documents - 1))
    return length_to_offsets([b - a for a, b in zip([0, *cuts], [*cuts, length])], "cpu")


def intervals(length: int, images: int) -> torch.Tensor:
    random.seed(1)
    return torch.tensor([sorted(random.sample(range(length + 1), 2)) for _ in range(images)])


def tree(nodes: int) -> Any:
    random.seed(2)
    return masks.build_tree_ancestor_matrix([-1, *(random.randrange(i) for i in range(1, nodes))], "cpu")


def is_global(length: int) -> torch.Tensor:
    return torch.rand(length, generator=torch.Generator().manual_seed(0)) > 0.98


SIDE = 32
S = SIDE * SIDE
MASKS: dict[str, Callable[[], Any]] = {
    "causal": lambda: masks.causal_mask,
    "sliding window": lambda: masks.generate_sliding_window(200),
    "dilated": lambda: masks.generate_dilated_sliding_window(150, 3),
    "prefix": lambda: masks.generate_prefix_lm_mask(137),
    "documents": lambda: masks.generate_doc_mask_mod(masks.causal_mask, offsets(S, 9)),
    "packed documents": lambda: masks.generate_packed_causal_doc_mask_mod(offsets(S, 9)),
    "natten": lambda: masks.generate_natten(SIDE, SIDE, 7, 7),
    "tiled natten": lambda: masks.generate_tiled_natten(SIDE, SIDE, 7, 7, 8, 8),
    "morton natten": lambda: masks.generate_morton_natten(SIDE, SIDE, 7, 7),
    "global and window": lambda: masks.generate_global_sliding_window(100, is_global(S)),
    "flamingo": lambda: masks.generate_vision_cross_attention_mask_mod(intervals(S, 16), 64),
    "shared prefix": lambda: masks.generate_shared_prefix_mask_mod(
        offsets(S, 8), torch.tensor([0, 0, 0, 3, 3, 5, 5, 5])
    ),
    "block diffusion": lambda: masks.generate_block_diffusion_mask(S // 2, 40),
    "sta 2d": lambda: masks.generate_sta_mask_mod_2d((SIDE, SIDE), (16, 16), (8, 8)),
    "sta 3d": lambda: masks.generate_sta_mask_mod_3d((4, 16, 16), (2, 8, 8), (2, 8, 8)),
    "svg spatial": lambda: masks.generate_spatial_head_mask_mod(40, 8, 100, 2, True, 16),
    "svg temporal": lambda: masks.generate_temporal_head_mask_mod(40, 8, 100, 2),
    "vsa": lambda: masks.generate_vsa_mask_mod(torch.randint(0, S // 64, (2, 3, S // 64, 4)), 64),
    "vsa padding": lambda: generate_vsa_padding_mask_mod(torch.randint(20, 65, (S // 64,)), 64),
    "jetspec tree": lambda: masks.generate_jetspec_tree_causal_mask_mod(S // 2, tree(S // 2)),
    "jetspec training": lambda: masks.generate_jetspec_training_mask_mod(300, 24),
    "batchify": lambda: masks.batchify_mask_mod(masks.causal_mask, 100),
}
LONGEST = {"jetspec tree": S // 2}
"""The most queries of masks that are not made for as many as there are keys."""
