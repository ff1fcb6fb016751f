"""Tables of small tensor programs, one for each operator that can be lifted. Each broadcasts to (B, H, S, S):
a bias that is added to the scores, or a mask of the keys that stay. `x` is a dict of leaves made by `leaves`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.support.programs import B, H, S, randn

I = torch.arange  # noqa: E741
DISTANCE = lambda: torch.arange(S)[:, None] - torch.arange(S)  # noqa: E731


def leaves() -> dict[str, torch.Tensor]:
    return {
        "qk": randn(S, S, seed=3),
        "hqk": randn(H, S, S, seed=4),
        "bk": randn(B, S, seed=5),
        "q": randn(S, seed=6),
        "h": randn(H, seed=7),
        "table": randn(2 * S, H, seed=8),
        "bhqk": randn(B, H, S, S, seed=9),
        "wide": randn(H, S, 2 * S, seed=10),
        "keep": torch.arange(S).expand(B, S) < torch.tensor([[S], [S - 3]]),
        "ids": torch.arange(S).expand(B, S) // 5 + torch.tensor([[0], [1]]),
        "order": torch.randperm(S, generator=torch.Generator().manual_seed(1)),
        "buckets": torch.randint(0, 2 * S, (S, S), generator=torch.Generator().manual_seed(2)),
    }


VIEWS = {
    "view": lambda x: x["hqk"].view(H * S, S).view(H, S, S),
    "view_split": lambda x: x["bhqk"].view(B * H, S, S).view(B, H, S, S),
    "reshape": lambda x: x["hqk"].reshape(-1).reshape(H, S, S),
    "reshape_copies": lambda x: x["qk"].t().reshape(S * S).reshape(S, S),
    "permute": lambda x: x["hqk"].permute(0, 2, 1),
    "transpose": lambda x: x["hqk"].transpose(-1, -2),
    "t": lambda x: x["qk"].t(),
    "expand": lambda x: x["q"][:, None].expand(B, H, S, S),
    "unsqueeze": lambda x: x["qk"].unsqueeze(0).unsqueeze(0),
    "squeeze": lambda x: x["qk"][None, None].squeeze(1).squeeze(0),
    "squeeze_all": lambda x: x["qk"][None, None].squeeze(),
    "select": lambda x: x["bhqk"][1],
    "select_negative": lambda x: x["bhqk"].select(1, -1)[:, None],
    "slice": lambda x: x["wide"][:, :, 3 : S + 3],
    "slice_step": lambda x: x["wide"][:, :, ::2],
    "slice_negative": lambda x: x["wide"][..., -S:],
    "narrow": lambda x: x["wide"].narrow(2, 5, S),
    "diagonal": lambda x: x["hqk"].diagonal(dim1=1, dim2=2)[:, None, :],
    "diagonal_offset": lambda x: x["wide"].diagonal(3, 1, 2)[:, None, :],
    "split": lambda x: x["wide"].split(S, -1)[1],
    "chunk": lambda x: x["wide"].chunk(2, -1)[0],
    "unbind": lambda x: x["bhqk"].unbind(1)[2][:, None],
    "movedim": lambda x: x["table"][:S].movedim(1, 0)[:, :, None],
    "flatten": lambda x: x["bhqk"].flatten(0, 1).unflatten(0, (B, H)),
    "flip": lambda x: x["hqk"].flip(-1, 0),
    "roll": lambda x: x["hqk"].roll(3, -1),
    "roll_two": lambda x: x["hqk"].roll((-2, 5), (1, 2)),
    "repeat": lambda x: x["hqk"][:2].repeat(2, 1, 1),
    "tile": lambda x: x["qk"][:, :4].tile(1, 3),
    "repeat_interleave": lambda x: x["hqk"][:2].repeat_interleave(2, 0),
    "alias": lambda x: torch.ops.aten.alias(x["qk"]),
    "reshape_alias": lambda x: torch.ops.aten._reshape_alias(x["hqk"], (1, H, S, S), (H * S * S, S * S, S, 1)),
    "lift_fresh_copy": lambda x: torch.ops.aten.lift_fresh_copy(x["qk"]),
    "shift": lambda x: F.pad(x["hqk"], (1, 0)).view(H, S + 1, S)[:, 1:],
}

POINTWISE = (
    {
        name: (lambda x, name=name: getattr(torch, name)(x["qk"] * 0.7))
        for name in [
            "neg",
            "abs",
            "exp",
            "exp2",
            "expm1",
            "tanh",
            "sigmoid",
            "sin",
            "cos",
            "atan",
            "erf",
            "relu",
            "sign",
            "floor",
            "ceil",
            "round",
        ]
    }
    | {
        name: (lambda x, name=name: getattr(torch, name)(x["qk"].abs() + 0.5))
        for name in ["log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal"]
    }
    | {
        "add": lambda x: x["qk"] + x["bk"][:, None, None],
        "add_alpha": lambda x: torch.add(x["qk"], x["q"], alpha=3),
        "sub": lambda x: x["qk"] - x["q"][:, None],
        "rsub": lambda x: 2 - x["qk"],
        "mul": lambda x: x["h"][:, None, None] * DISTANCE(),
        "div": lambda x: x["qk"] / (x["q"].abs() + 1),
        "div_floor": lambda x: torch.div(x["qk"], 0.4, rounding_mode="floor"),
        "integers": lambda x: ((DISTANCE() + 2 * S) // 3 % 4 - 2) * 0.5,
        "remainder": lambda x: torch.remainder(x["qk"], 0.7),
        "fmod": lambda x: torch.fmod(x["qk"], 0.7),
        "fmod_of_tensors": lambda x: torch.fmod(x["qk"], x["q"]),
        "fmod_of_integers": lambda x: torch.fmod(DISTANCE(), 3) * 0.1,
        "hypot": lambda x: torch.hypot(x["qk"], x["q"]),
        "hypot_of_a_number": lambda x: torch.hypot(torch.tensor(0.5), x["qk"]),
        "logaddexp": lambda x: torch.logaddexp(x["qk"], x["hqk"]),
        "pow": lambda x: x["qk"] ** 2 + (x["qk"].abs() + 0.1) ** 0.5,
        "pow_of_integers": lambda x: DISTANCE() ** 2 * -0.01,
        "pow_of_integers_wraps": lambda x: DISTANCE().to(torch.int8) ** 3 * 0.01,
        "pow_base": lambda x: 2.0 ** -DISTANCE().abs(),
        "clamp": lambda x: x["qk"].clamp(-0.5, 0.5),
        "clamp_integers": lambda x: DISTANCE().clamp(-3, 3) * 0.3,
        "clamp_min": lambda x: x["qk"].clamp_min(0.1),
        "clamp_to_a_max": lambda x: x["qk"].clamp(max=0.1),
        "clamp_max": lambda x: x["qk"].clamp_max(0.1),
        "minimum": lambda x: torch.minimum(x["qk"], x["q"][:, None]),
        "maximum": lambda x: torch.maximum(x["qk"], torch.tensor(0.2)),
        "min_of_integers": lambda x: torch.minimum(DISTANCE().abs(), torch.tensor(4)) * -0.2,
        "where": lambda x: torch.where(DISTANCE() > 0, x["qk"], x["q"]),
        "where_numbers": lambda x: torch.where(DISTANCE() > 2, 0.5, -0.5),
        "masked_fill": lambda x: x["qk"].masked_fill(DISTANCE() > 2, 1.5),
        "softplus": lambda x: F.softplus(x["qk"]),
        "silu": lambda x: F.silu(x["qk"]),
        "gelu": lambda x: F.gelu(x["qk"]),
        "leaky_relu": lambda x: F.leaky_relu(x["qk"]),
        "addcmul": lambda x: torch.addcmul(x["qk"], x["qk"], x["qk"], value=0.3),
        "addcmul_of_dtypes": lambda x: torch.addcmul(DISTANCE(), x["qk"], x["q"].bfloat16()),
        "addcmul_of_integers": lambda x: torch.addcmul(DISTANCE(), DISTANCE(), DISTANCE()) * 0.01,
        "addcmul_of_complex": lambda x: torch.addcmul(x["qk"] + 0j, x["qk"] * 1j, x["q"] + 0j).real,
        "addcdiv": lambda x: torch.addcdiv(x["qk"], x["hqk"], x["q"].abs() + 0.5),
        "lerp": lambda x: torch.lerp(x["qk"], x["hqk"], 0.3),
        "lerp_far": lambda x: torch.lerp(x["qk"], x["hqk"], 0.7),
        "lerp_by_a_tensor": lambda x: torch.lerp(x["qk"], x["hqk"], x["q"]),
        "log_of_a_condition": lambda x: ((DISTANCE() > 2).float() + 0.5).log(),
        "tan": lambda x: torch.tan(x["qk"] * 0.7),
        "elu": lambda x: torch.ops.aten.elu(x["qk"]),
        "log_bucket": lambda x: torch.log(DISTANCE().abs().float() + 1).long() * 0.4,
    }
)

CREATION = {
    "zeros": lambda x: torch.zeros(S, S),
    "ones_like": lambda x: torch.ones_like(x["qk"]) * 0.3,
    "full": lambda x: torch.full((S, S), 0.2).tril(),
    "full_like": lambda x: torch.full_like(x["qk"], 0.2).tril(),
    "zeros_like": lambda x: torch.zeros_like(x["qk"]) + x["h"][:, None, None],
    "new_zeros": lambda x: x["qk"].new_zeros(S, S) + x["h"][:, None, None],
    "new_ones": lambda x: x["qk"].new_ones(S, S).tril(),
    "new_full": lambda x: x["qk"].new_full((S, S), 2.0).triu(1),
    "eye": lambda x: torch.eye(S) * 3,
    "arange": lambda x: torch.arange(S) * 0.1,
    "arange_step": lambda x: torch.arange(3, 3 + 2 * S, 2)[:, None] * 0.1,
    "arange_down": lambda x: torch.arange(S, 0, -1) * 0.1,
    "arange_float": lambda x: torch.arange(0, S / 2, 0.5),
    "linspace": lambda x: torch.linspace(-1, 1, S),
    "tril": lambda x: x["qk"].tril(),
    "triu": lambda x: x["qk"].triu(2),
    "tril_negative": lambda x: x["qk"].tril(-1),
    "alibi": lambda x: 2.0 ** -torch.arange(1, H + 1)[:, None, None] * -DISTANCE().abs(),
    "literal": lambda x: torch.tensor([0.1 * i for i in range(S)]),
    "tensor": lambda x: torch.tensor(0.5) * DISTANCE(),
    "meshgrid": lambda x: torch.stack(torch.meshgrid(I(3), I(4), indexing="ij")).flatten(1).sum(0) * 0.1,
}

GATHERS = {
    "index": lambda x: x["table"][DISTANCE() + S].permute(2, 0, 1),
    "index_negative": lambda x: x["table"][DISTANCE()].permute(2, 0, 1),
    "index_two": lambda x: x["bhqk"][:, :, I(S)[:, None], I(S).flip(0)],
    "index_apart": lambda x: x["bhqk"][0][I(S)[:, None] % 3, :, I(S)].permute(1, 0, 2)[None, :, :, :][:, :H],
    "index_column": lambda x: x["qk"][:, x["order"]],
    "gather": lambda x: x["hqk"].gather(-1, ((DISTANCE() + S) % S).expand(H, S, S)),
    "index_select": lambda x: x["hqk"].index_select(1, x["order"]),
    "embedding": lambda x: F.embedding(DISTANCE().abs(), x["table"]).permute(2, 0, 1),
    "loaded_bucket": lambda x: x["table"][x["buckets"]].permute(2, 0, 1),
    "take_along_dim": lambda x: torch.take_along_dim(x["hqk"], x["order"][None, None, :], 2),
}

JOINS = {
    "cat": lambda x: torch.cat([x["hqk"][..., :5], x["wide"][..., : S - 5]], -1),
    "cat_three": lambda x: torch.cat([x["qk"][:2], torch.zeros(3, S), x["qk"][5:]], 0),
    "stack": lambda x: torch.stack([x["qk"], x["qk"] * 2, x["qk"].t(), torch.eye(S)]),
    "pad": lambda x: F.pad(x["hqk"][..., : S - 3], (2, 1), value=-1.0),
    "pad_two": lambda x: F.pad(x["qk"][1:, 2:], (1, 1, 0, 1)),
    "pad_crops": lambda x: F.pad(x["wide"], (-2, -S + 2)),
}

CASTS = {
    "bf16": lambda x: x["qk"].bfloat16().float() * 0 + x["qk"].clone(),
    "int": lambda x: (DISTANCE() < 2).int() * 0.5,
    "float": lambda x: DISTANCE().float() * 0.1,
    "bool": lambda x: DISTANCE().bool().float(),
    "type_as": lambda x: (DISTANCE() > 1).type_as(x["qk"]),
    "double": lambda x: (DISTANCE().double() * 0.1).float(),
    "trunc": lambda x: (x["qk"] * 3).int().float() * 0.1,
}

MASKS = {
    "causal": lambda x: torch.ones(S, S, dtype=torch.bool).tril(),
    "compare_le": lambda x: I(S) <= I(S)[:, None],
    "compare_all": lambda x: (DISTANCE() >= 0) & (DISTANCE() < 4) & (DISTANCE() != 2) | (DISTANCE() == 0),
    "logical": lambda x: torch.logical_or(
        torch.logical_not(DISTANCE() < 0), torch.logical_xor(DISTANCE() > 3, DISTANCE() > 5)
    ),
    "logical_and": lambda x: torch.logical_and(DISTANCE() >= 0, DISTANCE() < 5),
    "exclusive": lambda x: (DISTANCE() < 0) ^ (DISTANCE() > -S),
    "bool_arithmetic": lambda x: (DISTANCE() >= 0) * x["keep"][:, None, None] + torch.eye(S, dtype=torch.bool),
    "invert": lambda x: ~(DISTANCE() < 0),
    "zero_one": lambda x: torch.ones(S, S).tril() == 1,
    "zero_one_int": lambda x: torch.triu(torch.ones(S, S, dtype=torch.int64), 1) == 0,
    "padding": lambda x: x["keep"][:, None, None, :],
    "one_minus": lambda x: (1.0 - (1.0 - x["keep"].float()))[:, None, None].bool(),
    "documents": lambda x: x["ids"][:, None, :, None] == x["ids"][:, None, None, :],
    "chunks": lambda x: I(S)[:, None] // 4 == I(S) // 4,
    "dilated": lambda x: DISTANCE() % 3 == 0,
    "wide_table": lambda x: x["qk"] > -0.3,
    "comparison_of_floats": lambda x: (x["q"][:, None] >= x["q"]) | torch.eye(S, dtype=torch.bool),
    "cat": lambda x: torch.cat([torch.ones(S, 2, dtype=torch.bool), torch.ones(S, S - 2).tril().bool()], 1),
    "stack": lambda x: torch.stack([DISTANCE() >= 0, DISTANCE() <= 0, DISTANCE() >= -1, DISTANCE() == 0]),
    "pad": lambda x: F.pad(torch.ones(S, S - 1, dtype=torch.bool).tril(-1), (1, 0), value=True),
    "and_mixed": lambda x: (DISTANCE() >= 0) & x["keep"][:, None, None, :],
}
