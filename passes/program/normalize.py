"""normalize: the Dynamo graph, seen as ATen operators.

    softmax(q @ k.mT * 0.25, -1)   ->   transpose, expand, view, expand, view, bmm, _unsafe_view, mul, _softmax

The Dynamo graph stays. Each of its nodes is run on fake tensors under a recorder, which writes the ATen operators below
autograd into a second graph, for finding and lifting only. `origin` and `value_of` lead from there to the Dynamo graph.
Rewrites are made in the Dynamo graph, so everything that is not attention (autograd.Function, autocast, checkpoint,
vmap, random numbers, metadata) reaches Inductor exactly as it would without this backend.

Opaque nodes stand for Dynamo nodes that are not seen as ATen operators: higher-order operators, what runs under
functorch transforms, what reads nested tensors, and nodes that cannot be run, which keep the value that Dynamo found
for them. The bodies of higher-order operators that merely run their body are analysed as graphs of their own
(`bodies`). SDPA calls are recorded as one operator.

Declines: nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from flex_inductor import compat
from flex_inductor.passes.program.aten_graph import AtenGraph, Recorder, opaque
from flex_inductor.passes.program.effects import may_write_to, memory_of, written_by_schema
from flex_inductor.passes.program.walk import reachable


class Normalizer:
    """Runs a Dynamo graph node by node under the recorder."""

    def __init__(self, gm: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
        self.gm, self.fake_mode = gm, fake_mode
        self.result = AtenGraph(fx.Graph())
        self.recorder = Recorder(self.result, differentiable(gm))
        self.env: dict[fx.Node, Any] = {}
        self.holder: dict[int, fx.Node] = {}  # the Dynamo nodes of tensors, by their identity
        self.autocasts: dict[fx.Node, Any] = {}  # the autocast regions that are open
        self.functorch_depth = 0
        self.transformed: set[fx.Node] = set()  # under functorch transforms

    def run(self) -> AtenGraph:
        """Runs the whole graph, and returns its view as ATen operators."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(compat.no_autocast_cache())
            stack.callback(self.leave_autocast)
            stack.enter_context(compat.sdpa_seen_by(self.whole))
            stack.enter_context(self.fake_mode)
            if any(isinstance(n.meta.get("example_value"), torch.SymInt) for n in self.gm.graph.nodes):
                stack.enter_context(compat.enable_python_dispatcher())  # or meta functions refuse symbolic sizes
            for node in self.gm.graph.nodes:
                self.recorder.origin = node  # autocast is asked about here: inside an operator it is off again
                self.recorder.autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
                self.env[node] = value = self.value(node)
                self.note_memory(node, value)
                for leaf in tree_leaves(value):
                    self.link(leaf, node, value)
                self.link_written()
        self.result.graph.lint()
        return self.result

    def note_memory(self, node: fx.Node, value: Any) -> None:
        """Notes which memory of Dynamo's values corresponds to which memory of those here."""
        for seen, own in zip(tree_leaves(node.meta.get("example_value")), tree_leaves(value)):
            there, here = memory_of(seen), memory_of(own)
            if there is not None and here is not None and there != here:
                self.result.same_memory.setdefault(there, here)

    def link(self, leaf: Any, node: fx.Node, value: Any) -> None:
        """Notes that a Dynamo node has the value of an ATen node: the first one, where later ones hand it on (dropout
        of nothing), perhaps in another region of autocast."""
        if isinstance(leaf, torch.Tensor) and leaf is value:
            known = self.result.node(leaf)
            if known is None:
                known = self.recorder.add("placeholder", node.name, (), {}, leaf)
                self.recorder.name(leaf, known)
            self.result.value_of.setdefault(known, node)
            self.holder[id(leaf)] = node

    def link_written(self) -> None:
        """An operator that writes in place returns what it wrote to: the Dynamo node of that has its value, though it
        came before (`cache[:, :, place] = keys` has no value of its own)."""
        for node in self.recorder.recent:
            holder = self.holder.get(id(node.meta["val"]))
            if holder is not None and any(True for _ in written_by_schema(node.target, node.args, node.kwargs)):
                self.result.value_of.setdefault(node, holder)
        self.recorder.recent.clear()

    def value(self, node: fx.Node) -> Any:
        """Runs a node, or takes the value that Dynamo found."""
        if node.op == "placeholder":
            return node.meta.get("example_value")
        if node.op == "get_attr":
            return self.attribute(node)
        if node.op == "output":
            return self.unseen(node)
        if (
            self.changes_mode(node)
            or self.in_functorch(node)
            or isinstance(node.target, torch._ops.HigherOrderOperator)
        ):
            return self.unseen(node)
        try:
            return self.execute(node)
        except Exception:  # whatever an operator does not like about fake tensors: Dynamo knows its value
            return self.unseen(node)

    def attribute(self, node: fx.Node) -> Any:
        """The value of a get_attr node, as a fake tensor."""
        value: Any = self.gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            return self.fake_mode.from_tensor(value, static_shapes=True)
        return value

    def execute(self, node: fx.Node) -> Any:
        """Runs a node under the recorder."""
        load = lambda n: self.env[n]  # noqa: E731
        args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
        if any(map(compat.is_nested, tree_leaves((args, kwargs)))):
            return self.unseen(node)
        if node.target in compat.SDPA:
            return self.whole(node.target, args, kwargs)
        with self.recorder:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            if node.op == "call_module":
                return self.gm.get_submodule(str(node.target))(*args, **kwargs)
            return node.target(*args, **kwargs)

    def whole(self, sdpa: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs an SDPA call without looking into it, and records it as one operator."""
        with self.recorder.looking_away():
            result = sdpa(*args, **kwargs)
        self.recorder.record(torch.ops.aten.scaled_dot_product_attention.default, args, kwargs, result)
        return result

    def unseen(self, node: fx.Node) -> Any:
        """Records an opaque node: it reads its arguments, and has the value that Dynamo found."""
        read = [x for n in node.all_input_nodes for x in tree_leaves(self.env[n]) if isinstance(x, torch.Tensor)]
        value = node.meta.get("example_value")
        results = [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]
        if read or results:
            seen = self.recorder.record(opaque, read, {}, results)
            seen.meta.update(writes=self.written_values(node), transformed=node in self.transformed)
        return value

    def written_values(self, node: fx.Node) -> list[fx.Node]:
        """The ATen nodes of the tensors that an opaque node may write to. A write to a tensor under a functorch
        transform may reach everything that the tensor was made of."""
        touched = may_write_to(node)
        if node in self.transformed:
            inside = lambda n: n.all_input_nodes if n in self.transformed else ()  # noqa: E731
            touched = list(reachable(touched, inside))
        tensors = [x for n in touched for x in tree_leaves(self.env[n]) if isinstance(x, torch.Tensor)]
        return [self.recorder.known(x) for x in tensors]

    def changes_mode(self, node: fx.Node) -> bool:
        """Follows no_grad and autocast regions: autocast changes what operators come down to."""
        if node.target is torch._C._set_grad_enabled:
            self.recorder.grad = self.recorder.differentiable and bool(node.args[0])
            return True
        if node.target is torch.amp.autocast_mode._enter_autocast:
            self.autocasts[node] = torch.autocast(*node.args)
            self.autocasts[node].__enter__()
            return True
        if node.target is torch.amp.autocast_mode._exit_autocast:
            self.autocasts.pop(node.args[0]).__exit__(None, None, None)
            return True
        return False

    def leave_autocast(self) -> None:
        """A graph may end inside a region (after a graph break), or fail there."""
        while self.autocasts:
            self.autocasts.popitem()[1].__exit__(None, None, None)

    def in_functorch(self, node: fx.Node) -> bool:
        """Whether a node runs under a functorch transform, which Dynamo opens and closes by nodes of their own."""
        name = getattr(node.target, "__name__", "")
        module = getattr(node.target, "__module__", "") or ""
        if "functorch" in module:
            if name.endswith("increment_nesting"):
                self.functorch_depth += 1
            elif name.endswith("decrement_nesting"):
                self.functorch_depth -= 1
        elif self.functorch_depth == 0:
            return False
        self.transformed.add(node)
        return True


def differentiable(gm: fx.GraphModule) -> bool:
    """Whether anything in a graph requires a gradient; if not, grad modes mean nothing."""
    values = (x for n in gm.graph.nodes for x in tree_leaves(n.meta.get("example_value")))
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in values)


def fake_mode_of(gm: fx.GraphModule) -> FakeTensorMode | None:
    """The fake mode that Dynamo ran the graph in."""
    for node in gm.graph.nodes:
        for value in tree_leaves(node.meta.get("example_value")):
            value = compat.numbers_of(value)
            if isinstance(value, FakeTensor):
                return value.fake_mode
    return None


def normalize(gm: fx.GraphModule) -> AtenGraph | None:
    """The ATen view of a Dynamo graph; None for a graph without tensors."""
    mode = fake_mode_of(gm)
    return Normalizer(gm, mode).run() if mode is not None else None


RUNS_ITS_BODY = frozenset({
    "tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap", "wrap_with_set_grad_enabled",
    "wrap_with_autocast", "invoke_subgraph", "cond", "while_loop", "map_impl", "scan",
})  # fmt: skip


def bodies(gm: fx.GraphModule) -> Iterator[tuple[str, fx.GraphModule]]:
    """The graphs that higher-order operators of gm run as they are: name of the attribute and graph."""
    for node in gm.graph.nodes:
        if getattr(node.target, "_name", None) not in RUNS_ITS_BODY:
            continue
        for arg in node.all_input_nodes:
            body = getattr(gm, str(arg.target), None) if arg.op == "get_attr" else None
            if isinstance(body, fx.GraphModule):
                yield str(arg.target), body
