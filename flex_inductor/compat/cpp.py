"""The part of `compat` that knows Inductor's C++ code generation. It imports Inductor: only what lowers graphs imports
this."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch._inductor import ir, lowering
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.codegen.cpp_template_kernel import CppTemplateKernel
from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP, cexpr
from torch._inductor.kernel.flex import common
from torch._inductor.utils import Placeholder, parallel_num_threads
from torch._inductor.virtualized import V
from torch.utils._sympy.printers import CppPrinter

from flex_inductor.compat.cpp_rows import named, row_code

__all__ = ["DTYPE_TO_CPP", "CppPrinter", "cexpr"]

Rows = Mapping[str, tuple[Any, ...]]
"""Code for rows by its name in a template: what row_code wants."""


class Template(CppTemplate):
    """A C++ kernel. source: its text, in jinja. inputs: Inductor tensors in memory, by name. outputs: those that it
    writes besides the one that it makes. captured: what its mods read. constants: what else the text is told. lists:
    the inputs that are lists of blocks."""

    def __init__(
        self, name: str, source: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], captured: Sequence[Any],
        layout: Any, rows: Rows, constants: Mapping[str, Any], lists: Mapping[str, Any],
    ) -> None:  # fmt: skip
        tensors = [x for x in captured if isinstance(x, ir.IRNode)]
        super().__init__(name, [*inputs.values(), *tensors], layout, parallel_num_threads())
        self.source, self.inputs, self.outputs = source, inputs, outputs
        self.captured, self.rows, self.constants, self.lists = captured, rows, constants, lists

    def result(self) -> Any:
        """The output of the kernel, as an Inductor tensor."""
        return ir.TensorBox.create(Buffer(self))

    def render(self, kernel: Any, template_buffer_node: Any = None, epilogue_nodes: Any = None, **_: Any) -> str:
        if epilogue_nodes:
            raise NotImplementedError("nothing is fused behind our kernels")
        assert template_buffer_node is not None
        inputs: dict[str, Any] = {}
        for number, node in enumerate(self.input_nodes):  # several may be views of one buffer
            inputs.setdefault(node.get_name(), (f"memory{number}", node))
        outputs = {**self.outputs, "OUT": template_buffer_node}
        definition = kernel.def_kernel(
            inputs=dict(inputs.values()),
            outputs={f"memory_{name}": node for name, node in outputs.items()},
        )
        named(kernel, *(x for x in self.captured if isinstance(x, sympy.Expr)))
        tensors = {name: Tensor(kernel, node) for name, node in {**self.inputs, **outputs}.items()}
        text = self._template_from_string(self.source)
        given_lists = {name: tensors[name] for name in self.lists}

        def rows(name: str) -> str:
            return row_code(kernel, *self.rows[name])

        told = {**tensors, **self.constants, "rows": rows, "given_lists": given_lists, "tensors": tensors}
        return str(text.render(template=self, kernel=kernel, definition=definition, **told))


class Tensor:
    """A tensor as the text of a kernel has it."""

    def __init__(self, kernel: Any, node: Any) -> None:
        self.node, self.kernel = node, kernel
        named(kernel, *node.get_size(), *node.get_stride(), node.get_layout().offset)

    @property
    def type(self) -> str:
        return str(DTYPE_TO_CPP[self.node.get_dtype()])

    @property
    def pointer(self) -> str:
        """Where the tensor begins in memory."""
        args, name = self.kernel.args, self.node.get_name()
        memory = args.output_buffers.get(name) or args.input(name)
        return f"({memory} + {self.number(self.node.get_layout().offset)})"

    def size(self, dim: int) -> str:
        return self.number(self.node.get_size()[dim])

    def stride(self, dim: int) -> str:
        return self.number(self.node.get_stride()[dim])

    @property
    def numel(self) -> str:
        return self.number(sympy.prod(self.node.get_size()))

    def number(self, size: Any) -> str:
        return f"({cexpr(self.kernel.rename_indexing(sympy.sympify(size)))})"


class Buffer(ir.CppTemplateBuffer):
    """What a kernel makes, and that it writes to other tensors."""

    def __init__(self, template: Template) -> None:
        mutated = list(template.outputs.values())
        super().__init__(template.layout, [*template.input_nodes, *mutated], self.rendering, template, None)
        self.captured = template.captured
        device = template.layout.device
        self.outputs = [self, *(ir.MutationOutput(ir.NoneLayout(device=device), x, self) for x in mutated)]

    def get_outputs(self) -> list[Any]:
        return list(self.outputs)

    def rendering(self, node: Any, *_: Any, epilogue_nodes: Any = None, **__: Any) -> Any:
        """A kernel, and what renders it. Called with the buffer, and whether others read it, before memory is taken for
        it. The kernel writes it, whether anything reads it or not."""
        V.graph.removed_buffers.discard(self.get_name())
        kernel = CppTemplateKernel(kernel_name=str(Placeholder.KERNEL_NAME), num_threads=self.template.num_threads)
        render = functools.partial(
            kernel.render, self.template, template_buffer_node=node, epilogue_nodes=epilogue_nodes
        )
        return kernel, render

    def get_free_symbol_uses(self, unbacked_only: bool = False) -> Any:
        found = super().get_free_symbol_uses(unbacked_only)
        for x in self.captured:
            found |= ir.get_free_symbols(x, unbacked_only) if isinstance(x, sympy.Expr) else set()
        return found


def in_rows(tensor: Any) -> Any:
    """An Inductor tensor in memory whose rows are numbers side by side, wherever they are; a copy where they are
    not."""
    stored = ir.ExternKernel.realize_input(tensor)
    if isinstance(stored.get_layout(), ir.FlexibleLayout):  # whose strides are decided later, by what it is made of
        ir.as_storage_and_layout(stored, want_contiguous=True)
    if V.graph.sizevars.statically_known_equals(stored.get_stride()[-1], 1):
        return stored
    stored = ir.ExternKernel.copy_input(stored)
    ir.as_storage_and_layout(stored, want_contiguous=True)
    return stored


def in_memory(tensor: Any) -> Any:
    """An Inductor tensor in memory, its strides fixed."""
    stored = ir.ExternKernel.realize_input(tensor)
    if isinstance(stored.get_layout(), ir.FlexibleLayout):
        ir.as_storage_and_layout(stored, want_contiguous=True)
    return stored


def sizes() -> Any:
    """What is known of the sizes of the graph that is lowered."""
    return V.graph.sizevars


def is_one(size: Any) -> bool:
    return bool(V.graph.sizevars.statically_known_equals(size, 1))


def number(size: Any) -> int:
    """A size that is known, or a guard that it is what it is now."""
    return int(size) if isinstance(size, int) else int(V.graph.sizevars.guard_int(size))


def float_code(x: float) -> str:
    """A float32 as C++ code."""
    return f"static_cast<float>({x!r})"


def empty_float32(size: Sequence[Any]) -> Any:
    """A new tensor, not initialised."""
    return lowering.empty_strided(list(size), None, dtype=torch.float32, device=torch.device("cpu"))


def empty_like(x: Any) -> Any:
    """A dense tensor of the size and dtype of another, its dimensions in the same order."""
    size = x.get_size()
    strides = [sympy.sympify(n) for n in common.infer_dense_strides(size, x.get_stride())]
    return lowering.empty_strided(size, strides, dtype=x.get_dtype(), device=x.get_device())


def dense_layout(like: Any, size: Sequence[Any]) -> Any:
    """A dense layout, its dimensions in the order of another tensor's."""
    strides = [sympy.sympify(n) for n in common.infer_dense_strides(size, like.get_stride())]
    return ir.FixedLayout(like.get_device(), like.get_dtype(), list(size), stride=strides)
