"""The part of `compat` about Inductor's Triton templates. It imports Inductor, so only lowerings import it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch._inductor import config
from torch._inductor.codegen.triton import TritonPrinter, TritonSymbols
from torch._inductor.ir import ExternKernel, FixedLayout, FlexibleLayout, IRNode
from torch._inductor.kernel.flex import common, flex_attention
from torch._inductor.lowering import empty_strided, lowerings, to_dtype
from torch._inductor.ops_handler import WrapperHandler
from torch._inductor.select_algorithm import (
    NoValidChoicesError,
    SymbolicGridFn,
    TritonTemplate,
    TritonTemplateKernel,
    autotune_select_algorithm,
    create_inputs_key,
    get_algorithm_selector_cache,
)
from torch._inductor.utils import get_gpu_dram_gbps
from torch._inductor.virtualized import V
from torch.utils._pytree import tree_leaves

from flex_inductor.compat.subgraphs import traced

__all__ = ["TritonPrinter", "empty_strided", "freeze_irnodes", "in_memory", "lowerings", "to_dtype"]

aten = torch.ops.aten
freeze_irnodes = common.freeze_irnodes
in_memory = common.maybe_realize

MODIFICATION_TAKES_DTYPES = "input_dtypes" in inspect.signature(TritonTemplateKernel.modification).parameters
"""Whether `modification` is told the dtypes of positions; 2.11 knows only one."""


class Summing(WrapperHandler):
    """Adds a tile to a buffer after it was summed up, along each axis that the place in the buffer is free of: one
    atomic for a row, or for a tile, instead of one for every score. mask: of what is added."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.mask = inner.mask

    def store(self, name: str, index: sympy.Expr, value: Any, mode: Any = None) -> str:
        shape = shape_of(index)
        axes = [axis for axis, size in enumerate(shape) if size == "1"] if len(shape) == 2 else []
        if mode != "atomic_add" or not axes:
            return str(self._inner.store(name, index, value, mode))
        tile = f"tl.where({self.mask}, {value}, 0.0)"
        for axis in axes:
            tile = f"tl.sum({tile}, {axis}, keep_dims=True)"
        place = f"tl.broadcast_to({self._inner._process_indexing(index)}, [{', '.join(shape)}])"
        return f"tl.atomic_add({self._inner._add_kernel_input(name)} + {place}, {tile}, sem='relaxed')"


def shape_of(index: sympy.Expr) -> tuple[str, ...]:
    """The shape of an index in a template's code, as far as the release keeps account of shapes."""
    try:
        return tuple(map(str, TritonSymbols.get_block_shape(index)))
    except (AttributeError, TypeError):
        return ()


class TemplateKernel(TritonTemplateKernel):
    """The code of a template, in which what is added to captured tensors' gradients is summed up before."""

    def _handle_scatter_graph(self, scatter_graph: Any) -> Any:
        with V.set_ops_handler(Summing(V.get_ops_handler())):
            return super()._handle_scatter_graph(scatter_graph)


class Template(TritonTemplate):
    kernel_type = TemplateKernel


def template(name: str, grid: Callable[..., Any], source: str) -> Any:
    """A Triton template. Its inputs keep their layouts: where a release has an option for that, it is set."""
    known = inspect.signature(TritonTemplate.__init__).parameters
    options = {"always_freeze_layout": True} if "always_freeze_layout" in known else {}
    return Template(name=name, grid=SymbolicGridFn(grid), source=source, **options)


def sizes() -> Any:
    """Inductor's knowledge about the sizes of the graph that is being lowered."""
    return V.graph.sizevars


def is_number(size: Any) -> bool:
    """Whether a size is known."""
    return isinstance(size, (int, sympy.Integer))


def is_one(size: Any) -> bool:
    return bool(sizes().statically_known_equals(size, 1))


def hint(size: Any) -> int:
    """A guess of a size. The method has another name before 2.13."""
    known = sizes()
    return int((getattr(known, "optimization_hint", None) or known.size_hint)(size))


def max_autotune() -> bool:
    return bool(config.max_autotune or config.max_autotune_gemm)


def mod(graph: Any, dtypes: Mapping[str, torch.dtype], device: Any, reads: Sequence[Any]) -> Any:
    """A subgraph as code for a template. dtypes: of its first arguments, by name; the others are what it captures."""
    arguments = [common.create_placeholder(name, dtype, device) for name, dtype in dtypes.items()]
    code = traced(graph, arguments + list(reads))
    freeze_irnodes(code)
    return code


def dense_layout(like: Any, dtype: torch.dtype, size: Sequence[Any]) -> Any:
    """A dense layout, its dimensions in the order of another tensor's."""
    return FixedLayout(like.get_device(), dtype, list(size), stride=dense_strides(like, size))


def dense_strides(like: Any, size: Sequence[Any]) -> list[Any]:
    return [sympy.sympify(n) for n in common.infer_dense_strides(size, like.get_stride())]


def contiguous_layout(size: Sequence[Any], dtype: torch.dtype, device: Any) -> Any:
    return FixedLayout(device, dtype, list(size), stride=FlexibleLayout.contiguous_strides(size))


def choose(
    name: str,
    choices: Sequence[Any],
    inputs: Sequence[Any],
    layout: Any,
    reads: Any,
    mods: Any,
    made: Mapping[int, Any],
) -> Any:
    """The output of the fastest of several kernels. reads, mods: what subgraphs capture, and they themselves: Inductor
    looks for sizes in them. made: what makes up some of the inputs, by their place, to measure with."""
    tensors = [x for x in inputs if isinstance(x, IRNode)]
    result = autotune_select_algorithm(name, list(choices), tensors, layout, input_gen_fns=dict(made))
    out = result[0] if isinstance(result, tuple) else result  # 2.11 and 2.12 give the output alone
    out.data.data.subgraph_inps, out.data.data.subgraph_outs = list(reads), tree_leaves(list(mods))
    return out


