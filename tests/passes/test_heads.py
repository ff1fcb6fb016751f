"""heads: batch and heads however they are merged, and heads that share keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor.compat import flex_attention_hop
from tests.support.exactness import check, declines, reports_of
from tests.support.programs import B, D, H, S, attend, causal, qkv, randn

E = torch.einsum


def softmax(s: Any) -> Any:
    return torch.softmax(causal(s * 0.3), -1)


def merged(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (x.reshape(B * H, S, D) for x in (q, k, v))
    return torch.bmm(softmax(torch.bmm(q, k.transpose(1, 2))), v).view(B, H, S, D)


def split_heads(x: Any) -> Any:
    return x.view(B, S, H, D).transpose(1, 2)


def projected(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (split_heads(x.transpose(1, 2).reshape(B, S, H * D)) for x in (q, k, v))
    return attend(q, k, v, causal).transpose(1, 2).reshape(B, S, H * D)


def baddbmm(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (x.reshape(B * H, S, D) for x in (q, k, v))
    s = torch.baddbmm(torch.zeros(1), q, k.transpose(1, 2), beta=1.0, alpha=0.3)
    return torch.bmm(torch.softmax(causal(s.view(B, H, S, S)), -1).view(B * H, S, S), v)


LAYOUTS = {
    "bhsd": lambda q, k, v: softmax(q @ k.mT) @ v,
    "merged": merged,
    "projected": projected,
    "baddbmm": baddbmm,
    "einsum": lambda q, k, v: E("bhqk,bhkd->bhqd", softmax(E("bhqd,bhkd->bhqk", q, k)), v),
    "einsum_seq_first": lambda q, k, v: E(
        "bhqk,bkhd->bqhd", softmax(E("bqhd,bkhd->bhqk", q.transpose(1, 2), k.transpose(1, 2))), v.transpose(1, 2)
    ),
    "einsum_flat": lambda q, k, v: E("bhqk,bhkd->bqhd", softmax(E("bhqd,bhkd->bhqk", q, k)), v).flatten(2),
    "keys_first": lambda q, k, v: (v.mT @ softmax((k @ q.mT).mT).mT).mT,
    "scores_transposed": lambda q, k, v: torch.softmax((k @ q.mT * 0.3).mT, -1) @ v,
    "softmax_over_rows_of_the_transposed": lambda q, k, v: torch.softmax(k @ q.mT * 0.3, -2).mT @ v,
    "five": lambda q, k, v: (lambda x, y, z: softmax(x @ y.mT) @ z)(*(t.view(B, 2, 2, S, D) for t in (q, k, v))),
    "three": lambda q, k, v: softmax(q[0] @ k[0].mT) @ v[0],
    "two": lambda q, k, v: softmax(q[0, 1] @ k[0, 1].mT) @ v[0, 1],
    "one_head": lambda q, k, v: softmax(q[:, :1] @ k[:, :1].mT) @ v[:, :1],
    "one_batch": lambda q, k, v: softmax(q[:1] @ k[:1].mT) @ v[:1],
    "windows": lambda q, k, v: (lambda x, y, z: torch.softmax(x @ y.mT * 0.3, -1) @ z)(
        *(t.view(B, H, 3, S // 3, D).transpose(1, 2).reshape(B * 3, H, S // 3, D) for t in (q, k, v))
    ),
    "linear": lambda q, k, v: softmax(torch.nn.functional.linear(q[0, 0], k[0, 0])) @ v[0, 0],
    "other_value_dim": lambda q, k, v: softmax(q @ k.mT) @ v[..., :5],
    "elementwise_key_scale": lambda q, k, v: softmax((q * 0.5) @ (k * 2).mT) @ v,
    "seq_first": lambda q, k, v: (
        lambda x, y, z: (softmax(torch.bmm(x, y.mT)) @ z).transpose(0, 1).reshape(S, B, H * D)
    )(*(t.permute(2, 0, 1, 3).contiguous().view(S, B * H, D).transpose(0, 1) for t in (q, k, v))),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    check(LAYOUTS[name], qkv(), train=True)


@pytest.mark.parametrize("name", ["bhsd", "einsum", "einsum_seq_first", "two", "three"])
def test_layout_of_dynamic_size(name: str) -> None:
    check(LAYOUTS[name], qkv(), dynamic=True)


def test_more_keys_than_queries() -> None:
    q, (k, v) = randn(B, H, 5, D), qkv()[1:]
    check(lambda q, k, v: softmax(q @ k.mT) @ v, (q, k, v), train=True)


def test_two_scores_that_add_up() -> None:
    def program(q: Any, k: Any, v: Any, q2: Any, k2: Any) -> Any:
        return torch.softmax((q @ k.mT + q2 @ k2.mT) * 0.2, -1) @ v

    check(program, (*qkv(), randn(B, H, S, 4, seed=7), randn(B, H, S, 4, seed=8)), train=True)


@pytest.mark.parametrize("more", [lambda a, b: a + b + torch.tanh(a), lambda a, b: a + b + a, lambda a, b: a * 0.5 + b])
def test_two_scores_that_add_up_to_something_else(more: Any) -> None:
    """Regression: `a + b + tanh(a)` became tanh of the sum, `a + b + a` the plain sum."""

    def program(q: Any, k: Any, v: Any, q2: Any, k2: Any) -> Any:
        return torch.softmax(more(q @ k.mT * 0.2, q2 @ k2.mT * 0.2), -1) @ v

    check(program, (*qkv(), randn(B, H, S, 4, seed=7), randn(B, H, S, 4, seed=8)), train=True)


G = 2
KV = H // G


def repeat_kv(x: Any) -> Any:
    return x[:, :, None].expand(B, KV, G, S, D).reshape(B, H, S, D)


def grouped(q: Any, k: Any, v: Any) -> Any:
    p = torch.softmax(E("bhgqd,bhkd->bhgqk", q.view(B, KV, G, S, D), k) * 0.3, -1)
    return E("bhgqk,bhkd->bhgqd", p, v).reshape(B, H, S, D)


GROUPED = {
    "repeat_kv": lambda q, k, v: softmax(q @ repeat_kv(k).mT) @ repeat_kv(v),
    "repeat_interleave": lambda q, k, v: softmax(q @ k.repeat_interleave(G, 1).mT) @ v.repeat_interleave(G, 1),
    "einsum": grouped,
    "broadcast": lambda q, k, v: (softmax(q.view(B, KV, G, S, D) @ k[:, :, None].mT) @ v[:, :, None]).flatten(1, 2),
    "merged_rows": lambda q, k, v: (torch.softmax(q.view(B, KV, G * S, D) @ k.mT * 0.3, -1) @ v).view(B, H, S, D),
}


@pytest.mark.parametrize("name", GROUPED)
def test_heads_that_share_keys_are_not_copied(name: str) -> None:
    q, (k, v) = randn(B, H, S, D), qkv(B, KV, S, D)[1:]
    check(GROUPED[name], (q, k, v), train=True)
    assert key_heads_of(GROUPED[name], (q, k, v)) == KV


def key_heads_of(program: Any, inputs: Any) -> int:
    """The key heads of the attention, read from the graph that runs."""
    (report,) = reports_of(program, inputs)
    (call,) = report.after.graph.find_nodes(op="call_function", target=flex_attention_hop)
    seen: list[int] = []

    class Spy(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n is call:
                seen.append(self.env[n.args[1]].shape[1])
            return super().run_node(n)

    Spy(report.after).run(*inputs_in_order(report.after, inputs))
    return seen[0]


def inputs_in_order(gm: torch.fx.GraphModule, inputs: Any) -> list[torch.Tensor]:
    names = dict(zip(("L_q_", "L_k_", "L_v_"), inputs))
    return [names[str(n.target)] for n in gm.graph.find_nodes(op="placeholder")]


def test_multi_query_einsum() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        return E("bhqk,bkd->bhqd", softmax(E("bhqd,bkd->bhqk", q, k)), v)

    q, (k, v) = randn(B, H, S, D), qkv(B, S, D)[1:]
    check(program, (q, k, v), train=True)
    assert key_heads_of(program, (q, k, v)) == 1


@pytest.mark.parametrize("expand", [False, True])
def test_one_head_of_keys_for_all(expand: bool) -> None:
    """Whether the product broadcasts it, or the program says so."""

    def program(q: Any, k: Any, v: Any) -> Any:
        k, v = (x.expand(-1, H, -1, -1) if expand else x for x in (k, v))
        return softmax(q @ k.mT) @ v

    q, (k, v) = randn(B, H, S, D), qkv(B, 1, S, D)[1:]
    check(program, (q, k, v), train=True)
    assert key_heads_of(program, (q, k, v)) == 1


def test_queries_that_all_sequences_share() -> None:
    """Learned queries: their gradient is the sum over the batch."""

    def program(q: Any, k: Any, v: Any) -> Any:
        return softmax(q.expand(B, -1, -1, -1) @ k.mT) @ v

    check(program, (randn(1, H, S, D), *qkv()[1:]), train=True)


def test_repeat_is_another_head_map() -> None:
    """Near miss: `repeat` maps head h to h % KV, which grouped queries cannot say; the copy stays."""

    def program(q: Any, k: Any, v: Any) -> Any:
        return softmax(q @ k.repeat(1, G, 1, 1).mT) @ v.repeat(1, G, 1, 1)

    q, (k, v) = randn(B, H, S, D), qkv(B, KV, S, D)[1:]
    check(program, (q, k, v), train=True)
    assert key_heads_of(program, (q, k, v)) == H


def test_keys_repeated_one_way_and_values_the_other() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        return softmax(q @ k.repeat_interleave(G, 1).mT) @ v.repeat(1, G, 1, 1)

    check(program, (randn(B, H, S, D), *qkv(B, KV, S, D)[1:]), train=True)


def with_bias(q: Any, k: Any, v: Any, t: Any) -> Any:
    return torch.softmax(q @ k.mT + t, -1) @ v


def projected_with_bias(x: Any, t: Any) -> Any:
    q = x.view(1, S, H, D).transpose(1, 2)
    return with_bias(q, q, q, t)


def sequence_first_with_bias(x: Any, t: Any) -> Any:
    q = x.view(S, H, D).transpose(0, 1)
    return with_bias(q, q, q, t)


def grouped_with_bias(q: Any, k: Any, v: Any, t: Any) -> Any:
    k, v = (x[:, :, None].expand(1, KV, G, S, D).reshape(1, H, S, D) for x in (k, v))
    return with_bias(q, k, v, t)


@pytest.mark.parametrize(
    ("program", "inputs", "index"),
    [
        (with_bias, qkv(1, H, S, D), "h, 0, 0"),
        (projected_with_bias, (randn(1, S, H * D),), "h, 0, 0"),
        (sequence_first_with_bias, (randn(S, 1, H * D),), "h, 0, 0"),
        (grouped_with_bias, (randn(1, H, S, D), *qkv(1, KV, S, D)[1:]), "h, 0, 0"),
        (with_bias, qkv(H, S, D), "b, 0, 0"),  # near misses: a batch without heads, and with one head
        (lambda q, k, v, t: with_bias(q, k, v, t[:, None]), qkv(H, 1, S, D), "b, 0, 0"),
    ],
    ids=["heads_second", "projected", "sequence_first", "grouped", "no_heads", "one_head"],
)
def test_heads_of_one_sequence_are_heads(program: Any, inputs: Any, index: str) -> None:
    """Not the batch: a bias by head is read at h."""
    (site,) = check(program, (*inputs, randn(H, 1, 1)), train=True)
    assert f"[{index}]" in site.score_mod


def test_talking_heads_decline() -> None:
    def program(q: Any, k: Any, v: Any, w: Any) -> Any:
        return torch.softmax(E("bhqk,hg->bgqk", q @ k.mT, w), -1) @ v

    declines(program, (*qkv(), randn(H, H, seed=3)), "the scores are no product of queries and keys", train=True)


def test_heads_that_attend_to_heads_are_an_attention_of_their_own() -> None:
    """Attention over the heads of one position: batch and sequence are its batch."""

    def program(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.softmax(q @ k.mT * 0.3, -1) @ v

    check(program, qkv(), train=True)
