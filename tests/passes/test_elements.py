"""What a score_mod computes, element by element, against the operators that it was lifted from: values and
gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from flex_inductor import GraphReport, listen
from flex_inductor.compat import flex_attention_hop
from tests.support import terms
from tests.support.exactness import compiled
from tests.support.programs import B, H, S, attend, qkv, randn

GRID = torch.meshgrid(*(torch.arange(n) for n in (B, H, S, S)), indexing="ij")


class Elements(fx.Interpreter):
    """Runs a graph up to its attention, and gives what the score_mod makes of given scores."""

    def __init__(self, graph: fx.GraphModule, scores: torch.Tensor) -> None:
        super().__init__(graph)
        self.scores = scores
        self.found: list[torch.Tensor] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not flex_attention_hop:
            return super().call_function(target, args, kwargs)
        query, score_mod, captured = args[0], args[3], args[-2]
        self.found.append(score_mod(self.scores, *GRID, *captured))
        return query, query[..., 0], query[..., 0]


def lifted(change: Callable[..., Any], scores: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
    def program(q: Any, k: Any, v: Any, *values: Any) -> Any:
        return attend(q, k, v, lambda s: change(s, *values))

    with listen() as reports:
        compiled(program, "flex_eager")(*qkv(), *values)
    return computed(reports[0], scores, values)


def computed(report: GraphReport, scores: torch.Tensor, values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    names = [n.name for n in report.after.graph.nodes if n.op == "placeholder"]
    named = dict(zip(("l_q_", "l_k_", "l_v_"), qkv())) | {f"l_values_{i}_": v for i, v in enumerate(values)}
    elements = Elements(report.after, scores)
    elements.run(*(named[name] for name in names))
    (found,) = elements.found
    return found


# Scores stay small: of rows of large ones a training score_mod takes the level away.
CHANGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "fmod": lambda s, a, b: s + torch.fmod(a, b),
    "fmod_of_a_number": lambda s, a, b: s + torch.fmod(a * 3, -0.7),
    "hypot": lambda s, a, b: s + torch.hypot(a, b),
    "hypot_of_scores": lambda s, a, b: torch.hypot(s, b),
    "logaddexp": lambda s, a, b: s + torch.logaddexp(a, b),
    "logaddexp_of_scores": lambda s, a, b: torch.logaddexp(s, a),
    "logaddexp_of_nothing": lambda s, a, b: s + torch.logaddexp(a, torch.tensor(float("-inf"))),
    "lerp_near": lambda s, a, b: s + torch.lerp(a, b, 0.3),
    "lerp_half": lambda s, a, b: s + torch.lerp(a, b, 0.5),
    "lerp_far": lambda s, a, b: s + torch.lerp(a, b, 0.7),
    "lerp_beyond": lambda s, a, b: s + torch.lerp(a, b, -1.5),
    "lerp_by_a_tensor": lambda s, a, b: s + torch.lerp(a, b, a),
    "lerp_of_scores": lambda s, a, b: torch.lerp(s, a, b),
    "addcmul": lambda s, a, b: s + torch.addcmul(a, b, a),
    "addcmul_by_a_value": lambda s, a, b: torch.addcmul(s, a, b, value=-0.3),
    "addcmul_of_scores": lambda s, a, b: torch.addcmul(a, s, b, value=2),
    "addcdiv": lambda s, a, b: s + torch.addcdiv(a, b, a.abs() + 0.5),
    "addcdiv_of_scores": lambda s, a, b: torch.addcdiv(a, s, b),
    "pow_of_integers": lambda s, a, b: s - a * 0.01 * (terms.DISTANCE() ** 3),
    "pow_of_nothing": lambda s, a, b: s - a * 0.01 * (terms.DISTANCE() ** 0),
    "pow_of_small_integers": lambda s, a, b: s - a * 0.01 * (terms.DISTANCE().to(torch.int8) ** 3),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", CHANGES)
def test_elements_and_their_gradients(name: str) -> None:
    given = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate([(B, H, S, S), (H, S, S), (S,)])]
    s, a, b = given
    want, got = CHANGES[name](s, a, b), lifted(lambda s, *ab: CHANGES[name](s, *ab), s, a, b)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    cotangent = randn(B, H, S, S, seed=9)
    for x, mine, eager in zip(
        "sab", *(torch.autograd.grad(y, given, cotangent, allow_unused=True) for y in (got, want))
    ):
        assert (mine is None) == (eager is None), x
        if mine is not None:
            torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-4)


def test_the_ends_of_lerp_are_exact() -> None:
    """Interpolation with a weight of one gives the end itself, however large the start is."""
    s, a, b = torch.zeros(B, H, S, S), torch.full((S, S), 1e8), randn(S, seed=2)
    assert torch.equal(lifted(lambda s, a, b: s + torch.lerp(a, b, 1.0), s, a, b), b.expand(B, H, S, S))
    assert not torch.equal(lifted(lambda s, a, b: s + (a + 1.0 * (b - a)), s, a, b), b.expand(B, H, S, S))
