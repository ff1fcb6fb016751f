"""The rates of a machine: measured once, kept, and never a reason to fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flex_inductor.lowering import rates
from flex_inductor.lowering.rates import USUAL, Rates

THREADS = torch.get_num_threads()
FOUND, OTHERS = Rates(1e11, 1e9, 3e9, THREADS), Rates(2e11, 2e9, 6e9, THREADS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Rates]]:
    """An empty cache folder, and the rates that are measured, one after the other."""
    made = [FOUND, OTHERS]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(rates, "measure", lambda: made.pop(0))
    rates.found.cache_clear()
    yield made
    rates.found.cache_clear()


def another_process() -> Rates:
    rates.found.cache_clear()
    return rates.here()


def test_measured_once_and_kept(measured: list[Rates], tmp_path: Path) -> None:
    assert rates.here() == rates.here() == another_process() == FOUND and len(measured) == 1
    (file,) = (tmp_path / "cache").iterdir()
    data = json.loads(file.read_text())
    assert data["machine"] == rates.machine() and data["products"] == 1e11
    assert data["machine"].keys() == {"cpu", "threads", "torch"} and data["machine"]["cpu"]


def test_what_holds_in_a_process_holds_to_its_end(measured: list[Rates]) -> None:
    assert rates.here() == FOUND
    rates.place().unlink()
    rates.renew(measured[0])
    assert rates.here() == FOUND and another_process() == measured[0]


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '{"machine": 1}', b"\xff\xfe".decode("latin1")])
def test_a_file_that_cannot_be_read_is_written_anew(measured: list[Rates], text: str) -> None:
    rates.place().parent.mkdir()
    rates.place().write_text(text, encoding="latin1")
    assert rates.here() == FOUND == rates.kept()


@pytest.mark.parametrize("value", [0, -1.0, "fast", None, float("nan"), float("inf")])
def test_numbers_that_are_no_rates(measured: list[Rates], value: object) -> None:
    rates.place().parent.mkdir()
    rates.place().write_text(json.dumps({"machine": rates.machine(), **FOUND.numbers, "products": value}))
    assert rates.kept() is None and rates.here() == FOUND


def test_another_machine_has_rates_of_its_own(measured: list[Rates], monkeypatch: pytest.MonkeyPatch) -> None:
    here, place = rates.here(), rates.place()
    monkeypatch.setattr(rates, "machine", lambda: {"cpu": "another", "threads": 1, "torch": "2.13.0"})
    assert rates.place() != place and another_process() != here and not measured
    rates.place().write_text(place.read_text())  # copied from one machine to the other
    assert rates.kept() is None


@pytest.mark.parametrize("folder", ["/proc/none", "file/below"])
def test_where_nothing_can_be_kept_usual_rates_hold(
    measured: list[Rates], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / folder))
    assert rates.here() is USUAL


@pytest.mark.parametrize("error", [rates.Unsteady("measurements differ"), OSError("none"), ZeroDivisionError()])
def test_measuring_may_fail(measured: list[Rates], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(rates, "measure", fail)
    assert rates.here() is USUAL and rates.kept() is None


def test_a_full_disk_keeps_nothing(measured: list[Rates], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(data: object, file: IO[str]) -> None:
        file.write("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(json, "dump", full)
    assert rates.here() is USUAL
    assert not list((tmp_path / "cache").iterdir())


def test_the_first_of_two_processes_decides(measured: list[Rates]) -> None:
    assert rates.keep(measured[0]) == rates.keep(measured[1]) == measured[0]
    assert rates.renew(measured[1]) == measured[1] == rates.kept()
    assert [f.suffix for f in rates.place().parent.iterdir()] == [".json"]


def test_measuring_changes_nothing_and_minds_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "STEADY", 1e9)
    torch.get_num_threads()

    def state() -> list[object]:
        number = torch.get_num_threads(), torch.get_num_interop_threads()
        return [*number, torch.get_default_dtype(), torch.random.get_rng_state().tolist(), torch.is_grad_enabled()]

    before = state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu"), torch.device("meta"), FakeTensorMode(), torch.inference_mode():
            start = time.process_time()
            found = rates.measure()
            taken = time.process_time() - start
    finally:
        torch.set_default_dtype(torch.float32)
    assert state() == before and found.threads == torch.get_num_threads()
    assert taken < 1 and all(1e7 < x < 1e14 for x in found.numbers.values())


def test_what_differs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [1.0, 2.0, 1.6, 1.0, 5.0, 1.4]
    monkeypatch.setattr(rates, "fastest", lambda call: times.pop(0))
    with pytest.raises(rates.Unsteady):
        rates.steady(lambda: None, 1.0)
    assert rates.steady(lambda: None, 10.0) == 10.0


def test_nothing_is_measured_at_import() -> None:
    program = (
        "import flex_inductor.backend as b; from flex_inductor.lowering import rates; print(rates.found.cache_info())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert "misses=0" in done.stdout, done.stderr
