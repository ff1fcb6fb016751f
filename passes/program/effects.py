"""Which memory may an opaque node write to? That is a Dynamo node whose ATen operators are not seen.

    checkpoint(body, x, mask)       the inputs whose memory an operator of the body writes to
    x.copy_(t) under vmap           everything that x may be made of
    a kernel, an unknown function   all of its arguments

torch marks functions that write: operators by their schema, others by their name (`add_`), by `out=` or by `inplace=`.
A function of torch without such a mark writes nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from flex_inductor import compat
from flex_inductor.passes.program.walk import reachable

AUGMENTED = frozenset({operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
                       operator.ifloordiv, operator.imod, operator.ipow, operator.imatmul, operator.iand,
                       operator.ior, operator.ixor, operator.ilshift, operator.irshift})  # fmt: skip
KNOWN_MODULES = ("torch", "_operator", "math", "builtins")
KEEPS_STATISTICS = frozenset({"batch_norm", "instance_norm"})


def memory_of(value: Any) -> int | None:
    """A number that identifies a tensor's memory; None for a tensor without memory of its own."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # a tensor without storage aliases nothing
        return None


def memories(node: fx.Node) -> set[int | None]:
    """The memory of each of a Dynamo node's values; None for a value without memory of its own."""
    return {memory_of(x) for x in tree_leaves(node.meta.get("example_value")) if isinstance(x, torch.Tensor)}


def written_by_schema(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[fx.Node]:
    """The arguments that an operator writes to, by its schema."""
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for i, spec in enumerate(schema.arguments):
        if spec.alias_info is None or not spec.alias_info.is_write:
            continue
        arg: Any = args[i] if i < len(args) else kwargs.get(spec.name)
        yield from (x for x in (arg if isinstance(arg, (list, tuple)) else (arg,)) if isinstance(x, fx.Node))


def may_write_to(node: fx.Node) -> list[fx.Node]:
    """The arguments of a Dynamo node that it may write to."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return written_by_bodies(node)
    if node.op not in ("call_function", "call_method", "call_module"):
        return []
    if hasattr(node.target, "_schema"):
        return list(written_by_schema(node.target, node.args, node.kwargs))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    module = getattr(node.target, "__module__", None) or "torch"
    if node.op == "call_module" or module.split(".")[0] not in KNOWN_MODULES or name in KEEPS_STATISTICS:
        return list(node.all_input_nodes)
    first = [n for n in (node.args[0] if node.args else node.kwargs.get("input"),) if isinstance(n, fx.Node)]
    in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or node.kwargs.get("inplace")
    out = [n for n in tree_leaves(node.kwargs.get("out")) if isinstance(n, fx.Node)]
    return [*out, *(first if in_place or node.target in AUGMENTED else ())]


def written_by_bodies(node: fx.Node) -> list[fx.Node]:
    """The inputs of a higher-order operator that its bodies may write to; all inputs if its bodies are not known.

    Of an autograd.Function only the forward body counts, because its backward writes to gradients."""
    if node.target is compat.flex_attention_hop:
        return []
    name, inputs = getattr(node.target, "_name", ""), node.all_input_nodes
    args = [node.args[0]] if name == "autograd_function_apply" else inputs
    owner: Any = node.graph.owning_module
    found = [getattr(owner, str(n.target), None) for n in args if isinstance(n, fx.Node) and n.op == "get_attr"]
    graphs = [body for body in found if isinstance(body, fx.GraphModule)]
    given = [n for n in inputs if memories(n)]
    hit = [p for body in graphs for p in written_inputs(body)]
    reached: set[int | None] = set().union(*map(memories, hit)) - {None}
    known = set().union(*map(memories, given))
    if not graphs or any(not (memories(p) - {None}) or not memories(p) <= known for p in hit):
        return given
    return [n for n in given if memories(n) & reached]


def written_inputs(body: fx.GraphModule) -> list[fx.Node]:
    """The inputs of a graph whose memory something in it may write to."""
    targets = [t for node in body.graph.nodes for t in may_write_to(node)]
    touched: set[int | None] = set().union(*map(memories, targets)) - {None}
    vague = reachable([t for t in targets if not memories(t) - {None}], lambda n: n.all_input_nodes)
    inputs = [n for n in body.graph.nodes if n.op in ("placeholder", "get_attr")]
    return [n for n in inputs if memories(n) & touched or (n in vague and memories(n))]
