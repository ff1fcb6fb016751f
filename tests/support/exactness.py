"""The rule for numbers (DESIGN.md, "Exactness") as one call.

    decisions = check(program, (q, k, v), train=True)      the attention was rewritten, and the numbers are right
    declines(program, (q, k, v), "dropout is active")      it was left alone for this reason, and the numbers are right

A program runs three times: in eager in the dtype under test, in eager in float64 on the same (already rounded) inputs,
and compiled. The compiled result may be twice as far from float64 as eager is, and a floor of c * eps(dtype) *
max|result| further.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache, check_cacheable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from flex_inductor import Decision, GraphReport, listen

LOW = (torch.float32, torch.bfloat16, torch.float16)
CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}
OPTIONS = {"rewrite": "always", "on_failure": "raise"}
ABSORBED = 50.0
"""A row on which eager is this many eps away from float64 has lost its scores to a huge fill: it has its own bound."""


class InFloat64(TorchFunctionMode):
    """Runs a program in float64 whatever it casts to, while it believes to be in the original dtype:
    `torch.finfo(x.dtype)` keeps its value."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.dtype.__get__:  # type: ignore[attr-defined]
            real = func(*args)
            return self.dtype if real == torch.float64 else real
        if func in CASTS:
            return args[0].to(torch.float64)
        raised = lambda x: torch.float64 if isinstance(x, torch.dtype) and x in LOW else x  # noqa: E731
        return func(*tree_map(raised, tuple(args)), **tree_map(raised, dict(kwargs or {})))


@dataclass(frozen=True)
class Outcome:
    """The tensors a program returns, and the gradients of its floating-point inputs and parameters."""

    outputs: list[torch.Tensor]
    gradients: list[torch.Tensor | None]


def is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype.is_floating_point


def outcome(program: Callable[..., Any], owner: Any, inputs: Sequence[Any], train: bool) -> Outcome:
    """Runs a program. owner: the module whose parameters count, if it is one."""
    given = tree_map(
        lambda x: x.detach().clone().requires_grad_(train and is_float(x)) if _is_tensor(x) else x, tuple(inputs)
    )
    parameters = list(owner.parameters()) if isinstance(owner, nn.Module) else []
    for p in parameters:
        p.grad = None
    with torch.set_grad_enabled(train):
        outputs = [x for x in tree_leaves(program(*given)) if isinstance(x, torch.Tensor)]
    wanted = [*(x for x in tree_leaves(given) if is_float(x)), *parameters]
    if train:
        weighted = [(x.double() * weights(x)).sum() for x in outputs if x.requires_grad]
        torch.stack(weighted).sum().backward()
    return Outcome([x.detach() for x in outputs], [x.grad for x in wanted])


def weights(x: torch.Tensor) -> torch.Tensor:
    """The same numbers for a tensor of the same size."""
    return torch.cos(torch.arange(x.numel(), dtype=torch.float64, device=x.device) * 1.7).reshape(x.shape)


def _is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)


def reference(program: Callable[..., Any], inputs: Sequence[Any], train: bool) -> Outcome:
    """The program in float64, on the same inputs."""
    dtype = next((x.dtype for x in tree_leaves(tuple(inputs)) if is_float(x)), torch.float32)
    wide = copy.deepcopy(program).double() if isinstance(program, nn.Module) else program
    default = torch.get_default_dtype()
    raised = tree_map(lambda x: x.double() if is_float(x) else x, tuple(inputs))

    def run(*args: Any) -> Any:
        with InFloat64(dtype):
            return wide(*args)

    torch.set_default_dtype(torch.float64)
    try:
        return outcome(run, wide, raised, train)
    finally:
        torch.set_default_dtype(default)


NOTHING = 64 * torch.finfo(torch.float64).eps
"""What float64 leaves of numbers near one that cancel: eager may happen to compute an exact 0."""


def compare(
    kind: str, got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, c: float, scale: float, coarse: float = 0.0
) -> None:
    """The rule, for one tensor. Where float64 says NaN, got must be NaN or 0. coarse: the eps of what a program rounds
    to in between, which counts where it is coarser than the result's."""
    eps, rows = max(torch.finfo(eager.dtype).eps, coarse), (-1, exact.shape[-1] if exact.dim() else 1)
    got, eager, exact = (x.double().reshape(rows) for x in (got, eager, exact))
    undefined = exact.isnan() | eager.isnan()
    empty = undefined & ~got.isnan() & (got != 0)
    assert not empty.any(), f"{kind}: {int(empty.sum())} numbers where eager has NaN, at {empty.nonzero()[0].tolist()}"
    floor = c * eps * scale + NOTHING

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        equal = undefined | (a == b)  # infinities too, of which the difference is NaN
        return torch.where(equal, torch.zeros_like(a), (a - b).abs()).amax(-1)

    mine, own, apart = distance(got, exact), distance(eager, exact), distance(got, eager)
    lost = own > ABSORBED * eps * scale
    usual = own[~lost].max() if (~lost).any() else own.new_zeros(())
    bound = 2 * torch.where(lost, own, usual) + floor
    bad = ~((mine <= bound) | (lost & (apart <= floor)))
    assert not bad.any(), (
        f"{kind}: {int(bad.sum())} of {len(bad)} rows are off: row {int(bad.nonzero()[0])} by {mine[bad].max():.3g}; "
        f"where eager is off by {usual:.3g}, and {bound[bad].max():.3g} is allowed"
    )


