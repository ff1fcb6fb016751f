"""The kernels of tests/lowering/cases.py run by Triton's interpreter, and compared with float64.

    python -m tests.lowering.numerics GROUP/NAME ... [--faults FAULT ...]

Prints a line of JSON for each program: its group and name, which kernels computed it, and the errors of the output and
of each gradient as shares of what is allowed. `--faults` seeds one in each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch._dynamo.utils import counters

from flex_inductor.lowering import bounds, plan
from tests.lowering.cases import Case, case_of, in_one, in_runs, kept, results, shares
from tests.support.gpuless.rendering import render

FAULTS: dict[str, Callable[[str], str]] = {
    "a block short": lambda loops: loops.replace(" : masked", " - 1 : masked"),
    "the diagonal called full": lambda loops: loops.replace("masked", "full"),
    "a block late": lambda loops: f"1 + {loops}",
}


def faulty(fault: str | None) -> contextlib.AbstractContextManager[Any]:
    """Bounds with a fault in the loops."""
    if fault is None:
        return contextlib.nullcontext()

    def wrong(right: Callable[..., bounds.Bounds]) -> Callable[..., bounds.Bounds]:
        def loops(*args: Any, **kwargs: Any) -> bounds.Bounds:
            found = right(*args, **kwargs)
            return replace(found, loops=FAULTS[fault](found.loops))

        return loops

    return mock.patch.multiple(plan, **{name: wrong(getattr(plan, name)) for name in ("bounds", "listed", "in_runs")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="GROUP/NAME")
    parser.add_argument("--faults", nargs="*", default=[], choices=FAULTS)
    args = parser.parse_args()
    for name, fault in zip_longest(args.cases, args.faults):
        case = case_of(name)
        counters.clear()
        with torch.set_grad_enabled(case.training), faulty(fault), in_runs(case):
            with in_one(case):
                ours = results(case, interpreted(case), None)
            kernels = dict(counters["flex_inductor"])
            exact = replace(case, kept=kept(case, interpreted)) if case.dropout else case
        print(json.dumps({"case": name, "shares": shares(exact, ours), "kernels": kernels}), flush=True)


def interpreted(case: Case) -> Callable[..., Any]:
    """A program of our kernels."""
    return lambda *inputs: render(case.program, *inputs, run=True, dynamic=case.dynamic).result


if __name__ == "__main__":
    main()
