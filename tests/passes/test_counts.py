"""Block masks that a program makes itself: worked out in time of the number of blocks, with the same results."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as flex

import flex_inductor
from flex_inductor.passes import copy_of, counts
from flex_inductor.passes.counts.find import name_of
from flex_inductor.passes.counts.inside import Inside

LENGTH = 300
DOC = torch.arange(LENGTH) // 110
LENGTHS = torch.tensor([120, 300])
DENSE = torch.rand(LENGTH, LENGTH) > 0.01
MASKS: dict[str, Callable[..., torch.Tensor]] = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q >= k) & (q - k < 70),
    "documents": lambda b, h, q, k: (DOC[q] == DOC[k]) & (q >= k),
    "padding": lambda b, h, q, k: k < LENGTHS[b],
    "heads": lambda b, h, q, k: q - k < 40 * (h + 1),
    "everything": lambda b, h, q, k: q >= 0,
    "nothing": lambda b, h, q, k: q < 0,
}


def program(mask: Any, q: torch.Tensor, **options: Any) -> torch.Tensor:
    made = flex.create_block_mask(mask, len(q), q.shape[1], q.shape[2], q.shape[2], device=q.device, **options)
    return flex.flex_attention(q, q, q, block_mask=made)


def queries() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 2, LENGTH, 16)


def compiled(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, list[Any]]:
    torch._dynamo.reset()
    with flex_inductor.listen() as reports:
        found = torch.compile(function, backend="flex_eager", fullgraph=True, **options)(*args)
    return found, reports


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, False) for name in MASKS), ("documents", True), ("heads", True), ("everything", True)],
)
def test_the_result_is_the_same(name: str, dynamic: bool) -> None:
    mask, q = MASKS[name], queries()
    found, (report,) = compiled(lambda q: program(mask, q), q, dynamic=dynamic)
    assert len(report.block_masks) == 1
    assert torch.equal(found, program(mask, q))
    scores = [n for n in report.after.graph.nodes if "_remove_batch_dim" in str(n.target)]
    assert len(scores) < sum("_remove_batch_dim" in str(n.target) for n in report.before.graph.nodes)


OPTIONS: list[dict[str, Any]] = [{"BLOCK_SIZE": 64}, {"BLOCK_SIZE": (32, 128)}, {"separate_full_blocks": False}]
KNOWN = inspect.signature(flex.create_block_mask).parameters


@pytest.mark.sweep(3)
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.keys() <= KNOWN.keys()], ids=str)
def test_any_width_of_blocks(options: dict[str, Any]) -> None:
    q = queries()
    found, (report,) = compiled(lambda q: program(MASKS["window"], q, **options), q)
    assert report.block_masks and torch.equal(found, program(MASKS["window"], q, **options))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", MASKS)
def test_answers_are_those_of_the_counts(name: str) -> None:
    """None, some and all in each block; here nothing counts as some that is not."""
    answers: list[list[torch.Tensor]] = []

    def backend(gm: torch.fx.GraphModule, examples: list[Any]) -> Any:
        ours = copy_of(gm)
        assert counts.rewrite(ours)
        for graph_module in (gm, ours):
            asked = [n for n in graph_module.graph.nodes if name_of(n) in ("eq", "gt", "lt")]
            last = [n for n in asked if n.meta["example_value"].dim() == 4]
            output = next(n for n in graph_module.graph.nodes if n.op == "output")
            output.args = (tuple(last),)
            graph_module.recompile()
            answers.append(list(graph_module(*examples)))
        return lambda *_: (examples[0],)

    torch._dynamo.reset()
    torch.compile(lambda q: program(MASKS[name], q), backend=backend, fullgraph=True)(queries())
    theirs, ours = answers
    assert len(theirs) == 3 and all(map(torch.equal, theirs, ours))


def test_a_tensor_that_is_written_to_is_read_when_the_mask_was_made() -> None:
    def masked(q: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        documents = documents.clone()
        documents[150:] = 7
        return program(lambda b, h, i, j: documents[i] == documents[j], q)

    q = queries()
    found, (report,) = compiled(masked, q, DOC)
    assert report.block_masks and torch.equal(found, masked(q, DOC))


def test_the_mask_is_said() -> None:
    report = flex_inductor.explain(lambda q: program(MASKS["window"], q), backend="flex_eager")(queries())
    formula = "q >= k and q - k < 70"
    assert f"block mask worked out from its formula: {formula}\n" in str(report)
    assert report.to_dict()["block_masks"] == [formula]


def returned(q: torch.Tensor) -> Any:
    made = flex.create_block_mask(MASKS["causal"], None, None, LENGTH, LENGTH, device="cpu")
    return flex.flex_attention(q, q, q, block_mask=made), made.kv_num_blocks


def counted(q: torch.Tensor) -> Any:
    places = torch.arange(256)
    scores = (places[:, None] >= places).view(1, 1, 2, 128, 2, 128).permute(0, 1, 2, 4, 3, 5)
    return q * scores.sum((-2, -1)).sum()


def cut(q: torch.Tensor) -> Any:
    """Regression: such a program was compiled untouched, because a slice has no hash."""
    places = torch.arange(256)
    scores = (places[:, None] >= places).view(1, 1, 2, 128, 2, 128).permute(0, 1, 2, 4, 3, 5)
    return q * scores.sum((-2, -1))[:, :, 1:].sum()


def other_mask(q: torch.Tensor) -> Any:
    """No block is listed, because the first mask attends nothing, which no analysis sees."""
    made = flex.create_block_mask(lambda b, h, i, j: (i * j) % 7 == 8, None, None, LENGTH, LENGTH, device="cpu")
    made.mask_mod = lambda b, h, i, j: i >= j
    return flex.flex_attention(q, q, q, block_mask=made)


def other_batch(q: torch.Tensor) -> Any:
    """The blocks are those of the first of the batch."""
    made = flex.create_block_mask(MASKS["padding"], None, None, LENGTH, LENGTH, device="cpu")
    return flex.flex_attention(q, q, q, block_mask=made)


def other_rows(q: torch.Tensor) -> Any:
    """The last rows of a mask, as in decoding."""
    made = flex.create_block_mask(MASKS["causal"], None, None, LENGTH, LENGTH, device="cpu")[:, :, 2:]
    made.mask_mod, made.seq_lengths = (lambda b, h, i, j: i + 256 >= j), (LENGTH - 256, LENGTH)
    return flex.flex_attention(q[:, :, 256:], q, q, block_mask=made)


def turned(q: torch.Tensor) -> Any:
    """Lists in another order than they were made in."""
    made = flex.create_block_mask(MASKS["window"], None, None, LENGTH, LENGTH, device="cpu")
    numbers, places = made.kv_num_blocks.flip(2), made.kv_indices.flip(2)
    other = flex.BlockMask.from_kv_blocks(numbers, places, mask_mod=MASKS["window"], seq_lengths=(LENGTH, LENGTH))
    return flex.flex_attention(q, q, q, block_mask=other)


def written_between(q: torch.Tensor) -> Any:
    """What the mask reads is another one when the call reads it."""
    documents = DOC.clone()

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return documents[i] == documents[j]

    made = flex.create_block_mask(mask, None, None, LENGTH, LENGTH, device="cpu")
    documents[100:] = 7
    return flex.flex_attention(q, q, q, block_mask=made)


def dense(q: torch.Tensor) -> Any:
    return program(lambda b, h, i, j: DENSE[i, j], q)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "left", [returned, counted, cut, other_mask, other_batch, other_rows, turned, written_between, dense]
)
def test_what_is_left_alone(left: Callable[..., Any]) -> None:
    """Lists that one can see or that are changed, counts that are numbers, calls that ask another mask, have another
    batch or come after a write, and masks that are tensors."""
    q = queries()
    found, (report,) = compiled(left, q)
    assert not report.block_masks and report.after is report.before
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, left(q)))):
        assert torch.equal(a, b)


def test_a_run_that_fails_leaves_no_level_of_vmap_open(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Inside.link

    def fails(self: Inside, *args: Any) -> None:
        if self.level == 3:
            raise RuntimeError("out of cheese")
        link(self, *args)

    monkeypatch.setattr(Inside, "link", fails)
    q = queries()
    with pytest.warns(flex_inductor.FallbackWarning, match="out of cheese"):
        found, (report,) = compiled(lambda q: program(MASKS["causal"], q), q)
    assert torch._C._functorch.peek_interpreter_stack() is None
    assert report.after is report.before and torch.equal(found, program(MASKS["causal"], q))


@pytest.mark.compile
def test_compiled_code() -> None:
    q = queries()
    found = torch.compile(lambda q: program(MASKS["documents"], q), backend="flex", fullgraph=True)(q)
    torch.testing.assert_close(found, program(MASKS["documents"], q))
