"""vary: a model with another mask or another score at some of its attention sites.

narrow = flex_inductor.vary(model, {"encoder.layer.*": mods.window(256)})
out = narrow(x)                          # the numbers are others: the model itself is unchanged
print(flex_inductor.explain(narrow)(x))  # both formulas
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import BackendCompilerFailed

from flex_inductor import backend as backends
from flex_inductor import passes
from flex_inductor.compat import eager
from flex_inductor.compat.dynamic import frame_number
from flex_inductor.decisions import GraphReport, publish
from flex_inductor.explain import _isolation, _uncompiled
from flex_inductor.lowering import choose
from flex_inductor.mods.compose import Mod, a_mod
from flex_inductor.options import read
from flex_inductor.passes.run import Pipeline
from flex_inductor.places import Pattern, Place, Places
from flex_inductor.recording import BackendName
from flex_inductor.request import Backend
from flex_inductor.vary.inputs import drop_unread, with_inputs
from flex_inductor.vary.step import Change, VaryError, Varying

__all__ = ["Varied", "VaryError", "vary"]


def vary(
    model: Callable[..., Any],
    changes: Mapping[Pattern, Mod],
    *,
    backend: BackendName = "flex",
    dynamic: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Varied:
    """A model whose attention has another mask or another score at the named sites.

    model: a module or a function; it stays as it is, and shares its parameters with the result.
    changes: from the number of a site, or a glob for the path of a module that it lies in, to a mod
        (`flex_inductor.mods`). A site that several name gets all of them, in this order. Masks hold beside the model's
        own, unless they are `mods.instead`; scores are computed from the model's own, biases included.
    backend, dynamic, options: as for torch.compile. Everything that can be rewritten is.

    The result is called as the model is. It is a module: its `parameters()` are those of the model and those of the
    mods that are `nn.Parameter`s, and it trains where the backend trains. Raises VaryError at a call where a name fits
    no site, and where a site cannot be changed; TypeError for changes that are none."""
    if not isinstance(changes, Mapping):
        raise TypeError(f"vary: {changes!r} is no mapping from sites to mods, like {{0: mods.causal()}}")
    for pattern, mod in changes.items():
        if not isinstance(pattern, (int, str)):
            raise TypeError(f"vary: {pattern!r} names no site: it must be a number, or a glob for the path of a module")
        a_mod("vary", mod)
    return Varied(model, changes, backend, dynamic, dict(options or {}))


class Varied(nn.Module):
    """What `vary` returns."""

    def __init__(
        self,
        model: Callable[..., Any],
        changes: Mapping[Pattern, Mod],
        backend: BackendName,
        dynamic: bool | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.changes = dict(changes)
        self.settings = backend, dynamic, options
        self.ran: set[Place] = set()
        inner = _uncompiled(model)
        self.places = Places.of(getattr(inner, "__self__", inner))
        for i, tensor in enumerate(self.tensors()):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"varied_{i}", tensor)
        compiler = self.compiler_for(backend, options)
        self.__dict__["run"] = torch.compile(inner, backend=compiler, dynamic=dynamic, **_isolation())

    def tensors(self) -> list[torch.Tensor]:
        """The tensors of all mods, each once."""
        return list({id(t): t for mod in self.changes.values() for t in mod.tensors}.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Varied:
        return Varied(copy.deepcopy(self.model, memo), copy.deepcopy(self.changes, memo), *self.settings)

    @torch.compiler.disable  # another backend would compile the model as it is
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.ran.clear()
        try:
            with torch._dynamo.config.patch(ALWAYS):
                result = self.run(*args, **kwargs)
        except BackendCompilerFailed as failure:
            if isinstance(failure.inner_exception, VaryError):
                raise failure.inner_exception from None
            raise
        self.check_names()
        if self.changes and not self.ran:
            raise VaryError("the model was not compiled, so that none of its sites was varied")
        return result

    def check_names(self) -> None:
        """Raises VaryError if a name fits no site that has been met."""
        unknown = self.places.unmatched(self.changes)
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise VaryError(f"no attention site is named {names}; there are\n{self.places.listing()}")

    def compiler_for(self, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The backend of a name, which varies each graph that Dynamo gives it."""
        ours, settings = read(None, {**options, "rewrite": "always", "on_failure": "raise"})
        known: dict[str, tuple[Backend, Callable[..., Any]]] = {
            "flex": (
                choose.answers(ours, settings),
                functools.partial(backends.compile_with_inductor, settings=settings),
            ),
            "flex_eager": (backends.eager_answers(ours), eager.eager),
        }
        if name not in known:
            raise ValueError(f"unknown backend {name!r}; known: {', '.join(known)}")
        answers, compiler = known[name]

        def compile_graph(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            varying, report, after, tensors = self.rewritten(gm, inputs, answers)
            publish(report)
            compiled = compiler(after, [*inputs, *tensors])

            def run_graph(*args: Any) -> Any:
                self.ran.update(varying.chosen.values())
                return compiled(*args, *tensors)

            return run_graph

        return compile_graph

    def rewritten(
        self, gm: fx.GraphModule, inputs: Sequence[Any], answers: Backend, more: Pipeline = ()
    ) -> tuple[Varying, GraphReport, fx.GraphModule, list[torch.Tensor]]:
        """What becomes of a Dynamo graph: what was done, the report, the graph, and the tensors that it takes behind
        its inputs. more: steps of the pipeline behind the change. Raises VaryError."""
        tensors = self.tensors()
        known = with_inputs(gm, tensors, inputs)
        changes = [Change(p, m, tuple(known.names.get(id(t), "") for t in m.tensors)) for p, m in self.changes.items()]
        learns = any(t.requires_grad for t in tensors)
        varying = Varying(changes, self.places, self.places.start(frame_number()), learns)
        given = answers.refuse, answers.choose, answers.prefer
        try:
            report = passes.rewrite(known.gm, *given, varying.pipeline(more))
        except passes.PassFailed as failure:
            raise failure.__cause__ or failure from None
        after = passes.copy_of(report.after)
        return varying, report, after, drop_unread(after, known.added)


ALWAYS = {"recompile_limit": 1 << 20, "accumulated_recompile_limit": 1 << 20, "suppress_errors": False}
"""Dynamo runs a model as it is, and so unvaried, once it has compiled it too often, and after errors if told to."""
