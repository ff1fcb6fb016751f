"""Inductor's tensors as a C++ kernel reads them: stored, in rows, from the start of a buffer."""

from __future__ import annotations

from typing import Any


def stored(tensor: Any) -> Any:
    """An Inductor tensor that the C++ template can read from memory; captured sizes are returned as they are.

    A value that is not computed yet is stored. A view that cannot be described by strides is copied, and so is a tensor
    without a dimension of stride one, because `lower_cpu` would copy that without telling the mod that reads it."""
    from torch._inductor.ir import BaseView, ExternKernel, ReinterpretView
    from torch._inductor.virtualized import V

    if not hasattr(tensor, "realize"):
        return tensor
    tensor.realize()
    is_view = isinstance(tensor.data, BaseView) and not isinstance(tensor.data, ReinterpretView)
    apart = not is_view and tensor.get_size() and 1 not in tensor.get_stride()
    written = tensor.get_name() in V.graph.mutated_buffers  # by a scatter, before which the kernel would read it
    return _in_rows(ExternKernel.copy_input(tensor)) if is_view or apart or written else tensor


def whole_rows(tensor: Any, taken: set[str]) -> Any:
    """An Inductor tensor as torch's C++ template reads queries, keys and values, or a copy that is.

    The template reads from the start of a buffer, rows that do not overlap and have stride one, and each buffer only
    once. taken: the names of the buffers that the kernel reads already; the name of this one is added."""
    from torch._inductor.ir import ExternKernel, FlexibleLayout
    from torch._inductor.virtualized import V

    stored = ExternKernel.realize_input(tensor)
    if isinstance(stored.get_layout(), FlexibleLayout):  # its strides would be decided later
        stored = _in_rows(stored)
    *_, between, within = stored.get_stride()
    rows = within == 1 and V.graph.sizevars.statically_known_true(between >= stored.get_size()[-1])
    if stored.get_layout().offset != 0 or not rows or stored.get_name() in taken:
        stored = _in_rows(ExternKernel.copy_input(stored))
    taken.add(stored.get_name())
    return stored


def _in_rows(tensor: Any) -> Any:
    """A new tensor, with its strides fixed as contiguous ones."""
    from torch._inductor.ir import as_storage_and_layout

    as_storage_and_layout(tensor, want_contiguous=True)
    return tensor


def contiguous(tensor: Any) -> Any:
    """An Inductor tensor that is stored from the start of its buffer on, in the order of its dimensions."""
    from torch._inductor.ir import ExternKernel, FlexibleLayout

    if not hasattr(tensor, "realize"):
        return tensor
    stored = ExternKernel.realize_input(tensor)
    layout = stored.get_layout()
    if isinstance(layout, FlexibleLayout) or (layout.offset == 0 and layout.is_contiguous()):
        return _in_rows(stored)
    return _in_rows(ExternKernel.copy_input(stored))
