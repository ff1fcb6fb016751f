"""normalize: the ATen view of a Dynamo graph, and what stays opaque."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.normalize import bodies, normalize
from flex_inductor.passes.program.operators import rule_name
from tests.support.capture import captured
from tests.support.programs import attend, qkv, randn


def operators(program: Any, *inputs: Any, **settings: Any) -> list[str]:
    graph = normalize(captured(program, *inputs, **settings))
    assert graph is not None
    return ["opaque" if n.target is opaque else rule_name(n) for n in graph.graph.nodes if n.op == "call_function"]


def test_spellings_come_down_to_the_same_operators() -> None:
    q, k, v = qkv()
    matmul = operators(lambda q, k, v: torch.matmul(q, k.transpose(-1, -2)).softmax(-1).matmul(v), q, k, v)
    sign = operators(lambda q, k, v: F.softmax(q @ k.mT, dim=-1) @ v, q, k, v)
    assert matmul == sign and matmul.count("bmm") == 2 and matmul.count("_softmax") == 1


def test_sdpa_stays_whole() -> None:
    assert operators(F.scaled_dot_product_attention, *qkv()) == ["scaled_dot_product_attention", "opaque"]


def test_every_value_of_the_program_is_known() -> None:
    gm = captured(attend, *qkv())
    graph = normalize(gm)
    assert graph is not None
    tensors = {n for n in gm.graph.nodes if isinstance(n.meta.get("example_value"), torch.Tensor) and n.op != "output"}
    assert tensors == set(graph.value_of.values())
    for aten, dynamo in graph.value_of.items():
        assert aten.meta["val"].shape == dynamo.meta["example_value"].shape


def test_the_given_graph_is_left_alone() -> None:
    gm = captured(attend, *qkv())
    before = str(gm.graph)
    normalize(gm)
    assert str(gm.graph) == before


def test_in_place_operators_keep_their_place() -> None:
    def program(x: Any) -> Any:
        y = x * 2
        y[1:].add_(1)
        return y.exp()

    names = operators(program, torch.ones(4, 3))
    assert names.index("slice") < names.index("add") < names.index("exp")


def test_grad_mode_is_recorded() -> None:
    def program(x: Any) -> Any:
        with torch.no_grad():
            y = x.exp()
        return y.sin()

    graph = normalize(captured(program, randn(3).requires_grad_()))
    assert graph is not None
    modes = {rule_name(n): n.meta["grad"] for n in graph.graph.nodes if n.op == "call_function"}
    assert modes["exp"] is False and modes["sin"] is True
    assert torch.is_grad_enabled()


def test_what_gets_a_gradient_is_recorded() -> None:
    def program(x: Any, y: Any) -> Any:
        a = (x.exp() * y).view(-1)
        with torch.no_grad():
            b = x.sin()
        return a, b, x.detach().cos(), (x > y).logical_not(), y.tan()

    graph = normalize(captured(program, randn(3).requires_grad_(), randn(3)))
    assert graph is not None
    learns = {rule_name(n): n.meta["learns"] for n in graph.graph.nodes if n.op == "call_function"}
    wanted = {"exp", "mul", "view"}
    assert {name for name in wanted | {"sin", "cos", "gt", "logical_not", "tan"} if learns[name]} == wanted
    assert [n.meta["learns"] for n in graph.graph.nodes if n.op == "placeholder"] == [True, False]


def test_autocast_casts_are_seen_and_the_state_is_restored() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return q @ k.mT

    graph = normalize(captured(program, *qkv()))
    assert graph is not None
    (product,) = [n for n in graph.graph.nodes if rule_name(n) == "bmm"]
    assert product.meta["val"].dtype == torch.bfloat16 and product.meta["autocast"]
    assert not torch.is_autocast_enabled("cpu")


def test_a_graph_that_ends_inside_autocast() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            s = q @ k.mT
            torch._dynamo.graph_break()
            return s @ v

    torch._dynamo.reset()
    got = torch.compile(program, backend="flex_eager", options={"on_failure": "raise"})(*qkv())
    assert torch.equal(got, program(*qkv())) and not torch.is_autocast_enabled("cpu")


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g


OPAQUE = {
    "autograd_function": lambda x: Twice.apply(x).sin(),
    "vmap": lambda x: torch.vmap(lambda y: y * 2)(x).sin(),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(lambda y: y * 2, x, use_reentrant=False).sin(),
    "cond": lambda x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,)).sin(),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_not_looked_into(name: str) -> None:
    names = operators(OPAQUE[name], randn(3, 4).requires_grad_(name != "cond"))
    assert "opaque" in names[: names.index("sin")] and "mul" not in names


def test_bodies_of_checkpoint_are_graphs_of_their_own() -> None:
    gm = captured(
        lambda q, k, v: torch.utils.checkpoint.checkpoint(attend, q, k, v, use_reentrant=False),
        *(x.requires_grad_() for x in qkv()),
    )
    assert [rule_name(n) for _, b in bodies(gm) for n in normalize(b).graph.nodes].count("_softmax") == 1  # type: ignore[union-attr]


def test_sizes_stay_symbolic() -> None:
    graph = normalize(captured(attend, *qkv(), dynamic=True))
    assert graph is not None
    (softmax,) = [n for n in graph.graph.nodes if rule_name(n) == "_softmax"]
    assert all(isinstance(n, torch.SymInt) for n in softmax.meta["val"].shape)


def test_a_graph_without_tensors() -> None:
    assert normalize(torch.fx.symbolic_trace(lambda x: x)) is None


def test_random_numbers_are_not_drawn() -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    normalize(captured(lambda x: x + torch.rand(3), torch.ones(3)))
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), want)
