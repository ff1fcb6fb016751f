"""The rates of a GPU: by its properties, measured and kept, and never a reason to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flex_inductor.lowering import cuda_rates
from flex_inductor.lowering.cuda_rates import H100, Rates

GPUS: dict[str, tuple[tuple[int, int], dict[str, int], tuple[float, float, float]]] = {
    "H100": ((9, 0), {"multi_processor_count": 132, "clock_rate": 1830000, "memory_clock_rate": 2619000,
                      "memory_bus_width": 5120}, (989e12, 62e12, 3.35e12)),
    "A100": ((8, 0), {"multi_processor_count": 108, "clock_rate": 1410000, "memory_clock_rate": 1593000,
                      "memory_bus_width": 5120}, (312e12, 19.5e12, 2.04e12)),
    "L40S": ((8, 9), {"multi_processor_count": 142, "clock_rate": 2520000, "memory_clock_rate": 9001000,
                      "memory_bus_width": 384}, (366e12, 91.6e12, 0.864e12)),
    "B200": ((10, 0), {"multi_processor_count": 148, "clock_rate": 1850000, "memory_clock_rate": 3996000,
                       "memory_bus_width": 8192}, (2250e12, 70e12, 8e12)),
}  # fmt: skip
"""Properties, as torch gives them, and peak rates, as data sheets do."""
FOUND = Rates(half=6e14, single=4e13, exponentials=3e12, memory=2.5e12, capability=90, measured=True)


def present(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were such a device."""
    capability, about, _ = GPUS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(**about))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: f"NVIDIA {name}")


@pytest.fixture
def an_h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An H100, and an empty cache folder."""
    present("H100", monkeypatch)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    cuda_rates.found.cache_clear()
    yield
    cuda_rates.found.cache_clear()


@pytest.mark.parametrize("name", GPUS)
def test_properties_tell_the_rates_of_data_sheets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    present(name, monkeypatch)
    rates = cuda_rates.of_properties()
    half, single, memory = GPUS[name][2]
    assert rates.half == pytest.approx(0.7 * half, rel=0.02)
    assert rates.single == pytest.approx(0.75 * single, rel=0.02)
    assert rates.memory == pytest.approx(0.9 * memory, rel=0.03)
    assert not rates.measured and rates.whose == "the rates of such a device"


def test_an_h100_is_what_was_measured(an_h100: None) -> None:
    known = cuda_rates.of_properties()
    assert all(known.numbers[n] == pytest.approx(H100.numbers[n], rel=0.1) for n in known.numbers)


def test_products_by_precision() -> None:
    assert H100.products(torch.float16, "ieee") == H100.products(torch.bfloat16, "tf32") == H100.half
    by = [H100.products(torch.float32, precision) for precision in ("tf32", "tf32x3", "ieee")]
    assert by == [H100.half / 2, H100.half / 6, H100.single]


def test_without_a_device_an_h100_is_assumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(*_: Any) -> None:
        raise RuntimeError("no NVIDIA driver")

    for name in ("get_device_capability", "get_device_properties", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, none)
    cuda_rates.found.cache_clear()
    assert cuda_rates.here() == cuda_rates.usual() == H100
    cuda_rates.found.cache_clear()


def test_what_was_measured_is_taken(an_h100: None) -> None:
    assert cuda_rates.here() == cuda_rates.usual()
    assert cuda_rates.renew(FOUND) == FOUND == cuda_rates.kept()
    assert cuda_rates.here() == cuda_rates.usual()  # to the end of the process
    cuda_rates.found.cache_clear()
    assert cuda_rates.here() == FOUND and FOUND.whose == "this device's rates"
    data = json.loads(cuda_rates.place().read_text())
    assert data["machine"] == {"gpu": "NVIDIA H100", "torch": torch.__version__} and data["half"] == 6e14


def test_of_another_device_nothing_is_taken(an_h100: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_rates.renew(FOUND)
    present("A100", monkeypatch)
    assert cuda_rates.kept() is None and cuda_rates.here() == cuda_rates.of_properties()


@pytest.mark.parametrize("value", [0, -1.0, "fast", None, float("nan")])
def test_numbers_that_are_no_rates(an_h100: None, value: object) -> None:
    cuda_rates.renew(FOUND)
    data = json.loads(cuda_rates.place().read_text())
    cuda_rates.place().write_text(json.dumps({**data, "memory": value}))
    assert cuda_rates.kept() is None and cuda_rates.here() == cuda_rates.usual()


def test_measuring(an_h100: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, at small sizes, by a clock that knows how long each measurement takes."""
    monkeypatch.setattr(cuda_rates, "SIZE", 64)
    monkeypatch.setattr(cuda_rates, "COPIED", 1 << 10)
    times = iter([1e-6, 1.1e-6, 5e-6, 1e-5, 1e-5, 1e-5, 2e-6, 2e-6, 2e-6])

    def timed(call: Any) -> float:
        call()
        return next(times)

    monkeypatch.setattr(cuda_rates, "fastest", timed)
    rates = cuda_rates.measure(on="cpu")
    assert rates.half == pytest.approx(2 * 64**3 / 1e-6) and rates.single == pytest.approx(2 * 64**3 / 1e-5)
    assert rates.memory == pytest.approx(2 * 1024 / 2e-6) and rates.measured and rates.capability == 90
    assert rates.exponentials == cuda_rates.of_properties().exponentials


def test_calls_are_timed_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("done"))
    assert cuda_rates.fastest(lambda: order.append("call"), runs=2) >= 0
    assert order == ["done", "call", "done"] * 2
