"""emit: the rewritten graphs, and the functions in them, as text (EXPECTTEST_ACCEPT=1 writes them anew)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from expecttest import TestCase

from flex_inductor.compat import flex_attention_hop
from tests.support.capture import written_out
from tests.support.exactness import reports_of
from tests.support.programs import B, D, H, S, attend, causal, qkv, randn


def texts(program: Any, inputs: Any, **settings: Any) -> str:
    """The functions of the only call, and what it captures."""
    (report,) = reports_of(program, inputs, **settings)
    (call,) = report.after.graph.find_nodes(op="call_function", target=flex_attention_hop)
    score, blocks, scale, reads = call.args[3], call.args[4], call.args[5], call.args[-2:]
    parts = [f"scale {scale:.6g}, score_mod reads {len(reads[0])}, mask_mod reads {len(reads[1])}"]
    for name, node in (("score_mod", score), ("mask_mod", blocks[-1])):
        module = getattr(report.after, node.target)
        inputs = ", ".join(n.name for n in module.graph.find_nodes(op="placeholder"))
        parts.append(
            f"{name}({inputs}):\n" + "\n".join("    " + line for line in written_out(module.graph).splitlines())
        )
    return "\n".join(parts)


class Functions(TestCase):
    """score_mod and mask_mod."""

    def test_causal(self) -> None:
        self.assertExpectedInline(
            texts(lambda q, k, v: attend(q, k, v, causal), qkv()),
            """\
scale 0.353553, score_mod reads 0, mask_mod reads 0
score_mod(score, b, h, q_idx, kv_idx):
    return score
mask_mod(b, h, q_idx, kv_idx):
    %0 = le(kv_idx, q_idx)
    return %0""",
        )

    def test_padding_and_alibi(self) -> None:
        def program(q: Any, k: Any, v: Any, keep: Any, slopes: Any) -> Any:
            gap = torch.arange(S) - torch.arange(S)[:, None]
            return attend(q, k, v, lambda s: (s + slopes[:, None, None] * gap).masked_fill(~keep, float("-inf")))

        keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
        self.assertExpectedInline(
            texts(program, (*qkv(), keep, randn(H, seed=5))),
            """\
scale 0.353553, score_mod reads 1, mask_mod reads 1
score_mod(score, b, h, q_idx, kv_idx, buffer_0):
    %0 = getitem(buffer_0, (h,))
    %1 = sub(kv_idx, q_idx)
    %2 = to.dtype(%1, torch.float32)
    %3 = mul(%0, %2)
    %4 = add(score, %3)
    return %4
mask_mod(b, h, q_idx, kv_idx, buffer_0):
    %0 = getitem(buffer_0, (b, kv_idx))
    return %0""",
        )

    def test_sink(self) -> None:
        def program(q: Any, k: Any, v: Any, sink: Any) -> Any:
            s = torch.cat([causal(q @ k.mT), sink.reshape(1, H, 1, 1).expand(B, H, S, 1)], -1)
            return torch.softmax(s, -1)[..., :-1] @ v

        self.assertExpectedInline(
            texts(program, (*qkv(), randn(H, seed=5))),
            """\
scale 1, score_mod reads 1, mask_mod reads 0
score_mod(score, b, h, q_idx, kv_idx, buffer_0):
    %0 = eq(kv_idx, 12)
    %1 = getitem(buffer_0, (h,))
    %2 = where(%0, %1, score)
    return %2
mask_mod(b, h, q_idx, kv_idx):
    %0 = ge(kv_idx, 12)
    %1 = clamp(kv_idx, min=0)
    %2 = clamp(%1, max=11)
    %3 = le(%2, q_idx)
    %4 = or_(%0, %3)
    return %4""",
        )

    def test_buckets_in_bfloat16(self) -> None:
        def program(q: Any, k: Any, v: Any, table: Any) -> Any:
            gap = (torch.arange(S)[:, None] - torch.arange(S)).abs().clamp(max=7)
            return torch.softmax((q @ k.mT + table[gap].permute(2, 0, 1)).float(), -1).to(v.dtype) @ v

        inputs = (*qkv(dtype=torch.bfloat16), randn(8, H, dtype=torch.bfloat16, seed=5))
        self.assertExpectedInline(
            texts(program, inputs),
            """\
