"""The C++ kernels of rewritten graphs: layers that are alike have one, and caches tell whose they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from torch._inductor.utils import run_and_get_code

from flex_inductor.compat import cuda
from flex_inductor.lowering import choose
from flex_inductor.lowering import digest as module
from flex_inductor.lowering.digest import digest
from flex_inductor.options import Options
from flex_inductor.request import Request
from tests.support.programs import randn


@pytest.mark.compile
@pytest.mark.skipif(torch.__version__.startswith("2.11"), reason="its C++ kernel refuses operands in one buffer")
def test_layers_alike_have_one_kernel() -> None:
    """Every layer had a kernel of its own: twelve compilations where one does."""

    def program(x: Any, bias: Any) -> Any:
        for _ in range(3):
            x = x + 1
            x = torch.softmax(torch.tanh(x @ x.mT) + bias, -1) @ x
        return x

    torch._dynamo.reset()
    given = randn(1, 2, 70, 16), randn(70, 70, seed=1)
    with torch.no_grad():
        compiled = torch.compile(program, backend="flex", options={"rewrite": "always", "on_failure": "raise"})
        result, (code,) = run_and_get_code(compiled, *given)
        torch.testing.assert_close(result, program(*given), atol=1e-5, rtol=1e-5)
    kernels = re.findall(r"(\w+) = async_compile\.cpp_pybinding\((.*?)\n'''", code, re.S)
    templates = [name for name, source in kernels if "cpublas::brgemm" in source]
    assert len(templates) == 1 and len(re.findall(rf"^ +{templates[0]}\(", code, re.M)) == 3, templates


PROGRAM = """
import json, sys, torch, flex_inductor
from torch._dynamo.utils import counters
from flex_inductor import backend
version, name, options = json.loads(sys.argv[1])
backend.digest = lambda: version
q = torch.randn(1, 2, 64, 16)
def program(q):
    return torch.nn.attention.flex_attention.flex_attention(q, q * 2, q * 3)
with torch.no_grad():
    torch.compile(program, backend=name, options=options)(q)
print("HITS", counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"])
"""


def hits(cache: Path, *given: Any) -> bool:
    """Whether a process of its own found its kernels in a cache."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, json.dumps(given)]
    done = subprocess.run(command, env=env, cwd=cache.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split("HITS")[1]) > 0


@pytest.mark.nightly
@pytest.mark.compile
def test_caches_tell_versions_of_us_apart(tmp_path: Path) -> None:
    """A kernel of the version before was served after its template had been mended."""
    first, plain = ("1", "flex", {}), ("1", "inductor", {"epilogue_fusion": False})
    assert [hits(tmp_path / "cache", *given) for given in (first, first, ("2", "flex", {}), plain)] == [
        False, True, False, False,
    ]  # fmt: skip


PARTS = ["lowering/cpu.py", "lowering/templates/dq.py.jinja", "mask/ranges.py", "compat/__init__.py"]


@pytest.mark.parametrize("part", PARTS)
def test_the_digest_covers_what_makes_code(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    package = Path(module.__file__).parents[1]
    for name in ("lowering", "mask", "compat"):
        shutil.copytree(package / name, tmp_path / name)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "lowering" / "digest.py"))
    same = digest.__wrapped__()
    (tmp_path / part).write_text("# another version")
    assert same == before != digest.__wrapped__()


def request(**about: Any) -> Request:
    dims, lengths = ((sympy.Integer(n),) * 2 for n in (64, 1000))
    plain = Request(
        "cuda", torch.float16, True, dims, sympy.Integer(8), lengths, plain=False, scores=8_000_000, attended=0.5,
        called=False, reads=False, dropout=False,
    )  # fmt: skip
    return replace(plain, **about)


def chosen(options: Options, settings: dict[str, Any] | None = None, mask: str | None = "q >= k", **about: Any) -> Any:
    return choose.kernel(request(mask=mask, **about), options, settings or {})


@pytest.fixture(autouse=True)
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "capability", lambda: 90)


SMALL, LARGE = ((sympy.Integer(n),) * 2 for n in (8, 320))
OWN, TORCHS = Options(rates="usual"), Options(rates="usual", kernels="torch")


def test_who_computes_a_call() -> None:
    assert chosen(OWN).mask == "q >= k" and chosen(OWN, mask=None).mask == "" and chosen(TORCHS).mask is None
    assert (
        chosen(OWN, head_dims=LARGE).note == "torch's kernel: no tile size for heads of 320 dimensions on this device"
    )


def test_small_heads_are_for_our_kernels_only() -> None:
    assert chosen(OWN, head_dims=SMALL).mask == "q >= k"
    assert chosen(TORCHS, head_dims=SMALL).lacking == "flex_attention has no kernel for head dimension 8 on CUDA"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_dropout_is_for_our_kernels_only(device: str) -> None:
    given = {"device": device, "dropout": True}
    assert not chosen(OWN, **given).lacking
    assert chosen(TORCHS, **given).lacking == "dropout is active: torch's kernel: asked for by kernels='torch'"
    assert chosen(OWN, **{**given, "device": "xpu"}).lacking == "dropout is active"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_random_numbers_that_are_to_be_eagers_are_not_drawn(device: str) -> None:
    why = "dropout is active: its random numbers are to be eager's (fallback_random)"
    assert chosen(OWN, {"fallback_random": True}, device=device, dropout=True).lacking == why
    assert chosen(OWN, {"fallback_random": True}, device=device).mask == "q >= k"


@pytest.mark.parametrize(
    ("about", "left"),
    [
        ({"dropout": True}, False),
        ({}, False),
        ({"device": "cuda"}, True),
        ({"dropout": True, "device": "cuda"}, True),
        ({"scores": 1000}, True),  # too little to do
        ({"dropout": True, "scores": 50_000}, True),
    ],
)
def test_calls_without_a_mask_are_left_to_the_rates_on_cpu(about: dict[str, Any], left: bool) -> None:
    call = {"device": "cpu", "called": True, "plain": True, "attended": 1.0}
    assert (choose.refusal(request(**{**call, **about}), OWN) is not None) == left
