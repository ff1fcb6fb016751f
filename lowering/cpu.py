"""torch's C++ template for flex_attention, with six faults of torch 2.13 mended while our graphs compile.

- It reads the shape of queries and keys from the buffer below their views, and crashes where that has another rank (a
  linear layer's output, viewed as heads).
- It replaces the name of a size in the generated code as text, and breaks every name that begins alike (`ks7`, `ks77`).
- It cannot read a captured tensor that is computed in the same graph and not yet stored.
- It passes queries, keys and values by the buffers that they are views of, and loses where in it the view begins:
  values cut out of one projection would be read as queries. It wants the numbers of a row side by side, and looks for
  that before the strides of what is computed in the graph are settled.
- It reads the lists of blocks, except for some of their strides, as if they were contiguous.
- It names local variables after the buffers of the whole graph, so that every layer of a model has a kernel of its own,
  compiled and loaded apart from the others that do the same.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from flex_inductor import compat
from flex_inductor.compat import buffers

_lock = threading.RLock()
BLOCK_SIZES = ("cur_qSplitSize", "cur_kvSplitSize")  # what the template calls the symbolic sizes of a block


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """The template without its faults, for the time of a compilation."""
    template, lowerings = compat.cpu_template(), compat.flex_lowerings()
    mends = [(template, "choose_flex_template", _choose), (template, "modification", _modification),
             (template, "render", _render), (lowerings, "lower_cpu", _stored_first)]  # fmt: skip
    with _lock, contextlib.ExitStack() as stack:
        for owner, name, mend in mends:
            if hasattr(owner, name):  # 2.11 does not choose
                stack.enter_context(mock.patch.object(owner, name, mend(getattr(owner, name))))
        yield


def _stored_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def lower_cpu(query: Any, key: Any, value: Any, *others: Any) -> Any:
        score_mod, blocks, *rest, scores_read, masks_read = others
        captured = [[buffers.stored(x) for x in read] for read in (scores_read, masks_read)]
        lists = *map(buffers.contiguous, blocks[:-1]), blocks[-1]
        taken = {x.get_name() for read in captured for x in read if hasattr(x, "get_name")}
        operands = [buffers.whole_rows(x, taken) for x in (query, key, value)]
        return original(*operands, score_mod, lists, *rest, *captured)

    return lower_cpu


def _choose(original: Callable[..., Any]) -> Callable[..., Any]:
    def choose_flex_template(self: Any, query: Any, key: Any, num_threads: Any) -> Any:
        first, second = (_shaped(node) for node in self.input_nodes[:2])
        return original(self, first, second, num_threads)

    return choose_flex_template


def _shaped(node: Any) -> Any:
    """All that the original looks at: a shape, below two layers of views."""
    return SimpleNamespace(data=SimpleNamespace(data=SimpleNamespace(layout=SimpleNamespace(size=node.get_size()))))


def _render(original: Callable[..., Any]) -> Callable[..., Any]:
    def render(self: Any, *args: Any, **kwargs: Any) -> str:
        for number, name in enumerate(("score_buf_idx", "mask_buf_idx")):
            if getattr(self, name, None) is not None:
                setattr(self, name, number)
        return original(self, *args, **kwargs)

    return render


def _modification(original: Callable[..., Any]) -> Callable[..., Any]:
    def modification(self: Any, *args: Any, **kwargs: Any) -> str:
        """The original without its replacements, which are made on whole names here."""
        groups: list[Any] = []
        variables, self.block_vars = self.block_vars, (None, None)
        try:
            with mock.patch.object(compat.cpp_codegen(), "KernelGroup", _noted(groups)):
                code = original(self, *args, **kwargs)
        finally:
            self.block_vars = variables
        sizes = groups[0].args.sizevars
        for variable, name in zip(variables, BLOCK_SIZES):
            if variable in sizes:
                code = re.sub(rf"\b{sizes[variable]}\b", name, code)
        return code

    return modification


def _noted(groups: list[Any]) -> Callable[[], Any]:
    """Makes kernel groups that are remembered, and that name sizes apart from those of the kernel around them."""
    kernel_group = compat.cpp_codegen().KernelGroup

    def make() -> Any:
        group = kernel_group()
        group.args.size = lambda name: group.args._lookup("flex_size", group.args.sizevars, name)
        groups.append(group)
        return group

    return make
