"""What stands around a program or around parts of it: grad modes, autocast, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

REGIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "softmax": ("softmax",),
    "product": ("product",),
    "steps": ("steps",),
    "scores": ("product", "steps"),
    "softmax_and_values": ("softmax", "behind", "values"),
    "attention": ("product", "steps", "softmax", "behind", "values"),
    "values": ("values",),
    "preparation": ("touches", "groups"),
    "after": ("after",),
}
"""Parts of a program that stand in one `with` block."""
AROUND = {
    "no_grad": "torch.no_grad()",
    "grad": "torch.enable_grad()",
    "autocast": "torch.autocast('cpu', dtype=torch.bfloat16)",
    "no_autocast": "torch.autocast('cpu', enabled=False)",
}
CALL = "inner(ARGUMENTS)"
WHOLE = {
    "none": "",
    "checkpoint": "return checkpoint(inner, ARGUMENTS, use_reentrant=False)",
    "inner": f"return {CALL}",
    "autocast": f"with torch.autocast('cpu', dtype=torch.bfloat16):\n    return {CALL}",
    "grad_enabled": f"with torch.set_grad_enabled(True):\n    return {CALL}",
    "twice": f"y, *more = as_tuple({CALL})\nz, *_ = as_tuple({CALL})\nreturn y + z, *more",
    "checkpoint_twice": "y, *more = as_tuple(checkpoint(inner, ARGUMENTS, use_reentrant=False))\n"
    f"z, *_ = as_tuple({CALL})\nreturn y - 0.5 * z, *more",
}
