"""Threads that compile at once, processes that are forked and spawned, and many compilations in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edges.support import passes

BACKENDS = ["flex_eager", pytest.param("flex", marks=[pytest.mark.compile, pytest.mark.nightly])]

THREADS = """
import threading

def own(length):
    def program(q, k, v):
        hidden = torch.arange(length) > torch.arange(length)[:, None] + length % 7
        return torch.softmax((q @ k.mT).masked_fill(hidden, -float("inf")), -1) @ v
    return program

def work(length, backend, start, found):
    program, given = own(length), inputs(length)
    start.wait()
    with flex_inductor.listen() as reports:
        options = {"options": {"rewrite": "always"}} if backend != "inductor" else {}
        result = torch.compile(program, backend=backend, **options)(*given)
    ours = [(r.rewritten, r.fallback) for r in reports]
    found[length] = (torch.allclose(result, program(*given), atol=1e-5), ours)

names = [BACKENDS]
start, found = threading.Barrier(len(names)), {}
threads = [threading.Thread(target=work, args=(16 + 4 * i, name, start, found)) for i, name in enumerate(names)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == len(names), found
for i, name in enumerate(names):
    right, reports = found[16 + 4 * i]
    assert right and reports == ([(1, None)] if name != "inductor" else []), (name, found[16 + 4 * i])
"""


def threads(names: str) -> str:
    return THREADS.replace("BACKENDS", names)


def test_threads_that_compile_at_once_have_their_own_numbers_and_reports(tmp_path: Path) -> None:
    passes(tmp_path, threads("*['flex_eager'] * 6"))


@pytest.mark.nightly
@pytest.mark.compile
def test_threads_that_compile_at_once_by_different_backends(tmp_path: Path) -> None:
    passes(tmp_path, threads("'flex', 'inductor', 'flex', 'flex_eager'"))


PROCESSES = """
import multiprocessing

def child(length):
    with flex_inductor.listen() as reports:
        right(compiled("BACKEND")(*inputs(length)), *inputs(length))
    return [(r.rewritten, r.fallback) for r in reports]

if __name__ == "__main__":
    right(compiled("BACKEND")(*inputs()), *inputs())
    with multiprocessing.get_context("METHOD").Pool(2) as pool:
        assert pool.map(child, [24, 40]) == [[(1, None)]] * 2
"""


@pytest.mark.sweep(4)
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_children_compile_too(tmp_path: Path, backend: str, method: str) -> None:
    passes(tmp_path, PROCESSES.replace("BACKEND", backend).replace("METHOD", method))


MANY = """
import gc, resource, sys

def program(kind):
    def own(q, k, v):
        return attention(q * (1 + kind / 4096), k, v)
    return own

def once(step):
    torch._dynamo.reset()
    own, given = program(step % KINDS), inputs(8 + step % 5)
    options = {"options": {"rewrite": "always"}} if "BACKEND" == "flex_eager" else {}
    with flex_inductor.listen():
        found = torch.compile(own, backend="BACKEND", dynamic=False, **options)(*given)
    assert torch.allclose(found, own(*given), atol=1e-5)

def living():
    gc.collect()
    return sum(isinstance(x, torch.fx.GraphModule) for x in gc.get_objects())

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

for step in range(WARM): once(step)
before, size = living(), resident()
for step in range(COUNT): once(step)
print(living() - before, resident() - size)
"""


def grown(folder: Path, warm: int, count: int, backend: str = "flex_eager", kinds: int = 1) -> tuple[int, float]:
    """By how many graphs, and how many megabytes, a process grew in that many compilations. kinds: of so many different
    programs."""
    program = MANY.replace("BACKEND", backend)
    for name, number in {"WARM": warm, "COUNT": count, "KINDS": kinds}.items():
        program = program.replace(name, str(number))
    graphs, megabytes = passes(folder, program).split()
    return int(graphs), float(megabytes)


def test_no_graph_is_kept(tmp_path: Path) -> None:
    graphs, _ = grown(tmp_path, 10, 20)
    assert graphs <= 0


TOLERANCE = 0.03
"""Megabytes that a compilation may keep beyond those that torch's own backends keep, which are 0.1 (torch 2.13): the
ShapeEnv and what belongs to it, for a program that was compiled before, too."""


@pytest.mark.nightly
@pytest.mark.parametrize(("count", "kinds"), [(1000, 1), (300, 400)])
def test_a_compilation_keeps_no_more_memory_than_torchs(tmp_path: Path, count: int, kinds: int) -> None:
    ours, torchs = (grown(tmp_path, 100, count, backend, kinds)[1] for backend in ("flex_eager", "aot_eager"))
    assert ours <= torchs + count * TOLERANCE
