"""The part of `compat` that knows AOTInductor. It imports Inductor: only what compiles ahead of time imports this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._export.utils import _compiling_state_context
from torch._inductor import compile_fx
from torch._inductor.package import package_aoti

from flex_inductor import compat


def package(
    gm: torch.fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], path: str, settings: dict[str, Any],
    around: Any = None,
) -> None:  # fmt: skip
    """Compiles the module of an exported program by AOTInductor into a package, as aoti_compile_and_package does, which
    cannot be told what compiles each graph. gm: changed by it. around: as for compat.inductor."""
    settings = {**settings, "aot_inductor.package": True}
    given, settings = compile_fx._aoti_flatten_inputs(gm, tuple(args), dict(kwargs), options=settings)
    with _compiling_state_context():
        files = compile_fx.compile_fx_aot(gm, given, inner_compile=compat.inside(around), config_patches=settings)
    package_aoti(path, files)
