"""Kernels as text.

    python -m tests.lowering.rendered

Prints a line of JSON:

    golden       the text of one kernel of each kind, by name
    isolation    a call of flex_attention compiled by Inductor, before and after ours
    notes        what is said of the kernels of several calls, and what became of them
    memory       the shared memory of kernels that load a number for every score
    atomics      what is added to the gradient of a learned slope
    choice       how many kernels a backward pass has, by what was measured

In a process of its own, where torch may be told that there is a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._dynamo.utils import counters
from torch._inductor import lowering, select_algorithm
from torch.nn.attention import flex_attention

from flex_inductor import compat
from flex_inductor.compat import triton
from tests.lowering.cases import Case, alibi, backward_in_one
from tests.lowering.kernels import biased, causal, grouped, templates
from tests.support.gpuless.rendering import render as compiled

render = functools.partial(compiled, machine_code=False)
KERNEL = re.compile(r"def (triton_tem\w*)(\(.*?)\n'''", re.S)


def texts(wrapper: str) -> list[str]:
    """The kernels of templates in a wrapper."""
    return [f"def kernel{body}\n" for _, body in KERNEL.findall(wrapper)]


def code(wrapper: str) -> list[str]:
    """The lines of a wrapper but the comments, which name temporary files and count graphs."""
    return [line for line in wrapper.splitlines() if not line.lstrip().startswith("#")]


def golden() -> dict[str, str]:
    q, k, v = (torch.empty(2, 4, 1000, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    training = render(causal, q, k, v, torch.empty(4, 1, 1))
    (prefill,), (dq, dkdv) = (texts(part.wrappers[0]) for part in (training.forward, training.backward))
    with backward_in_one():
        (fused,) = texts(render(causal, q, k, v, torch.empty(4, 1, 1)).backward.wrappers[0])
    with torch.no_grad():
        few = torch.empty(2, 8, 1, 64, dtype=torch.bfloat16)
        kv = torch.empty(2, 2, 1000, 64, dtype=torch.bfloat16)
        (decode,) = texts(render(grouped, few, kv, kv, torch.empty(8, 1, 1)).forward.wrappers[0])
        odd = torch.empty(2, 4, 1000, 72, dtype=torch.bfloat16)
        (parts,) = texts(render(causal, odd, odd, odd, torch.empty(4, 1, 1)).forward.wrappers[0])
    return {"prefill": prefill, "dq": dq, "dkdv": dkdv, "decode": decode, "parts": parts, "fused": fused}


def isolation() -> dict[str, Any]:
    """A program's own call of flex_attention, which is torch's to compile."""

    def program(q: Any, k: Any, v: Any) -> Any:
        return flex_attention.flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (i - j))

    q = torch.empty(1, 2, 512, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        before = render(program, q, q, q, ours=False).forward.wrappers
        known = dict(lowering.lowerings)
        render(causal, q, q, q, torch.empty(2, 1, 1))
        after = render(program, q, q, q, ours=False).forward.wrappers
    same = [code(w) for w in before] == [code(w) for w in after]
    return {"same": same, "restored": known == lowering.lowerings, "kernels": len(texts(before[0]))}


def notes() -> dict[str, Any]:
    """Calls that ours take, and calls that are left to torch's."""
    q = torch.randn(1, 2, 256, 64, dtype=torch.float16)
    pad = torch.ones(1, 1, 1, 256, dtype=torch.bool)

    def padded(q: Any, k: Any, v: Any) -> Any:
        scores = torch.where(pad, q @ k.mT, float("-inf"))
        return torch.softmax(scores.float(), -1).to(v.dtype) @ v

    found: dict[str, Any] = {}
    case = Case("window")
    larger = torch.empty(1, 2, 256, 600, dtype=torch.float16)
    programs = {
        "window": lambda q, k, v: case.program(q, k, v, torch.ones(2, 1, 1), None),
        "padding": padded,
        "large heads": padded,
    }
    with torch.no_grad():
        for name, program in programs.items():
            counters.clear()
            given = larger if name == "large heads" else q
            rendered = render(program, given, given, given)
            graph = rendered.report.after.graph
            (call,) = graph.find_nodes(op="call_function", target=compat.flex_attention_hop)
            found[name] = {
                "notes": [note for d in rendered.report.decisions for note in d.notes],
                "counted": list(counters["flex_inductor"]),
                "formula": call.args[6].get(compat.MASK_OPTION),
                "others": len(rendered.forward.kernels) - len(texts(rendered.forward.wrappers[0])),
            }
    return found


def memory() -> list[int]:
    """Of those for heads of 128 dimensions on a device of 9.0, in training."""
    q, k, v = (torch.empty(1, 4, 1024, 128, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    rendered = compiled(biased, q, k, v, torch.empty(4, 1024, 1024, requires_grad=True))
    kernels = [*templates(rendered.forward, "prefill"), *templates(rendered.backward, "dq", "dkdv")]
    return [kernel.metadata.shared for _, kernel in kernels]


def atomics() -> list[list[str]]:
    """The lines of a kernel that add to it, and of one whose gradient of the score computes with symbolic sizes."""
    q, k, v = (torch.empty(1, 4, 1024, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    case = Case("window", 17, keys=19, score=alibi, training=True)
    programs = (
        render(causal, q, k, v, torch.empty(4, 1, 1, requires_grad=True)),
        render(case.program, *case.inputs(), dynamic=True),
    )
    kernels = ["".join(texts(program.backward.wrappers[0])) for program in programs]
    return [[line.strip() for line in text.splitlines() if "tl.atomic_add" in line] for text in kernels]


def choice() -> dict[str, int]:
    """By how many milliseconds the one kernel takes, where two take a millisecond each; and in programs that are to be
    deterministic."""
    q, k, v = (torch.empty(2, 4, 1024, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def kernels(one: float, reproducible: bool = False, **settings: Any) -> int:
        torch.use_deterministic_algorithms(reproducible)
        with measured(one), torch._inductor.config.patch({"max_autotune": True, **settings}):
            wrapper = render(causal, q, k, v, torch.empty(4, 1, 1)).backward.wrappers[0]
        return len(texts(wrapper))

    return {
        "fast": kernels(1.9), "fast, but for its sums": kernels(1.9999),
        "deterministic": kernels(1.9, reproducible=True), "deterministic code": kernels(1.9, deterministic=True),
    }  # fmt: skip


@contextlib.contextmanager
def measured(one: float) -> Iterator[None]:
    """Every kernel takes a millisecond, that of all gradients another time."""

    def do_autotuning(*args: Any, **_: Any) -> dict[Any, float]:
        return {choice: one if "FUSED=True" in choice.description else 1.0 for choice in args[6]}

    cache = mock.patch.object(select_algorithm.AlgorithmSelectorCache, "do_autotuning", do_autotuning)
    with cache, mock.patch.object(triton, "get_gpu_dram_gbps", lambda: 3000):
        yield


if __name__ == "__main__":
    print(json.dumps({f.__name__: f() for f in (golden, isolation, notes, memory, atomics, choice)}))