scale 1, score_mod reads 1, mask_mod reads 0
score_mod(score, b, h, q_idx, kv_idx, buffer_0):
    %0 = add(kv_idx, 11)
    %1 = sub(%0, q_idx)
    %2 = getitem(buffer_0, (h, %1))
    %3 = detach(%2)
    %4 = add(score, %3)
    return %4
mask_mod(b, h, q_idx, kv_idx):
    %0 = full_like(b, True, dtype=torch.bool)
    return %0""",
        )

    def test_window_of_dynamic_length(self) -> None:
        def program(q: Any, k: Any, v: Any) -> Any:
            n = q.shape[2]
            gap = torch.arange(n)[:, None] - torch.arange(n)
            return torch.softmax((q @ k.mT).masked_fill((gap < 0) | (gap >= n // 2), -1e9), -1) @ v

        self.assertExpectedInline(
            texts(program, qkv(), dynamic=True),
            """\
scale 1, score_mod reads 1, mask_mod reads 2
score_mod(score, b, h, q_idx, kv_idx, size_s0):
    %0 = sub(q_idx, kv_idx)
    %1 = lt(%0, 0)
    %2 = floordiv(size_s0, 2)
    %3 = ge(%0, %2)
    %4 = or_(%1, %3)
    %5 = where(%4, -1000000000.0, score)
    return %5
mask_mod(b, h, q_idx, kv_idx, size_s0, buffer_0):
    %0 = sub(q_idx, kv_idx)
    %1 = lt(%0, 0)
    %2 = floordiv(size_s0, 2)
    %3 = ge(%0, %2)
    %4 = or_(%1, %3)
    %5 = logical_not(%4)
    %6 = getitem(buffer_0, (q_idx,))
    %7 = logical_not(%6)
    %8 = or_(%5, %7)
    return %8""",
        )


def whole(program: Any, inputs: Any, **settings: Any) -> str:
    (report,) = reports_of(program, inputs, **settings)
    text = written_out(report.after.graph)
    return "\n".join(
        line.split("(1, 1, ")[0] + "...)" if "flex_attention(" in line else line for line in text.splitlines()
    )


class Graphs(TestCase):
    """The program around the call."""

    def test_plain(self) -> None:
        self.assertExpectedInline(
            whole(attend, qkv()),
            """\
%0 = flex_score_mod_0
%1 = flex_mask_mod_1
%2 = full([1, 1, 1], 1, dtype=torch.int32, device=device(type='cpu'))
%3 = full([1, 1, 1, 1], 0, dtype=torch.int32, device=device(type='cpu'))
%4 = flex_attention(l_q_, l_k_, l_v_, %0, ...)
%5 = getitem(%4, 0)
%6 = contiguous(%5)
return (%6,)""",
        )

    def test_grouped_keys(self) -> None:
        def program(q: Any, k: Any, v: Any) -> Any:
            return torch.softmax(q @ k.repeat_interleave(2, 1).mT, -1) @ v.repeat_interleave(2, 1)

        self.assertExpectedInline(
            whole(program, (randn(B, H, S, D), *qkv(B, 2, S, D)[1:])),
            """\
%0 = flex_score_mod_0
%1 = flex_mask_mod_1
%2 = full([1, 1, 1], 1, dtype=torch.int32, device=device(type='cpu'))
%3 = full([1, 1, 1, 1], 0, dtype=torch.int32, device=device(type='cpu'))
%4 = flex_attention(l_q_, l_k_, l_v_, %0, ...)
%5 = getitem(%4, 0)
%6 = contiguous(%5)
return (%6,)""",
        )

    def test_merged_heads(self) -> None:
        def program(q: Any, k: Any, v: Any) -> Any:
            q, k, v = (x.reshape(B * H, S, D) for x in (q, k, v))
            return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v).view(B, H, S, D)

        self.assertExpectedInline(
            whole(program, qkv()),
            """\
