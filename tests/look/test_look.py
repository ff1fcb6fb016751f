"""What look says equals what follows from eager's own probabilities, and the model is the same afterwards."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flex_inductor
from flex_inductor import look, mods
from flex_inductor.look import SiteLook, tiles
from tests.support.programs import attend, causal, qkv

LENGTH = 24


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.fixture(params=[tiles.TILE, 300], ids=["one_tile", "many_tiles"])
def tile(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", request.param)


def by_hand(p: torch.Tensor, counted: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """What is measured, from all probabilities (batch, heads, queries, keys)."""
    batch, heads, queries, keys = p.shape
    rows = torch.ones(batch, queries, dtype=torch.bool) if counted is None else counted
    p = p.double().movedim(1, 0)[:, rows]  # heads, rows, keys
    q = torch.arange(queries).expand(batch, -1)[rows]
    distance = q[:, None] - torch.arange(keys)
    others = torch.stack(
        [torch.cat([p[:h], p[h + 1 :]]).amax(0) if heads > 1 else torch.zeros_like(p[0]) for h in range(heads)]
    )
    return {
        "entropy": -torch.xlogy(p, p).sum(-1).mean(1),
        "coverage": p.mean(1),
        "first": p[..., 0].mean(1),
        "diagonal": p.where(distance == 0, 0).sum(-1).mean(1),
        "near": p.where(distance.abs() < 4, 0).sum(-1).mean(1),
        "reach": (p * distance.abs()).sum(-1).mean(1),
        "overlap": torch.minimum(p[:, None], p).sum(-1).mean(-1),
        "alone": (p - others).clamp(min=0).sum(-1).mean(-1),
        "beside": 1 - p.sum(-1).mean(1),
    }


def close(site: SiteLook, expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        got = site.within(4) if name == "near" else getattr(site, name)
        assert torch.allclose(got, value, atol=1e-6), name


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("keys", [12, 7, 31])
def test_the_numbers_of_any_shape(keys: int) -> None:
    q, k, v = qkv(2, 3, 12, 8)[0], *qkv(2, 3, keys, 8)[1:]
    (site,) = look(attend)(q, k, v).sites
    p = (q @ k.mT * 8**-0.5).softmax(-1)
    close(site, by_hand(p))
    assert (site.heads, site.queries, site.keys) == (3, 12, keys)
    offsets = [p.diagonal(-d, 2, 3).sum() / 24 / 3 for d in range(1 - keys, 12)]
    assert torch.allclose(site.distances.mean(0).float(), torch.stack(offsets), atol=1e-6)
    assert torch.allclose(site.pooled.float(), p.mean(0), atol=1e-6)


@pytest.mark.usefixtures("tile")
def test_a_map_is_pooled() -> None:
    """300 queries in rows of three, 200 keys in columns of two."""
    q, k, v = qkv(1, 2, 300, 8)[0], *qkv(1, 2, 200, 8)[1:]
    (site,) = look(attend)(q, k, v).sites
    p = (q @ k.mT * 8**-0.5).softmax(-1)[0]
    assert torch.allclose(site.pooled.float(), p.view(2, 100, 3, 100, 2).sum(-1).mean(2), atol=1e-6)


def test_probabilities_of_one_head() -> None:
    q, k, v = qkv()
    p = (q @ k.mT * 8**-0.5).softmax(-1)
    seen = look(attend)(q, k, v)
    assert torch.allclose(seen.probabilities(0, 2), p[:, 2], atol=1e-6)
    assert torch.allclose(seen.probabilities(0), p, atol=1e-6)


def test_rows_that_do_not_count() -> None:
    """Queries without a token are padding."""
    q, k, v = qkv(2, 3, 5, 8)
    seen = look(attend, tokens=[["a", "b", "c", "d", "e"], ["f", None, "g"]])(q, k, v)
    counted = torch.tensor([[True] * 5, [True, False, True, False, False]])
    close(seen.sites[0], by_hand((q @ k.mT * 8**-0.5).softmax(-1), counted))
    assert seen.sites[0].counts.tolist() == [5, 2]
    strongest = seen.sites[0].strongest(0, tokens=seen.tokens)[0]
    assert strongest.token == ("abcde", "f.g..")[strongest.batch][strongest.place].replace(".", "")


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, **settings)


def test_sdpa_with_a_mask_and_shared_heads() -> None:
    q, (_, k, v) = qkv(2, 4, 9, 8)[0], qkv(2, 2, 9, 8)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[0, 0, 3] = False  # a row without keys
    (site,) = look(sdpa)(q, k, v, attn_mask=mask, enable_gqa=True).sites
    scores = (q @ k.repeat_interleave(2, 1).mT * 8**-0.5).masked_fill(~mask, -torch.inf)
    close(site, by_hand(scores.softmax(-1).nan_to_num()))


def test_sinks() -> None:
    """What goes to the sink goes to no key."""
    q, k, v = qkv()
    sink = torch.linspace(-2, 2, 4).view(4, 1, 1)

    def program(q: Any, k: Any, v: Any) -> torch.Tensor:
        scores = causal(q @ k.mT)
        return torch.cat([scores, sink.expand(2, 4, 12, 1)], -1).softmax(-1)[..., :-1] @ v

    (site,) = look(program)(q, k, v).sites
    p = torch.cat([causal(q @ k.mT), sink.expand(2, 4, 12, 1)], -1).softmax(-1)[..., :-1]
    close(site, by_hand(p))
    torch.testing.assert_close(site.beside, 1 - p.double().sum(-1).mean((0, 2)), atol=1e-6, rtol=1e-5)


def test_masked_again_behind_the_softmax() -> None:
    q, k, v = qkv()
    mask = torch.ones(12, 12).tril() > 0

    def program(q: Any, k: Any, v: Any) -> torch.Tensor:
        return (q @ k.mT).masked_fill(~mask, -1e9).softmax(-1).masked_fill(~mask, 0) @ v

    (site,) = look(program)(q, k, v).sites
    close(site, by_hand((q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)))


def test_heads_that_do_the_same_and_a_head_alone() -> None:
    q, k, v = qkv(1, 3, 6, 8)
    q[:, 1], k[:, 1] = q[:, 0], k[:, 0]
    q[:, 2], k[:, 2] = 30 * F.one_hot(torch.arange(6), 8), F.one_hot(torch.arange(6), 8).float()
    (site,) = look(attend)(q, k, v).sites
    assert site.nearest(0) == (1, pytest.approx(1.0)) and site.alone[:2].max() < 1e-6
    assert site.alone[2] > 0.5 and site.diagonal[2] > 0.99 and site.entropy[2].exp() < 1.1


def test_heads_across_layers() -> None:
    q, k, v = (x[:1] for x in qkv())
    heads, overlap = look(lambda q, k, v: attend(attend(q, k, v), k, v))(q, k, v).across()
    assert heads == [(site, head) for site in range(2) for head in range(4)]
    first = (q @ k.mT * 8**-0.5).softmax(-1)
    both = torch.cat([first, (first @ v @ k.mT * 8**-0.5).softmax(-1)], 1)
    assert torch.allclose(overlap, by_hand(both)["overlap"], atol=1e-6)


def test_a_head_that_counts() -> None:
    """One that looks at all keys alike covers the sequence; one that looks at the first key covers one."""
    q, k, v = torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 10, 8), torch.randn(1, 2, 10, 8)
    q[:, 1], k[:, 1, 0] = 50.0, 1.0
    (site,) = look(attend)(q, k, v).sites
    assert torch.allclose(site.looked_at, torch.tensor([1.0, 0.1], dtype=torch.float64), atol=1e-6)
    assert site.first[1] > 0.999


WITNESSES = ("bert", "gpt2", "llama", "t5", "swin")


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", WITNESSES)
def test_eager_models_are_the_witness(name: str) -> None:
    """Of every head: its own probabilities, and all that is measured of them, the rows of padding included."""
    pytest.importorskip("transformers")
    from flex_inductor.cli.hub import tiny_model

    model, inputs = tiny_model(name)
    seen = look(model)(**inputs)
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    if "encoder_attentions" in out:
        decoder = (p for pair in zip(out.decoder_attentions, out.cross_attentions) for p in pair)
        theirs = [*out.encoder_attentions, *decoder]
    else:
        theirs = [*out.attentions]
    sites = seen.sites[1::2] if name == "swin" else seen.sites  # it gives those of the last layer of a stage
    assert len(sites) == len(theirs) > 1 and not seen.left
    for site, p in zip(sites, theirs):
        close(site, by_hand(p))
        assert torch.allclose(site.pooled.float(), p.mean(0), atol=1e-6)
    assert torch.allclose(seen.probabilities(site.place.number), p, atol=1e-6)


def test_the_model_stays_as_it_is() -> None:
    """The run gives bit for bit what eager gives, and nothing that was compiled before is compiled again."""
    found = []

    class Model(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> torch.Tensor:
            out = attend(q, k, v, causal)
            found.append(out)
            return out

    q, k, v = qkv()
    model = Model()
    look(model)(q, k, v)
    model(q, k, v)
    assert torch.equal(*found)


def test_a_varied_model() -> None:
    q, k, v = qkv()
    varied = flex_inductor.vary(lambda q, k, v: attend(attend(q, k, v), k, v), {0: mods.window(3)})
    first, second = look(varied)(q, k, v).sites
    assert torch.allclose(first.within(3), torch.ones(4, dtype=torch.float64), atol=1e-6)
    near = (torch.arange(12)[:, None] - torch.arange(12)).abs() < 3
    inner = (q @ k.mT * 8**-0.5).masked_fill(~near, -torch.inf).softmax(-1) @ v
    close(second, by_hand((inner @ k.mT * 8**-0.5).softmax(-1)))


def test_what_is_not_understood_is_named() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        p = (q @ k.mT).softmax(-1)
        return (p + p.mT) @ v, attend(q, k, v)

    seen = look(program)(*qkv())
    assert [s.place.number for s in seen.sites] == [1]
    assert "site 0: " in str(seen) and "was not looked at: " in " ".join(str(seen).split())


def test_probabilities_that_the_program_returns() -> None:
    """Such a site is never rewritten, and is looked at all the same; what it returns stays what it was."""

    def program(q: Any, k: Any, v: Any) -> Any:
        p = (q @ k.mT).softmax(-1)
        returned.append(p)
        return p @ v, p

    returned: list[torch.Tensor] = []
    q, k, v = qkv()
    (site,) = look(program)(q, k, v).sites
    program(q, k, v)
    close(site, by_hand(returned[1]))
    assert torch.equal(*returned)


def test_graph_breaks_and_module_names() -> None:
    class Layer(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> torch.Tensor:
            return attend(q, k, v)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, q: Any, k: Any, v: Any) -> torch.Tensor:
            q = self.layers[0](q, k, v)
            torch._dynamo.graph_break()
            return self.layers[1](q, k, v)

    assert [s.place.module for s in look(Model())(*qkv()).sites] == ["layers.0", "layers.1"]


def test_as_data() -> None:
    seen = look(attend, tokens=list("abcdefghijkl"))(*(x[:1] for x in qkv()))
    data = json.loads(seen.to_json())
    assert len(data["sites"]) == 1 and len(data["sites"][0]["pooled"]) == 4
    rows = seen.rows()
    assert [r["head"] for r in rows] == [0, 1, 2, 3] and rows[0]["strongest_token"] in "abcdefghijkl"
    assert {type(v) for r in rows for v in r.values()} <= {int, float, str}
    with pytest.raises(KeyError, match=r"there is no such site \(looked at: 0\)"):
        seen.probabilities(5, 0)
    with pytest.raises(IndexError, match="site 0 has no head 4: it has 4, counted from 0"):
        seen.probabilities(0, 4)


@pytest.mark.parametrize("tokens", [list("abc"), [list("ab")] * 3, ["a"] * (LENGTH + 1)])
def test_tokens_that_are_of_no_site(tokens: Any) -> None:
    """Regression: their names were shown, and what is padding was not known."""
    with pytest.raises(ValueError, match=r"fit no site; the sites have 2 x"):
        look(attend, tokens=tokens)(*qkv())


def test_tokens_in_one_text() -> None:
    with pytest.raises(TypeError, match="tokens is 'abc'; it must be a list"):
        look(attend, tokens="abc")
