"""Where sites are in a model: their number, the paths of the modules around them, and patterns that name them.

Sites are counted over all graphs, in the order in which these are compiled, as `explain` lists them. A pattern is the
number of a site, or a glob for the path of a module (`encoder.layer.*`), which names all sites inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx

from flex_inductor.passes import records

Pattern = str | int
START = re.compile(r"^[LG]\['\w+'\]\.?")
MEMBER = re.compile(r"\.?_modules\['([^']*)'\]|\[(\d+)\]")


@dataclass(frozen=True)
class Place:
    """A site. number: among all sites. module: the path of the innermost module around it; empty if there is none.
    source: the line of the model."""

    number: int
    module: str
    source: str

    def __str__(self) -> str:
        return f"{self.number}: {self.module or '(no module)'} ({self.source})"

    def matches(self, pattern: Pattern) -> bool:
        if isinstance(pattern, int):
            return pattern == self.number
        return any(fnmatchcase(path, pattern) for path in ("", *outer(self.module)))


@dataclass
class Places:
    """The sites of a model that have been met. names: paths of modules by identity. first: the number of the first site
    of a frame of the model, which keeps its numbers when it is compiled again."""

    names: Mapping[str, str]
    met: dict[int, Place] = field(default_factory=dict)
    first: dict[Any, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Places:
        modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
        return cls({str(id(m)): name for name, m in modules})

    def start(self, frame: Any) -> int:
        """The number of the first site of what is compiled. frame: what that is; None for something new every time."""
        return self.first.setdefault(frame, len(self.met)) if frame is not None else len(self.met)

    def meet(self, anchors: Iterable[fx.Node], start: int) -> list[Place]:
        """The places of a graph's sites, which are numbered from `start` on."""
        found = [Place(i, self.module(a), records.source_line(a)) for i, a in enumerate(anchors, start)]
        self.met.update({p.number: p for p in found})
        return found

    def module(self, anchor: fx.Node) -> str:
        """The path of the innermost module around a node of the ATen graph."""
        origin = anchor.meta.get("origin") or anchor
        stack = origin.meta.get("nn_module_stack") or {}
        paths = [self.names.get(key.partition("@")[0]) or path_of(text) for key, (text, _) in stack.items()]
        return next(filter(None, reversed(paths)), "")

    def unmatched(self, patterns: Iterable[Pattern]) -> list[Pattern]:
        """The patterns that name no site."""
        return [p for p in patterns if not any(place.matches(p) for place in self.met.values())]

    def listing(self) -> str:
        """All sites, a line each."""
        return "\n".join(f"  {place}" for place in self.met.values()) or "  (none)"


def path_of(text: str) -> str:
    """`layers.0.attn` for Dynamo's `L['self'].layers.0.attn`."""
    return MEMBER.sub(lambda m: f".{m[1] or m[2]}", START.sub("", text)).lstrip(".")


def outer(path: str) -> list[str]:
    """The paths of a module and of those around it."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
