"""A wheel in an environment of its own: `torch.compile(model, backend="flex")` works, without an import of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.packaging.test_packaging import checkout, pip

__all__ = ["checkout"]
SCRIPT = Path(__file__).with_name("first_use.py")


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env={**clean, **cache, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", str(checkout), "-w", str(folder), cwd=folder)
    return next(folder.glob("*.whl"))


def environment(folder: Path) -> Path:
    """A new environment; returns its Python."""
    run(sys.executable, "-m", "venv", str(folder / "venv"), cwd=folder)
    return folder / "venv" / "bin" / "python"


@pytest.mark.compile
def test_the_wheel_beside_the_packages_at_hand(wheel: Path, tmp_path: Path) -> None:
    """Nothing is downloaded: torch and the rest are those of this environment, which a .pth file leads to. Files of
    that kind in there are not read, so an installation of ours there is not found."""
    python = environment(tmp_path)
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "-q", wheel, cwd=tmp_path)
    site = next((tmp_path / "venv").rglob("site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    said = run(python, SCRIPT, cwd=tmp_path)
    assert "rewritten into flex_attention" in said and str(site) in said
    assert "Usage" in run(tmp_path / "venv" / "bin" / "flex-inductor", "--help", cwd=tmp_path)


@pytest.mark.compile
@pytest.mark.nightly
def test_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """What it asks for is installed with it."""
    python = environment(tmp_path)
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    assert "rewritten into flex_attention" in run(python, SCRIPT, cwd=tmp_path)
