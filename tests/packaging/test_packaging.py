"""Wheel, sdist, editable install and a plain checkout all import every module and carry the same data files.

The two links (flex_inductor/passes, flex_inductor/lowering) are what could break: a build tool that does not follow
them ships a package without passes, and nothing else would notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
]
FOLDERS = ["flex_inductor", "passes", "lowering"]

WALK = """
import importlib, pkgutil, pathlib, flex_inductor
names = {m.name for m in pkgutil.walk_packages(flex_inductor.__path__, "flex_inductor.")} - {"flex_inductor.__main__"}
for name in names:
    importlib.import_module(name)
print(pathlib.Path(flex_inductor.__file__).resolve().parent)
print(" ".join(sorted(names)))
"""

REACH = """
import site, sys
site.addsitedir({ours!r})
sys.path.append({packages!r})
"""
"""For `python -S`: other packages without their .pth files, which may name another installation of this one."""


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(path or ""), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*args: str, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", *args, "--no-deps", "--no-build-isolation", "-q", cwd=cwd)


def imported(path: Path, tmp: Path) -> tuple[Path, list[str]]:
    """Where the package came from and which modules it has, every one of them imported in a fresh interpreter."""
    home, names = run(sys.executable, "-c", WALK, cwd=tmp, path=path).splitlines()[-2:]
    return Path(home), names.split()


def data_files(package: Path) -> set[str]:
    """All that is no Python source, relative to the package."""
    files = (Path(d) / f for d, _, names in os.walk(package, followlinks=True) for f in names)
    return {str(f.relative_to(package)) for f in files if f.suffix in {".jinja", ".typed"}}


def source_modules() -> set[str]:
    """The modules of the checkout, read off the file names."""
    files = (Path(d) / f for d, _, names in os.walk(ROOT / "flex_inductor", followlinks=True) for f in names)
    parts = (f.relative_to(ROOT).with_suffix("").parts for f in files if f.suffix == ".py")
    dotted = {".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts if p[-1] != "__main__"}
    return dotted - {"flex_inductor"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the sources: building in the real checkout would leave files there and race between workers."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    for file in SHIPPED:
        shutil.copy(ROOT / file, copy / file)
    return copy


def check(path: Path, tmp: Path, home: Path) -> None:
    where, names = imported(path, tmp)
    assert where == home.resolve()
    assert set(names) == source_modules()
    assert data_files(where) == data_files(ROOT / "flex_inductor")


@pytest.mark.nightly
def test_an_uninstalled_checkout_imports(checkout: Path, tmp_path: Path) -> None:
    assert (checkout / "flex_inductor" / "passes").is_symlink()
    check(checkout, tmp_path, checkout / "flex_inductor")


@pytest.mark.nightly
def test_the_wheel_imports_and_declares_the_backends(checkout: Path, tmp_path: Path) -> None:
    pip("wheel", str(checkout), "-w", str(tmp_path), cwd=tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    pip("install", str(wheel), "--target", str(tmp_path / "site"), cwd=tmp_path)
    check(tmp_path / "site", tmp_path, tmp_path / "site" / "flex_inductor")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        entry_points = z.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"flex_inductor"}
    for line in ("flex = flex_inductor.backend:flex", "flex_eager = flex_inductor.backend:flex_eager"):
        assert line in entry_points


@pytest.mark.nightly
def test_the_sdist_holds_real_folders_and_installs(checkout: Path, tmp_path: Path) -> None:
    run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})", cwd=checkout)
    sdist = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(sdist) as tar:
        assert not [m.name for m in tar if m.issym()]
    pip("install", str(sdist), "--target", str(tmp_path / "site"), cwd=tmp_path)
    check(tmp_path / "site", tmp_path, tmp_path / "site" / "flex_inductor")


@pytest.mark.nightly
def test_an_editable_install_imports(checkout: Path, tmp_path: Path) -> None:
    pip("install", "-e", str(checkout), "--prefix", str(tmp_path / "prefix"), "--ignore-installed", cwd=tmp_path)
    site = next((tmp_path / "prefix").rglob("*.dist-info")).parent
    reach = REACH.format(packages=sysconfig.get_path("purelib"), ours=str(site))
    home, names = run(sys.executable, "-S", "-c", reach + WALK, cwd=tmp_path).splitlines()[-2:]
    assert Path(home) == (checkout / "flex_inductor").resolve()
    assert set(names.split()) == source_modules()
