"""Judges a program by the exactness rule (tests/support/exactness.py), with gradients and for each of its lengths."""

from __future__ import annotations

import itertools
import linecache
import math
import re
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves

from flex_inductor import Decision, FallbackWarning, GraphReport, listen
from flex_inductor.passes.split.rows import EMPTY_ROWS
from tests.fuzz.recipe import Recipe, draw
from tests.fuzz.source import text
from tests.support.exactness import Outcome, compare_all, decisions_of, is_float, outcome, reference

Kind = Literal["pass", "wrong", "lost", "torch", "unfit"]
ATTEMPTS = 20
COUNT = itertools.count()


@dataclass(frozen=True)
class Verdict:
    """What became of a program.

    kind: pass; wrong (numbers, shapes, strides, or gradients); lost (an exception or a fallback of ours); torch (fails
    without us too, in the same way); unfit (eager raises on it, so it is no program).
    sites: how many sites were rewritten.
    detail: what went wrong.
    """

    kind: Kind
    sites: int = 0
    decisions: tuple[Decision, ...] = ()
    detail: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.kind in ("wrong", "lost")

    @property
    def symptom(self) -> str:
        """The first words of the detail, without numbers: 'AssertionError output has strides'."""
        return " ".join(re.findall(r"[a-zA-Z_]\w*", self.detail)[:4])

    @property
    def excess(self) -> float:
        """How many times further off than allowed a result is."""
        off = re.search(r"by (\S+); .*, and (\S+) is allowed", self.detail)
        return float(off[1]) / float(off[2]) if off and float(off[2]) else math.inf

    def alike(self, other: Verdict) -> bool:
        """Whether another program fails in this way: a number far off is no rounding error."""
        same = (self.kind, self.symptom) == (other.kind, other.symptom)
        return same and not other.excess < min(10.0, self.excess / 2)


@dataclass(frozen=True)
class Case:
    """One length at which a program is run."""

    inputs: Sequence[Any]
    eager: Outcome
    exact: Outcome


class Unfit(Exception):
    """Eager, or the reference, raises."""


def load(source: str) -> dict[str, Any]:
    """Runs the source of a program as a module whose lines can be read again."""
    name = f"<program {next(COUNT)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    module: dict[str, Any] = {"__name__": name, "SOURCE": source}
    exec(compile(source, name, "exec"), module)
    return module


def judge(source: str, control: bool = True) -> Verdict:
    """The verdict on the source of a program, made by `source.text`. control: what fails is tried without us too."""
    start = time.perf_counter()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", FallbackWarning)
        verdict = _judge(load(source), control)
    return Verdict(verdict.kind, verdict.sites, verdict.decisions, verdict.detail, time.perf_counter() - start)


def _judge(module: dict[str, Any], control: bool) -> Verdict:
    try:
        train, cases = expected(module)
    except Unfit as error:
        return Verdict("unfit", detail=str(error))
    with listen() as reports:
        failure = run(module, cases, train, module["BACKEND"], module["OPTIONS"], reports)
    decisions = decisions_of(reports)
    sites = sum(d.rewritten for d in decisions)
    if failure is None:
        return Verdict("pass", sites, decisions)
    kind: Kind = "wrong" if isinstance(failure, AssertionError) else "lost"
    if control and type(run(module, cases, train, *WITHOUT_US[module["BACKEND"]])) is type(failure):
        kind = "torch"
    return Verdict(kind, sites, decisions, described(failure))


def described(error: BaseException) -> str:
    """An exception and its first cause, which says more than what torch.compile wraps around it."""
    root = error
    while cause := getattr(root, "inner_exception", None) or root.__cause__:
        root = cause
    where = traceback.extract_tb(root.__traceback__)[-1] if root is not error and root.__traceback__ else None
    place = f" at {Path(where.filename).name}:{where.lineno}" if where else ""
    return f"{type(root).__name__}: {root}{place}"


WITHOUT_US: dict[str, tuple[str, dict[str, Any]]] = {
    "flex_eager": ("aot_eager", {}),
    "flex": ("inductor", {"pattern_matcher": False}),
}
"""The backends that show whether a failure is torch's own. Inductor's attention patterns are ours to answer for."""