def milliseconds(
    name: str, choices: Sequence[Any], inputs: Sequence[Any], layout: Any, made: Mapping[int, Any]
) -> float:
    """The time of the fastest of several kernels, measured now or before; infinite where Inductor is not to measure."""
    if config.deterministic or not choices:
        return math.inf
    tensors = [x for x in inputs if isinstance(x, IRNode)]
    cache, key = get_algorithm_selector_cache(), create_inputs_key(tensors)
    compiling = cache.make_precompile_fn(choices, name, key)
    try:
        times = cache.do_autotuning(name, tensors, layout, dict(made), key, list(choices), compiling)
    except NoValidChoicesError:
        return math.inf
    return min((times or {}).values(), default=math.inf)


def milliseconds_of_bytes(like: Any, each: int) -> float:
    """The time in which a device reads or writes some bytes for each number of a tensor."""
    return hint(math.prod(like.get_size())) * each / get_gpu_dram_gbps() / 1e6


def made_up(lists: Sequence[Any], inputs: Sequence[Any], blocks: int) -> dict[int, Callable[..., Any]]:
    """What makes up lists of blocks to measure with, by their place among the inputs. lists: numbers and places of
    blocks, in turn, or runs alone. blocks: how many each row has at least."""
    tensors = [x for x in inputs if isinstance(x, IRNode)]
    if len(lists) == 1:
        return {position(lists[0], tensors): functools.partial(made_up_runs, blocks)}
    made: dict[int, Callable[..., Any]] = {}
    for counts, places in zip(lists[::2], lists[1::2]):
        made[position(counts, tensors)] = common.create_num_blocks_fake_generator(places)
        made[position(places, tensors)] = common.create_indices_fake
    return made


def made_up_runs(blocks: int, runs: Any) -> torch.Tensor:
    """Rows that attend all blocks, half of them full."""
    made: torch.Tensor = common.create_indices_fake(runs)
    return made.copy_(torch.tensor([0, blocks // 2, blocks, blocks]))


FIRST_BUFFER_GRADIENT = 5
"""The place of the captured tensors' gradients among the results of a score_mod's gradient: after those of the score
and of its position."""


def is_read(number: int) -> bool:
    """Whether anything reads a result of the operator that is being lowered."""
    users = V.graph.current_node.users
    return any(user.target is not operator.getitem or user.args[1] == number for user in users)


def has_captured_gradients(graph: Any) -> bool:
    """Whether anything that the score_mod captures gets a gradient. graph: the subgraph of its gradient."""
    (results,) = next(n for n in graph.graph_module.graph.nodes if n.op == "output").args
    return any(x is not None for x in results[FIRST_BUFFER_GRADIENT:])


def joint(graph: Any, reads: Sequence[Any], dtype: torch.dtype, device: Any) -> Any:
    """The gradient of a score_mod, and of what it captures, as code for a template, and where that is written."""
    dtypes = {"score": dtype, **dict.fromkeys("bhmn", torch.int32), "grad_score_mod": dtype}
    graph.graph_module.graph.eliminate_dead_code()
    flex_attention.validate_joint_graph(graph.graph_module.graph)
    return flex_attention.process_joint_outputs(mod(graph, dtypes, device, reads), len(dtypes))


def gradients(of: Any, reads: Sequence[Any]) -> tuple[Any, ...]:
    """The gradients of what a score_mod captures, in the dtypes of that: they are summed up in float32."""
    return tuple(
        to_dtype(g, x.get_dtype()) if g is not None and g.get_dtype() != x.get_dtype() else g
        for g, x in zip(of.captured_grads, reads)
    )


def delta(out: Any, grad_out: Any, grad_logsumexp: Any, besides: bool = False) -> Any:
    """The row sums that the backward pass of softmax subtracts, in float32. besides: only what the gradient of the
    log-sum-exp adds to them."""
    if besides:
        rows = lowerings[aten.full](out.get_size()[:-1], 0.0, dtype=torch.float32, device=out.get_device())
    else:
        product = lowerings[aten.mul](to_dtype(out, torch.float32), to_dtype(grad_out, torch.float32))
        rows = lowerings[aten.sum](product, axis=-1)
    if grad_logsumexp is not None:
        rows = lowerings[aten.sub](rows, lowerings[aten.mul](grad_logsumexp, 1 / math.log(2)))
    return ExternKernel.require_contiguous(rows)


def empty_like(x: Any) -> Any:
    """A dense tensor of the size and dtype of another, its dimensions in the same order."""
    size = x.get_size()
    return empty_strided(size, stride=dense_strides(x, size), dtype=x.get_dtype(), device=x.get_device())


def zeros_like(x: Any, dtype: torch.dtype) -> Any:
    """Zeros in memory, of the size of another tensor, their dimensions in the same order."""
    size = x.get_size()
    zeros = lowerings[aten.full](size, 0.0, dtype=dtype, device=x.get_device())
    zeros.realize()
    return ExternKernel.require_exact_strides(zeros, dense_strides(x, size))


def scaled(x: Any, factor: float, dtype: torch.dtype) -> Any:
    """A tensor times a number, in another dtype."""
    return to_dtype(lowerings[aten.mul](x, factor), dtype)


def position(x: Any, among: Sequence[Any]) -> int:
    return next(number for number, other in enumerate(among) if other is x)


@contextlib.contextmanager
def lowered(by: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replaces the lowerings of operators inside the block. The rest of the table stays, because Inductor adds to
    it."""
    before = {operator: lowerings[operator] for operator in by}
    lowerings.update(by)
    try:
        yield
    finally:
        lowerings.update(before)
