"""Triton kernels of Kronecker-sparse factors: one launch per factor, or one for both factors of a Monarch chain."""

from __future__ import annotations

from basis_kernels.kronecker.gpu.factor import multiply
from basis_kernels.kronecker.gpu.gradient import weight_gradient
from basis_kernels.kronecker.gpu.pair import monarch
from basis_kernels.kronecker.gpu.pair_tuning import fits

__all__ = ["fits", "monarch", "multiply", "weight_gradient"]
