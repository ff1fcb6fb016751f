"""Inductor is told the same about the inputs as with backend="inductor": which are parameters, which never move.

CUDA graphs and the handling of frozen parameters hang on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import compile_fx

from flex_inductor import listen
from tests.support.programs import attend, randn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)
        self.register_buffer("keep", torch.ones(12, 12, dtype=torch.bool).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).view(2, 12, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return attend(q, k, v, lambda s: s.masked_fill(~self.keep, -1e9) + self.project.bias[0])


class Stop(Exception):
    pass


def told(backend: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches Inductor's inner compile, which then stops: no code is generated."""
    seen: list[dict[str, Any]] = []

    def stop(gm: torch.fx.GraphModule, inputs: Any, **kwargs: Any) -> Any:
        names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
        shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in inputs]
        static = list(kwargs.get("static_input_idxs") or [])
        seen.append({"inputs": list(zip(names, shapes)), "static": static, "inference": kwargs.get("is_inference")})
        return gm.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compile_fx, "compile_fx_inner", stop)
    settings = {"options": {"on_failure": "raise", "rewrite": "always"}} if backend == "flex" else {}
    with torch.no_grad(), listen() as reports, torch._functorch.config.patch(enable_autograd_cache=False):
        compiled = torch.compile(Model(), backend=via(backend, stop, settings))
        compiled(randn(2, 12, 32))
    assert sum(r.rewritten for r in reports) == (backend == "flex")
    (result,) = seen
    return result


def via(backend: str, inner: Any, settings: dict[str, Any]) -> Any:
    """The backend with another inner compile."""
    real = compile_fx.compile_fx

    def stopped(gm: Any, inputs: Any, **kwargs: Any) -> Any:
        return real(gm, inputs, **{**kwargs, "inner_compile": inner})

    def run(gm: Any, inputs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compile_fx, "compile_fx", stopped)
            if backend == "inductor":
                return stopped(gm, inputs)
            from flex_inductor import flex

            return flex(gm, inputs, options=settings["options"])

    return run


def test_inductor_is_told_the_same_as_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = told("inductor", monkeypatch), told("flex", monkeypatch)
    assert plain["static"], "the model has parameters, which are static"
    assert ours == plain
