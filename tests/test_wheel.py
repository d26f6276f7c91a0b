"""The wheel without compiled kernels runs outside the checkout; a source install without a compiler equals it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pure-Python wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-C",
        "wheel.cmake=false",
    ]
    subprocess.run([*command, "-C", f"build-dir={folder / 'build'}", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python without the editable install: only the wheel's content and the other packages."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *packages]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_configs_pages_and_catalogue_are_in_it(site: Path) -> None:
    for name in (
        "basis_search/conf/search.yaml",
        "basis_search/conf/experiment/digits.yaml",
        "basis_search/report/page.html",
        "basis_search/py.typed",
        "basis_kernels/py.typed",
        "basis_kernels/launch/tables/README.md",  # beside it lie tuning files
    ):
        assert (site / name).is_file(), name
    assert list((site / "basis_search/schemes/library/data").rglob("*.json"))
    assert not list(site.rglob("*.so"))


def test_it_runs_from_any_directory_without_compiled_kernels(site: Path, tmp_path: Path) -> None:
    code = f"""
import torch, basis_search as bs, pathlib
assert pathlib.Path(bs.__file__).is_relative_to({str(site)!r}), bs.__file__
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 48))
bs.capture(model, [torch.randn(64, 32) for _ in range(2)]).save("layers")
"""
    made = run(site, tmp_path, "-c", code)
    assert made.returncode == 0, made.stderr
    options = ("layers=layers", "run=here", "trials=2", "report=false", "max_latency=inf")  # so small, torch is slower
    searched = run(site, tmp_path, "-m", "basis_search.cli", "search", *options)
    assert searched.returncode == 0, searched.stderr
    assert "0 of them failures" in searched.stdout
    assert (tmp_path / "here" / "export" / "flops-0.75" / "basis_search.json").is_file()
    listed = run(site, tmp_path, "-m", "basis_search.cli", "kernels")
    assert "a C++ compiler at install time builds them" in listed.stdout
