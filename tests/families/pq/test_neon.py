"""The NEON kernels of product quantisation: compiled for Arm, and run where this machine can."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent / "kernels/basis_kernels"
NATIVE = platform.machine() in ("aarch64", "arm64")


def test_neon_routines_equal_the_scalar_ones_bit_for_bit(tmp_path: Path) -> None:
    compiler = shutil.which("g++" if NATIVE else "aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no compiler for Arm; on Debian: apt install g++-aarch64-linux-gnu qemu-user-static")
    program = tmp_path / "neon"
    files = [HERE / "neon/pq.cpp", SOURCES / "pq/cpu_neon.cpp", SOURCES / "pq/cpu_scalar.cpp"]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-static", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, *map(str, files), "-o", str(program)], check=True)
    runner = [] if NATIVE else [shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")]
    if None in runner:
        pytest.skip("compiled, but there is no qemu-aarch64 to run it")
    assert subprocess.run([*map(str, runner), str(program)]).returncode == 0
