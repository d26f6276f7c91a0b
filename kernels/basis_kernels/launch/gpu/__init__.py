"""A launcher of Triton kernels of low host cost, tuning by measurement, and a driver for machines without a GPU."""

from __future__ import annotations

from basis_kernels.launch.gpu.failures import FAILURES
from basis_kernels.launch.gpu.launcher import MOST_SHAPES, Bound, Launcher, launching_by_triton
from basis_kernels.launch.gpu.tuner import Tuner

__all__ = ["FAILURES", "MOST_SHAPES", "Bound", "Launcher", "Tuner", "launching_by_triton"]