def compare_all(got: Outcome, eager: Outcome, exact: Outcome, c: float, coarse: float = 0.0) -> None:
    assert len(got.outputs) == len(eager.outputs)
    for i, (g, e, x) in enumerate(zip(got.outputs, eager.outputs, exact.outputs)):
        assert g.shape == e.shape and g.dtype == e.dtype, f"output {i} is {g.shape} {g.dtype}, not {e.shape} {e.dtype}"
        assert strides(g) == strides(e), f"output {i} has strides {g.stride()}, not {e.stride()}"
        if not is_float(e):
            assert torch.equal(g, e), f"output {i} differs"
            continue
        compare(f"output {i}", g, e, x, c, max(1.0, _largest([x])), coarse)
    scale = _largest([x for x in exact.gradients if x is not None])
    for i, (g, e, x) in enumerate(zip(got.gradients, eager.gradients, exact.gradients)):
        assert (g is None) == (e is None), f"gradient {i} is {'missing' if g is None else 'new'}"
        if g is not None and e is not None and x is not None:
            compare(f"gradient {i}", g, e, x, c, scale, coarse)


def strides(x: torch.Tensor) -> list[int]:
    """The strides that mean something: not those of dimensions of size one."""
    return [s for n, s in zip(x.shape, x.stride()) if n != 1]


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    return max((float(x.nan_to_num(0, 0, 0).abs().max()) for x in tensors if x.numel()), default=1.0)


def compiled(program: Any, backend: str, dynamic: bool | None = None) -> Any:
    torch._dynamo.reset()
    options = {**OPTIONS, "rewrite": "always"} if backend == "flex" else OPTIONS  # programs here are too small to pay
    return torch.compile(program, backend=backend, dynamic=dynamic, options=dict(options))


def cacheable(gm: fx.GraphModule) -> bool:
    """Whether torch's caches take a compiled graph: what Dynamo captured does not always allow it."""
    try:
        check_cacheable(gm)
    except (BypassAOTAutogradCache, AttributeError):
        return False
    return True


def reports_of(
    program: Any,
    inputs: Sequence[Any],
    backend: str = "flex_eager",
    train: bool = False,
    dynamic: bool | None = None,
    c: float = 16,
) -> list[GraphReport]:
    """Checks the numbers; the reports of the graphs that were compiled."""
    eager, exact = outcome(program, program, inputs, train), reference(program, inputs, train)
    with listen() as reports:
        got = outcome(compiled(program, backend, dynamic), program, inputs, train)
    compare_all(got, eager, exact, c)
    for report in reports:
        if cacheable(report.before):
            check_cacheable(report.after)
    return reports


def check(
    program: Any,
    inputs: Sequence[Any],
    backend: str = "flex_eager",
    train: bool = False,
    dynamic: bool | None = None,
    sites: int = 1,
    c: float = 16,
) -> tuple[Decision, ...]:
    """Asserts the numbers, and that so many sites were rewritten; the decisions."""
    decisions = decisions_of(reports_of(program, inputs, backend, train, dynamic, c))
    count = sum(d.rewritten for d in decisions)
    assert count == sites, f"{count} sites rewritten, not {sites}: " + "; ".join(map(str, decisions))
    return decisions


def decisions_of(reports: Sequence[GraphReport]) -> tuple[Decision, ...]:
    return tuple(d for r in reports for d in r.decisions)


def declines(program: Any, inputs: Sequence[Any], reason: str | None, **settings: Any) -> tuple[Decision, ...]:
    """Asserts the numbers, that nothing was rewritten, and that a decision gives the reason (None: there is no
    site)."""
    decisions = check(program, inputs, sites=0, **settings)
    if reason is None:
        assert not decisions, decisions
    else:
        assert any(reason in d.reason for d in decisions), f"{reason!r} is no reason of {list(map(str, decisions))}"
    return decisions
