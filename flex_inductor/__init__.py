"""flex_inductor: `torch.compile(model, backend="flex")` rewrites attention into torch's flex_attention, and says what
it did."""

from flex_inductor import compat, integrations, mods, parallel
from flex_inductor.aot import aot_compile
from flex_inductor.backend import FallbackWarning, flex, flex_eager
from flex_inductor.block_mask import create_block_mask
from flex_inductor.decisions import Decision, Fallback, GraphReport, listen
from flex_inductor.explain import Report, explain
from flex_inductor.export import rewrite
from flex_inductor.look import Look, SiteLook, look
from flex_inductor.vary import Varied, VaryError, vary
from flex_inductor.version import __version__

compat.announce(flex="flex_inductor.backend:flex", flex_eager="flex_inductor.backend:flex_eager")

__all__ = [
    "Decision",
    "Fallback",
    "FallbackWarning",
    "GraphReport",
    "Look",
    "Report",
    "SiteLook",
    "Varied",
    "VaryError",
    "__version__",
    "aot_compile",
    "create_block_mask",
    "explain",
    "flex",
    "flex_eager",
    "integrations",
    "listen",
    "look",
    "mods",
    "parallel",
    "rewrite",
    "vary",
]