def expected(module: dict[str, Any]) -> tuple[bool, list[Case]]:
    """Whether gradients are compared, and what eager and float64 give. Gradients of which eager makes NaN say
    nothing, then the outputs alone count."""
    program = module["program"]
    given = [module["inputs"](*x) for x in module["LENGTHS"]]
    if module["TRAIN"] and learns(program, given[0]):
        cases = [case(module, x, True) for x in given]
        if not any(x.isnan().any() for c in cases for x in c.eager.gradients if x is not None):
            return True, cases
    return False, [case(module, x, False) for x in given]


def learns(program: Any, inputs: Sequence[Any]) -> bool:
    """Whether any result of a program has a gradient."""
    given = [x.clone().requires_grad_(is_float(x)) for x in inputs]
    try:
        return any(x.requires_grad for x in tree_leaves(program(*given)))
    except Exception as error:
        raise Unfit(f"{type(error).__name__}: {error}") from error


def case(module: dict[str, Any], inputs: Sequence[Any], train: bool) -> Case:
    """The reference runs without checkpoints: what they compute again would not be in float64."""
    program = module["program"]
    straight = load(module["SOURCE"])
    straight["checkpoint"] = lambda function, *given, **_: function(*given)
    try:
        eager = outcome(program, program, inputs, train)
        exact = reference(straight["program"], inputs, train)
    except Exception as error:
        raise Unfit(f"{type(error).__name__}: {error}") from error
    if any((e.isnan() & ~x.isnan()).any() for e, x in zip(eager.outputs, exact.outputs)):
        raise Unfit("eager overflows where float64 does not")
    return Case(inputs, eager, exact)


def run(
    module: dict[str, Any],
    cases: Sequence[Case],
    train: bool,
    backend: str,
    options: Any,
    reports: Sequence[GraphReport] = (),
) -> Exception | None:
    """Compiles a program once and runs it at each length; what goes wrong. reports: of what was compiled so far."""
    torch._dynamo.reset()
    options = {"options": options} if options else {}
    named = (d for d in (torch.bfloat16, torch.float16) if str(d) in module["SOURCE"])
    coarse = max((torch.finfo(d).eps for d in named), default=0.0)
    compiled = torch.compile(module["program"], backend=backend, dynamic=module["DYNAMIC"], **options)
    try:
        for c in cases:
            got = outcome(compiled, compiled, c.inputs, train)
            outcomes = without_infinities(got, c.eager, c.exact)
            compare_all(*without_what_nan_became(outcomes, decisions_of(reports)), 16, coarse)
    except Exception as error:
        return error
    return None


def without_infinities(*outcomes: Outcome) -> tuple[Outcome, ...]:
    """Outputs of which all have the same infinity have a zero there: differences of infinities say nothing."""
    columns = []
    for column in zip(*(x.outputs for x in outcomes)):
        first = column[0]
        same = first.isinf()
        for x in column[1:]:
            if x.shape == first.shape:
                same = same & (x == first)
        columns.append(
            [x.masked_fill(same, 0) if x.shape == same.shape else x for x in column] if same.any() else column
        )
    return tuple(replace(x, outputs=[c[n] for c in columns]) for n, x in enumerate(outcomes))


def without_what_nan_became(outcomes: tuple[Outcome, ...], decisions: Sequence[Decision]) -> tuple[Outcome, ...]:
    """Where a row without keys gives 0, as its record says, a projection of all heads or a second attention makes
    numbers of it, and NaN of eager's: outputs that are NaN in eager have a zero there."""
    if not any(EMPTY_ROWS in d.notes for d in decisions):
        return outcomes
    undefined = [x.isnan() for x in outcomes[1].outputs]
    return tuple(
        replace(o, outputs=[x.masked_fill(u, 0) if x.shape == u.shape else x for x, u in zip(o.outputs, undefined)])
        for o in outcomes
    )


def judge_seed(seed: int) -> tuple[Recipe, Verdict]:
    """The program of a seed, and the verdict. Where eager raises, the next program of this seed is taken."""
    for attempt in range(ATTEMPTS):
        recipe = draw(seed, attempt)
        verdict = judge(text(recipe, f", seed {seed}"))
        if verdict.kind != "unfit":
            return recipe, verdict
    raise AssertionError(f"no program of seed {seed} runs in eager: {verdict.detail}")
