"""The lowering of flex_attention to our C++ kernel, templates/cpu_forward.cpp.jinja."""

from __future__ import annotations

from typing import Any

from flex_inductor.compat import cpp as inductor
from flex_inductor.compat import cpp_rows as rows
from flex_inductor.compat import triton
from flex_inductor.lowering.cpu_call import Call, source


def lower(call: Call) -> tuple[Any, Any, Any]:
    """Output, log-sum-exp in base 2, and greatest score in base 2. Raises Unsupported, before anything was done,
    for what torch's kernel must do."""
    constants = call.constants()
    query, key, value = call.operands()
    mods, lists = call.traced().scores(to=rows.ROW), call.lists()
    batch, heads, length, _ = query.get_size()
    made = [inductor.empty_float32([batch, heads, length]) for _ in range(2)]
    wanted = triton.is_read(1), triton.is_read(2)
    template = inductor.Template(
        "flex_inductor_forward",
        source("cpu_forward"),
        {"Q": query, "K": key, "V": value, **call.random_rows(), **lists},
        {name: x for name, x, asked in zip(("LSE", "MAX"), made, wanted) if asked},
        call.captured,
        inductor.dense_layout(query, [batch, heads, length, call.value.get_size()[3]]),
        mods,
        constants,
        lists,
    )
    return template.result(), *made
