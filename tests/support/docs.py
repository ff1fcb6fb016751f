"""The examples in docstrings: lines `CODE   ->   TEXT`, each run by what its module is about.

In `passes/` CODE is a program in Python. Where it does not read the values `v` it makes scores of the raw scores `s`,
and is run as `softmax(CODE) @ v`. TEXT is what explain says of it, `SCORE_MOD, mask MASK_MOD`. In `mask/` and `scalar/`
CODE is a formula, and TEXT what the module makes of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch.utils._sympy.functions import FloorDiv

from flex_inductor import explain, mask
from flex_inductor.mask.interval import Intervals
from flex_inductor.mask.tensors.lists import list_blocks
from flex_inductor.mask.tensors.runs import runs_by
from flex_inductor.mask.text import format_formula
from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.normalize import normalize
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.report.text import readable
from flex_inductor.scalar.bounds import Bounds
from tests.support.capture import captured

ARROW = "   ->   "
B, H, S, D = 2, 4, 12, 8
PACKAGES = ("flex_inductor.passes", "flex_inductor.mask", "flex_inductor.scalar")
FUNCTIONS = {"torch": torch, "inf": torch.inf, "softmax": torch.softmax, "where": torch.where, "cat": torch.cat,
             "arange": torch.arange, "exp": torch.exp, "uint8": torch.uint8, "sdpa": F.scaled_dot_product_attention,
             "lerp": torch.lerp, "addcmul": torch.addcmul, "maximum": torch.maximum, "clamp": torch.clamp,
             "S": S}  # fmt: skip
FORMULAS = {"q": mask.Q, "k": mask.K, "b": mask.B, "holds": mask.holds, "load": mask.load, "Eq": sympy.Eq,
            "FloorDiv": FloorDiv}  # fmt: skip
ROWS, COLS = mask.axes(sympy.Integer(1024), sympy.Integer(1024), (128, 128))


def examples() -> Iterator[tuple[str, str, str]]:
    """Module, code and text of every example."""
    for package in PACKAGES:
        folder = importlib.import_module(package).__path__
        for name in (package, *(m.name for m in pkgutil.walk_packages(folder, f"{package}."))):
            module = importlib.import_module(name)
            own = [x for x in vars(module).values() if getattr(x, "__module__", None) == name]
            for text in (x.__doc__ or "" for x in (module, *own)):
                for line in text.splitlines():
                    if ARROW in line:
                        code, _, result = line.partition(ARROW)
                        yield name.removeprefix("flex_inductor."), code.strip(), result.strip()


def tensors() -> dict[str, torch.Tensor]:
    """What the programs in docstrings read."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        **dict.fromkeys(("q", "k", "v", "q2", "k2"), (B, H, S, D)),
        **dict.fromkeys(("bias", "other"), (H, S, S)),
        "slopes": (H, 1, 1),
        "sinks": (B, H, S, 1),
        "table": (S, H),
    }
    pad = torch.arange(S) < torch.tensor([S - 2, S])[:, None]
    numbers = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {**numbers, "pad": pad[:, None, None], "ids": torch.arange(S) // 4}


def program(code: str, lines: str = "i, j, s = arange(S)[:, None], arange(S), q @ k.mT") -> Callable[..., Any]:
    """An example as a function of the tensors. lines: what comes before it."""
    source = f"def run({', '.join(tensors())}):\n    {lines}\n    return {code}"
    scope: dict[str, Any] = dict(FUNCTIONS)
    exec(source, scope)
    return scope["run"]  # type: ignore[no-any-return]


def explained(code: str, train: bool = False) -> str:
    """What explain says of the attention in a program."""
    values = {n: x.requires_grad_(train and x.is_floating_point()) for n, x in tensors().items()}
    whole = "v" in compile(code, "<docstring>", "eval").co_names
    code = code if whole else f"softmax({code}, -1) @ v"
    (decision,) = explain(program(code), rewrite="always", backend="flex_eager")(**values).sites
    assert decision.rewritten, str(decision)
    said = readable(decision.score_mod).replace("  # ", ", ")
    return f"{said}, mask {readable(decision.mask_mod)}" if decision.mask_mod else said


def operators(code: str) -> str:
    """The ATen operators of a program."""
    aten = normalize(captured(program(code, "pass"), *tensors().values()))
    assert aten is not None
    names = [rule_name(n) for n in aten.graph.nodes if n.op == "call_function" and n.target is not opaque]
    return ", ".join(names)


def formula(code: str) -> Any:
    return eval(code, dict(FORMULAS))


def blocks(code: str) -> str:
    found = mask.analyse(formula(code), ROWS, COLS)
    return f"some: {found.some}, full: {found.full}"


def ranges(code: str) -> str:
    found = mask.ranges(formula(code), ROWS, COLS)
    assert found is not None
    return ", ".join(f"[{s.start}, {s.stop})" for s in found.spans)


def loops(code: str) -> str:
    found = mask.ranges(formula(code), ROWS, COLS)
    assert found is not None
    return ", ".join(f"[{x.start}, {x.stop}) {'masked' if x.masked else 'full'}" for x in mask.loops(found))


def interval(code: str) -> str:
    found = Intervals(ROWS, COLS).of(formula(code))
    return f"[{found.low}, {found.high}]"


def bounds(code: str) -> str:
    low, high = Bounds({mask.Q: sympy.Integer(512), mask.K: sympy.Integer(512)}).of(formula(code))
    return f"{low} .. {high}"


def lists(code: str) -> str:
    return ", ".join(str(x.tolist()) for x in list_blocks(torch.tensor(formula(code), dtype=torch.bool)))


def runs(code: str) -> str:
    some, full = torch.tensor(formula(code), dtype=torch.bool)
    run = lambda f, *args, **options: f(*args, **options)  # noqa: E731
    return str(runs_by(run, some, full, len(some), some.device).tolist())


RUNNERS: dict[str, Callable[[str], str]] = {
    "mask": blocks,
    "mask.blocks": blocks,
    "mask.ranges": ranges,
    "mask.loops": loops,
    "mask.interval": interval,
    "mask.rows": lambda code: str(mask.keeps_a_key(formula(code), ROWS, COLS)),
    "mask.text": lambda code: str(format_formula(formula(code))),
    "mask.one_run": lambda code: str(mask.is_one_run(formula(code), mask.K)),
    "mask.tensors.lists": lists,
    "mask.tensors.runs": runs,
    "scalar.bounds": bounds,
    "passes.program.normalize": operators,
    "passes.lift.rules.ties": lambda code: explained(code, train=True),
}


def result(module: str, code: str) -> str:
    """What the code of an example gives."""
    return RUNNERS.get(module, explained)(code)
