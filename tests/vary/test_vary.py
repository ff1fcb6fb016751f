"""A varied model equals one whose source was edited by hand, in outputs and in gradients, and says what it is."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flex_inductor
from flex_inductor import VaryError, mods

vary = functools.partial(flex_inductor.vary, backend="flex_eager")
explain = functools.partial(flex_inductor.explain, backend="flex_eager")
Change = Callable[[torch.Tensor], torch.Tensor]
LENGTH, HEADS = 24, 4


class Attention(nn.Module):
    """Causal attention with a padding mask, whose scores may be edited."""

    edit: Change | None = None
    keep: torch.Tensor | None = None

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.qkv, self.out, self.fill = nn.Linear(32, 96), nn.Linear(32, 32), fill

    def forward(self, x: torch.Tensor, pad: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, 8)).permute(2, 0, 3, 1, 4).unbind()
        scores = q @ k.mT * 8**-0.5
        scores = scores if self.edit is None else self.edit(scores)
        keep = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.keep is None else self.keep
        keep = keep if pad is None else keep & pad[:, None, None]
        probabilities = scores.masked_fill(~keep, self.fill).softmax(-1)
        return self.out((probabilities @ v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, fill: float = float("-inf"), count: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": Attention(fill)}) for _ in range(count))

    def forward(self, x: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer["attn"](x, pad)
        return x


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1))


def offsets(length: int = LENGTH) -> torch.Tensor:
    return torch.arange(length)[:, None] - torch.arange(length)


def edited(
    model: Model, layers: tuple[int, ...], edit: Change | None = None, keep: torch.Tensor | None = None
) -> Model:
    for i in layers:
        model.layers[i]["attn"].edit, model.layers[i]["attn"].keep = edit, keep
    return model


def same(varied: Any, by_hand: nn.Module, *args: Any) -> None:
    """Equal outputs, and equal gradients of all parameters of the model by hand. Of a sum with weights: that of squares
    has no gradient behind a layer norm but what rounding leaves."""
    got, expected = varied(*args), by_hand(*args)
    assert torch.allclose(got, expected, atol=2e-6)
    weights = torch.arange(got.numel()).sin().view_as(got)
    (got * weights).sum().backward()
    theirs = dict(varied.model.named_parameters())
    (expected * weights).sum().backward()
    for name, parameter in by_hand.named_parameters():
        assert torch.allclose(theirs[name].grad, parameter.grad, rtol=1e-4, atol=1e-4), name


CAUSAL = offsets() >= 0
NEAR = CAUSAL & (offsets() < 5)
IDS = torch.arange(LENGTH) // 9
SLOPES = mods.alibi_slopes(HEADS)
CASES: dict[str, tuple[mods.Mod, Change | None, torch.Tensor | None]] = {
    "window": (mods.window(5), None, NEAR),
    "window_or_global": (mods.window(5) | mods.global_tokens(2), None, NEAR | (CAUSAL & (torch.arange(LENGTH) < 2))),
    "documents": (mods.documents(IDS), None, CAUSAL & (IDS[:, None] == IDS)),
    "instead": (mods.instead(mods.prefix(7)), None, CAUSAL | (torch.arange(LENGTH) < 7)),
    "softcap": (mods.softcap(0.5), lambda s: 0.5 * torch.tanh(s / 0.5), None),
    "alibi": (mods.alibi(SLOPES), lambda s: s - SLOPES[:, None, None] * offsets().abs(), None),
    "score_and_mask": (mods.alibi(0.3) + mods.window(5), lambda s: s - 0.3 * offsets().abs(), NEAR),
    "one_head": (
        mods.heads({2: mods.window(5) + mods.temperature(2.0)}),
        lambda s: s / torch.tensor([1.0, 1, 2, 1])[:, None, None],
        NEAR | (CAUSAL & (torch.arange(HEADS) != 2)[:, None, None]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_varied_model_is_one_edited_by_hand(name: str) -> None:
    mod, edit, keep = CASES[name]
    same(vary(Model(), {"layers.1": mod, "*2.attn": mod}), edited(Model(), (1, 2), edit, keep), tokens())


@pytest.mark.parametrize("fill", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("mod", [mods.window(5), mods.instead(mods.causal() & mods.window(5))], ids=str)
def test_a_mask_that_is_data_stays(fill: float, mod: mods.Mod) -> None:
    """Padding on the right, whose meaning is not known, holds beside the new mask. With a finite fill, rows that lose
    all keys give the mean of the values, as in the model."""
    count = 1 if fill == float("-inf") else 3  # a second layer would read the NaN of such rows
    pad = torch.arange(LENGTH) < torch.tensor([LENGTH, 10])[:, None]
    x, real = tokens(), pad[:, :, None] & (torch.arange(LENGTH)[:, None] < 14)  # the last rows lose all keys
    varied = vary(Model(fill, count), {"*": mod})(x, pad)
    by_hand = edited(Model(fill, count), tuple(range(count)), None, NEAR)(x, pad)
    rows = real if fill == float("-inf") else torch.ones_like(real)
    assert torch.allclose(varied.where(rows, 0), by_hand.where(rows, 0), atol=2e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_heads_are_heads_whatever_the_batch(batch: int) -> None:
    mod, edit, keep = CASES["one_head"]
    x = tokens()[:batch]
    by_hand = edited(Model(), (1,), edit, keep)(x)
    assert torch.allclose(vary(Model(), {1: mod})(x), by_hand, atol=2e-6)


def test_sink() -> None:
    def by_hand(x: torch.Tensor) -> torch.Tensor:
        scores = (x @ x.mT).masked_fill(~CAUSAL, -torch.inf)
        return torch.cat([scores, torch.full_like(scores[..., :1], 0.5)], -1).softmax(-1)[..., :-1] @ x

    def plain(x: torch.Tensor) -> torch.Tensor:
        return (x @ x.mT).masked_fill(~CAUSAL, -torch.inf).softmax(-1) @ x

    x = torch.randn(2, HEADS, LENGTH, 8)
    assert torch.allclose(vary(plain, {0: mods.sink(0.5)})(x), by_hand(x), atol=1e-6)


def test_gpt2_with_a_window() -> None:
    """Equal to GPT-2 with a mask of four dimensions that was made by hand, the padded rows included."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64, attn_implementation="eager", use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip

    def build() -> Any:
        torch.manual_seed(0)
        return transformers.GPT2Model(config)

    class Last(nn.Module):
        def __init__(self, model: Any, *mask: torch.Tensor) -> None:
            super().__init__()
            self.gpt2, self.mask = model, mask

        def forward(self, ids: torch.Tensor) -> Any:
            return self.gpt2(ids, *([None, self.mask[0]] if self.mask else [])).last_hidden_state

    ids = torch.randint(50, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(2, 1, LENGTH, LENGTH).masked_fill(~NEAR, lowest)
    same(vary(Last(build()), {"gpt2.h.*": mods.window(5)}), Last(build(), mask), ids)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_prior_is_trained(frozen: bool) -> None:
    """The gradient of its width is that of the prior written by hand, and a step moves it; of a frozen model too."""
    width = nn.Parameter(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    model = Model().requires_grad_(not frozen)
    near = mods.prior(lambda b, h, q, k, w: -0.5 * ((q - k) / w[h]) ** 2, width)
    varied = vary(model, {"layers.1": near})
    assert "varied_0" in dict(varied.named_parameters())
    varied(tokens()).square().sum().backward()
    got, before = width.grad.clone(), width.detach().clone()
    torch.optim.SGD(varied.parameters(), 0.1).step()
    assert not torch.allclose(width, before)
    width.data, width.grad = before, None
    edit = lambda s: s - 0.5 * (offsets() / width[:, None, None]) ** 2  # noqa: E731
    edited(Model(), (1,), edit)(tokens()).square().sum().backward()
    assert torch.allclose(got, width.grad, rtol=1e-4, atol=1e-5)


def test_a_tensor_of_the_model_itself() -> None:
    """A mod may read what the model reads already; both gradients add up."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = nn.Parameter(torch.ones(HEADS))
            self.by_hand = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = x @ x.mT * self.slopes[:, None, None]
            scores = scores - self.slopes[:, None, None] * offsets().abs() if self.by_hand else scores
            return scores.softmax(-1) @ x

    model, by_hand, x = Scaled(), Scaled(), torch.randn(2, HEADS, LENGTH, 8)
    by_hand.by_hand = True
    same(vary(model, {0: mods.alibi(model.slopes)}), by_hand, x)


def test_dirichlet_counts_are_trained() -> None:
    counts = nn.Parameter(torch.linspace(2.0, 1.0, 8))
    often = mods.prior(lambda b, h, q, k, c: c[(q - k).abs().clamp(max=7)].log(), counts)
    vary(Model(), {1: mods.heads({0: often})})(tokens()).square().sum().backward()
    got, counts.grad = counts.grad, None
    bias = lambda: torch.cat([counts[offsets().abs().clamp(max=7)].log()[None], torch.zeros(3, LENGTH, LENGTH)])  # noqa: E731
    edited(Model(), (1,), lambda s: s + bias())(tokens()).square().sum().backward()
    assert torch.allclose(got, counts.grad, rtol=1e-4, atol=1e-5)


def test_explain_shows_both_formulas() -> None:
    varied = vary(Model(), {"layers.1": mods.window(5) + mods.softcap(30.0)})
    first, second, _ = explain(varied)(tokens()).sites
    assert first.mask_mod == "k <= q" and not first.notes
    assert "tanh(score) * 30" in second.score_mod and second.mask_mod == "k <= q and abs(q - k) < 5"
    assert any("varied by window(5) + softcap(30.0)" in n for n in second.notes)
    assert "the model's own mask_mod: k <= q" in second.notes


def test_explain_shows_what_each_head_has() -> None:
    """Case distinctions over heads as a table, and no sympy in the text."""
    changed = mods.heads({0: mods.alibi(0.5), 1: mods.window(4), (2,): mods.window(4)})
    report = explain(vary(Model(), {1: changed}))(tokens())
    assert "This is what flex_inductor.vary(model, changes, backend=" in str(report)
    site = report.sites[1]
    assert site.by_head[0] == ("0", "score - float(abs(q - k)) * 0.5", "k <= q")
    assert site.by_head[1] == ("1, 2", "score", "k <= q and abs(q - k) < 4")
    assert site.by_head[2:] == (("3", "score", "k <= q"),)
    assert not report.sites[0].by_head
    assert "heads 1, 2  score, where k <= q and abs(q - k) < 4" in str(report)
    assert "Where(" not in str(report) and "Ne(" not in str(report)


def test_sparsity_follows_the_mask() -> None:
    """A window of one block leaves out what the causal mask attends."""
    x = tokens(512)
    causal, narrow = (explain(m)(x).sites[1] for m in (Model(), vary(Model(), {1: mods.window(64)})))
    assert [line.count(".") for line in causal.block_map] == list(range(7, -1, -1))
    assert [line.count(".") for line in narrow.block_map] == [7, 6, 6, 6, 6, 6, 6, 6]


def test_any_length() -> None:
    varied = vary(Model(), {"*": mods.documents(torch.arange(64) // 9) & mods.window(5)}, dynamic=True)
    for length in (LENGTH, 31, 40):
        ids, near = torch.arange(length) // 9, (offsets(length) >= 0) & (offsets(length) < 5)
        by_hand = edited(Model(), (0, 1, 2), None, near & (ids[:, None] == ids))
        assert torch.allclose(varied(tokens(length)), by_hand(tokens(length)), atol=2e-6)


def test_sites_keep_their_numbers_when_they_are_compiled_again() -> None:
    varied = vary(Model(), {2: mods.window(5)}, dynamic=False)
    for length in (LENGTH, 12):
        near = (offsets(length) >= 0) & (offsets(length) < 5)
        by_hand = edited(Model(), (2,), None, near)
        assert torch.allclose(varied(tokens(length)), by_hand(tokens(length)), atol=2e-6)
    assert len(varied.places.met) == 3


@pytest.mark.parametrize(("pattern", "asked"), [("layer.*", None), (3, None), (3, explain), (3, flex_inductor.look)])
def test_a_name_without_a_site_is_an_error_that_lists_them(pattern: Any, asked: Any) -> None:
    """Whether it is called, explained or looked at."""
    varied: Any = vary(Model(), {pattern: mods.window(5), "layers.1": mods.window(5)})
    with pytest.raises(
        VaryError, match=r"no attention site is named .*\n  0: layers.0.attn .*\n  1: .*\n  2: "
    ) as error:
        (asked(varied) if asked else varied)(tokens())
    assert "'layers.1'" not in str(error.value)


def plain(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.mT).softmax(-1) @ x


def unusual(x: torch.Tensor) -> Any:
    """Its probabilities are returned, so the site is left."""
    p = (x @ x.mT).softmax(-1)
    return p @ x, p


@pytest.mark.parametrize(
    ("model", "mod", "reason"),
    [
        (unusual, mods.window(5), "site 0: .* cannot be varied"),
        (plain, mods.mask(lambda b, h, q, k: q.item() > 0), "mask.*: .*"),
        (plain, mods.mask(lambda b, h, q, k: q < 0), "hides every key"),
        (plain, mods.mask(lambda b, h, q, k: q - k), "gives int64, and not Booleans"),
        (plain, mods.heads({3: mods.window(2)}), "no head 3: the site has 3, counted"),
        *(
            (
                plain,
                mod,
                rf"it reads place {place} of dimension {dim} of a tensor of \({size}",
            )
            for mod, place, dim, size in (
                (mods.alibi(torch.rand(2)), 2, 0, "2,"),
                (mods.heads({1: mods.softcap(2.0), 2: mods.sink(torch.rand(2))}), 2, 0, "2,"),
                (mods.documents(torch.zeros(5)), 7, 0, "5,"),
                (mods.relative_table(torch.rand(2, 3)), 2, 0, "2, 3"),
                (mods.global_tokens(torch.ones(7) > 0), 7, 0, "7,"),
            )
        ),
    ],
)
def test_what_cannot_be_varied_is_an_error(model: Any, mod: mods.Mod, reason: str) -> None:
    """It would be computed as the model computes it."""
    with pytest.raises(VaryError, match=reason):
        vary(model, {0: mod})(torch.randn(2, 3, 8, 4))


def test_a_tensor_that_is_too_short_for_a_later_call() -> None:
    """Regression: kernels read beyond the end of tensors of mods. With dynamic lengths the check is a guard."""
    varied = vary(plain, {0: mods.documents(torch.arange(12) // 3)}, dynamic=True)
    for length in (8, 12):
        x, ids = torch.randn(2, 3, length, 4), torch.arange(length) // 3
        expected = (x @ x.mT).masked_fill(ids[:, None] != ids, -torch.inf).softmax(-1) @ x
        assert torch.allclose(varied(x), expected, atol=2e-6)
    with pytest.raises(VaryError, match="it reads place 12"):
        varied(torch.randn(2, 3, 13, 4))


@pytest.mark.parametrize(
    ("model", "changes", "match"),
    [
        (None, {}, "None is no model"),
        (Model(), mods.causal(), "no mapping from sites to mods"),
        (Model(), {0: "causal"}, "'causal' is no mod"),
        (Model(), {0: mods.causal}, "is no mod"),
        (Model(), {1.5: mods.causal()}, "1.5 names no site"),
    ],
)
def test_arguments_that_make_no_sense(model: Any, changes: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        vary(model, changes)


def test_the_model_itself_stays() -> None:
    model, x = Model(), tokens()
    before = model(x)
    vary(model, {"*": mods.window(2)})(x)
    assert torch.equal(model(x), before)
    assert torch.allclose(torch.compile(model, backend="flex_eager")(x), before, atol=2e-6)


def test_inside_another_compilation() -> None:
    """Another backend would compile the model as it is."""
    x = tokens()
    expected = edited(Model(), (0, 1, 2), None, NEAR)(x)
    compiled = torch.compile(vary(Model(), {"*": mods.window(5)}), backend="eager")
    assert torch.allclose(compiled(x), expected, atol=2e-6)
    assert torch.allclose(torch.compile(lambda x: 2 * compiled(x), backend="eager")(x), 2 * expected, atol=4e-6)


def test_a_model_that_is_not_compiled_is_an_error() -> None:
    varied, x = vary(Model(), {"*": mods.window(5)}), tokens()
    varied(x)
    with torch.compiler.set_stance("force_eager"), pytest.raises(VaryError, match="was not compiled"):
        varied(x)


def test_a_copy_has_parameters_of_its_own() -> None:
    x, width = tokens(), nn.Parameter(torch.tensor(3.0))
    varied = vary(Model(), {1: mods.prior(lambda b, h, q, k, w: -(((q - k) / w) ** 2), width)})
    before, other = varied(x), copy.deepcopy(varied)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        other.varied_0.mul_(2)
    assert not torch.allclose(other(x), before) and torch.equal(varied(x), before)


@pytest.mark.compile
def test_with_code_generation() -> None:
    width = nn.Parameter(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    near = mods.prior(lambda b, h, q, k, w: -0.5 * ((q - k) / w[h]) ** 2, width)
    varied = flex_inductor.vary(Model(), {"layers.1": near + mods.window(9)})
    varied(tokens()).square().sum().backward()
    got, width.grad = width.grad, None
    edit = lambda s: s - 0.5 * (offsets() / width[:, None, None]) ** 2  # noqa: E731
    by_hand = edited(Model(), (1,), edit, CAUSAL & (offsets() < 9))
    by_hand(tokens()).square().sum().backward()
    assert torch.allclose(got, width.grad, rtol=1e-4, atol=1e-5)