%0 = flex_score_mod_0
%1 = flex_mask_mod_1
%2 = full([1, 1, 1], 1, dtype=torch.int32, device=device(type='cpu'))
%3 = full([1, 1, 1, 1], 0, dtype=torch.int32, device=device(type='cpu'))
%4 = flex_attention(l_q_, l_k_, l_v_, %0, ...)
%5 = getitem(%4, 0)
%6 = reshape(%5, [8, 12, 8])
%7 = contiguous(%6)
%8 = view(%7, 2, 4, 12, 8)
return (%8,)""",
        )

    def test_einsum_whose_result_is_permuted(self) -> None:
        def program(q: Any, k: Any, v: Any) -> Any:
            return torch.einsum("bhqk,bhkd->bqhd", torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k), -1), v)

        self.assertExpectedInline(
            whole(program, qkv()),
            """\
%0 = flex_score_mod_0
%1 = flex_mask_mod_1
%2 = full([1, 1, 1], 1, dtype=torch.int32, device=device(type='cpu'))
%3 = full([1, 1, 1, 1], 0, dtype=torch.int32, device=device(type='cpu'))
%4 = flex_attention(l_q_, l_k_, l_v_, %0, ...)
%5 = getitem(%4, 0)
%6 = permute(%5, [0, 2, 1, 3])
%7 = permute(%6, [0, 2, 1, 3])
%8 = contiguous(%7)
%9 = permute(%8, [0, 2, 1, 3])
return (%9,)""",
        )

    def test_sdpa_with_a_mask(self) -> None:
        def program(q: Any, k: Any, v: Any, m: Any) -> Any:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=m).transpose(1, 2).flatten(2)

        self.assertExpectedInline(
            whole(program, (*qkv(), torch.ones(B, 1, S, S, dtype=torch.bool))),
            """\
%0 = flex_score_mod_0
%1 = flex_mask_mod_1
%2 = select.int(l_m_, 1, 0)
%3 = full([1, 1, 1], 1, dtype=torch.int32, device=device(type='cpu'))
%4 = full([1, 1, 1, 1], 0, dtype=torch.int32, device=device(type='cpu'))
%5 = flex_attention(l_q_, l_k_, l_v_, %0, ...)
%6 = getitem(%5, 0)
%7 = contiguous(%6)
%8 = transpose(%7, 1, 2)
%9 = flatten(%8, 2)
return (%9,)""",
        )


def test_a_mask_whose_buffer_learns() -> None:
    """Regression: flex_attention refuses a buffer of mask_mod that requires a gradient."""

    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        return attend(q, k, v, lambda s: (s + t).masked_fill((t > 0.5) & ~torch.eye(S, dtype=torch.bool), -1e9))

    (report,) = reports_of(program, (*qkv(), randn(S, S, seed=5)), train=True)
    assert report.rewritten == 1 and report.decisions[0].mask_mod


def test_a_threshold_that_learns() -> None:
    """Regression: a buffer of score_mod that is only compared has no gradient."""

    def program(q: Any, k: Any, v: Any, span: Any) -> Any:
        gap = torch.arange(S)[:, None] - torch.arange(S)
        return attend(q, k, v, lambda s: s.masked_fill(gap > span[0], -1e9))

    (report,) = reports_of(program, (*qkv(), torch.tensor([3.5])), train=True)
    assert report.rewritten == 1


def test_a_computed_buffer_gets_its_gradient() -> None:
    """Regression: run without code generation, only inputs of the graph did."""
    program = lambda q, k, v, t: torch.softmax(q @ k.mT + t.cumsum(-1) * 0.3, -1) @ v  # noqa: E731
    (report,) = reports_of(program, (*qkv(), randn(S, S, seed=5)), train=True)
    assert report.rewritten == 1


def test_a_low_precision_buffer_is_read_in_float32() -> None:
    """Regression: `bias.float() * 3.3` was computed in the buffer's bfloat16."""
    program = lambda q, k, v, t: torch.softmax(q @ k.mT + t.float() * 3.3, -1) @ v  # noqa: E731
    (report,) = reports_of(program, (*qkv(), randn(H, S, S, dtype=torch.bfloat16, seed=5)), train=False)
    assert report.rewritten == 1


def test_strides_are_eagers() -> None:
    """Regression: a permuted result came out contiguous."""

    def program(q: Any, k: Any, v: Any) -> Any:
        out = torch.einsum("bhqk,bkhd->bqhd", torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k), -1), v)
        return out, out.transpose(1, 2), out[:, 0], (q.mT.transpose(1, 2) * 1)

    (report,) = reports_of(program, qkv(B, S, H, D))
    assert report.rewritten == 1
