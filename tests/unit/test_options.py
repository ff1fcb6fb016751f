"""Options: ours, Inductor's, and the environment."""

from __future__ import annotations

import pytest
import torch

from flex_inductor.options import Options, read


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEX_INDUCTOR_RATES")
    assert read(None, None)[0] == Options("auto", "fallback")


def test_ours_and_inductors() -> None:
    ours, settings = read(None, {"rewrite": "always", "max_autotune": True, "triton.cudagraphs": False})
    assert ours.rewrite == "always"
    assert settings["max_autotune"] is True and settings["triton.cudagraphs"] is False and "rewrite" not in settings


def test_unknown_option_lists_the_known_ones() -> None:
    known = "rewrite, on_failure, kernels, rates and mode"
    with pytest.raises(ValueError, match=rf"unknown option 'rewritee' .*did you mean rewrite\?.*{known}"):
        read(None, {"rewritee": "always"})


def test_unknown_option_reaches_the_user() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"unknown option 'no_such_option'"):
        torch.compile(lambda x: x + 1, backend="flex_eager", options={"no_such_option": 1})(torch.ones(2))


@pytest.mark.parametrize(("name", "value"), [("rewrite", "sometimes"), ("on_failure", True)])
def test_value_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"option '{name}' is {value!r}; it must be one of"):
        read(None, {name: value})


def test_environment_is_below_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "never")
    monkeypatch.setenv("FLEX_INDUCTOR_ON_FAILURE", "raise")
    monkeypatch.setenv("FLEX_INDUCTOR_RATES", "measured")
    assert read(None, None)[0] == Options("never", "raise", rates="measured")
    assert read(None, {"rewrite": "always", "rates": "usual"})[0] == Options("always", "raise", rates="usual")


def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "yes")
    with pytest.raises(ValueError, match="environment variable FLEX_INDUCTOR_REWRITE is 'yes'; it must be one of"):
        read(None, None)


def test_an_unknown_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRIT", "always")
    with pytest.raises(ValueError, match=r"unknown environment variable FLEX_INDUCTOR_REWRIT; known are .*_REWRITE"):
        read(None, None)


def test_mode_as_argument_and_as_option() -> None:
    want = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
    assert want.items() <= read("max-autotune-no-cudagraphs", None)[1].items()
    assert want.items() <= read(None, {"mode": "max-autotune-no-cudagraphs"})[1].items()


def test_mode_with_options() -> None:
    ours, settings = read(None, {"mode": "reduce-overhead", "rewrite": "always", "max_autotune": True})
    assert ours.rewrite == "always" and settings["triton.cudagraphs"] is True and settings["max_autotune"] is True


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match=r"unknown mode 'fast'; .*'reduce-overhead'"):
        read("fast", None)
