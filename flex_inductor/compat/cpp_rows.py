"""The part of `compat.cpp` that makes C++ code of mods: a row of scores at a time, as Inductor vectorises it."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import sympy
import torch
from torch._inductor import config, ir, lowering
from torch._inductor.codegen.cpp import CppKernelProxy, KernelGroup, ParallelDepth
from torch._inductor.cpu_vec_isa import invalid_vec_isa
from torch._inductor.index_propagation import IndexPropagation
from torch._inductor.kernel.flex import flex_attention
from torch._inductor.loop_body import LoopBody, MemoryUsageType
from torch._inductor.utils import sympy_index_symbol_with_prefix
from torch._inductor.virtualized import V, ops
from torch.utils._sympy.symbol import SymT, make_symbol, symbol_is_type

from flex_inductor.compat.subgraphs import traced

assert lowering  # torch 2.13: what is imported first must not be its code generation

ROW, WEIGHTS, GRADS = READ = ("flex_buf", "weights_flex_buf", "grads_flex_buf")
"""What Inductor takes rows of scores, of weights and of gradients for: buffers, whose names it wants to hold "buf"."""


def place(number: int) -> sympy.Symbol:
    """A number that generated code is given, which to Inductor is the size of something."""
    return make_symbol(SymT.SIZE, 900_000 + number, integer=True, nonnegative=True)


PLACES = {name: place(number) for number, name in enumerate(("b", "h", "q", "first", "count"))}
"""What code for a row is given by name: batch, head, query, the first key of the row, and the number of keys."""


class Row:
    """The part of a row that a loop is at: everything in a mod is a function of it, and a scalar to Inductor. queries:
    the number of rows."""

    def __init__(self, queries: sympy.Expr) -> None:
        self.at: sympy.Expr = sympy.S.Zero
        self.queries = queries

    def tensor(self, value: Callable[[], Any], dtype: torch.dtype) -> Any:
        device = torch.device("cpu")
        return ir.Pointwise.create(device=device, dtype=dtype, inner_fn=lambda index: value(), ranges=[])

    def position(self, place: Callable[[], sympy.Expr]) -> Any:
        return self.tensor(lambda: ops.index_expr(place(), torch.int32), torch.int32)

    def numbers(self, name: str) -> Any:
        return self.tensor(lambda: ops.load(name, self.at), torch.float32)

    def constant(self, number: float) -> Any:
        return self.tensor(lambda: ops.constant(number, torch.float32), torch.float32)

    def scaled(self, x: Any, factor: float) -> Any:
        return self.tensor(lambda: ops.mul(x.make_loader()([]), ops.constant(factor, torch.float32)), torch.float32)

    def positions(self) -> list[Any]:
        """Batch, head, query and key."""
        fixed = [self.position(functools.partial(PLACES.__getitem__, name)) for name in ("b", "h", "q")]
        return [*fixed, self.position(lambda: PLACES["first"] + self.at)]


@dataclass(frozen=True)
class Sum:
    """A tensor that a mod adds numbers to. buffer: what Inductor makes of the operator that does so. local: what the
    text of the kernel calls the memory. mask: where numbers are added; None for everywhere."""

    buffer: Any
    local: str
    mask: Any = None

    def add(self) -> None:
        place = self.buffer.data.output_indexer([])
        at = sum(i * n for i, n in zip(place, self.buffer.get_stride(), strict=True))
        value = masked(self.mask, self.buffer, 0.0) if self.mask is not None else value_of(self.buffer)
        V.ops.store(self.buffer.name, at, value.value, mode="atomic_add")


def joint(graph: Any, arguments: Sequence[Any], count: int) -> Any:
    """The gradient of a score_mod, and of what it captures, and where that is written: as process_joint_outputs of
    torch/_inductor/kernel/flex/flex_attention.py says. count: of the arguments that are no captured tensors."""
    graph.graph_module.graph.eliminate_dead_code()
    flex_attention.validate_joint_graph(graph.graph_module.graph)
    return flex_attention.process_joint_outputs(traced(graph, arguments), count)


def value_of(made: Any) -> Any:
    """The number that a traced subgraph, or something made of a row, gives, for the code that is being written."""
    return ops.to_dtype(loaded(made), torch.float32, src_dtype=made.get_dtype())


def masked(mask: Any, made: Any, other: float) -> Any:
    """The same where a mask holds, else another number."""
    holds = ops.to_dtype(loaded(mask), torch.bool, src_dtype=mask.get_dtype())
    return ops.where(holds, value_of(made), ops.constant(other, torch.float32))


def loaded(made: Any) -> Any:
    return (made.data if isinstance(made, ir.ComputedBuffer) else made).make_loader()([])


def row_code(kernel: Any, row: Row, stores: Mapping[str, Callable[[], Any]], sums: Sequence[Sum] = ()) -> str:
    """C++ code that works on a row of numbers, as Inductor vectorises it. stores: what is written, by the name of the
    row that it is written to, all of float32; a row that is written may be read. sums: what is added to, before that,
    number by number: those of one vector may belong to the same place, and Inductor would keep the last of them."""
    adding = _loop(kernel, row, {}, sums, vectors=False) if sums else ""
    return adding + _loop(kernel, row, stores, (), vectors=True)


def _loop(kernel: Any, row: Row, stores: Mapping[str, Callable[[], Any]], sums: Sequence[Sum], vectors: bool) -> str:
    """A loop over a row."""
    group = KernelGroup()
    group.args, group.ws.num_threads = kernel.args, 1  # nobody else adds to the same numbers
    proxy = CppKernelProxy(group)
    if not vectors:
        proxy.picked_vec_isa = invalid_vec_isa
    index = sympy_index_symbol_with_prefix(SymT.INDEX, 0)

    def write(*indices: Any) -> None:
        (row.at,) = indices[0]
        for name, value in stores.items():
            V.ops.store(name, row.at, value().value)
        for x in sums:
            x.add()

    def body() -> Any:
        with mock.patch.object(IndexPropagation, "statically_true", below(row.queries)):
            return LoopBody(write, ([index], ()), {index: PLACES["count"]}, [index], ())

    memory = {**{name: name for name in (*stores, *READ)}, **{x.buffer.name: x.local for x in sums}}
    with given(kernel, memory), config.patch({"cpp.enable_tiling_heuristics": False}):  # rows are long
        with config.patch(assert_indirect_indexing=False):  # positions are within what they index
            traced = body()
            used = [traced.indexing_exprs[x.index_name] for x in traced.memory_usage[MemoryUsageType.INDEX_EXPR]]
            if any(steep(expr, index) for expr in used):
                with config.patch(constant_and_index_propagation=False):
                    traced = body()
        named(kernel, *traced.indexing_exprs.values())
        proxy.codegen_loop_bodies([traced], [((PLACES["count"],), ())])
        with mock.patch.object(proxy.loop_nest, "max_parallel_depth", lambda: ParallelDepth(0, 0)):
            group.finalize_kernel(proxy, [])
    return TANH.sub(r"hyperbolic_tangent(\1)", ARANGE.sub(r"ramp<\1>(", group.loops_code.getvalue()))


def below(queries: sympy.Expr) -> Callable[[Any, Any], bool]:
    """What Inductor asks for facts about indices, which is told besides that the place of a query is below their
    number. So `k - q + queries - 1` is not negative, and read without a look at each whether it counts from the
    end."""
    known, rest = IndexPropagation.statically_true, sympy.Dummy(integer=True, nonnegative=True)

    def statically_true(self: Any, fact: Any) -> bool:
        told = sympy.sympify(fact).xreplace({PLACES["q"]: queries - 1 - rest})
        return bool(known(self, fact) or told == sympy.true)

    return statically_true


ARANGE = re.compile(r"(at::vec::VectorizedN?<[^>]*>)::arange\(")
"""What Inductor makes a ramp of, number by number: `ramp` of templates/cpu_common.h.jinja takes two instructions."""
TANH = re.compile(r"\b(\w+)\.tanh\(\)")
"""What Inductor has for a tangent of vectors: `hyperbolic_tangent` of the same is faster."""
STEEP = 1 << 20


def steep(expr: Any, index: sympy.Symbol) -> bool:
    """Whether a number changes so fast along a row that Inductor, which makes it of the first one by additions of 32
    bits, or of float32, would be wrong."""
    slopes = [sympy.Poly(t, index).LC() for t in sympy.Add.make_args(sympy.expand(expr)) if t.is_polynomial(index)]
    return any(n.is_number and abs(n) > STEEP for n in slopes)


@contextlib.contextmanager
def given(kernel: Any, memory: Mapping[str, str]) -> Iterator[None]:
    """Generated code may name PLACES, rows of float32, and other memory by local names."""
    get_dtype, known = V.graph.get_dtype, {PLACES[name]: name for name in PLACES}
    kernel.args.sizevars.update(known)
    outputs = dict(kernel.args.output_buffers)
    kernel.args.output_buffers.update(memory)
    with mock.patch.object(V.graph, "get_dtype", rows_are_float32(get_dtype)):
        yield
    for symbol in known:
        del kernel.args.sizevars[symbol]
    kernel.args.output_buffers.clear()
    kernel.args.output_buffers.update(outputs)


def rows_are_float32(get_dtype: Callable[[str], torch.dtype]) -> Callable[[str], torch.dtype]:
    return lambda name: torch.float32 if name.endswith(ROW) else get_dtype(name)


def named(kernel: Any, *expressions: Any) -> None:
    """Tells a kernel of the sizes in expressions, by names that Inductor gives to no others."""
    for symbol in (s for e in expressions for s in sympy.sympify(e).free_symbols):
        if symbol_is_type(symbol, (SymT.SIZE, SymT.UNBACKED_INT, SymT.PRECOMPUTED_SIZE)):
            kernel.args.sizevars.setdefault(symbol, f"k{symbol}")
